"""The order of a user's interactions: the latest of repeated ones, and a keyed order of simultaneous ones."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.lookup import codes
from recranker.randomness import key_of, mix


def drop_repeats(events: pa.Table) -> pa.Table:
    """One row per user and item: the latest, and of simultaneous ones the highest rated."""
    ordered = events.sort_by([(name, "ascending") for name in ("user_id", "item_id", "timestamp", "rating")])
    same = np.ones(max(events.num_rows - 1, 0), dtype=bool)
    for name in ("user_id", "item_id"):
        column = codes(ordered[name])
        same &= column[1:] == column[:-1]
    return ordered.filter(pa.array(np.append(~same, True)[: events.num_rows]))


def in_order(events: pa.Table, seed: int, *, first_by: NDArray[np.int64] | None = None) -> pa.Table:
    """``events`` by user and, within a user, from the oldest to the latest; what stood where before does not matter.

    Simultaneous events, and all events where there is no time, stand in a random order keyed by (seed, user, item):
    any natural order (item id, rating) would tell the test item apart from the others.

    Args:
        events: With user_id, item_id and timestamp (or place in the source's sequence, or nulls).
        seed: Keys the order of simultaneous events.
        first_by: ``(events,)`` what goes before everything else within a user, where order is to follow it.
    """
    parts = np.zeros(events.num_rows, dtype=np.int64) if first_by is None else first_by
    keyed = events.append_column("_part", pa.array(parts)).append_column("_shuffle", pa.array(_pair_keys(events, seed)))
    names = ("user_id", "_part", "timestamp", "_shuffle", "item_id")
    ordered = keyed.sort_by([(name, "ascending") for name in names])
    return ordered.drop_columns(["_part", "_shuffle"]).combine_chunks()


def in_file_order(events: pa.Table) -> pa.Table:
    """``events`` by user and time, simultaneous ones as they stood in the file (column 'row')."""
    return events.sort_by([(name, "ascending") for name in ("user_id", "timestamp", "row")]).combine_chunks()


def _pair_keys(events: pa.Table, seed: int) -> NDArray[np.uint64]:
    """``(rows,)`` a 64-bit key of (seed, user, item), hashing each id once.

    ``key_of`` and no faster key: published counts of test users hang on the order it gives.
    """
    user_keys, item_keys = (
        np.array([key_of(seed, "order", name, one) for one in pc.unique(events[name]).to_pylist()], dtype=np.uint64)[
            codes(events[name])
        ]
        for name in ("user_id", "item_id")
    )
    return mix(user_keys, item_keys)
