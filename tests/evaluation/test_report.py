import re
import time
from html.parser import HTMLParser

import pytest

from recranker.evaluation.evaluate import Evaluation, evaluate
from recranker.evaluation.report import Background, build_report, featured
from recranker.evaluation.rows import HYBRIDS
from recranker.ranking.utilities import TASKS
from tests.evaluation.made_up import made_up

FACTS = {"source": "toy <data>", "has_time": True, "likes_mean": "a rating of at least 4", "counts": {"users": 1234}}
BIAS = {"tuned": {"first_slot_rate": 0.1, "first_slot_chance": 0.1, "kendall_tau": -0.2}}
WEIGHTS = {"learned_weights": {"listwise": 0.7, "pairwise": 0.0}}


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluate(**vars(made_up()), samples=200, seed=0)


def report(found: Evaluation, served: str = "hybrid", **changes: object) -> str:
    parts = {"facts": FACTS, "settings": {"seed": 0}, "bias": BIAS, "weights": WEIGHTS} | changes
    return build_report(found, Background("toy", served, **parts))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def default_page(found: Evaluation) -> str:
    return report(found)


class _Balance(HTMLParser):
    """Counts tags that are opened and not closed."""

    VOID = ("meta", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_balanced_has_no_id_twice_and_no_outside_resource(default_page: str) -> None:
    made, seen = default_page, _Balance()
    seen.feed(made)
    assert seen.open == []
    assert len(seen.ids) == len(set(seen.ids))
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)|url\((?!#)|@import""", made)
    for target in re.findall(r'href="#([^"]+)"', made):
        assert target in seen.ids


def test_the_page_holds_every_row_with_the_numbers_of_the_table(found: Evaluation, default_page: str) -> None:
    for row in found.results.to_pylist():
        line = re.search(rf'<th scope="row">{row["row"]}</th>(.*?)</tr>', default_page)
        assert line is not None
        assert f">{row['ndcg_at_3']:.4f}<" in line[1]


def test_the_headline_claims_no_more_than_the_intervals(found: Evaluation) -> None:
    made = report(found, "conventional")
    assert "re-ranker, a gain" not in made
    made = report(found, "untuned_hybrid")
    assert "against the backbone&#x27;s order, a difference that could be none" in made
    assert "against the conventional re-ranker, a loss" in made


def test_text_of_the_data_is_escaped(found: Evaluation) -> None:
    made = report(found, facts=FACTS | {"source": "<script>alert(1)</script>"}, settings={"name": "</pre><b>"})
    assert "<script>alert" not in made
    assert "&lt;script&gt;alert" in made
    assert "</pre><b>" not in made


def test_facts_of_the_data_are_shown_however_they_are_nested(found: Evaluation) -> None:
    made = report(found, facts=FACTS | {"steps": {"dropped": [1, 2]}})
    assert "<dt>steps dropped</dt><dd>1, 2</dd>" in made
    assert "<dt>likes mean</dt><dd>a rating of at least 4</dd>" in made
    assert "1,234" in made


def test_a_run_without_a_model_has_no_section_on_one() -> None:
    tables = vars(made_up(40))
    alone = evaluate(**tables | {"rankings": tables["rankings"].slice(0, 0)}, samples=100, seed=0)
    made = report(alone, "conventional", bias={}, weights={})
    assert "Position bias" not in made
    assert "Fusion" not in made
    assert "Calibration" not in made
    assert featured(alone.comparison.values) == ["backbone", "conventional", "logistic", "trees"]


def test_every_row_with_probabilities_has_its_calibration_on_the_page(found: Evaluation, default_page: str) -> None:
    section = re.search(r'<section id="calibration".*?</section>', default_page, re.DOTALL)
    assert section is not None
    assert list(found.reliability) == [*TASKS, *HYBRIDS]
    for row, one in found.reliability.items():
        line = re.search(rf'<th scope="row">{row}</th>(.*?)</tr>', section[0])
        assert line is not None
        assert re.findall(r">([\d.]+)<", line[1]) == [
            *(f"{value:.4f}" for value in (one.ece, one.brier, one.uninformed)),
            str(found.comparison.num_hits),
        ]
    drawn = [name for name in ("pointwise", "pairwise", "listwise", "hybrid") if f">{name}</text>" in section[0]]
    assert drawn == ["pointwise", "pairwise", "listwise", "hybrid"]
    assert ">hybrid conventional</text>" not in section[0]  # neither a task nor served


def test_the_page_is_the_same_each_time(found: Evaluation, default_page: str) -> None:
    assert report(found) == default_page


@pytest.mark.slow
def test_six_thousand_users_and_twenty_rows_take_seconds() -> None:
    tables = vars(made_up(6000, 3000))
    started = time.perf_counter()
    found = evaluate(**tables, samples=2000, seed=0)
    assert len(found.comparison.values) == 20
    report(found)
    assert time.perf_counter() - started < 60


@pytest.mark.parametrize("lists", [40, 0])
def test_a_run_without_a_single_hit_still_has_its_page(lists: int) -> None:
    tables = vars(made_up(40, hits=0.0))
    tables |= {"candidates": tables["candidates"].slice(0, lists), "rankings": tables["rankings"].slice(0, 0)}
    made = report(evaluate(**tables, samples=100, seed=0), "conventional")
    assert "+0.0000 [0.0000, 0.0000]" in made
