import numpy as np
import pyarrow as pa
import pytest

from recranker.evaluation.comparison import Comparison, compare
from recranker.evaluation.slices import make_slices, slice_table
from recranker.schema import RANKINGS, SIGNALS
from tests.tables import candidate_list, candidates, interactions

SECOND = 1 / np.log2(3)
LIKES = {"u1": 1, "u2": 2, "u3": 9, "u4": 12, "u5": 30, "u6": 31}  # training likes; targets: see TARGETS
TARGETS = {"u1": "a", "u2": "b", "u3": "a", "u4": "c", "u5": "x", "u6": "b"}


def events() -> pa.Table:
    train = [(user, f"own {at % 3}", at, "like", "train") for user, likes in LIKES.items() for at in range(likes)]
    train += [("u1", "b", 50, "dislike", "train")] * 4  # events, not likes
    others = {"a": 1, "b": 6, "c": 12}  # training likes of the targets, by users without a test event
    train += [(f"z{at}", item, at, "like", "train") for item, likes in others.items() for at in range(likes)]
    return interactions(*train, *[(user, target, 60, "like", "test") for user, target in TARGETS.items()])


def comparison() -> Comparison:
    lists = candidates(*[candidate_list(user, "test", target, ["a", "b", "c"]) for user, target in TARGETS.items()])
    none = (SIGNALS.schema.empty_table(), RANKINGS.schema.empty_table())
    return compare(events(), lists, *none)


def found() -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    made = comparison()
    by_slice: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for line in slice_table(made, make_slices(made, events()), samples=200, seed=0).to_pylist():
        by_slice.setdefault((line["group"], line["slice"]), {})[line["row"]] = line
    return by_slice


def test_thirds_by_activity_hold_all_test_users_once() -> None:
    thirds = {name: one["backbone"] for (group, name), one in found().items() if group == "user activity"}
    assert list(thirds) == ["1 to 2 training likes", "9 to 12 training likes", "30 to 31 training likes"]
    assert [one["users"] for one in thirds.values()] == [2, 2, 2]
    assert [one["users_with_hit"] for one in thirds.values()] == [2, 2, 1]  # u5's target was not retrieved


def test_ndcg_of_a_slice_is_over_its_own_users() -> None:
    busiest = found()["user activity", "30 to 31 training likes"]
    assert busiest["backbone"]["ndcg_at_3"] == pytest.approx(SECOND / 2)  # u5 misses, u6 has its target second
    assert busiest["oracle"]["difference"] == pytest.approx((1 - SECOND) / 2)
    assert busiest["oracle"]["difference_low"] <= (1 - SECOND) / 2 <= busiest["oracle"]["difference_high"]


def test_cold_users_and_targets_are_counted_by_events_of_any_feedback() -> None:
    cold = found()
    assert cold["cold users", "fewer than 5 training events"]["backbone"]["users"] == 1  # u2; u1 has 1 + 4 events
    assert cold["cold users", "fewer than 10 training events"]["backbone"]["users"] == 3
    assert cold["cold targets", "fewer than 5 training events"]["backbone"]["users"] == 3  # b: 6 + 4 events


def test_thirds_by_target_popularity_are_cut_between_different_counts() -> None:
    thirds = {
        name: rows["backbone"]["users"] for (group, name), rows in found().items() if group == "target popularity"
    }
    assert thirds == {"0 to 1 training likes": 3, "6 training likes": 2, "12 training likes": 1}


def test_slices_with_few_hits_say_so() -> None:
    assert all(line["few"] for rows in found().values() for line in rows.values())
