"""Checks of the INTERACTIONS table: order, scale, feedback and split."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.leakage.gate import TEST, TRAIN, VALIDATION, refuse, splits_of
from recranker.data.lookup import Pairs, codes, column, places


def check_interactions(interactions: pa.Table, facts: Mapping[str, Any]) -> None:
    """Order, scale, feedback and split of the table agree with one another and with the facts.

    Args:
        interactions: Rows of ``schema.INTERACTIONS`` in any order.
        facts: ``rating_min, rating_max, like_at_least, dislike_below, has_time, has_ratings`` of stage 'prepare'.

    Raises:
        LeakageError: Naming the trap, a user and an item, and the way out.
    """
    table = interactions.sort_by([("user_id", "ascending"), ("sequence", "ascending")]).combine_chunks()
    _check_repeats(table)
    _check_order(table, has_time=bool(facts["has_time"]))
    if facts["has_ratings"]:
        _check_ratings(table, facts)
    _check_split(table)


def _check_repeats(table: pa.Table) -> None:
    repeated = np.zeros(table.num_rows, dtype=bool)
    repeated[Pairs.of(table["user_id"], table["item_id"]).repeated] = True
    _refuse(repeated, table, "an item stands twice in a history, so a target could be in it", "keep one row per pair")


def _check_order(table: pa.Table, *, has_time: bool) -> None:
    users = codes(table["user_id"])
    wrong = column(table["sequence"]) != places(users)
    _refuse(wrong, table, "sequence numbers of a user are not 0, 1, 2, ...", "number the events from the oldest")
    if has_time:
        times = column(pc.fill_null(table["timestamp"], -1))
        earlier = np.zeros(len(times), dtype=bool)
        earlier[1:] = (times[1:] < times[:-1]) & (users[1:] == users[:-1])
        trap = "a later event has an earlier sequence number, so the future is in the history"
        _refuse(earlier | (times < 0), table, trap, "order each user's events by timestamp")


def _check_ratings(table: pa.Table, facts: Mapping[str, Any]) -> None:
    ratings = column(table["rating"]).astype(np.float32)  # null becomes NaN, which is outside
    lowest, highest, like, dislike = (
        np.float32(facts[name]) for name in ("rating_min", "rating_max", "like_at_least", "dislike_below")
    )
    outside = ~((ratings >= lowest) & (ratings <= highest))
    trap = f"a rating is off the scale of the manifest ({lowest:g} to {highest:g})"
    _refuse(outside, table, trap, "set data.rating_min and data.rating_max to the scale of this data set")
    due = np.where(ratings >= like, "like", np.where(ratings < dislike, "dislike", "neutral"))
    wrong = column(table["feedback"]) != due
    _refuse(wrong, table, "feedback does not follow from the rating", "derive it with data.splits.feedback_of")


def _check_split(table: pa.Table) -> None:
    users, split = codes(table["user_id"]), splits_of(table)
    likes = column(pc.equal(table["feedback"], "like"))
    held_out = (split == VALIDATION) | (split == TEST)
    _refuse(held_out & ~likes, table, "a held-out target is not a like", "hold out likes only")
    _refuse(split < 0, table, "a split has an unknown name", "use train, validation, test or unused")
    for target in (VALIDATION, TEST):
        _check_targets(table, users, split, target)
    known = np.isin(codes(table["item_id"]), codes(table["item_id"])[likes & (split == TRAIN)])
    _refuse(held_out & ~known, table, "a target's item is in no training like", "move such targets to 'unused'")


def _check_targets(table: pa.Table, users: NDArray[np.int64], split: NDArray[np.int64], target: int) -> None:
    """A user has at most one target of a kind, and nothing of an earlier kind comes after it."""
    rows = np.flatnonzero(split == target)
    second = np.zeros(len(split), dtype=bool)
    second[rows[1:][users[rows[1:]] == users[rows[:-1]]]] = True
    _refuse(second, table, "a user has two targets of one split", "hold out one like for each")
    first = np.full(users.max(initial=0) + 1, np.iinfo(np.int64).max)
    first[users[rows]] = rows  # rows are in the order of the history
    late = (split >= TRAIN) & (split < target) & (np.arange(len(split)) > first[users])
    _refuse(late, table, "training goes on after a held-out target", "make what follows the validation like 'unused'")


def _refuse(bad: NDArray[np.bool_], table: pa.Table, trap: str, way_out: str) -> None:
    refuse(bad, table["user_id"], table["item_id"], trap=trap, way_out=way_out)
