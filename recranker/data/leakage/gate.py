"""What all checks share: the splits as numbers, and the complaint."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recranker.data.lookup import index_in
from recranker.errors import LeakageError

TRAIN, VALIDATION, TEST, UNUSED = range(4)

_SPLITS = pa.array(["train", "validation", "test", "unused"])


def splits_of(table: pa.Table) -> NDArray[np.int64]:
    """``(rows,)`` TRAIN, VALIDATION, TEST or UNUSED; -1 for anything else."""
    return index_in(table["split"], _SPLITS)


def refuse(bad: NDArray[np.bool_], users: pa.ChunkedArray, items: pa.ChunkedArray, *, trap: str, way_out: str) -> None:
    """Complain about the rows marked ``bad``, naming the user and item of the first.

    Raises:
        LeakageError: If there is one.
    """
    rows = np.flatnonzero(bad)
    if len(rows):
        user, item = users[int(rows[0])].as_py(), items[int(rows[0])].as_py()
        raise LeakageError(f"{trap}: user {user!r}, item {item!r} ({len(rows)} such rows); {way_out}")
