"""Order, feedback and the leave-one-out split, each as a pure function over whole columns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.lookup import codes, places
from recranker.randomness import keys_of, mix
from recranker.schema import INTERACTIONS

MIN_LIKES = 3
"""Likes a user needs to be tested: one for training, one for validation, one for the test."""


@dataclass(frozen=True)
class Thresholds:
    """What a rating means."""

    like_at_least: float
    dislike_below: float


def split_interactions(events: pa.Table, thresholds: Thresholds, seed: int) -> tuple[pa.Table, dict[str, int]]:
    """``events`` as the table ``schema.INTERACTIONS``, and how many rows each step kept or moved.

    Args:
        events: ``user_id, item_id, rating, timestamp`` in any order; rating and timestamp may be null throughout.
        thresholds: Of likes and dislikes.
        seed: Keys the order of simultaneous events.

    Source: leave-one-out over likes as in RecRanker, arXiv 2312.16018, section 5.1.
    """
    kept = drop_repeats(events)
    ordered = in_order(kept, seed)
    feedback = feedback_of(ordered["rating"], thresholds)
    users, items = codes(ordered["user_id"]), codes(ordered["item_id"])
    split, counts = leave_one_out(users, items, feedback == "like")
    columns: dict[str, Any] = {name: ordered[name] for name in ("user_id", "item_id", "rating", "timestamp")}
    columns["rating"] = columns["rating"].cast(pa.float32())
    columns["sequence"] = places(users).astype(np.int32)
    columns |= {"feedback": pa.array(feedback, pa.string()), "split": pa.array(split, pa.string())}
    counts = {"repeated_interactions_dropped": events.num_rows - kept.num_rows, **_totals(feedback), **counts}
    return pa.table(columns, schema=INTERACTIONS.schema), counts


def drop_repeats(events: pa.Table) -> pa.Table:
    """One row per user and item: the latest, and of simultaneous ones the highest rated."""
    names = ["user_id", "item_id", "timestamp", "rating"]
    ordered = events.select(names).sort_by([(name, "ascending") for name in names])
    same = np.ones(max(events.num_rows - 1, 0), dtype=bool)
    for name in ("user_id", "item_id"):
        column = codes(ordered[name])
        same &= column[1:] == column[:-1]
    return ordered.filter(pa.array(np.append(~same, True)[: events.num_rows])).select(events.schema.names)


def in_order(events: pa.Table, seed: int) -> pa.Table:
    """``events`` by user and, within a user, from the oldest to the latest; what stood where before does not matter.

    Simultaneous events, and all events where there is no time, stand in a random order keyed by (seed, user, item):
    any natural order (item id, rating) would tell the test item apart from the others.
    """
    shuffle = pa.array(_pair_keys(events, seed))
    keyed = events.append_column("_shuffle", shuffle)
    order = [("user_id", "ascending"), ("timestamp", "ascending"), ("_shuffle", "ascending"), ("item_id", "ascending")]
    return keyed.sort_by(order).drop_columns("_shuffle").combine_chunks()


def feedback_of(ratings: pa.ChunkedArray, thresholds: Thresholds) -> NDArray[np.str_]:
    """``(rows,)`` 'like', 'neutral' or 'dislike'; without a rating the interaction itself is a like."""
    values = np.asarray(ratings.cast(pa.float64()).fill_null(np.inf))
    below = np.where(values < thresholds.dislike_below, "dislike", "neutral")
    return np.where(values >= thresholds.like_at_least, "like", below)


def leave_one_out(
    users: NDArray[np.int64], items: NDArray[np.int64], likes: NDArray[np.bool_]
) -> tuple[NDArray[np.str_], dict[str, int]]:
    """Which split each event belongs to, and the counts per step.

    A user's last like is the test target, the last but one the validation target, everything before it training.
    Whatever else follows the validation target is 'unused'. Users with fewer than ``MIN_LIKES`` likes only train.
    A target whose item no training like holds could never be retrieved: it becomes 'unused' and is counted.

    Args:
        users: ``(events,)`` one code per user; a user's events stand together, oldest first.
        items: ``(events,)`` one code per item.
        likes: ``(events,)``.

    Returns:
        ``(events,)`` 'train', 'validation', 'test' or 'unused'; and the counts.
    """
    split = np.full(len(users), "train", dtype="<U10")
    left = likes_left(users, likes)
    enough = np.bincount(users, weights=likes)[users] >= MIN_LIKES if len(users) else likes
    validation = enough & likes & (left == 1)
    test = enough & likes & (left == 0)
    split[enough & (left <= 1)] = "unused"  # left == 1 starts at the validation like
    split[validation], split[test] = "validation", "test"
    trained = np.isin(items, items[likes & (split == "train")])
    split[(validation | test) & ~trained] = "unused"
    counts = {
        "users": len(np.unique(users)),
        "users_with_3_likes": int(test.sum()),
        "validation_items_unseen_in_training": int((validation & ~trained).sum()),
        "test_items_unseen_in_training": int((test & ~trained).sum()),
        "training_likes": int((likes & (split == "train")).sum()),
    }
    return split, counts | {f"split_{name}": int((split == name).sum()) for name in SPLITS}


SPLITS = ("train", "validation", "test", "unused")


def likes_left(users: NDArray[np.int64], likes: NDArray[np.bool_]) -> NDArray[np.int64]:
    """``(events,)`` how many likes of the same user come later; events of a user stand together."""
    so_far = np.cumsum(likes)
    last = np.flatnonzero(np.append(users[1:] != users[:-1], True)) if len(users) else np.empty(0, np.int64)
    lengths = np.diff(np.append(-1, last))
    left: NDArray[np.int64] = np.repeat(so_far[last], lengths) - so_far
    return left


def _pair_keys(events: pa.Table, seed: int) -> NDArray[np.uint64]:
    """``(rows,)`` a 64-bit key of (seed, user, item), hashing each id once."""
    user_keys, item_keys = (
        keys_of(pc.unique(events[name]).to_pylist(), seed, "order", name)[codes(events[name])]
        for name in ("user_id", "item_id")
    )
    return mix(user_keys, item_keys)


def _totals(feedback: NDArray[np.str_]) -> dict[str, int]:
    plural = {"like": "likes", "neutral": "neutral", "dislike": "dislikes"}
    return {name: int((feedback == kind).sum()) for kind, name in plural.items()}
