"""Ray Data round the plain functions: draws over shards of users, prompts per user, answers per prompt."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import Dataset

from recranker.sampling import races


def from_table(table: pa.Table, blocks: int) -> Dataset:
    """``table`` as a dataset of about ``blocks`` blocks."""
    size = max(1, -(-table.num_rows // blocks))
    return ray.data.from_arrow([table.slice(start, size) for start in range(0, max(1, table.num_rows), size)])


def draw(users: Dataset, num_draws: int, *key: str | int) -> races.Arrivals:
    """``num_draws`` draws with replacement in proportion to the rates, the same for any blocks.

    One pass sums the rates, one races the shards; only arrivals travel.

    Args:
        users: Columns ``user_id`` and ``rate``, a row per user.
        num_draws: How many draws.
        key: Seed and step.

    Raises:
        ValueError: If no user has a positive rate.
    """
    until = races.horizon(num_draws, float(users.sum("rate") or 0.0))
    while True:
        parts = users.map_batches(
            _race, fn_args=(until, num_draws, key), batch_size=None, batch_format="pyarrow"
        ).take_all()
        found = races.earliest([_arrivals(part) for part in parts], num_draws)
        if len(found) == num_draws:
            return found
        until *= 2


def _race(users: pa.Table, until: float, num_draws: int, key: tuple[str | int, ...]) -> dict[str, Any]:
    rates = users.column("rate").to_numpy()
    found = races.arrivals_until(users.column("user_id").to_pylist(), rates, until, *key)
    found = races.earliest([found], num_draws)
    return {"times": [found.times.tolist()], "user_ids": [found.user_ids.tolist()]}


def _arrivals(part: dict[str, Any]) -> races.Arrivals:
    times: NDArray[np.float64] = np.asarray(part["times"], dtype=np.float64)
    return races.Arrivals(times, np.asarray(part["user_ids"], dtype=object))


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
        parts = {
            name: rows.filter(pa.compute.equal(rows.column("table"), name)).select(columns[name]) for name in columns
        }
        return work(parts)

    return from_table(joined, blocks).groupby("user_id").map_groups(one_user, batch_format="pyarrow")
