import numpy as np

from recranker.tasks.potential import potential


def test_a_cycle_that_contradicts_itself_is_met_halfway() -> None:
    measured = [{"a": 1.0, "b": 0.0}, {"b": 1.0, "c": 0.0}, {"a": 5.0, "c": 0.0}]
    found, connected = potential(measured, ["a", "b", "c"])
    # a - c is 2 by way of b and 5 directly: every one of the three differences gives way by 1
    np.testing.assert_allclose(found, [2.0, 0.0, -2.0], atol=1e-9)
    assert connected.tolist() == [3, 3, 3]


def test_the_level_of_a_question_says_nothing() -> None:
    low, high = {"a": -9.0, "b": -10.0}, {"b": 8.0, "c": 6.0}
    np.testing.assert_allclose(potential([low, high], ["c", "a", "b"])[0], [-5 / 3, 4 / 3, 1 / 3], atol=1e-9)


def test_sets_that_no_question_connects_have_mean_zero_each() -> None:
    found, connected = potential([{"a": 3.0, "b": 1.0}, {"d": 0.0, "e": 7.0}], ["a", "b", "c", "d", "e"])
    np.testing.assert_allclose(found, [1.0, -1.0, 0.0, -3.5, 3.5], atol=1e-9)
    assert connected.tolist() == [2, 2, 1, 2, 2]


def test_it_is_the_least_squares_solution_of_minimum_norm() -> None:
    random = np.random.default_rng(0)
    items = [str(n) for n in range(12)]
    for _ in range(20):
        shown = [random.permutation(12)[: random.integers(1, 5)] for _ in range(4)]
        measured = [{items[n]: float(random.normal()) for n in one} for one in shown]
        design = np.concatenate([np.eye(12)[one] - np.eye(12)[one].mean(axis=0) for one in shown])
        values = np.concatenate([[*one.values()] - np.mean([*one.values()]) for one in measured])
        expected = np.linalg.lstsq(design, values, rcond=1e-9)[0]
        np.testing.assert_allclose(potential(measured, items)[0], expected, atol=1e-9)


def test_a_measurement_that_is_not_a_number_is_not_hidden() -> None:
    assert np.isnan(potential([{"a": float("nan"), "b": 0.0}], ["a", "b"])[0]).all()


def test_items_that_tie_come_out_the_same() -> None:
    # a ring of windows in which every third item is equally good: rounding must not tell these apart
    items = [str(n) for n in range(60)]
    ring = [[items[(start + offset) % 60] for offset in range(20)] for start in range(0, 60, 15)]
    measured = [{item: 0.1 * (int(item) % 3) - 1 / (1 + start) for item in one} for start, one in enumerate(ring)]
    assert len(set(potential(measured, items)[0].tolist())) == 3
