import io
from pathlib import Path

import numpy as np
from rich.console import Console

from recranker.evaluation.experiment_plot import plot_experiment
from recranker.evaluation.experiment_table import (
    Measured,
    experiment_json,
    experiment_markdown,
    experiment_table,
    format_experiment,
)
from recranker.evaluation.seeds import METRICS, SeedRun


def measured(data: str, row: str, ranker: str, *values: float) -> Measured:
    users = np.array([f"u{number}" for number in range(len(values))])
    return Measured(data, row, ranker, SeedRun(users, np.tile(np.array(values)[:, None], (1, len(METRICS)))))


def against(*ones: Measured) -> list[tuple[str, str, str | None, float | None]]:
    rows = experiment_json(experiment_table(ones, samples=100, seed=0))["rows"]
    return [(row["dataset"], row["row"], row["against"], row["ndcg_at_3_difference"]) for row in rows]


def test_each_point_is_compared_with_the_first_on_the_same_data() -> None:
    assert against(
        measured("a", "mf", "backbone", 0.0, 0.5),
        measured("a", "gcn", "backbone", 0.5, 0.5),
        measured("b", "gcn", "backbone", 1.0, 0.0, 0.0, 0.0),
    ) == [("a", "mf", "mf", 0.0), ("a", "gcn", "mf", 0.25), ("b", "gcn", "gcn", 0.0)]


def test_each_ranker_is_compared_with_itself_at_the_first_point() -> None:
    assert against(
        measured("a", "mf", "backbone", 0.0, 0.5),
        measured("a", "mf", "hybrid", 0.5, 0.5),
        measured("a", "gcn", "backbone", 0.5, 0.5),
        measured("a", "gcn", "hybrid", 1.0, 1.0),
        measured("a", "gcn", "listwise", 1.0, 1.0),
    ) == [
        ("a", "mf backbone", "mf backbone", 0.0),
        ("a", "mf hybrid", "mf hybrid", 0.0),
        ("a", "gcn backbone", "mf backbone", 0.25),
        ("a", "gcn hybrid", "mf hybrid", 0.5),
        ("a", "gcn listwise", None, None),  # the first point has no such row
    ]


def test_rankers_of_a_single_point_are_compared_with_the_first_of_them() -> None:
    ones = (measured("a", "", "backbone", 0.0, 0.5), measured("a", "", "hybrid", 0.5, 0.5))
    assert against(*ones) == [("a", "backbone", "backbone", 0.0), ("a", "hybrid", "backbone", 0.25)]


def test_the_table_is_printed_and_written_with_intervals_and_differences_in_percent(tmp_path: Path) -> None:
    ones = [measured("a", "mf", "backbone", 0.0, 0.5)] * 2 + [measured("a", "[gcn]", "backbone", 0.5, 0.5)]
    table = experiment_table(ones, samples=100, seed=0)
    console = Console(width=124, record=True, file=io.StringIO())
    for one in format_experiment(table, title="x"):
        console.print(one)
    text = console.export_text()
    assert "x: a, 2 test users" in text
    assert "NDCG@3 against mf, 95 %" in text
    assert "2 ±0.0000" in text
    assert "[gcn] │ 0.5000 │ 0.5000 │ [0.5000, 0.5000]" in text
    assert "+100.0 % [" in text
    assert "| a | 2 | mf | 0.2500 | 0.2500 | [0.0000, 0.5000] |" in experiment_markdown(table)
    plot_experiment(table, [tmp_path / "x.png"], title="x")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_a_first_row_of_nothing_leaves_differences_absolute() -> None:
    ones = [measured("a", "mf", "backbone", 0.0, 0.0), measured("a", "gcn", "backbone", 0.5, 0.5)]
    assert "| +0.5000 [0.5000, 0.5000] |" in experiment_markdown(experiment_table(ones, samples=100, seed=0))
