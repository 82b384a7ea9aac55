"""User sampling over a cluster: tables are read in shards, users meet by hash, and draws are raced where they lie.

Draws are the same as those made in one process, where small tables are read and drawn from. On the cluster nothing as
long as the interactions or the users comes to the driver: partial counts are made where a block is read, merged in
hash partitions, and stay in the object store while the races pass over them.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.data import Dataset

from recranker.distributed.datasets import by_users, from_store
from recranker.sampling import draws
from recranker.sampling.clusters import Centres, fit_centres, fit_sample
from recranker.sampling.settings import AdaptiveSampling, PaperSampling, UniformSampling
from recranker.sampling.users import (
    LIKE_COLUMNS,
    LIST_COLUMNS,
    USER_PARTS,
    USERS,
    RowGroups,
    count_likes,
    mark_eligible,
    merge,
    put_into_clusters,
)
from recranker.schema import CANDIDATES, INTERACTIONS, USER_FACTORS
from recranker.store import Store

Result = TypeVar("Result")

_ROWS_PER_PARTITION = 20_000_000
"""Rows read for each hash partition, at most. A partial count takes about 40 bytes; where a user's rows lie together
there are far fewer of those."""


ROWS_IN_ONE_PLACE = 10_000_000
"""Rows read, up to which one process is done before a cluster's workers have started; it takes a few seconds, and
400 MB where rows are in the least favourable order."""


class BlocksOnCluster:
    """Shards as blocks in the object store; work is sent to where they are."""

    def __init__(self, users: Dataset) -> None:
        self._blocks = users.to_arrow_refs()

    def map(self, work: Callable[[pa.Table], Result]) -> Iterable[Result]:
        """A task per block."""
        task, shared = ray.remote(_work_on), ray.put(work)
        done: list[Result] = ray.get([task.remote(shared, block) for block in self._blocks])
        return done


def draw_users(
    interactions: Dataset,
    lists: Dataset,
    factors: Dataset,
    settings: AdaptiveSampling | PaperSampling | UniformSampling,
    seed: int,
    *,
    num_factors: int,
    partitions: int,
) -> tuple[pa.Table, dict[str, int]]:
    """The DRAWS table and its counts; the same for any number of blocks, partitions and nodes, and any row order.

    Eligible is a user with at least one training list that holds its target.

    Args:
        interactions: INTERACTIONS, of which LIKE_COLUMNS are needed.
        lists: CANDIDATES, of which LIST_COLUMNS are needed.
        factors: USER_FACTORS; not read where the settings need no clusters.
        settings: Adaptive or uniform.
        seed: Keys every draw.
        num_factors: Rows of ``factors``.
        partitions: Hash partitions users meet in; one must fit a worker's memory.

    Raises:
        DataError: If no user is eligible, there are fewer users than clusters, or an eligible user has no embedding.
    """
    chosen = settings.adaptive if isinstance(settings, PaperSampling) else settings
    parts = {"likes": _by_block(interactions, count_likes), "lists": _by_block(lists, mark_eligible)}
    if isinstance(chosen, AdaptiveSampling) and chosen.cluster_draws:
        centres = _fit(factors, chosen, seed, num_factors)
        parts["clusters"] = _by_block(factors, put_into_clusters, centres)
    users = by_users(parts, dict.fromkeys(parts, USER_PARTS), _merge, partitions)
    return draws.draw_users(BlocksOnCluster(users), chosen, seed)


def draw_from_store(
    store: Store,
    settings: AdaptiveSampling | PaperSampling | UniformSampling,
    seed: int,
    *,
    blocks: int,
    connect: Callable[[], None],
    rows_in_one_place: int = ROWS_IN_ONE_PLACE,
) -> tuple[pa.Table, dict[str, int]]:
    """The DRAWS table of what the stages before have published, and its counts with ``rows_in`` and ``rows_out``.

    Args:
        store: Where they are.
        settings: Adaptive or uniform.
        seed: Keys every draw.
        blocks: Hash partitions on the cluster, at the least; draws do not depend on it.
        connect: Joins the cluster; called where one is needed.
        rows_in_one_place: Up to so many rows none is needed; draws do not depend on it.

    Raises:
        DataError: If a stage is missing or its output broken, or as ``draw_users``.
    """
    tables = (("prepare", INTERACTIONS), ("backbone", CANDIDATES), ("backbone", USER_FACTORS))
    rows = [store.require(stage).tables[table.name]["rows"] for stage, table in tables]
    columns = (LIKE_COLUMNS, LIST_COLUMNS, USER_FACTORS.schema.names)
    reads = [(store, *table, names) for table, names in zip(tables, columns, strict=True)]
    if sum(rows) <= rows_in_one_place:
        here = [RowGroups(*read) for read in reads]
        drawn, counts = draws.draw_in_one_place(here[0], here[1], here[2], settings, seed, num_factors=rows[2])
    else:
        connect()
        partitions = max(blocks, -(-sum(rows) // _ROWS_PER_PARTITION))
        there = [from_store(*read) for read in reads]
        drawn, counts = draw_users(
            there[0], there[1], there[2], settings, seed, num_factors=rows[2], partitions=partitions
        )
    return drawn, {"rows_in": sum(rows), "rows_out": drawn.num_rows} | counts


def _fit(factors: Dataset, settings: AdaptiveSampling, seed: int, num_factors: int) -> Centres:
    """Cluster centres, fitted in one task: embeddings never come to the driver."""
    limit = settings.cluster_fit_users
    samples = _by_block(factors, fit_sample, limit, num_factors, seed).to_arrow_refs()
    centres: Centres = ray.get(ray.remote(_fit_of).remote(settings.num_clusters, limit, seed, *samples))
    return centres


def _fit_of(num_clusters: int, limit: int, seed: int, *samples: pa.Table) -> Centres:
    return fit_centres([_with_columns(one, USER_FACTORS.schema) for one in samples], num_clusters, limit, seed)


def _merge(parts: dict[str, pa.Table]) -> pa.Table:
    return merge(pa.concat_tables(parts.values()))


def _work_on(work: Callable[[pa.Table], Result], block: pa.Table) -> Result:
    return work(_with_columns(block, USERS))


def _with_columns(block: pa.Table, schema: pa.Schema) -> pa.Table:
    """``block``; Ray Data leaves an empty one without columns."""
    return block if block.num_rows else schema.empty_table()


def _by_block(table: Dataset, work: Callable[..., pa.Table], *arguments: Any) -> Dataset:
    return table.map_batches(work, fn_args=arguments, batch_size=None, batch_format="pyarrow")
