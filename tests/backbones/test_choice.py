import numpy as np
import pytest

from recranker.backbones.choice import fit_choice, standardised


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
