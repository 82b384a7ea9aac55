"""Made-up folds and interactions for the tests of this folder."""

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from recranker.backbones.fit import Fit, Queries
from recranker.backbones.fits import fit_closed_form, fit_retriever
from recranker.backbones.folds import FoldData
from recranker.backbones.settings import (
    ClosedForm,
    EASESettings,
    ItemKNNSettings,
    LightGCNSettings,
    MFSettings,
    MixGCFSettings,
    PopularitySettings,
    SASRecSettings,
    SGLSettings,
    Trained,
)
from recranker.backbones.topk import ItemSets
from recranker.backbones.training import Alone
from recranker.schema import INTERACTIONS

CPU = torch.device("cpu")
SMALL = {"dim": 8, "batch_size": 64, "learning_rate": 1e-2, "epochs": 40, "check_every": 5}
TRAINED: tuple[Trained, ...] = (
    MFSettings(**SMALL),
    LightGCNSettings(**SMALL),
    SGLSettings(**SMALL, contrast=0.01),
    MixGCFSettings(**SMALL, negatives=4, layers=2),
    SASRecSettings(**SMALL | {"batch_size": 20}, max_length=12, layers=1, dropout=0.0),
)
CLOSED_FORMS: tuple[ClosedForm, ...] = (PopularitySettings(), ItemKNNSettings(), EASESettings(l2=10.0))
EVERY_KIND = CLOSED_FORMS + TRAINED
"""Popularity first."""

NOBODY = np.empty(0, np.int64)


def fold_of(
    likes: list[tuple[int, int]],
    *,
    num_users: int,
    num_items: int,
    ratings: list[tuple[int, int, float]] | None = None,
    validation: list[tuple[int, int]] | None = None,
) -> FoldData:
    """A fold named 'full' from (user, item) likes, (user, item, rating) ratings and (user, item) validation targets."""
    rated = ratings or []
    pairs = np.array(likes, dtype=np.int64).reshape(-1, 2)
    held_out = np.array(validation or [], dtype=np.int64).reshape(-1, 2)
    return FoldData(
        "full",
        num_users,
        num_items,
        pairs[:, 0],
        pairs[:, 1],
        np.array([one[0] for one in rated], dtype=np.int64),
        np.array([one[1] for one in rated], dtype=np.int64),
        np.array([one[2] for one in rated], dtype=np.float32),
        held_out[:, 0],
        held_out[:, 1],
    )


def two_tastes(num_users: int = 40, num_items: int = 40, seed: int = 0) -> FoldData:
    """Even users like even items, odd users odd ones; one such like per user is kept for validation."""
    random = np.random.default_rng(seed)
    likes, validation = [], []
    for user in range(num_users):
        own = np.arange(user % 2, num_items, 2)
        chosen = random.permutation(own)[:11]
        likes += [(user, int(item)) for item in chosen[:10]]
        validation.append((user, int(chosen[10])))
    return fold_of(likes, num_users=num_users, num_items=num_items, validation=validation)


def many_interactions(num_users: int = 12, num_items: int = 30, seed: int = 0, *, rated: bool = True) -> pa.Table:
    """INTERACTIONS of users with 4 to 17 events each, their last two likes held out."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        items = random.permutation(num_items)[: 4 + user]
        ratings = random.integers(1, 6, len(items)) if rated else np.full(len(items), 5)
        ratings[-3:] = 5
        for place, (item, rating) in enumerate(zip(items.tolist(), ratings.tolist(), strict=True)):
            left = len(items) - 1 - place
            rows.append(
                {
                    "user_id": f"u{user}",
                    "item_id": f"i{item}",
                    "rating": float(rating) if rated else None,
                    "timestamp": 100 + place,
                    "sequence": place,
                    "feedback": "like" if rating >= 4 else "neutral" if rating == 3 else "dislike",
                    "split": {0: "test", 1: "validation"}.get(left, "train"),
                }
            )
    return pa.Table.from_pylist(rows, schema=INTERACTIONS.schema)


def fit_on(fold: FoldData, settings: Trained | ClosedForm, seed: int = 0) -> Fit:
    """A fit of any kind by one worker."""
    if isinstance(settings, ClosedForm):
        return fit_closed_form(fold, settings, seed)
    return fit_retriever(fold, settings, seed, Alone(), CPU)


def queries_of(fold: FoldData) -> Queries:
    """Every user with the likes of the fold."""
    histories = ItemSets.of(fold.like_users, fold.like_items, fold.num_users)
    return Queries(np.arange(fold.num_users), histories)


def histories_of(*histories: list[int]) -> ItemSets:
    """One history per argument, the oldest like first."""
    rows = np.repeat(np.arange(len(histories)), [len(one) for one in histories])
    items = np.array([item for one in histories for item in one], dtype=np.int64)
    return ItemSets.of(rows, items, len(histories))


def asked_with(*histories: list[int]) -> Queries:
    """One query per history, by users 0, 1, 2, ..."""
    return Queries(np.arange(len(histories)), histories_of(*histories))


def random_pairs(num_users: int, num_items: int, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Up to ``count`` distinct (user, item) pairs, by user."""
    drawn = np.unique(np.random.default_rng(seed).integers(0, num_users * num_items, count))
    return [(int(one) // num_items, int(one) % num_items) for one in drawn]


def everything(num_items: int) -> NDArray[np.bool_]:
    """Every item may be a candidate."""
    return np.ones(num_items, dtype=np.bool_)
