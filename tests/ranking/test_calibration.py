import json

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.special import expit

from recranker.errors import DataError
from recranker.ranking.calibration import (
    BINS,
    Calibrations,
    IsotonicCalibration,
    ReliabilityBin,
    TemperatureCalibration,
    apply,
    brier_score,
    calibration_errors,
    calibration_input,
    cross_validated_ece,
    expected_calibration_error,
    fit_calibration,
    fit_calibrations,
    reads_of,
    reliability_table,
    with_probabilities,
)
from recranker.ranking.settings import CalibrationKind
from recranker.schema import RANKINGS
from tests.tables import candidate_list, candidates

Floats = NDArray[np.float64]
KINDS: tuple[CalibrationKind, ...] = ("temperature", "isotonic")
SLOPE, INTERCEPT = 1.5, np.log(1 / 9) - 1.5**2 / 2


def simulated(count: int = 2000, items: int = 10, seed: int = 0) -> tuple[list[Floats], list[int]]:
    """Lists of scores from N(0, 1), those of the targets from N(1.5, 1).

    By Bayes, with one target among ten, log-odds of being the target are
    log(1 / 9) + log N(s; 1.5, 1) - log N(s; 0, 1) = 1.5 s + log(1 / 9) - 1.5^2 / 2.
    """
    random = np.random.default_rng(seed)
    targets = random.integers(items, size=count)
    scores = random.normal(size=(count, items))
    scores[np.arange(count), targets] += SLOPE
    return list(scores), targets.tolist()


def test_slope_and_intercept_of_simulated_lists_are_found() -> None:
    found = fit_calibration(*simulated(), "temperature")
    assert isinstance(found, TemperatureCalibration)
    np.testing.assert_allclose([found.slope, found.intercept], [SLOPE, INTERCEPT], atol=0.1)


def test_the_unit_of_scores_does_not_matter() -> None:
    scores, targets = simulated(300)
    first = fit_calibration(scores, targets, "temperature")
    second = fit_calibration([1000.0 * one - 7.0 for one in scores], targets, "temperature")
    np.testing.assert_allclose(apply(second, 1000.0 * scores[0] - 7.0), apply(first, scores[0]), rtol=1e-4)


def test_isotonic_follows_the_true_probability_and_never_falls() -> None:
    found = fit_calibration(*simulated(), "isotonic")
    grid = np.linspace(-30.0, 30.0, 9001)
    probabilities = apply(found, grid)
    assert (np.diff(probabilities) >= 0.0).all()
    inner = np.abs(grid) < 2.0
    np.testing.assert_allclose(probabilities[inner], expit(SLOPE * grid[inner] + INTERCEPT), atol=0.08)


def test_isotonic_reads_between_points_in_straight_lines_and_keeps_its_ends() -> None:
    found = IsotonicCalibration(reads="logit", thresholds=(0.0, 2.0), values=(0.1, 0.3))
    np.testing.assert_allclose(apply(found, np.array([-9.0, 0.0, 0.5, 2.0, 9.0])), [0.1, 0.1, 0.15, 0.3, 0.3])


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_is_never_reversed_even_by_scores_that_mislead(kind: CalibrationKind) -> None:
    scores, targets = simulated(200)
    found = fit_calibration([-one for one in scores], targets, kind)
    probabilities = apply(found, np.sort(np.concatenate(scores)))
    assert (np.diff(probabilities) >= 0.0).all()
    if isinstance(found, TemperatureCalibration):
        assert found.slope == 0.0
        np.testing.assert_allclose(probabilities, 0.1, atol=0.01)  # one in ten is all that is known


