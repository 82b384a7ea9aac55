import numpy as np
import pytest
from scipy import stats

from recranker.sampling.races import Arrivals, arrivals_until, draw, earliest, horizon

USERS = ["a", "b", "c", "d"]
RATES = np.array([1.0, 2.0, 3.0, 4.0])


def test_draws_follow_the_weights() -> None:
    drawn = draw(USERS, RATES, 20_000, 0, "frequencies")
    counts = [(drawn.user_ids == user).sum() for user in USERS]
    assert stats.chisquare(counts, 20_000 * RATES / RATES.sum()).pvalue > 0.001


def test_a_planted_bias_would_be_seen_by_the_same_test() -> None:
    drawn = draw(USERS, np.array([1.0, 2.0, 3.0, 4.4]), 20_000, 0, "frequencies")
    counts = [(drawn.user_ids == user).sum() for user in USERS]
    assert stats.chisquare(counts, 20_000 * RATES / RATES.sum()).pvalue < 0.001


def test_first_arrivals_over_many_seeds_follow_the_weights() -> None:
    first = [draw(USERS, RATES, 1, seed, "first").user_ids[0] for seed in range(4000)]
    counts = [first.count(user) for user in USERS]
    assert stats.chisquare(counts, 4000 * RATES / RATES.sum()).pvalue > 0.001


def test_shards_raced_apart_merge_to_the_same_draws() -> None:
    names = [f"user {n}" for n in range(300)]
    rates = np.log(np.arange(2, 302))
    whole = draw(names, rates, 500, 3, "merge")
    until = horizon(500, rates.sum())
    shards = [arrivals_until(names[start::7], rates[start::7], until, 3, "merge") for start in range(7)]
    merged = earliest(shards[::-1], 500)
    assert merged.times.tobytes() == whole.times.tobytes()
    assert merged.user_ids.tolist() == whole.user_ids.tolist()


def test_arrivals_of_one_user_are_a_poisson_process() -> None:
    found = arrivals_until(["u"], np.array([5.0]), 2000.0, 1, "gaps")
    gaps = np.diff(np.sort(found.times), prepend=0.0)
    assert stats.kstest(gaps, "expon", args=(0, 1 / 5.0)).pvalue > 0.001


def test_a_user_without_weight_is_never_drawn() -> None:
    drawn = draw(["never", "always"], np.array([0.0, 1.0]), 50, 0)
    assert set(drawn.user_ids) == {"always"}


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="positive weight"):
        draw(["a"], np.array([0.0]), 1, 0)


def test_earliest_orders_by_time() -> None:
    parts = [
        Arrivals(np.array([0.3, 0.1]), np.array(["c", "a"], object)),
        Arrivals(np.array([0.2]), np.array(["b"], object)),
    ]
    assert earliest(parts, 2).user_ids.tolist() == ["a", "b"]
