"""The paper's utilities by hand (RecRanker, section 4.4)."""

import numpy as np

from recranker.tasks import listwise, pairwise, pointwise
from recranker.tasks.protocol import Answer, RatingScale

ITEMS = ["a", "b", "c", "d"]


def answer(task: str, items: tuple[str, ...], *probabilities: float) -> Answer:
    return Answer(task, items, np.log(np.array(probabilities)))  # type: ignore[arg-type]


def test_pointwise_is_the_expected_rating_minus_a_penalty_on_the_position() -> None:
    answers = [answer("pointwise", (item,), 0.1, 0.2, 0.3, 0.2, 0.2) for item in ITEMS]
    expected = pointwise.scores(answers, ITEMS)
    rating = 0.1 * 1 + 0.2 * 2 + 0.3 * 3 + 0.2 * 4 + 0.2 * 5
    np.testing.assert_allclose(expected, (rating - 1) / 4)
    utility = pointwise.utility(expected, RatingScale(1, 5))
    np.testing.assert_allclose(utility, [rating - 0.05, rating - 0.10, rating - 0.15, rating - 0.20])


def test_pointwise_like_is_the_probability_of_yes() -> None:
    np.testing.assert_allclose(pointwise.scores([answer("pointwise", ("a",), 0.3, 0.7)], ["a"]), [0.7])


def test_pairwise_gives_the_winner_a_half_and_splits_when_the_orders_disagree() -> None:
    answers = [
        answer("pairwise", ("a", "b"), 0.2, 0.8),  # a
        answer("pairwise", ("b", "a"), 0.9, 0.1),  # a again
        answer("pairwise", ("c", "d"), 0.3, 0.7),  # c
        answer("pairwise", ("d", "c"), 0.4, 0.6),  # d: first slot both times
    ]
    np.testing.assert_allclose(pairwise.utility(answers, ITEMS), [0.5, 0.0, 0.25, 0.25])


def test_pairwise_scores_average_both_orders() -> None:
    answers = [answer("pairwise", ("a", "b"), 0.2, 0.8), answer("pairwise", ("b", "a"), 0.5, 0.5)]
    np.testing.assert_allclose(pairwise.scores(answers, ["a", "b"]), [np.log(4) / 2, -np.log(4) / 2])


def test_a_first_slot_bias_cancels_in_the_pair_score() -> None:
    answers = [answer("pairwise", ("a", "b"), 0.1, 0.9), answer("pairwise", ("b", "a"), 0.1, 0.9)]
    np.testing.assert_allclose(pairwise.scores(answers, ["a", "b"]), [0.0, 0.0], atol=1e-12)


def test_listwise_averages_permutations_and_ranks() -> None:
    answers = [
        answer("listwise", ("a", "b", "c", "d"), 0.4, 0.3, 0.2, 0.1),
        answer("listwise", ("d", "c", "b", "a"), 0.4, 0.3, 0.2, 0.1),
    ]
    scores = listwise.scores(answers, ITEMS)
    np.testing.assert_allclose(scores[0], (np.log(0.4) + np.log(0.1)) / 2)
    np.testing.assert_allclose(scores[1], (np.log(0.3) + np.log(0.2)) / 2)
    np.testing.assert_allclose(listwise.utility(np.array([0.1, 0.4, 0.3, 0.3])), [-0.1, -0.025, -0.05, -0.075])