@pytest.mark.parametrize("kind", KINDS)
def test_one_list_gives_no_certainty(kind: CalibrationKind) -> None:
    # Platt's outcomes of one target and three others are 2 / 3 and 1 / 5
    found = fit_calibration([np.array([9.0, 0.0, 0.0, 0.0])], [0], kind)
    np.testing.assert_allclose(apply(found, np.array([9.0, 0.0])), [2 / 3, 1 / 5], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_are_all_the_same_give_the_base_rate(kind: CalibrationKind) -> None:
    found = fit_calibration([np.full(4, 3.0)] * 500, [0] * 500, kind)
    np.testing.assert_allclose(apply(found, np.array([-1.0, 3.0, 5.0])), 0.25, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_any_finite_score_gets_a_probability(kind: CalibrationKind) -> None:
    found = fit_calibration(*simulated(50), kind)
    probabilities = apply(found, np.array([-1e308, -1e3, 0.0, 1e3, 1e308]))
    assert ((probabilities >= 0.0) & (probabilities <= 1.0)).all()
    assert (np.diff(probabilities) >= 0.0).all()


def test_log_odds_by_hand() -> None:
    half, certain = np.log(1 / 3), np.log((1 - 1e-6) / 1e-6)
    np.testing.assert_allclose(calibration_input(np.array([0.25, 0.0, 1.0]), "probability"), [half, -certain, certain])
    logs = np.array([np.log(0.25), -50.0, 0.0])
    np.testing.assert_allclose(calibration_input(logs, "log_probability"), [half, -50.0, certain], rtol=1e-9)
    assert calibration_input(logs, "logit") is logs


def test_probabilities_that_are_right_already_are_left_as_they_are() -> None:
    scores, targets = simulated()
    true = [expit(SLOPE * one + INTERCEPT) for one in scores]
    for reads, given in (("probability", true), ("log_probability", [np.log(one) for one in true])):
        found = fit_calibration(given, targets, "temperature", reads=reads)  # type: ignore[arg-type]
        assert isinstance(found, TemperatureCalibration)
        np.testing.assert_allclose([found.slope, found.intercept], [1.0, 0.0], atol=0.1)


@pytest.mark.parametrize(
    ("row", "reads"),
    [("pointwise", "probability"), ("pairwise", "logit"), ("listwise", "log_probability"), ("hybrid_paper", "logit")],
)
def test_scores_of_a_row_are_read_as_its_task_gives_them(row: str, reads: str) -> None:
    assert reads_of(row) == reads


@pytest.mark.parametrize("kind", KINDS)
def test_planted_overconfidence_is_reduced_out_of_fold(kind: CalibrationKind) -> None:
    scores, targets = simulated(400)
    bold = [expit(4.0 * one) for one in scores]  # the truth is far below
    before, after = cross_validated_ece(bold, targets, kind, reads="probability")
    assert before > 0.3
    assert after < 0.03
    before, after = cross_validated_ece([5.0 * one for one in scores], targets, kind)
    assert before > 0.03  # a softmax with a fifth of the temperature
    assert after < before / 2


def test_the_naive_reading_is_the_score_or_its_softmax() -> None:
    scores, targets = [np.array([0.2, 0.9]), np.array([0.6, 0.1])], [1, 0]
    outcomes = np.array([False, True, True, False])
    before, _ = cross_validated_ece(scores, targets, "temperature", reads="probability")
    assert before == pytest.approx(expected_calibration_error(np.concatenate(scores), outcomes))
    before, _ = cross_validated_ece(scores, targets, "temperature")
    wins = expit([0.7, 0.5])
    softmax = np.array([1 - wins[0], wins[0], wins[1], 1 - wins[1]])
    assert before == pytest.approx(expected_calibration_error(softmax, outcomes))


def test_ece_reliability_and_brier_by_hand() -> None:
    probabilities, outcomes = np.array([0.8, 0.1, 0.6, 0.3]), np.array([True, False, False, True])
    # bins {0.1, 0.3}: mean 0.2, half came; {0.6, 0.8}: mean 0.7, half came
    low, high = reliability_table(probabilities, outcomes, bins=2)
    assert (low.mean_probability, low.observed_share, low.count) == (pytest.approx(0.2), 0.5, 2)
    assert (high.mean_probability, high.observed_share, high.count) == (pytest.approx(0.7), 0.5, 2)
    assert expected_calibration_error(probabilities, outcomes, bins=2) == pytest.approx((2 * 0.3 + 2 * 0.2) / 4)
    assert expected_calibration_error(probabilities, outcomes, bins=1) == pytest.approx(0.05)
    assert brier_score(probabilities, outcomes) == pytest.approx((0.2**2 + 0.1**2 + 0.6**2 + 0.7**2) / 4)


def test_equal_probabilities_stay_in_one_bin_whatever_their_order() -> None:
    outcomes = np.arange(100) < 10
    assert reliability_table(np.full(100, 0.5), outcomes) == (ReliabilityBin(0.5, 0.1, 100),)
    assert len(reliability_table(np.linspace(0.0, 1.0, 100), outcomes)) == BINS


def test_calibrations_come_back_from_json_as_they_were() -> None:
    scores, targets = simulated(60)
    rows = {kind: fit_calibration(scores, targets, kind, reads="logit") for kind in KINDS}
    known = Calibrations(rows=rows)
    assert Calibrations.model_validate_json(known.model_dump_json()) == known
    again = Calibrations.model_validate(json.loads(known.model_dump_json()))
    for kind in KINDS:
        assert apply(again.rows[kind], scores[0]).tolist() == apply(rows[kind], scores[0]).tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "temperature", "reads": "logit", "slope": -0.1, "intercept": 0.0},
        {"kind": "temperature", "reads": "logit", "slope": float("inf"), "intercept": 0.0},
        {"kind": "temperature", "reads": "logit", "slope": 1.0},
        {"kind": "temperature", "reads": "odds", "slope": 1.0, "intercept": 0.0},
        {"kind": "temperature", "reads": "logit", "slope": 1.0, "intercept": 0.0, "thresholds": [0.0]},
        {"kind": "isotonic", "reads": "logit", "thresholds": [0.0, 0.0], "values": [0.1, 0.2]},
        {"kind": "isotonic", "reads": "logit", "thresholds": [0.0, 1.0], "values": [0.2, 0.1]},
        {"kind": "isotonic", "reads": "logit", "thresholds": [0.0, 1.0], "values": [0.2]},
        {"kind": "isotonic", "reads": "logit", "thresholds": [0.0], "values": [1.1]},
        {"kind": "isotonic", "reads": "logit", "thresholds": [], "values": []},
        {"kind": "histogram", "reads": "logit"},
    ],
)
def test_a_record_that_cannot_be_right_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Calibrations.model_validate({"rows": {"pointwise": wrong}})


