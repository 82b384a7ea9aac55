"""Views of the training events: all of them, and some that stand earlier in time.

Whatever a rolled-back fold scores is out of fold for its training targets: no fit of it has seen them or anything
that came later in their users' histories. Each further roll costs one more fit of every model.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recranker.backbones.events import Interactions
from recranker.backbones.settings import BackboneSettings
from recranker.backbones.topk import ItemSets

MIN_LIKES = 5
"""A user with fewer training likes gives no rolled-back target: too little would be left to fit on."""


@dataclass(frozen=True)
class Fold:
    """What the fits of one fold may see."""

    name: str
    """'full', 'rolled_back', or 'rolled_back_1' (the earliest), 'rolled_back_2', ... where there are several."""
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

    @property
    def histories(self) -> ItemSets:
        """The likes of every user, the oldest first."""
        return ItemSets.of(self.like_users, self.like_items, self.num_users)


def make_folds(interactions: Interactions, settings: BackboneSettings) -> tuple[Fold, ...]:
    """The full fold, then the rolled-back ones, the earliest first."""
    full = Fold("full", interactions.rows("train"), np.empty(0, np.int64))
    share, most = settings.rolled_back_share, settings.max_targets_per_user
    return full, *roll_back(interactions, settings.rolls, share, most)


def roll_back(interactions: Interactions, rolls: int, share: float, max_targets: int) -> tuple[Fold, ...]:
    """``rolls`` folds that each end, user by user, where their own training targets begin.

    A user's latest ``share`` of training likes become targets: between 1 and ``max_targets`` with at least
    ``MIN_LIKES`` training likes, none below. They are dealt to the folds in stretches, the earliest to the first
    fold; a user with fewer targets than folds has them in the last ones.
    """
    likes = interactions.rows("train", likes_only=True)
    users = interactions.users[likes]
    counts = np.bincount(users, minlength=interactions.num_users)
    held = np.clip((share * counts).astype(np.int64), 1, max_targets)
    held[counts < MIN_LIKES] = 0
    from_last = np.cumsum(counts)[users] - np.arange(len(likes)) - 1  # 0 = the user's latest like
    targets = from_last < held[users]
    stretch = rolls - 1 - from_last * rolls // np.maximum(held[users], max(rolls, 1))
    names = ["rolled_back"] if rolls == 1 else [f"rolled_back_{number}" for number in range(1, rolls + 1)]
    return tuple(
        Fold(
            name, _rows_before(interactions, likes[targets & (stretch >= number)]), likes[targets & (stretch == number)]
        )
        for number, name in enumerate(names)
    )


def _rows_before(interactions: Interactions, targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Training rows without what came at or after a user's first target."""
    cut = np.full(interactions.num_users, np.iinfo(np.int32).max, dtype=np.int64)
    np.minimum.at(cut, interactions.users[targets], interactions.sequences[targets])
    train = interactions.rows("train")
    return train[interactions.sequences[train] < cut[interactions.users[train]]]


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
