"""What all checks share: the splits as numbers, the complaint, and what a check is."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recranker.data.leakage.tables import GateTables
from recranker.errors import LeakageError


@dataclass(frozen=True)
class Check:
    """One thing that must hold."""

    name: str
    """Said in reports."""
    run: Callable[[GateTables], None]
    """Raises LeakageError where it does not hold."""
    table: str
    """The table whose rows it looks at."""
    needs: tuple[str, ...] = ()
    """What else must be there."""
    applies: Callable[[GateTables], bool] = lambda tables: True
    """Whether data of this kind has anything to check."""

    def can_run(self, tables: GateTables) -> bool:
        """Whether everything it looks at is there."""
        return all(getattr(tables, name) is not None for name in (self.table, *self.needs)) and self.applies(tables)


def refuse(
    bad: NDArray[np.bool_],
    users: pa.ChunkedArray,
    items: pa.ChunkedArray,
    *,
    trap: str,
    way_out: str,
    named: tuple[str, str] = ("user", "item"),
) -> None:
    """Complain about the rows marked ``bad``, naming the user and item (or what ``named`` calls them) of the first.

    Raises:
        LeakageError: If there is one.
    """
    rows = np.flatnonzero(bad)
    if len(rows):
        user, item = users[int(rows[0])].as_py(), items[int(rows[0])].as_py()
        who = f"{named[0]} {user!r}, {named[1]} {item!r}"
        raise LeakageError(f"{trap}: {who} ({len(rows)} such rows); {way_out}")
