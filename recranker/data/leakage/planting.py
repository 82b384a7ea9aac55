"""What canaries plant with: rows found in a run's tables, and copies of the tables with one row changed.

Where a run offers no such row, LookupError says what was looked for.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recranker.data.leakage.tables import GateTables
from recranker.data.lookup import column

Row = dict[str, Any]


def table_of(tables: GateTables, name: str) -> pa.Table:
    table = getattr(tables, name)
    if table is None or not table.num_rows:
        raise LookupError(name)
    return table


def rows_where(table: pa.Table, **wanted: object) -> list[int]:
    """Numbers of the rows whose columns hold what is wanted."""
    same = np.ones(table.num_rows, dtype=bool)
    for name, value in wanted.items():
        same &= column(pc.fill_null(pc.equal(table[name], pa.scalar(value, table.schema.field(name).type)), False))
    return np.flatnonzero(same).tolist()


def row_where(table: pa.Table, **wanted: object) -> int:
    rows = rows_where(table, **wanted)
    if not rows:
        raise LookupError(str(wanted))
    return rows[0]


def row_at(table: pa.Table, row: int) -> Row:
    found: Row = table.slice(row, 1).to_pylist()[0]
    return found


def with_row(tables: GateTables, name: str, row: int, **changes: object) -> GateTables:
    """``tables`` with columns of one row changed; the other rows are not copied."""
    table = table_of(tables, name)
    changed = pa.Table.from_pylist([row_at(table, row) | changes], schema=table.schema)
    return replace(tables, **{name: pa.concat_tables([table.slice(0, row), changed, table.slice(row + 1)])})


def with_added(tables: GateTables, name: str, **values: object) -> GateTables:
    table = table_of(tables, name)
    return replace(tables, **{name: pa.concat_tables([table, pa.Table.from_pylist([values], schema=table.schema)])})


def list_with_target(tables: GateTables, split: str) -> tuple[int, Row]:
    """A list that holds its target and at least two other items."""
    lists = table_of(tables, "candidates")
    for row in rows_where(lists, split=split, hit=True):
        found = row_at(lists, row)
        if len(found["candidate_ids"]) > 2:
            return row, found
    raise LookupError(split)


def event_where(tables: GateTables, **wanted: object) -> Row:
    return row_at(tables.interactions, row_where(tables.interactions, **wanted))


def prompt_with_target(tables: GateTables, split: str) -> tuple[int, Row, Row]:
    """A prompt and its list, which holds its target."""
    prompts, lists = table_of(tables, "prompts"), table_of(tables, "candidates")
    hits = set(lists.filter(lists["hit"])["list_id"].to_pylist())
    for row in rows_where(prompts, split=split):
        found = row_at(prompts, row)
        if found["list_id"] in hits:
            return row, found, row_at(lists, row_where(lists, list_id=found["list_id"]))
    raise LookupError(split)


def question_of(prompt: Row, task: str) -> Row:
    found: Row = next((one for one in prompt["questions"] if one["task"] == task), {})
    if not found:
        raise LookupError(task)
    return found


def title_of(tables: GateTables, item_id: str) -> str:
    items = table_of(tables, "items")
    return str(row_at(items, row_where(items, item_id=item_id))["title"])


def needs_ratings(tables: GateTables) -> None:
    if not tables.facts["has_ratings"]:
        raise LookupError("ratings")
