"""The results table: every ranker beside the baselines, over all test users."""

from typing import Any

import numpy as np
import pyarrow as pa
from rich.markup import escape
from rich.table import Table

from recranker.evaluation.comparison import Comparison
from recranker.evaluation.lists import Floats
from recranker.evaluation.rows import BAR, BASELINES, METRICS, row_order
from recranker.schema import RESULTS, USER_RESULTS

BAR_BOUNDS = ("bar_low", "bar_high")
"""Columns that ``with_bar`` adds."""


def build_results(comparison: Comparison, *, samples: int, seed: int) -> pa.Table:
    """The RESULTS table, rows in reading order.

    Args:
        comparison: What was ranked.
        samples: Bootstrap resamples of users.
        seed: The run's seed.
    """
    names, users = list(comparison.values), comparison.lists.num_users
    means = np.stack([one.sum(axis=0) for one in comparison.values.values()]) / users  # (rows, metrics)
    bounds = comparison.bounds("backbone", samples=samples, seed=seed)
    columns: dict[str, Any] = {"row": names}
    columns |= {metric: means[:, index] for index, metric in enumerate(METRICS)}
    columns |= {"difference_low": bounds[:, 0], "difference_high": bounds[:, 1]}
    columns |= {"users": [users] * len(names), "users_with_hit": [comparison.num_hits] * len(names)}
    return pa.table(columns, schema=RESULTS.schema)


def build_user_results(comparison: Comparison) -> pa.Table:
    """The USER_RESULTS table: METRICS of every row for every user with a hit."""
    users = comparison.lists.table["user_id"].filter(pa.array(comparison.lists.hit)).to_pylist()
    stacked = np.concatenate(list(comparison.values.values()))
    columns = {
        "row": np.repeat(list(comparison.values), len(users)).tolist(),
        "user_id": users * len(comparison.values),
    }
    columns |= {metric: stacked[:, index] for index, metric in enumerate(METRICS)}
    return pa.table({name: pa.array(columns[name]) for name in columns}).cast(USER_RESULTS.schema)


def with_bar(results: pa.Table, bounds: dict[str, list[float]]) -> pa.Table:
    """``results`` with the interval of each row's NDCG@3 minus the conventional re-ranker's."""
    rows = results["row"].to_pylist()
    for index, name in enumerate(BAR_BOUNDS):
        results = results.append_column(name, pa.array([bounds[row][index] for row in rows], pa.float64()))
    return results


def bar_bounds(comparison: Comparison, *, samples: int, seed: int) -> dict[str, list[float]]:
    """What ``with_bar`` adds, by row."""
    bounds = comparison.bounds(BAR, samples=samples, seed=seed)
    return dict(zip(comparison.values, bounds.tolist(), strict=True))


def ordered(results: pa.Table) -> pa.Table:
    """RESULTS in reading order, wherever the table was kept meanwhile."""
    rows = results["row"].to_pylist()
    return results.take([rows.index(name) for name in row_order(rows)])


def among_hits(results: pa.Table) -> pa.Table:
    """RESULTS over the users with a hit only, where alone re-ranking can be seen.

    All others are misses for every ranker, so each mean and bound is divided by the share of users
    with a hit. Without any such user the values are 0.
    """
    users = results["users"].to_numpy()
    hits = results["users_with_hit"].to_numpy()
    factor: Floats = np.divide(users, hits, out=np.zeros(len(hits)), where=hits > 0)
    columns = {name: results[name] for name in results.column_names}
    for name in set(columns) - {"row", "users", "users_with_hit"}:
        columns[name] = pa.array(results[name].to_numpy() * factor)
    return pa.table(columns | {"users": results["users_with_hit"]}, schema=results.schema)


def results_json(results: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """RESULTS as plain values for machines: ``{"rows": [{"row": ..., "hr_at_3": ..., ...}]}``."""
    return {"rows": ordered(results).select(RESULTS.schema.names).to_pylist()}


def metrics_of(results: pa.Table, *, served: str) -> dict[str, float]:
    """Numbers for the record of the run: ``eval/ROW/METRIC`` for each row, ``eval/METRIC`` for the row served."""
    rows = ordered(results).to_pylist()
    metrics = {f"eval/{row['row']}/{name}": float(row[name]) for row in rows for name in METRICS}
    metrics |= {f"eval/{name}": float(row[name]) for row in rows if row["row"] == served for name in METRICS}
    return metrics | {"eval/users": float(rows[0]["users"]), "eval/users_with_hit": float(rows[0]["users_with_hit"])}


def format_table(results: pa.Table, *, title: str) -> Table:
    """RESULTS for a person: metrics, and the differences in NDCG@3 with their intervals.

    Args:
        results: RESULTS ``with_bar``, or what ``among_hits`` makes of it.
        title: What was ranked.
    """
    rows = ordered(results).to_pylist()
    caption = (
        f"{rows[0]['users']} users, {rows[0]['users_with_hit']} with their target among the candidates; "
        "differences are in NDCG@3, with 95 % intervals"
    )
    table = Table(title=escape(title), caption=caption, title_justify="left", caption_justify="left")
    table.add_column("ranker", no_wrap=True)
    for heading in ("HR@3", "NDCG@3", "HR@5", "NDCG@5", "against backbone", f"against {BAR}"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = [row["row"] for row in rows if row["row"] in BASELINES][-1]
    for row in rows:
        style = "dim" if row["row"] in BASELINES else ""
        numbers = [f"{row[metric]:.4f}" for metric in METRICS]
        texts = backbone_text(row, rows), bar_text(row, rows)
        table.add_row(row["row"], *numbers, *texts, style=style, end_section=row["row"] == last)
    return table


def backbone_text(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The difference to the backbone's NDCG@3 with its interval."""
    return difference_text(row, rows, "backbone", ("difference_low", "difference_high"))


def bar_text(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The difference to the conventional re-ranker's NDCG@3 with its interval."""
    return difference_text(row, rows, BAR, BAR_BOUNDS)


def difference_text(row: dict[str, Any], rows: list[dict[str, Any]], baseline: str, bounds: tuple[str, str]) -> str:
    """``+12.3 % [-4.0, 28.1]`` of the baseline's NDCG@3; absolute where that is 0; a dash for the baseline itself."""
    if row["row"] == baseline:
        return "-"
    base = next(one["ndcg_at_3"] for one in rows if one["row"] == baseline)
    values = row["ndcg_at_3"] - base, *(row[name] for name in bounds)
    if not base:
        return "{:+.4f} [{:.4f}, {:.4f}]".format(*values)
    return "{:+.1f} % [{:.1f}, {:.1f}]".format(*(100.0 * value / base for value in values))
