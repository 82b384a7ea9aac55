import numpy as np
import pytest

from recranker.evaluation.intervals import paired_bootstrap


def test_identical_rankers_have_an_interval_without_width() -> None:
    assert paired_bootstrap(np.zeros((50, 2)), samples=200, seed=0, num_unchanged=30).tolist() == [[0, 0], [0, 0]]


def test_a_planted_difference_is_covered_and_zero_is_not() -> None:
    differences = np.random.default_rng(0).normal(0.1, 0.3, size=(400, 1))
    low, high = paired_bootstrap(differences, samples=2000, seed=0)[0]
    assert 0 < low < 0.1 < high
    width = 2 * 1.96 * differences.std() / np.sqrt(400)  # the normal approximation
    assert high - low == pytest.approx(width, rel=0.08)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        low, high = paired_bootstrap(random.normal(0.2, 1.0, size=(100, 1)), samples=300, seed=trial)[0]
        covered += low <= 0.2 <= high
    assert 180 <= covered <= 199  # 95 % of 200, give or take three standard errors


def test_users_who_cannot_differ_may_be_given_as_a_count() -> None:
    differences = np.random.default_rng(1).normal(0.3, 0.5, size=(60, 1))
    spelled_out = paired_bootstrap(np.concatenate([differences, np.zeros((340, 1))]), samples=8000, seed=0)
    counted = paired_bootstrap(differences, samples=8000, seed=0, num_unchanged=340)
    assert counted == pytest.approx(spelled_out, abs=0.003)
    assert paired_bootstrap(differences, samples=8000, seed=0)[0, 0] > 2 * counted[0, 0]  # fewer users, larger mean


def test_blocks_do_not_change_the_interval() -> None:
    differences = np.random.default_rng(3).normal(size=(40, 3))
    whole = paired_bootstrap(differences, samples=501, seed=7, num_unchanged=9)
    blocks = paired_bootstrap(differences, samples=501, seed=7, num_unchanged=9, cells_per_block=41 * 7)
    assert whole == pytest.approx(blocks, abs=1e-12)


def test_the_seed_decides_and_rankers_share_resamples() -> None:
    one = np.random.default_rng(4).normal(size=(80, 1))
    both = paired_bootstrap(np.hstack([one, -one]), samples=400, seed=1)
    assert both[1] == pytest.approx(-both[0][::-1])
    assert paired_bootstrap(one, samples=400, seed=1)[0] == pytest.approx(both[0])
    assert paired_bootstrap(one, samples=400, seed=2)[0] != pytest.approx(both[0])


def test_no_users_give_zeros() -> None:
    assert paired_bootstrap(np.empty((0, 2)), samples=100, seed=0).tolist() == [[0, 0], [0, 0]]
    assert paired_bootstrap(np.empty((0, 1)), samples=100, seed=0, num_unchanged=5).tolist() == [[0, 0]]
