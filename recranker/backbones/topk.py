"""Exact top-k under a mask, and the rank of one target, for blocks of lists."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ItemSets:
    """One set of items per row, flattened: row ``r`` has ``items[starts[r] : starts[r + 1]]``."""

    starts: NDArray[np.int64]
    items: NDArray[np.int64]

    @classmethod
    def of(cls, rows: NDArray[np.int64], items: NDArray[np.int64], num_rows: int) -> "ItemSets":
        """From (row, item) pairs in any order."""
        order = np.argsort(rows, kind="stable")
        counts = np.bincount(rows, minlength=num_rows)
        return cls(np.concatenate([[0], np.cumsum(counts)]), items[order])

    @classmethod
    def slices(cls, items: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> "ItemSets":
        """Row ``r`` is ``items[starts[r] : ends[r]]``; slices may overlap."""
        lengths = ends - starts
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths) + np.repeat(starts, lengths)
        return cls(bounds, items[places])

    def pairs(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(place in ``rows``, item) for every item of each chosen row."""
        counts = self.starts[rows + 1] - self.starts[rows]
        places = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return places, self.items[self.starts[rows][places] + within]

    def rows(self, start: int, end: int) -> "ItemSets":
        """Rows ``start`` up to ``end``."""
        first, last = self.starts[start], self.starts[end]
        return ItemSets(self.starts[start : end + 1] - first, self.items[first:last])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``(rows,)`` items of each row."""
        return np.diff(self.starts)


def top_k(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ``k`` best columns of each row as (row, column) pairs, best first; equal scores by column.

    Args:
        scores: ``(rows, columns)``; -inf marks what must not be chosen, so a row may give fewer than ``k``.
    """
    num_columns = scores.shape[1]
    if k < num_columns:
        threshold = np.partition(scores, num_columns - k, axis=1)[:, num_columns - k, None]
        rows, columns = np.nonzero((scores >= threshold) & np.isfinite(scores))
    else:
        rows, columns = np.nonzero(np.isfinite(scores))
    order = np.lexsort((columns, -scores[rows, columns], rows))
    rows, columns = rows[order], columns[order]
    first = np.searchsorted(rows, rows)  # rows are sorted: where each row's run begins
    chosen = np.arange(len(rows)) - first < k  # more than k stand here where the k-th score is shared
    return rows[chosen], columns[chosen]


def ranks_of(scores: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """``(rows,)`` rank of one target column per row, 1 = best, equal scores by column; a masked target ranks last."""
    own = scores[np.arange(len(targets)), targets][:, None]
    before = np.arange(scores.shape[1])[None, :] < targets[:, None]
    ranks: NDArray[np.int64] = 1 + ((scores > own) | ((scores == own) & before)).sum(axis=1)
    return np.where(np.isfinite(own[:, 0]), ranks, scores.shape[1] + 1)
