"""The test users' candidate lists, and orders of their candidates.

Lists differ in length. Ids are compared as Arrow keeps them: all items in one flat array, and for
each item the row that owns it. Numbers are ``(lists, width)`` with padding at the end.
"""

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.errors import DataError

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PADDING = -1
"""Stands in an order behind a list's last candidate."""


@dataclass(frozen=True)
class OfferedLists:
    """What the test users were offered."""

    events: pa.Table
    """INTERACTIONS of split 'test': one target per user; all users, the denominator."""
    table: pa.Table
    """CANDIDATES of split 'test', ordered by ``list_id``; a user without a list is a miss."""

    @property
    def num_users(self) -> int:
        """All test users."""
        return int(self.events.num_rows)

    @cached_property
    def target(self) -> Ints:
        """``(lists,)`` the target's place among the candidates, 0 = top; -1 where it was not retrieved."""
        return positions_of(self.table["target_id"], self.table["candidate_ids"])

    @cached_property
    def hit(self) -> Bools:
        """``(lists,)`` whether the target was retrieved."""
        return np.asarray(self.target >= 0, dtype=np.bool_)

    @cached_property
    def lengths(self) -> Ints:
        """``(lists,)`` candidates of each list."""
        return lengths_of(self.table["candidate_ids"])

    @cached_property
    def places(self) -> Ints:
        """``(lists, width)`` the retriever's own order: 0, 1, 2, ... and padding."""
        counted = np.arange(self.lengths.max(initial=1))
        return np.where(counted < self.lengths[:, None], counted, PADDING)

    @cached_property
    def event_of(self) -> Ints:
        """``(lists,)`` row of ``events`` each list is for."""
        where = pc.index_in(self.table["user_id"], value_set=self.events["user_id"].combine_chunks())
        return np.asarray(where.to_numpy(), dtype=np.int64)


def offered_lists(interactions: pa.Table, candidates: pa.Table) -> OfferedLists:
    """The denominator and the test lists, checked against each other.

    Raises:
        DataError: If there is no test event, a user has two, a list's target is not the user's
            test event, or ``hit`` does not say what the candidates say.
    """
    events = interactions.filter(pc.equal(interactions["split"], "test")).sort_by("user_id").combine_chunks()
    lists = candidates.filter(pc.equal(candidates["split"], "test")).sort_by("list_id").combine_chunks()
    _check_one_per_user(events["user_id"], "interactions of split 'test'")
    _check_one_per_user(lists["user_id"], "candidate lists of split 'test'")
    if not events.num_rows:
        raise DataError("evaluation needs test users, but table 'interactions' has no row of split 'test'")
    _check_targets(events, lists)
    without = events.num_rows - lists.num_rows
    if without:
        logger.warning("%d of %d test users have no candidate list; they count as misses", without, events.num_rows)
    offered = OfferedLists(events, lists)
    refuse(lists, offered.hit != lists["hit"].to_numpy(), "column 'hit' contradicts the list's candidates")
    return offered


def positions_of(wanted: pa.ChunkedArray, lists: pa.ChunkedArray) -> Ints:
    """``(lists,)`` first place of each row's wanted id in its list, 0 = top; -1 where it is not there."""
    column = lists.combine_chunks()
    owner, place = _owner_and_place(column)
    equal = pc.equal(column.flatten(), wanted.combine_chunks().take(pa.array(owner)))
    found = np.flatnonzero(equal.to_numpy(zero_copy_only=False))
    positions = np.full(len(column), -1, dtype=np.int64)
    positions[owner[found][::-1]] = place[found][::-1]  # the first place is written last
    return positions


def same_items(ranked: pa.ChunkedArray, offered: pa.ChunkedArray) -> Bools:
    """``(lists,)`` whether two lists of ids hold the same ids, each as often."""
    same = np.asarray(lengths_of(ranked) == lengths_of(offered), dtype=np.bool_)
    rows = pa.array(np.flatnonzero(same))
    left, right = ranked.combine_chunks().take(rows), offered.combine_chunks().take(rows)
    owner, _ = _owner_and_place(left)
    ours, theirs = _codes(left, right)
    differs = ours[np.lexsort((ours, owner))] != theirs[np.lexsort((theirs, owner))]
    same[np.flatnonzero(same)[owner[differs]]] = False
    return same


