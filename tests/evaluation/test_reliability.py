import pyarrow as pa
import pytest

from recranker.errors import DataError
from recranker.evaluation.evaluate import evaluate
from recranker.evaluation.lists import OfferedLists, offered_lists
from recranker.evaluation.reliability import Reliability, reliabilities
from recranker.ranking.calibration import ReliabilityBin
from recranker.schema import RANKINGS
from tests.evaluation.made_up import made_up
from tests.tables import candidate_list, candidates, interactions


def offered() -> OfferedLists:
    """Two test lists that hold their target, one that does not, one for validation."""
    events = interactions(*((user, target, 3, "like", "test") for user, target in (("u", "a"), ("v", "b"), ("w", "x"))))
    rows = [candidate_list(user, "test", target, ["a", "b"]) for user, target in (("u", "a"), ("v", "b"), ("w", "x"))]
    return offered_lists(events, candidates(*rows, candidate_list("u", "validation", "a", ["a", "b"])))


def ranking(list_id: str, item_ids: str, probabilities: list[float] | None, row: str = "hybrid") -> dict[str, object]:
    split, user, _ = list_id.split("/")
    scores = [1.0, 0.0]
    one = {"list_id": list_id, "user_id": user, "split": split, "row": row, "item_ids": list(item_ids)}
    return one | {"scores": scores, "probabilities": probabilities}


def rankings(*rows: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=RANKINGS.schema)


def test_reliability_by_hand_on_test_lists_with_a_hit() -> None:
    table = rankings(
        ranking("test/v/b", "ab", [0.75, 0.25]),  # b is the target
        ranking("test/u/a", "ba", [0.5, 0.5]),  # a is
        ranking("test/w/x", "ab", [1.0, 1.0]),  # no hit
        ranking("validation/u/a", "ab", [1.0, 1.0]),
        ranking("test/u/a", "ab", None, row="listwise"),
        ranking("validation/u/a", "ab", [1.0, 1.0], row="pointwise"),
    )
    assert reliabilities(offered(), table) == {
        "hybrid": Reliability(
            ece=(1 * abs(0.25 - 1.0) + 2 * abs(0.5 - 0.5) + 1 * abs(0.75 - 0.0)) / 4,
            brier=(0.75**2 + 0.75**2 + 0.5**2 + 0.5**2) / 4,
            uninformed=0.25,
            num_lists=2,
            bins=(ReliabilityBin(0.25, 1.0, 1), ReliabilityBin(0.5, 0.5, 2), ReliabilityBin(0.75, 0.0, 1)),
        )
    }


@pytest.mark.parametrize("wrong", [[0.5], [0.5, float("nan")], [1.5, 0.5], [0.5, -0.1]])
def test_what_is_no_probability_per_candidate_is_refused(wrong: list[float]) -> None:
    table = rankings(ranking("test/u/a", "ab", [0.5, 0.5]), ranking("test/v/b", "ab", wrong))
    with pytest.raises(DataError, match=r"list 'test/v/b': row 'hybrid'.* one probability in \[0, 1\] per candidate"):
        reliabilities(offered(), table)


def test_rankings_without_probabilities_are_left_alone() -> None:
    assert reliabilities(offered(), rankings(ranking("test/u/a", "ab", None))) == {}
    assert reliabilities(offered(), RANKINGS.schema.empty_table()) == {}


def test_errors_of_rows_with_probabilities_are_metrics() -> None:
    found = evaluate(**vars(made_up(40)), samples=100, seed=0)
    metrics = found.reliability_metrics
    assert metrics["eval/hybrid/ece"] == found.reliability["hybrid"].ece
    assert metrics["eval/pairwise/brier"] == found.reliability["pairwise"].brier
    assert not any("untuned" in name for name in metrics)
