"""The table of an experiment: what every point of its grid reached over its seeds, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.markup import escape
from rich.table import Table

from recranker.evaluation.rows import METRICS
from recranker.evaluation.seeds import SeedRun, summarise

Row = dict[str, Any]

HEADINGS = ("HR@3", "NDCG@3", "HR@5", "NDCG@5")
CAPTION = "intervals: 95 %, bootstrap over users; seeds: how many, and the standard deviation of NDCG@3 over them"


@dataclass(frozen=True)
class Measured:
    """One ranker of one cell of the grid."""

    data: str
    """What data it was; only rows on the same data are compared."""
    row: str
    """Its point on the other axes; may be empty."""
    ranker: str
    """Its row of the cell's results."""
    run: SeedRun


def experiment_table(measured: Sequence[Measured], *, samples: int, seed: int) -> pa.Table:
    """One line per data, point and ranker, in the order of ``measured``; seeds of one line are taken together.

    Differences are taken, on the same data, against the first point's row of the same ranker, or
    against the first ranker where there is one point only.

    Columns: ``dataset``, those of ``summarise``, and ``against``, the row that differences are taken against.

    Args:
        measured: At least one.
        samples: Bootstrap resamples of users behind each interval.
        seed: Keys them.
    """
    names = dict.fromkeys(one.data for one in measured)
    several = len({one.ranker for one in measured}) > 1
    tables = [_table_of([one for one in measured if one.data == data], several, samples, seed) for data in names]
    return pa.concat_tables(tables)


def experiment_json(table: pa.Table) -> dict[str, list[Row]]:
    """The table as plain values: ``{"rows": [{"dataset": ..., "row": ..., "hr_at_3": ..., "seeds": ...}]}``."""
    return {"rows": table.to_pylist()}


def experiment_markdown(table: pa.Table) -> str:
    """The table for a page or an issue."""
    rows = table.to_pylist()
    headings = ["dataset", "users", *_headings(rows)]
    lines = [headings, ["---"] * len(headings), *([row["dataset"], f"{row['users']:,}", *_texts(row)] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def format_experiment(table: pa.Table, *, title: str) -> list[Table]:
    """One table per data set, for a person."""
    return [
        _formatted(rows, title=f"{title}: {data}, {_users(rows)} test users")
        for data, rows in rows_by_data(table).items()
    ]


def rows_by_data(table: pa.Table) -> dict[str, list[Row]]:
    """The table's lines by data set, both in their order."""
    found: dict[str, list[Row]] = {}
    for row in table.to_pylist():
        found.setdefault(row["dataset"], []).append(row)
    return found


def _table_of(here: Sequence[Measured], several: bool, samples: int, seed: int) -> pa.Table:
    """The lines of one data set."""
    runs: dict[str, list[SeedRun]] = {}
    for one in here:
        runs.setdefault(_label(one, several), []).append(one.run)
    against = _against(here, several)
    baseline = {label: runs[first] for label, first in against.items()}
    table = summarise(runs, baseline=baseline, samples=samples, seed=seed)
    table = table.append_column("against", pa.array([against.get(label) for label in runs], pa.string()))
    return table.add_column(0, "dataset", pa.array([here[0].data] * len(runs)))


def _label(one: Measured, several: bool) -> str:
    return f"{one.row} {one.ranker}".strip() if several else one.row or one.ranker


def _against(here: Sequence[Measured], several: bool) -> dict[str, str]:
    """For each label the one it is compared with; a ranker that the first point lacks is left out."""
    first = here[0]
    one_point = all(one.row == first.row for one in here)
    first_of = {one.ranker: _label(one, several) for one in here if one.row == first.row}
    wanted = {_label(one, several): first.ranker if one_point else one.ranker for one in here}
    return {label: first_of[ranker] for label, ranker in wanted.items() if ranker in first_of}


def _formatted(rows: list[Row], *, title: str) -> Table:
    made = Table(title=escape(title), caption=CAPTION, title_justify="left", caption_justify="left")
    for heading in _headings(rows):
        made.add_column(heading, justify="left" if heading == "row" else "right", no_wrap=True)
    for row in rows:
        made.add_row(*(escape(cell) for cell in _texts(row)))
    return made


def _users(rows: list[Row]) -> str:
    """How many, or from how many to how many where seeds and rows differ."""
    least, most = (bound(row["users"] for row in rows) for bound in (min, max))
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def _headings(rows: list[Row]) -> list[str]:
    firsts = {row["against"] for row in rows}
    first = firsts.pop() if len(firsts) == 1 else "first"
    return ["row", *HEADINGS[:2], "95 %", *HEADINGS[2:], "seeds", f"NDCG@3 against {first}, 95 %"]


def _texts(row: Row) -> list[str]:
    hr_at_3, ndcg_at_3, hr_at_5, ndcg_at_5 = (f"{row[metric]:.4f}" for metric in METRICS)
    interval = f"[{row['ndcg_at_3_low']:.4f}, {row['ndcg_at_3_high']:.4f}]"
    spread = "" if row["ndcg_at_3_std"] is None else f" ±{row['ndcg_at_3_std']:.4f}"
    seeds = f"{row['seeds']}{spread}"
    return [row["row"], hr_at_3, ndcg_at_3, interval, hr_at_5, ndcg_at_5, seeds, _difference(row)]


def _difference(row: Row) -> str:
    """In percent of the first row's NDCG@3; absolute where that is 0; a dash for the first row."""
    found = [row[f"ndcg_at_3_difference{end}"] for end in ("", "_low", "_high")]
    if row["row"] == row["against"] or found[0] is None:
        return "-"
    base = row["ndcg_at_3"] - found[0]
    if not base:
        return "{:+.4f} [{:.4f}, {:.4f}]".format(*found)
    return "{:+.1f} % [{:.1f}, {:.1f}]".format(*(100.0 * bound / base for bound in found))
