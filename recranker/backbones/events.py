"""Interactions as arrays of indices, in one order whatever the order of the rows."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interactions:
    """The interactions table by index, sorted by (user, sequence). ``N`` rows."""

    user_ids: pa.Array
    """Key of each user index, sorted."""
    item_ids: pa.Array
    """Key of each item index, sorted."""
    users: NDArray[np.int64]
    """``(N,)`` user index."""
    items: NDArray[np.int64]
    """``(N,)`` item index."""
    ratings: NDArray[np.float32]
    """``(N,)``; NaN where the feedback is implicit."""
    sequences: NDArray[np.int32]
    """``(N,)`` place in the user's history, 0 = oldest."""
    times: NDArray[np.float64]
    """``(N,)`` UTC seconds; NaN where the source has no time."""
    likes: NDArray[np.bool_]
    """``(N,)`` whether the feedback is 'like'."""
    splits: NDArray[np.str_]
    """``(N,)`` split of each row."""

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def rows(self, split: str, *, likes_only: bool = False) -> NDArray[np.int64]:
        """Rows of one split, in order."""
        chosen = self.splits == split
        return np.flatnonzero(chosen & self.likes if likes_only else chosen)

    @cached_property
    def known_likes(self) -> NDArray[np.int64]:
        """Rows of the likes a history may hold, in order: those of training and validation, never a test target."""
        return np.flatnonzero(self.likes & np.isin(self.splits, ("train", "validation")))

    def spans(
        self, rows: NDArray[np.int64], users: NDArray[np.int64], before: NDArray[np.integer]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(queries,)`` where each user's events before a sequence number begin and end among ``rows``, which rise."""
        keys = (self.users[rows] << 32) + self.sequences[rows]
        return np.searchsorted(keys, users << 32), np.searchsorted(keys, (users << 32) + before)


def index_interactions(table: pa.Table) -> Interactions:
    """The INTERACTIONS table by index."""
    table = table.sort_by([("user_id", "ascending"), ("sequence", "ascending")]).combine_chunks()
    user_ids, users = _index(table["user_id"])
    item_ids, items = _index(table["item_id"])
    return Interactions(
        user_ids,
        item_ids,
        users,
        items,
        pc.fill_null(table["rating"], float("nan")).to_numpy().astype(np.float32),
        table["sequence"].to_numpy().astype(np.int32),
        pc.fill_null(table["timestamp"].cast(pa.float64()), float("nan")).to_numpy(),
        pc.equal(table["feedback"], "like").to_numpy().astype(np.bool_),
        np.asarray(table["split"].to_pylist(), dtype=np.str_),
    )


def _index(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    known = pc.unique(column)
    ids = known.take(pc.array_sort_indices(known))
    return ids, pc.index_in(column, value_set=ids).to_numpy().astype(np.int64)
