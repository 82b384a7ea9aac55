"""The test users' candidate lists that hold their target, and where in a list an item stands.

Lists of different length are handled as Arrow keeps them: all items in one flat array, and for
each item the row that owns it.
"""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.errors import DataError

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class HitLists:
    """The test users and those of their candidate lists that hold the target."""

    num_users: int
    """All test users: the denominator."""
    table: pa.Table
    """CANDIDATES of the test lists with a hit, ordered by ``list_id``."""

    @property
    def lengths(self) -> Ints:
        """``(lists,)`` candidates of each list."""
        return lengths_of(self.table["candidate_ids"])


def hit_lists(interactions: pa.Table, candidates: pa.Table) -> HitLists:
    """The denominator and the lists with a hit, checked against each other.

    Raises:
        DataError: If there is no test event, a user has two, a list's target is not the user's
            test event, or ``hit`` does not say what the candidates say.
    """
    events = interactions.filter(pc.equal(interactions["split"], "test"))
    lists = candidates.filter(pc.equal(candidates["split"], "test")).sort_by("list_id").combine_chunks()
    _check_one_per_user(events["user_id"], "interactions of split 'test'")
    _check_one_per_user(lists["user_id"], "candidate lists of split 'test'")
    if not events.num_rows:
        raise DataError("evaluation needs test users, but table 'interactions' has no row of split 'test'")
    _check_targets(events, lists)
    without = events.num_rows - lists.num_rows
    if without:
        logger.warning("%d of %d test users have no candidate list; they count as misses", without, events.num_rows)
    found = positions_of(lists["target_id"], lists["candidate_ids"]) >= 0
    refuse(lists, pa.array(found != lists["hit"].to_numpy()), "column 'hit' contradicts the list's candidates")
    return HitLists(events.num_rows, lists.filter(pa.array(found)))


def positions_of(wanted: pa.ChunkedArray, lists: pa.ChunkedArray) -> Ints:
    """``(lists,)`` first place of each row's wanted id in its list, 0 = top; -1 where it is not there."""
    column = lists.combine_chunks()
    owner = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    equal = pc.equal(column.flatten(), wanted.combine_chunks().take(pa.array(owner)))
    places = np.flatnonzero(equal.to_numpy(zero_copy_only=False))
    starts = np.concatenate([[0], np.cumsum(lengths_of(lists))])
    positions = np.full(len(column), -1, dtype=np.int64)
    positions[owner[places][::-1]] = (places - starts[owner[places]])[::-1]  # the first place is written last
    return positions


def same_items(ranked: pa.ChunkedArray, offered: pa.ChunkedArray) -> NDArray[np.bool_]:
    """``(lists,)`` whether two lists of ids hold the same ids, each as often."""
    same = np.asarray(lengths_of(ranked) == lengths_of(offered), dtype=np.bool_)
    rows = pa.array(np.flatnonzero(same))
    left, right = ranked.combine_chunks().take(rows), offered.combine_chunks().take(rows)
    codes = pa.concat_arrays([left.flatten(), right.flatten()]).dictionary_encode().indices.to_numpy()
    owner = pc.list_parent_indices(left).to_numpy(zero_copy_only=False)
    ours, theirs = (half[np.lexsort((half, owner))] for half in (codes[: len(owner)], codes[len(owner) :]))
    same[np.flatnonzero(same)[owner[ours != theirs]]] = False
    return same


def _check_one_per_user(users: pa.ChunkedArray, what: str) -> None:
    counted = pc.value_counts(users)
    for entry in counted.filter(pc.greater(counted.field("counts"), 1)).slice(0, 1).to_pylist():
        raise DataError(f"{what}: one per user is needed, user {entry['values']!r} has {entry['counts']}")


def _check_targets(events: pa.Table, lists: pa.Table) -> None:
    where = pc.index_in(lists["user_id"], value_set=events["user_id"].combine_chunks())
    refuse(lists, pc.is_null(where), "the user has no interaction of split 'test'")
    expected = events["item_id"].take(where)
    refuse(
        lists, pc.not_equal(lists["target_id"], expected), "the target is not the user's interaction of split 'test'"
    )


def refuse(lists: pa.Table, wrong: pa.Array | pa.ChunkedArray, why: str) -> None:
    """Name the first list for which ``wrong`` holds and count the others.

    Raises:
        DataError: If there is one.
    """
    count = pc.sum(wrong).as_py() or 0
    if count:
        first = lists.filter(wrong).slice(0, 1).to_pylist()[0]
        others = f" (and {count - 1} other lists)" if count > 1 else ""
        raise DataError(f"user {first['user_id']!r}, list {first['list_id']!r}: {why}{others}")


def lengths_of(lists: pa.ChunkedArray) -> Ints:
    return np.asarray(pc.list_value_length(lists).to_numpy(), dtype=np.int64)
