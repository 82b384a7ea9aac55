"""The k-core of a set of interactions: what is left when rare users and rare items are dropped until none is left."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recranker.data.lookup import codes


@dataclass(frozen=True)
class Round:
    """What one pass over the users and the items left."""

    interactions: int
    users: int
    items: int


def k_core(events: pa.Table, *, min_user: int, min_item: int) -> tuple[pa.Table, list[Round]]:
    """The interactions of users with ``min_user`` and items with ``min_item`` of them or more, and each round's rest.

    Dropping a rare item may leave a user with too few, and so on: both are dropped until nothing changes. What is
    left does not depend on the order of dropping.

    Args:
        events: One row per user and item.
        min_user: Interactions a user needs.
        min_item: Interactions an item needs.
    """
    users, items = codes(events["user_id"]), codes(events["item_id"])
    kept = np.arange(events.num_rows)
    rounds: list[Round] = []
    while True:
        enough = (_counts(users[kept]) >= min_user) & (_counts(items[kept]) >= min_item)
        if enough.all():
            return events.take(pa.array(kept)), rounds
        kept = kept[enough]
        rounds.append(Round(len(kept), len(np.unique(users[kept])), len(np.unique(items[kept]))))


def _counts(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """``(rows,)`` how often each row's number occurs."""
    return np.asarray(np.bincount(groups)[groups], dtype=np.int64) if len(groups) else groups