def test_lists_that_cannot_be_learned_from_are_refused() -> None:
    good = np.array([0.5, 0.1])
    with pytest.raises(DataError, match="a validation list that holds its target, got none"):
        fit_calibration([], [], "temperature")
    with pytest.raises(DataError, match="index 2 among 2 items"):
        fit_calibration([good], [2], "temperature")
    with pytest.raises(DataError, match=r"finite, got \[nan\]"):
        fit_calibration([np.array([0.5, np.nan])], [0], "isotonic")
    with pytest.raises(DataError, match=r"each a probability cannot be \[1.5\]"):
        fit_calibration([np.array([0.5, 1.5])], [0], "temperature", reads="probability")
    with pytest.raises(DataError, match=r"each a log-probability cannot be \[0.5, 0.1\]"):
        fit_calibration([good], [0], "temperature", reads="log_probability")
    with pytest.raises(DataError, match="at least two parts of at least one list, got 1"):
        cross_validated_ece([good], [0], "temperature")
    with pytest.raises(DataError, match=r"finite, got \[inf\]"):
        apply(fit_calibration([good], [0], "temperature"), np.array([np.inf]))


def test_reliability_refuses_what_it_cannot_count() -> None:
    one = np.array([True])
    for probabilities, outcomes, bins in (
        (np.array([0.5, 0.5]), one, 2),
        (np.array([]), np.array([], dtype=bool), 2),
        (np.array([0.5]), one, 0),
        (np.array([1.2]), one, 2),
        (np.array([np.nan]), one, 2),
    ):
        with pytest.raises(ValueError, match=r"needed one outcome|must lie"):
            reliability_table(probabilities, outcomes, bins)