def order_of_ids(ranked: pa.ChunkedArray, offered: pa.ChunkedArray) -> Ints:
    """``(lists, width)`` the places in ``offered`` of the ids in ``ranked``, which must hold the same items."""
    left, right = ranked.combine_chunks(), offered.combine_chunks()
    owner, place = _owner_and_place(right)
    ours, theirs = _codes(left, right)
    flat = np.empty(len(owner), dtype=np.int64)
    flat[np.lexsort((ours, owner))] = place[np.lexsort((theirs, owner))]
    order = np.full((len(right), int(lengths_of(offered).max(initial=1))), PADDING, dtype=np.int64)
    order[owner, place] = flat
    return order


def order_by_scores(scores: pa.ChunkedArray) -> Ints:
    """``(lists, width)`` places by falling score, ties in the retriever's order."""
    column = scores.combine_chunks()
    owner, place = _owner_and_place(column)
    matrix = np.full((len(column), int(lengths_of(scores).max(initial=1))), -np.inf)
    matrix[owner, place] = column.flatten().to_numpy(zero_copy_only=False)
    order = np.argsort(-matrix, axis=1, kind="stable")
    return np.where(np.arange(matrix.shape[1]) < lengths_of(scores)[:, None], order, PADDING)


def unusable_scores(scores: pa.ChunkedArray, lengths: Ints) -> Bools:
    """``(lists,)`` where there is not one finite score per candidate."""
    column = scores.combine_chunks()
    owner, _ = _owner_and_place(column)
    finite = np.isfinite(column.flatten().to_numpy(zero_copy_only=False))
    return np.asarray(
        (lengths_of(scores) != lengths) | (np.bincount(owner[~finite], minlength=len(column)) > 0), dtype=np.bool_
    )


def refuse(lists: pa.Table, wrong: pa.Array | pa.ChunkedArray | Bools, why: str) -> None:
    """Name the first list for which ``wrong`` holds and count the others.

    Raises:
        DataError: If there is one.
    """
    mask = pa.array(wrong) if isinstance(wrong, np.ndarray) else wrong
    count = pc.sum(mask).as_py() or 0
    if count:
        first = lists.filter(mask).slice(0, 1).to_pylist()[0]
        others = f" (and {count - 1} other lists)" if count > 1 else ""
        raise DataError(f"user {first['user_id']!r}, list {first['list_id']!r}: {why}{others}")


def refuse_duplicates(column: pa.ChunkedArray, why: str) -> None:
    """Refuse a column of list ids that names one twice.

    Raises:
        DataError: ``why`` with the id and its count in its braces.
    """
    counted = pc.value_counts(column)
    for entry in counted.filter(pc.greater(counted.field("counts"), 1)).slice(0, 1).to_pylist():
        raise DataError(why.format(repr(entry["values"]), entry["counts"]))


def lengths_of(lists: pa.ChunkedArray) -> Ints:
    return np.asarray(pc.list_value_length(lists).to_numpy(), dtype=np.int64)


def _owner_and_place(column: pa.Array) -> tuple[Ints, Ints]:
    """``(items,)`` each: the row that owns the item, and its place there."""
    owner = pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int64)
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    return owner, np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]


def _codes(left: pa.Array, right: pa.Array) -> tuple[Ints, Ints]:
    """``(items,)`` each: the flattened ids as numbers, equal where the ids are."""
    both = pa.concat_arrays([left.flatten(), right.flatten()]).dictionary_encode().indices
    codes = both.to_numpy(zero_copy_only=False)
    cut = len(left.flatten())
    return codes[:cut], codes[cut:]


def _check_one_per_user(users: pa.ChunkedArray, what: str) -> None:
    refuse_duplicates(users, f"{what}: one per user is needed, user {{}} has {{}}")


def _check_targets(events: pa.Table, lists: pa.Table) -> None:
    where = pc.index_in(lists["user_id"], value_set=events["user_id"].combine_chunks())
    refuse(lists, pc.is_null(where), "the user has no interaction of split 'test'")
    expected = events["item_id"].take(where)
    refuse(
        lists, pc.not_equal(lists["target_id"], expected), "the target is not the user's interaction of split 'test'"
    )
