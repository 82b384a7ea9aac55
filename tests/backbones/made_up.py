"""Made-up folds and interactions for the tests of this folder."""

import numpy as np
import pyarrow as pa

from recranker.backbones.folds import FoldData
from recranker.schema import INTERACTIONS

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
