"""Labels shuffled: chance for a ranker that knows nothing, a complaint for one that reads the target."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from recranker.errors import DataError, LeakageError
from recranker.evaluation.shuffled_labels import check_shuffled_labels, measured, shuffle_targets
from tests.tables import candidate_list, candidates

ITEMS = [f"i{number}" for number in range(10)]


def _lists(count: int = 200) -> pa.Table:
    """The target always stands first, so that place alone finds it; half of the lists train."""
    splits = ("train", "test")
    return candidates(*[candidate_list(f"u{number}", splits[number % 2], "i0", ITEMS) for number in range(count)])


def _fitted(training: pa.Table, ranked: pa.Table, *, leak: bool) -> Sequence[NDArray[np.float64]]:
    """Least squares on the place in the list, and, where planted, on a feature that reads the target column."""

    def features(table: pa.Table) -> list[NDArray[np.float64]]:
        rows = zip(table["candidate_ids"].to_pylist(), table["target_id"].to_pylist(), strict=True)
        return [
            np.array([[10 - place, float(leak and item == target)] for place, item in enumerate(items)])
            for items, target in rows
        ]

    asked = zip(training["candidate_ids"].to_pylist(), training["target_id"].to_pylist(), strict=True)
    labels = np.concatenate([[float(item == target) for item in items] for items, target in asked])
    weights = np.linalg.lstsq(np.concatenate(features(training)), labels, rcond=None)[0]
    return [one @ weights for one in features(ranked)]


def test_an_honest_ranker_falls_to_chance() -> None:
    found = check_shuffled_labels(_lists(), lambda *tables: _fitted(*tables, leak=False), seed=0)
    assert found.by_chance
    assert found.lists == 100


def test_the_same_ranker_is_far_above_chance_on_the_true_labels() -> None:
    lists = _lists()
    training, ranked = (lists.filter(pa.compute.equal(lists["split"], one)) for one in ("train", "test"))
    assert measured(ranked, _fitted(training, ranked, leak=False), k=5).ndcg == 1.0


def test_a_feature_that_reads_the_target_is_caught() -> None:
    with pytest.raises(LeakageError, match=r"with labels shuffled the ranker reaches NDCG@5 1\.0000 on 100 lists"):
        check_shuffled_labels(_lists(), lambda *tables: _fitted(*tables, leak=True), seed=0)


def test_the_interval_is_that_of_a_uniform_rank() -> None:
    """Two candidates, k = 1: the gain is 1 or 0 with equal odds, so mean 1/2 and variance 1/4."""
    table = candidates(*[candidate_list(f"u{number}", "test", "a", ["a", "b"]) for number in range(100)])
    found = measured(table, [np.array([0.0, 0.0])] * 100, k=1)
    assert found.ndcg == 0.5
    assert (found.lowest, found.highest) == pytest.approx((0.5 - 3.9 * 0.05, 0.5 + 3.9 * 0.05))


def test_every_candidate_becomes_a_target_about_as_often() -> None:
    shuffled = shuffle_targets(_lists(2000), seed=1)
    counts = np.bincount([int(target[1:]) for target in shuffled["target_id"].to_pylist()], minlength=10)
    assert counts.min() > 150  # 200 expected, standard deviation 13
    assert counts.max() < 250
    assert shuffled.equals(shuffle_targets(_lists(2000), seed=1))


def test_too_few_lists_are_refused() -> None:
    with pytest.raises(DataError, match="need 20 lists of split 'test' that hold their target, found 5"):
        check_shuffled_labels(_lists(10), lambda *tables: _fitted(*tables, leak=False), seed=0)
