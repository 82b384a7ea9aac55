"""Who may be drawn: eligible users with their likes and clusters, merged from parts of the tables.

Each function takes any part of a table and returns USER_PARTS, far fewer rows than it came with; ``merge`` makes
USERS of all parts of the users it is given.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recranker.sampling.clusters import Centres, to_matrix
from recranker.schema import TableSchema
from recranker.store import Store

USER_PARTS = pa.schema(
    [("user_id", pa.string()), ("num_likes", pa.int64()), ("eligible", pa.bool_()), ("cluster", pa.int32())]
)
"""What one part of a table says of a user: training likes in it, whether it makes the user eligible, the cluster."""

USERS = pa.schema([("user_id", pa.string()), ("num_likes", pa.int64()), ("cluster", pa.int32())])
"""Eligible users: training likes, and the cluster where there are any."""

LIKE_COLUMNS = ["user_id", "split", "feedback"]
"""Of INTERACTIONS: what ``count_likes`` reads."""
LIST_COLUMNS = ["user_id", "split", "hit"]
"""Of CANDIDATES: what ``mark_eligible`` reads."""

_FEW_VALUES = ["split", "feedback"]
"""Columns that are read as places in a list of their values: twice as fast."""


@dataclass(frozen=True)
class RowGroups:
    """A published table, a row group at a time, as often as it is asked for."""

    store: Store
    stage: str
    table: TableSchema
    columns: list[str]

    @cached_property
    def _files(self) -> list[str]:
        return self.store.files(self.stage, self.table)

    def __iter__(self) -> Iterator[pa.Table]:
        """
        Raises:
            DataError: If the stage is missing, or a file is broken or has another schema.
        """
        few = [name for name in _FEW_VALUES if name in self.columns]
        for path in self._files:
            with self.store.filesystem.open_input_file(path) as file:
                found = pq.ParquetFile(file, read_dictionary=few)
                for number in range(found.num_row_groups):
                    yield found.read_row_group(number, columns=self.columns)


def count_likes(interactions: pa.Table) -> pa.Table:
    """Training likes of each user."""
    is_like = pc.and_(pc.equal(interactions["split"], "train"), pc.equal(interactions["feedback"], "like"))
    likes = pa.table([interactions["user_id"].filter(is_like)], names=["user_id"])
    counted = likes.group_by("user_id").aggregate([([], "count_all")])
    return _parts(counted["user_id"], num_likes=counted["count_all"])


def mark_eligible(lists: pa.Table) -> pa.Table:
    """Users with a training list that holds its target: without one a draw could not become an instruction."""
    is_usable = pc.and_(pc.equal(lists["split"], "train"), lists["hit"])
    return _parts(pc.unique(lists["user_id"].filter(is_usable)), eligible=True)


def put_into_clusters(factors: pa.Table, centres: Centres) -> pa.Table:
    """The cluster of each user with an embedding."""
    return _parts(factors["user_id"], cluster=pa.array(centres.nearest(to_matrix(factors))))


def merge(parts: pa.Table) -> pa.Table:
    """USERS of the users in ``parts``, which must hold all there is on each of them; in no particular order."""
    merged = parts.group_by("user_id").aggregate([("num_likes", "sum"), ("eligible", "any"), ("cluster", "max")])
    merged = merged.filter(pc.field("eligible_any") & (pc.field("num_likes_sum") > 0))
    return pa.table([merged["user_id"], merged["num_likes_sum"], merged["cluster_max"]], schema=USERS)


def _parts(
    user_ids: pa.Array | pa.ChunkedArray,
    *,
    num_likes: pa.ChunkedArray | None = None,
    eligible: bool = False,
    cluster: pa.Array | None = None,
) -> pa.Table:
    rows = len(user_ids)
    likes = pa.repeat(pa.scalar(0, pa.int64()), rows) if num_likes is None else num_likes
    clusters = pa.nulls(rows, pa.int32()) if cluster is None else cluster
    return pa.table([user_ids, likes, pa.repeat(pa.scalar(eligible), rows), clusters], schema=USER_PARTS)
