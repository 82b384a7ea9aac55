"""Ray Data round the plain functions: draws over shards of users, prompts per user, answers per prompt."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from ray.data import Dataset

from recranker.sampling import races
from recranker.schema import TableSchema
from recranker.store import Store


def from_table(table: pa.Table, blocks: int) -> Dataset:
    """``table`` as a dataset of about ``blocks`` blocks."""
    size = max(1, -(-table.num_rows // blocks))
    return ray.data.from_arrow([table.slice(start, size) for start in range(0, max(1, table.num_rows), size)])


def from_store(store: Store, stage: str, table: TableSchema, columns: list[str] | None = None) -> Dataset:
    """A table of a published stage as a dataset that is read where it is used, never on the driver.

    Raises:
        DataError: If the stage is missing, or a file's schema differs.
    """
    files = store.files(stage, table)
    if not files:
        return ray.data.from_arrow(table.schema.empty_table().select(columns or table.schema.names))
    return ray.data.read_parquet(files, filesystem=store.filesystem, columns=columns)


def draw(users: Dataset, quotas: dict[int, int], *key: str | int) -> races.Arrivals:
    """Draws with replacement in proportion to the rates, a fixed number per group; the same for any blocks.

    One pass sums the rates, one races the shards; only arrivals travel.

    Args:
        users: Columns ``user_id``, ``rate`` and ``group``, a row per user.
        quotas: Draws of each group.
        key: Seed and step.

    Raises:
        ValueError: If a group with a quota has no positive rate.
    """
    sums = users.map_batches(_total_rates, batch_size=None, batch_format="pyarrow").take_all()
    totals = {group: sum(one["rate"] for one in sums if one["group"] == group) for group in quotas}
    until = {group: races.horizon(quota, totals[group]) for group, quota in quotas.items()}
    drawn: list[races.Arrivals] = []
    while until:
        found = _raced(users, until, quotas, key)
        drawn += [found[group] for group in until if len(found[group]) == quotas[group]]
        until = {group: 2 * time for group, time in until.items() if len(found[group]) < quotas[group]}
    return races.earliest(drawn, sum(quotas.values()))


def _raced(
    users: Dataset, until: dict[int, float], quotas: dict[int, int], key: tuple[str | int, ...]
) -> dict[int, races.Arrivals]:
    shards = users.map_batches(_race, fn_args=(until, quotas, key), batch_size=None, batch_format="pyarrow").take_all()
    empty = races.Arrivals(np.empty(0), np.empty(0, dtype=object))
    parts: dict[int, list[races.Arrivals]] = {group: [empty] for group in until}
    for one in shards:
        times: NDArray[np.float64] = np.asarray(one["times"], dtype=np.float64)
        parts[one["group"]].append(races.Arrivals(times, np.asarray(one["user_ids"], dtype=object)))
    return {group: races.earliest(found, quotas[group]) for group, found in parts.items()}


def _total_rates(users: pa.Table) -> pa.Table:
    return users.group_by("group").aggregate([("rate", "sum")]).rename_columns({"rate_sum": "rate"})


def _race(users: pa.Table, until: dict[int, float], quotas: dict[int, int], key: tuple[str | int, ...]) -> pa.Table:
    rows = []
    for group, time in until.items():
        members = users.filter(pc.equal(users["group"], group))
        rates = members["rate"].to_numpy()
        found = races.arrivals_until(members["user_id"].to_pylist(), rates, time, *key)
        found = races.earliest([found], quotas[group])
        rows.append({"group": group, "times": found.times.tolist(), "user_ids": found.user_ids.tolist()})
    return pa.Table.from_pylist(rows, schema=_SHARD)


_SHARD = pa.schema([("group", pa.int64()), ("times", pa.list_(pa.float64())), ("user_ids", pa.list_(pa.string()))])


def by_user(tables: dict[str, pa.Table], work: Callable[[dict[str, pa.Table]], pa.Table], blocks: int) -> Dataset:
    """``work`` applied to each user's rows of several tables; all rows of a user meet in one call.

    Args:
        tables: Tables with a ``user_id`` column; they travel as one dataset with a column ``table``.
        work: From one user's tables to result rows.
        blocks: Blocks to cut the input into; the result does not depend on it.
    """
    marked = [
        table.append_column("table", pa.array([name] * table.num_rows, pa.string())) for name, table in tables.items()
    ]
    joined = pa.concat_tables(marked, promote_options="default")
    columns = {name: table.schema.names for name, table in tables.items()}

    def one_user(rows: pa.Table) -> pa.Table:
        parts = {name: rows.filter(pc.equal(rows.column("table"), name)).select(columns[name]) for name in columns}
        return work(parts)

    return (
        from_table(joined, blocks)
        .groupby("user_id", num_partitions=blocks)
        .map_groups(one_user, batch_format="pyarrow")
    )
