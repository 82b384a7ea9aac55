"""Finding rows by a pair of ids, and opening list columns, over whole columns at once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pairs:
    """The rows of a table by two text columns, for instance user and item; ids, never positions, are compared."""

    left_ids: pa.Array
    right_ids: pa.Array
    codes: NDArray[np.int64]
    """``(rows,)`` ascending."""
    rows: NDArray[np.int64]
    """``(rows,)`` the row each code belongs to."""

    @classmethod
    def of(cls, left: pa.ChunkedArray, right: pa.ChunkedArray) -> "Pairs":
        """Where each pair stands; of a repeated pair the first row is found."""
        left_ids, right_ids = pc.unique(left), pc.unique(right)
        codes = index_in(left, left_ids) * len(right_ids) + index_in(right, right_ids)
        rows = np.argsort(codes, kind="stable")
        return cls(left_ids, right_ids, codes[rows], rows)

    def find(self, left: pa.ChunkedArray, right: pa.ChunkedArray) -> NDArray[np.int64]:
        """``(pairs,)`` the row of each pair, -1 where there is none."""
        if not len(self.codes):
            return np.full(len(left), -1, dtype=np.int64)
        first, second = index_in(left, self.left_ids), index_in(right, self.right_ids)
        wanted = first * len(self.right_ids) + second
        place = np.minimum(np.searchsorted(self.codes, wanted), len(self.codes) - 1)
        known = (first >= 0) & (second >= 0) & (self.codes[place] == wanted)
        return np.where(known, self.rows[place], -1)

    @property
    def repeated(self) -> NDArray[np.int64]:
        """Rows whose pair stands in an earlier row as well."""
        same = np.append(False, self.codes[1:] == self.codes[:-1])[: len(self.codes)]
        repeated: NDArray[np.int64] = self.rows[same]
        return repeated


def index_in(values: pa.Array | pa.ChunkedArray, ids: pa.Array) -> NDArray[np.int64]:
    """``(rows,)`` place of each value among ``ids``, -1 where it is not one of them."""
    return column(pc.fill_null(pc.index_in(values, value_set=ids), -1)).astype(np.int64)


def codes(values: pa.ChunkedArray) -> NDArray[np.int64]:
    """``(rows,)`` the same whole number for the same id, from 0."""
    return index_in(values, pc.unique(values))


def column(values: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """A column, without nulls where it holds numbers, as one numpy array."""
    return np.asarray(values.to_numpy(zero_copy_only=False))


def opened(lists: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    """The rows the elements of a list column belong to, and the elements in order."""
    whole = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    return column(pc.list_parent_indices(whole)).astype(np.int64), pc.list_flatten(whole)


def places(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """``(rows,)`` 0, 1, 2, ... within each run of equal numbers."""
    index = np.arange(len(groups))
    starts = np.append(True, groups[1:] != groups[:-1])[: len(groups)]
    return index - np.maximum.accumulate(np.where(starts, index, 0)) if len(groups) else index