def run_of(count: int = 40) -> tuple[pa.Table, pa.Table]:
    """RANKINGS of row listwise on validation and test lists and of an untuned row on test lists, and CANDIDATES."""
    scores, targets = simulated(count, items=4)
    rows, lists = [], []
    for number, (one, target) in enumerate(zip(scores, targets, strict=True)):
        split = "test" if number % 4 == 0 else "validation"
        offered = candidate_list(f"u{number}", split, "abcd"[target], list("abcd"))
        lists.append(offered)
        order = np.argsort(-one)
        logs = one - np.logaddexp.reduce(one)
        shared = {name: offered[name] for name in ("list_id", "user_id", "split")}
        shared |= {"item_ids": ["abcd"[place] for place in order], "scores": logs[order].tolist()}
        rows += [
            shared | {"row": row} for row in ("listwise", "untuned_listwise") if row == "listwise" or split == "test"
        ]
    return pa.Table.from_pylist(rows, schema=RANKINGS.schema), candidates(*lists)


def test_rows_are_calibrated_on_validation_lists_alone() -> None:
    rankings, lists = run_of()
    found = fit_calibrations(rankings, lists, "temperature")
    assert list(found.rows) == ["listwise"]  # the untuned row has no validation lists
    validation = rankings.filter(pa.compute.equal(rankings["split"], "validation"))
    assert fit_calibrations(validation, lists, "temperature") == found
    scores, targets = [], []
    target_of = dict(zip(lists["list_id"].to_pylist(), lists["target_id"].to_pylist(), strict=True))
    for row in validation.to_pylist():
        scores.append(np.array(row["scores"]))
        targets.append(row["item_ids"].index(target_of[row["list_id"]]))
    assert found.rows["listwise"] == fit_calibration(scores, targets, "temperature", reads="log_probability")
    expected = cross_validated_ece(scores, targets, "isotonic", reads="log_probability")
    assert calibration_errors(rankings, lists, "isotonic") == {"listwise": expected}


def test_a_validation_list_without_its_target_teaches_nothing() -> None:
    rankings, lists = run_of()
    missed = candidate_list("v", "validation", "x", list("abcd"))
    row = {name: missed[name] for name in ("list_id", "user_id", "split")}
    row |= {"row": "listwise", "item_ids": list("abcd"), "scores": [-1.0, -2.0, -3.0, -4.0]}
    more = pa.concat_tables([rankings, pa.Table.from_pylist([row], schema=RANKINGS.schema)])
    both = pa.concat_tables([lists, candidates(missed)])
    assert fit_calibrations(more, both, "temperature") == fit_calibrations(rankings, lists, "temperature")


def test_probabilities_stand_beside_the_scores_they_were_read_from() -> None:
    rankings, lists = run_of()
    found = fit_calibrations(rankings, lists, "temperature")
    table = RANKINGS.conform(with_probabilities(rankings, found), where="rankings")
    for row in table.to_pylist():
        if row["row"] == "listwise":
            expected = apply(found.rows["listwise"], np.array(row["scores"]))
            np.testing.assert_allclose(row["probabilities"], expected, rtol=1e-6)
            assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
        else:
            assert row["probabilities"] is None
    assert table.drop_columns("probabilities").equals(rankings.drop_columns("probabilities"))


def test_the_base_rate_is_that_of_lists_that_hold_their_target() -> None:
    scores, targets = simulated(1000)
    found = fit_calibration(scores, targets, "temperature")
    assert np.concatenate([apply(found, one) for one in scores]).mean() == pytest.approx(0.1, abs=1e-3)
