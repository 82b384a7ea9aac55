"""Which pairs are asked about, and what their answers say about each item."""

import numpy as np
import pytest

from recranker.errors import SettingsError
from recranker.tasks import pairwise
from recranker.tasks.protocol import Answer, Candidate


def some(count: int) -> list[Candidate]:
    return [Candidate(f"i{n}", f"Film {n}", n + 1) for n in range(count)]


def both_orders(first: str, second: str, log_odds: float, first_slot: float = 0.0) -> list[Answer]:
    """Answers of a model that prefers ``first`` by ``log_odds`` and whatever is shown first by ``first_slot``."""
    return [
        _answer((first, second), first_slot + log_odds),
        _answer((second, first), first_slot - log_odds),
    ]


def _answer(items: tuple[str, str], log_odds: float) -> Answer:
    return Answer("pairwise", items, -np.logaddexp(0.0, [log_odds, -log_odds]))


def mean_log_odds(answers: list[Answer], item_ids: list[str]) -> np.ndarray:
    """The mean of an item's own pairs, whoever it met: right where everybody meets one opponent, or all."""
    signed = [
        (item, sign * (one.log_probabilities[1] - one.log_probabilities[0]))
        for one in answers
        for item, sign in zip(one.item_ids, (1, -1), strict=True)
    ]
    return np.array([np.mean([value for found, value in signed if found == item]) for item in item_ids])


def places(found: list[tuple[Candidate, Candidate]]) -> list[tuple[int, int]]:
    return [(first.place, second.place) for first, second in found]


def test_all_pairs_are_all_unordered_pairs() -> None:
    found = places(pairwise.pairs(some(4), "all", per_candidate=2))
    assert found == [(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)]


def test_all_pairs_of_many_candidates_are_refused_with_a_way_out() -> None:
    assert len(pairwise.pairs(some(26), "all", per_candidate=2)) == 325
    with pytest.raises(SettingsError, match=r"at most 26 candidates.*got 27; set instruct\.pair_schedule='budgeted'"):
        pairwise.pairs(some(27), "all", per_candidate=2)


def test_a_budget_is_spent_on_neighbours_of_the_order_that_hints_quote() -> None:
    shuffled = [some(5)[place] for place in (3, 0, 4, 2, 1)]
    found = places(pairwise.pairs(shuffled, "budgeted", per_candidate=1))
    assert found == [(1, 2), (2, 3), (3, 4), (4, 5), (1, 3)]  # then those two apart, from the top


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 0), (2, 1), (3, 3), (5, 10), (6, 12), (200, 400)])
def test_a_budget_is_linear_and_no_pair_comes_twice(count: int, expected: int) -> None:
    found = places(pairwise.pairs(some(count), "budgeted", per_candidate=2))
    assert len(set(found)) == len(found) == expected


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 9, 10])
@pytest.mark.parametrize("schedule", ["disjoint", "all", "budgeted"])
def test_pairs_are_counted_before_they_are_made(schedule: pairwise.PairSchedule, count: int) -> None:
    made = pairwise.pairs(some(count), schedule, "key", per_candidate=2)
    assert pairwise.num_pairs(count, schedule, per_candidate=2) == len(made)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("schedule", ["disjoint", "all", "budgeted"])
def test_one_candidate_meets_nobody(schedule: pairwise.PairSchedule, count: int) -> None:
    assert pairwise.pairs(some(count), schedule, "key", per_candidate=2) == []


@pytest.mark.parametrize(("schedule", "count"), [("disjoint", 10), ("disjoint", 26), ("all", 3), ("all", 10)])
def test_with_one_opponent_or_all_the_scores_are_the_mean_log_odds(schedule: pairwise.PairSchedule, count: int) -> None:
    random = np.random.default_rng(count)
    ids = [one.item_id for one in some(count)]
    answers = []
    for first, second in pairwise.pairs(some(count), schedule, "key", per_candidate=2):
        answers += both_orders(first.item_id, second.item_id, random.normal(), first_slot=random.normal())
    np.testing.assert_allclose(pairwise.scores(answers, ids), mean_log_odds(answers, ids), atol=1e-9)


def test_beating_a_strong_opponent_counts() -> None:
    answers = both_orders("a", "b", 1.0) + both_orders("b", "c", 3.0)
    assert mean_log_odds(answers, ["a", "b"]).tolist() == pytest.approx([1.0, 1.0])  # as if a were no better than b
    # a beats b by 1 and so c by 4; b beats c by 3
    np.testing.assert_allclose(pairwise.scores(answers, ["a", "b", "c"]), [2.5, 1.0, -3.5])


def test_an_item_in_no_pair_is_even() -> None:
    np.testing.assert_allclose(pairwise.scores(both_orders("a", "c", 2.0), ["a", "b", "c"]), [2.0, 0.0, -2.0])


def test_a_chain_of_neighbours_recovers_a_consistent_order() -> None:
    truth = np.random.default_rng(1).normal(size=200)
    ids = [one.item_id for one in some(200)]
    answers = []
    for first, second in pairwise.pairs(some(200), "budgeted", per_candidate=2):
        strength = truth[first.place - 1] - truth[second.place - 1]
        answers += both_orders(first.item_id, second.item_id, strength, first_slot=1.0)
    expected = (truth - truth.mean()) * 200 / 199
    np.testing.assert_allclose(pairwise.scores(answers, ids), expected, atol=1e-9)


def test_a_teacher_without_an_opinion_on_a_pair_says_nothing() -> None:
    first, second = Candidate("a", "A", 1, None, 0.0), Candidate("b", "B", 2, None, 0.0)
    assert pairwise.question(first, second, hint="none", answer="Yes").soft_labels is None
