import numpy as np
import pytest

from recranker.ranking.choice import fit_choice, log_probabilities, reduced, standardised, standardised_lists


def test_one_signal_by_hand() -> None:
    # Two items with signal 1 and 0; the first is chosen in 3 of 4 lists: its odds must become 3.
    features = [np.array([[1.0], [0.0]])] * 4
    assert fit_choice(features, [0, 0, 0, 1], l2=0.0) == pytest.approx([np.log(3)], abs=1e-4)


def test_lists_of_different_lengths_agree_with_a_slow_likelihood() -> None:
    random = np.random.default_rng(0)
    features = [random.normal(size=(size, 2)) for size in random.integers(2, 9, 3000)]
    true = np.array([1.0, -0.5])
    targets = []
    for one in features:
        odds = np.exp(one @ true)
        targets.append(int(random.choice(len(one), p=odds / odds.sum())))
    found = fit_choice(features, targets, l2=0.01)

    def loss(weights: np.ndarray) -> float:
        total = [one @ weights for one in features]
        return -float(
            np.mean([logits[t] - np.logaddexp.reduce(logits) for logits, t in zip(total, targets, strict=True)])
        ) + 0.01 * float(weights @ weights)

    assert found == pytest.approx(true, abs=0.1)
    for step in ([1e-2, 0], [-1e-2, 0], [0, 1e-2], [0, -1e-2]):
        assert loss(found) < loss(found + np.array(step))


def test_no_weight_falls_below_the_bound() -> None:
    features = [np.array([[1.0], [0.0]])] * 4
    assert fit_choice(features, [1, 1, 1, 0], l2=0.0, lowest=0.0) == pytest.approx([0.0])


def test_standardised_scores_by_hand() -> None:
    np.testing.assert_allclose(standardised(np.array([1.0, 2.0, 3.0])), np.array([-1, 0, 1]) / np.sqrt(2 / 3))
    assert standardised(np.full(4, 7.0)).tolist() == [0.0] * 4


def test_lists_are_standardised_each_alone_and_what_is_unknown_is_0() -> None:
    found = standardised_lists(np.array([1.0, 2.0, 3.0, 5.0, np.nan, 7.0, 4.0]), np.array([0, 3, 6]))
    np.testing.assert_allclose(found, [-np.sqrt(1.5), 0, np.sqrt(1.5), -1, 0, 1, 0])


def test_log_probabilities_by_hand() -> None:
    found = log_probabilities(np.log(np.array([1.0, 3.0, 5.0])), np.array([0, 2]))
    np.testing.assert_allclose(np.exp(found), [0.25, 0.75, 1.0])


def test_a_list_without_items_disturbs_no_other() -> None:
    values, starts = np.array([1.0, 3.0, 5.0]), np.array([0, 0, 2, 2, 3])  # lengths 0, 2, 0, 1, 0
    assert reduced(np.add, values, starts).tolist() == [0, 4, 0, 5, 0]
    assert standardised_lists(values, starts).tolist() == [-1, 1, 0]
    np.testing.assert_allclose(np.exp(log_probabilities(np.log(values), starts)), [0.25, 0.75, 1.0])
