from pathlib import Path

import pyarrow as pa
import pytest

from recranker.evaluation.plots import GROUPS, group_of, plot_results
from recranker.schema import RESULTS


def results(*names: str) -> pa.Table:
    rows = [
        {"row": name, "hr_at_3": 0.1, "ndcg_at_3": 0.03 + 0.002 * place, "hr_at_5": 0.2, "ndcg_at_5": 0.05}
        | {"difference_low": -0.004, "difference_high": 0.006 * bool(place), "users": 927, "users_with_hit": 104}
        for place, name in enumerate(names)
    ]
    return pa.Table.from_pylist(rows, schema=RESULTS.schema)


def test_plot_is_a_png_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        plot_results(results("backbone", "random", "oracle", "untuned_hybrid", "hybrid"), tmp_path / name, data="toy")
    first = (tmp_path / "one.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first == (tmp_path / "two.png").read_bytes()


def test_plot_of_a_backbone_alone(tmp_path: Path) -> None:
    plot_results(results("backbone"), tmp_path / "one.png", data="toy")
    assert (tmp_path / "one.png").stat().st_size > 1000


@pytest.mark.parametrize(("row", "group"), [("oracle", "baseline"), ("untuned_hybrid", "untuned"), ("hybrid", "tuned")])
def test_rows_are_grouped_by_what_made_them(row: str, group: str) -> None:
    assert group_of(row) == group
    assert group in GROUPS
