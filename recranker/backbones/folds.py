"""The two views of the training events: all of them, and one that stands earlier in time.

Whatever the ``rolled_back`` fold scores is out of fold for the training targets: no fit of it has
seen them or anything that came later in their users' histories.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recranker.backbones.events import Interactions
from recranker.backbones.settings import BackboneSettings

MIN_LIKES = 5
"""A user with fewer training likes gives no rolled-back target: too little would be left to fit on."""


@dataclass(frozen=True)
class Fold:
    """What the fits of one fold may see."""

    name: str
    """'full' or 'rolled_back'."""
    rows: NDArray[np.int64]
    """Rows of the interactions that a fit sees, ascending."""
    targets: NDArray[np.int64]
    """Rows of the training likes held back from it."""


@dataclass(frozen=True)
class FoldData:
    """The arrays the fits of one fold need, and nothing they must not know."""

    name: str
    num_users: int
    num_items: int
    like_users: NDArray[np.int64]
    """``(likes,)`` sorted by (user, sequence)."""
    like_items: NDArray[np.int64]
    """``(likes,)``."""
    rated_users: NDArray[np.int64]
    """``(ratings,)``; empty where feedback is implicit."""
    rated_items: NDArray[np.int64]
    """``(ratings,)``."""
    ratings: NDArray[np.float32]
    """``(ratings,)``."""
    validation_users: NDArray[np.int64]
    """``(validation,)`` for early stopping; empty in the rolled-back fold."""
    validation_items: NDArray[np.int64]
    """``(validation,)`` their targets."""


def make_folds(interactions: Interactions, settings: BackboneSettings) -> tuple[Fold, Fold]:
    """The full and the rolled-back fold."""
    full = Fold("full", interactions.rows("train"), np.empty(0, np.int64))
    return full, roll_back(interactions, settings.rolled_back_share, settings.max_targets_per_user)


def roll_back(interactions: Interactions, share: float, max_targets: int) -> Fold:
    """Training events without each user's latest ``share`` of likes and all that came at or after the first of these.

    Between 1 and ``max_targets`` targets for a user with at least ``MIN_LIKES`` training likes, none below.
    """
    likes = interactions.rows("train", likes_only=True)
    users = interactions.users[likes]
    counts = np.bincount(users, minlength=interactions.num_users)
    held = np.clip((share * counts).astype(np.int64), 1, max_targets)
    held[counts < MIN_LIKES] = 0
    ends = np.cumsum(counts)
    from_last = ends[users] - np.arange(len(likes))  # 1 = the user's latest like; rows are sorted by (user, sequence)
    targets = likes[from_last <= held[users]]
    cut = np.full(interactions.num_users, np.iinfo(np.int32).max, dtype=np.int64)
    np.minimum.at(cut, interactions.users[targets], interactions.sequences[targets])
    train = interactions.rows("train")
    rows = train[interactions.sequences[train] < cut[interactions.users[train]]]
    return Fold("rolled_back", rows, targets)


def data_of(interactions: Interactions, fold: Fold) -> FoldData:
    """The arrays of one fold; validation targets go with the full fold only."""
    likes = fold.rows[interactions.likes[fold.rows]]
    rated = fold.rows[~np.isnan(interactions.ratings[fold.rows])]
    validation = interactions.rows("validation") if fold.name == "full" else np.empty(0, np.int64)
    return FoldData(
        fold.name,
        interactions.num_users,
        interactions.num_items,
        interactions.users[likes],
        interactions.items[likes],
        interactions.users[rated],
        interactions.items[rated],
        interactions.ratings[rated],
        interactions.users[validation],
        interactions.items[validation],
    )
