"""A digest of a table's rows that does not see how they are laid out, in memory bounded by one batch.

Every row gets two 64-bit numbers, each made from all of its values in the order of the columns; a table's digest holds
how many rows there are and the two sums of these numbers modulo 2^64. Sums do not depend on order, so rows may come in
any order, from any files, row groups and batches, and parts may be summed apart. A row that stands twice counts twice.

Two tables that differ share a digest by chance with probability 2^-128. It is no cryptographic hash: it finds what was
lost, doubled or changed, not what somebody forged.

Source of sums over sets: Bellare & Micciancio 1997, doi:10.1007/3-540-69053-0_13 (AdHash).
"""

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.randomness import keys_of, mix

Lanes = NDArray[np.uint64]
"""``(2, values)`` two independent numbers for each value."""

LANES = 2
BATCH_ROWS = 1 << 16
"""Rows worked on at a time, so that the arrays of a step stay in the cache; digests do not depend on it."""

_NULL = 0x9D39247E33776D41
"""Goes in for a value that is null; that of an empty string or list is another."""


class RowHash:
    """The digest of all rows added so far.

    Args:
        schema: Of every table added; names and types of columns are part of the digest, metadata is not.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.rows = 0
        self._columns = [(field.name, str(field.type)) for field in schema]
        self._sums = np.zeros(LANES, dtype=np.uint64)

    def add(self, table: pa.Table | pa.RecordBatch) -> None:
        """Count the rows of ``table`` in."""
        whole = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
        for batch in whole.select([name for name, _ in self._columns]).to_batches(max_chunksize=BATCH_ROWS):
            self._sums += _rows(batch.columns, batch.num_rows).sum(axis=1, dtype=np.uint64)
            self.rows += batch.num_rows

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        parts = [self._columns, self.rows, self._sums.tolist()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _rows(columns: list[pa.Array], count: int) -> Lanes:
    """One number per row and lane, of all its values in the order of the columns."""
    rows = np.zeros((LANES, count), dtype=np.uint64)
    for number, values in enumerate(columns, start=1):
        rows = mix(rows ^ _values(values), number)
    return rows


def _values(array: pa.Array) -> Lanes:
    """One number per value and lane."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _values(array.dictionary_decode())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        filled = pc.fill_null(array, "") if array.null_count else array
        found = np.stack([keys_of(filled, "row hash", lane) for lane in range(LANES)])
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        found = _lists(array)
    elif pa.types.is_struct(kind):
        found = _rows(array.flatten(), len(array))
    else:
        found = _numbers(array)
    if array.null_count:
        found[:, np.asarray(array.is_null())] = np.uint64(_NULL)
    return found


def _lists(array: pa.Array) -> Lanes:
    """Of each list's values, their places and how many there are."""
    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0)).astype(np.int64)
    ends = np.cumsum(lengths)
    places = np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)
    values = mix(_values(pc.list_flatten(array)), places)
    so_far = np.concatenate([np.zeros((LANES, 1), np.uint64), np.cumsum(values, axis=1, dtype=np.uint64)], axis=1)
    return mix(so_far[:, ends] - so_far[:, ends - lengths], lengths)  # wraps modulo 2^64 as sums do


def _numbers(array: pa.Array) -> Lanes:
    """Of the bits of each number, truth value or time."""
    kind = array.type
    if not (pa.types.is_primitive(kind) or pa.types.is_null(kind)):
        raise TypeError(f"no row hash is known for type {kind}")
    if pa.types.is_null(kind):
        bits: NDArray[Any] = np.zeros(len(array), dtype=np.uint64)
    elif pa.types.is_boolean(kind):
        bits = np.asarray(pc.fill_null(array, False)).astype(np.uint64)
    else:
        stored = array.view(_UNSIGNED[kind.bit_width])
        bits = np.asarray(pc.fill_null(stored, 0)).astype(np.uint64)
    return np.stack([mix(bits, lane) for lane in range(LANES)])


_UNSIGNED = {8: pa.uint8(), 16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}
