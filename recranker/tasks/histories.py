"""Events of many users at once: who met what before when."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.lookup import column, index_in, opened
from recranker.errors import DataError
from recranker.schema import HISTORIES

Ints = NDArray[np.int64]

_USER = np.int64(1) << 32
"""A user's number times this, plus a sequence number, puts events in order by user and sequence."""


def group_events(events: pa.Table) -> pa.Table:
    """HISTORIES: a row per user, by user id, whatever the order of ``events``.

    Args:
        events: Columns ``user_id``, ``item_id``, ``feedback`` and ``sequence`` of INTERACTIONS, all or part of a
            user's rows.

    Raises:
        DataError: If a user has two events with the same sequence number.
    """
    users = pc.unique(events["user_id"])
    users = users.take(pc.sort_indices(users))
    numbers = index_in(events["user_id"], users)
    sequences = events["sequence"].to_numpy().astype(np.int64)
    keys = numbers * _USER + sequences
    order = np.argsort(keys)
    keys = keys[order]
    if (keys[1:] == keys[:-1]).any():
        first = int(keys[np.flatnonzero(keys[1:] == keys[:-1])[0]])
        user_id, sequence = users[first >> 32].as_py(), first % int(_USER)
        raise DataError(f"user {user_id!r} has two interactions with sequence {sequence}; run jobs.prepare again")
    offsets = pa.array(np.searchsorted(keys, np.arange(len(users) + 1) * _USER), pa.int32())
    columns = [
        pa.ListArray.from_arrays(offsets, events[name].take(pa.array(order)).combine_chunks())
        for name in ("item_id", "feedback", "sequence")
    ]
    return pa.table([users, *columns], schema=HISTORIES.schema)


@dataclass(frozen=True)
class Past:
    """Events of one kind, for instance likes, of many users."""

    items: Ints
    """``(events,)`` number of the item, by user and sequence."""
    keys: Ints
    """``(events,)`` ascending: of user and sequence."""

    @classmethod
    def of(cls, histories: pa.Table, item_ids: pa.Array, feedback: str) -> "Past":
        """The events of HISTORIES with this feedback and an item among ``item_ids``, which number the items."""
        rows, met = opened(histories["item_ids"])
        _, felt = opened(histories["feedback"])
        _, sequences = opened(histories["sequences"])
        items = index_in(met, item_ids)
        kept = (items >= 0) & column(pc.equal(felt, feedback))
        return cls(items[kept], (rows * _USER + column(sequences))[kept])

    def latest(self, users: Ints, sequences: Ints, most: int) -> Iterator[list[int]]:
        """Per user asked for: the items of its latest events before a sequence number, the most recent first.

        Args:
            users: ``(asked,)`` row of the user in HISTORIES; -1 has no events.
            sequences: ``(asked,)``.
            most: Items of each, at the most.
        """
        begins = np.searchsorted(self.keys, users * _USER)
        ends = np.searchsorted(self.keys, users * _USER + np.maximum(sequences, 0))
        for begin, end in zip(np.maximum(begins, ends - most).tolist(), ends.tolist(), strict=True):
            yield self.items[begin:end][::-1].tolist()
