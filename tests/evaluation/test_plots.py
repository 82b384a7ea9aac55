import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from recranker.evaluation.plots import GROUPS, curves_svg, plot_results, reliability_svg, results_svg
from recranker.evaluation.rows import group_of
from recranker.ranking.calibration import ReliabilityBin
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


def test_svg_takes_the_pages_colours_and_is_well_formed_and_the_same_each_time() -> None:
    made = results_svg(results("backbone", "hybrid"))
    ElementTree.fromstring(made)
    assert not re.search(r"#[0-9a-f]{6}\b", made)  # every colour is a variable that dark mode can change
    assert "http" not in made.replace("http://www.w3.org", "")
    assert made == results_svg(results("backbone", "hybrid"))


def test_names_of_rows_are_text_in_an_svg_and_never_formulas_or_markup() -> None:
    made = curves_svg({"backbone": np.array([0.1, 0.2]), "<b>$\\frac": np.array([0.2, 0.3])})
    assert "&lt;b&gt;$\\frac" in made


def test_reliability_is_drawn_with_a_line_per_row_and_a_diagonal() -> None:
    bins = (ReliabilityBin(0.1, 0.05, 20), ReliabilityBin(0.4, 0.6, 20))
    made = reliability_svg({"pointwise": bins, "hybrid_paper": bins[:1]})
    ElementTree.fromstring(made)
    assert not re.search(r"#[0-9a-f]{6}\b", made)
    assert re.findall(r">(pointwise|hybrid paper)</text>", made) == ["pointwise", "hybrid paper"]
    assert made.count("stroke-dasharray") == 1
    assert made == reliability_svg({"pointwise": bins, "hybrid_paper": bins[:1]})


def test_ids_of_two_pictures_on_one_page_differ() -> None:
    first, second = results_svg(results("backbone")), curves_svg({"backbone": np.array([0.1, 0.2])})
    ids = [set(re.findall(r'id="([^"]+)"', one)) for one in (first, second)]
    assert not ids[0] & ids[1]
    for one in (first, second):
        assert set(re.findall(r'href="#([^"]+)"', one)) <= set(re.findall(r'id="([^"]+)"', one))
