"""From scores on scales of their own to probabilities on one scale, learned on validation lists.

A probability says how likely an item with that score is the one liked next, given that one of the list is: only
lists that hold their target are there to learn from, and each holds exactly one. It holds for lists about as long
as those it was learned on. It is for reading, never for ordering: items with different scores may share one, and
those of a list need not sum to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, model_validator
from scipy.optimize import minimize
from scipy.special import expit, logit

from recranker.errors import DataError
from recranker.ranking.choice import log_probabilities
from recranker.ranking.settings import CalibrationKind
from recranker.schema import RANKINGS
from recranker.settings import Settings

Floats = NDArray[np.float64]

LEAST = 1e-6
"""Probabilities that are scores stay this far from 0 and 1, so that their log-odds are finite."""
PARTS = 5
"""Parts of the lists in cross-validation."""
BINS = 10
"""Bins of a reliability table."""

Reads = Literal["probability", "log_probability", "logit"]
"""What a score is: a probability in [0, 1], the log of one, or any number that grows with the odds."""


class TemperatureCalibration(Settings):
    """p = sigmoid(slope * x + intercept): Platt scaling, two numbers.

    The classical temperature T is the special case slope = 1 / T without an intercept, which a score that knows
    nothing of the number of candidates cannot do without.

    Source: Platt 1999, Probabilistic outputs for support vector machines; temperature: Guo et al. 2017,
    arXiv 1706.04599.
    """

    kind: Literal["temperature"] = "temperature"
    reads: Reads
    """What the scores are; x is a score of kind 'logit' as it is, and the log-odds of the others."""
    slope: FiniteFloat = Field(ge=0.0)
    """Log-odds per unit of x; never negative, so that no order is reversed."""
    intercept: FiniteFloat
    """Log-odds where x is 0."""


class IsotonicCalibration(Settings):
    """The probability rises with x in straight lines between points and is constant beyond them.

    Source: Zadrozny & Elkan 2002, doi:10.1145/775047.775151.
    """

    kind: Literal["isotonic"] = "isotonic"
    reads: Reads
    """What the scores are; x is a score of kind 'logit' as it is, and the log-odds of the others."""
    thresholds: tuple[FiniteFloat, ...] = Field(min_length=1)
    """x of each point, rising."""
    values: tuple[Annotated[float, Field(ge=0.0, le=1.0)], ...] = Field(min_length=1)
    """Probability at each point, never falling."""

    @model_validator(mode="after")
    def _rises(self) -> "IsotonicCalibration":
        if len(self.thresholds) != len(self.values):
            raise ValueError(f"{len(self.thresholds)} thresholds do not fit {len(self.values)} values")
        if not (np.diff(self.thresholds) > 0).all() or not (np.diff(self.values) >= 0).all():
            raise ValueError("thresholds must rise and values must not fall")
        return self


Calibration = Annotated[TemperatureCalibration | IsotonicCalibration, Field(discriminator="kind")]


class Calibrations(Settings):
    """The calibrations of a run."""

    rows: dict[str, Calibration]
    """By row, as RANKINGS names it; one without validation lists has none."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Items whose probabilities are close to each other."""

    mean_probability: float
    """What was said of them."""
    observed_share: float
    """How many of them were the target."""
    count: int
    """Items."""


def fit_calibrations(rankings: pa.Table, lists: pa.Table, kind: CalibrationKind) -> Calibrations:
    """A calibration of every row that ranked validation lists.

    The weights of a fused row come from the same lists. They are few, but its probabilities may be a little bolder
    than fresh lists would make them.

    Args:
        rankings: RANKINGS.
        lists: CANDIDATES.
        kind: Which calibration.
    """
    found = _validation_scores(rankings, lists)
    return Calibrations(rows={row: fit_calibration(*of, kind, reads=reads_of(row)) for row, of in found.items()})


def calibration_errors(rankings: pa.Table, lists: pa.Table, kind: CalibrationKind) -> dict[str, tuple[float, float]]:
    """``cross_validated_ece`` on the validation lists of every row that has two or more; see ``fit_calibrations``."""
    found = _validation_scores(rankings, lists)
    return {row: cross_validated_ece(*of, kind, reads=reads_of(row)) for row, of in found.items() if len(of[0]) > 1}


def with_probabilities(rankings: pa.Table, calibrations: Calibrations) -> pa.Table:
    """RANKINGS with the probabilities of every row that has a calibration, null in the others."""
    rows, scores = (rankings[name].to_pylist() for name in ("row", "scores"))
    known = calibrations.rows
    found = [
        apply(known[row], np.asarray(one, np.float64)).tolist() if row in known else None
        for row, one in zip(rows, scores, strict=True)
    ]
    field = RANKINGS.schema.field("probabilities")
    at = rankings.schema.get_field_index("probabilities")
    return rankings.set_column(at, field, pa.array(found, field.type))


def reads_of(row: str) -> Reads:
    """What the scores of a row are: see ``utilities.task_scores``; fused scores are sums of z-scores or utilities."""
    if row.endswith("pointwise"):
        return "probability"
    return "log_probability" if row.endswith("listwise") else "logit"


def fit_calibration(
    scores: Sequence[Floats], targets: Sequence[int], kind: CalibrationKind, *, reads: Reads = "logit"
) -> TemperatureCalibration | IsotonicCalibration:
    """The calibration under which the targets of these lists are likely, fitted over the items of all lists together.

    Outcomes are smoothed as Platt does, 1 to (n + 1) / (n + 2) of n targets and 0 to 1 / (m + 2) of m others, so
    that few lists give neither endless slopes nor certainty.

    Args:
        scores: Per list, ``(items,)``.
        targets: Per list, the index of the true item.
        kind: Which calibration.
        reads: What the scores are.

    Raises:
        DataError: If there is no list, a target lies outside its list, or a score is not finite or not what
            ``reads`` says.
    """
    outcomes = _outcomes(scores, targets)
    given = calibration_input(np.concatenate(scores), reads)
    smooth = np.where(outcomes, (outcomes.sum() + 1) / (outcomes.sum() + 2), 1 / ((~outcomes).sum() + 2))
    return _fit_temperature(given, smooth, reads) if kind == "temperature" else _fit_isotonic(given, smooth, reads)


def apply(calibration: TemperatureCalibration | IsotonicCalibration, scores: Floats) -> Floats:
    """``(items,)`` probabilities in [0, 1] of raw scores; a higher score never has a lower one.

    Raises:
        DataError: If a score is not finite or not what the calibration reads.
    """
    given = calibration_input(scores, calibration.reads)
    if isinstance(calibration, TemperatureCalibration):
        with np.errstate(over="ignore"):  # a score beyond all others: sigmoid(inf) = 1
            return np.asarray(expit(calibration.slope * given + calibration.intercept), dtype=np.float64)
    thresholds, values = np.array(calibration.thresholds), np.array(calibration.values)
    above = np.minimum(np.searchsorted(thresholds, given, side="right"), len(values) - 1)
    highest = values[above]  # rounding must not pass the next point
    return np.asarray(np.minimum(np.interp(given, thresholds, values), highest), dtype=np.float64)


def calibration_input(scores: Floats, reads: Reads) -> Floats:
    """``(items,)`` what a slope makes sense for: log-odds of probabilities, all else as it is.

    Raises:
        DataError: If a score is not finite, or not what ``reads`` says.
    """
    if not np.isfinite(scores).all():
        raise DataError(f"scores to calibrate must be finite, got {scores[~np.isfinite(scores)][:3].tolist()}")
    if reads == "logit":
        return scores
    highest = 1.0 if reads == "probability" else 0.0
    wrong = (scores > highest + 1e-4) | ((scores < -1e-4) & (reads == "probability"))  # tables hold rounded ones
    if wrong.any():
        raise DataError(f"scores that are each a {reads.replace('_', '-')} cannot be {scores[wrong][:3].tolist()}")
    if reads == "probability":
        return np.asarray(logit(np.clip(scores, LEAST, 1.0 - LEAST)), dtype=np.float64)
    logs = np.minimum(scores, np.log1p(-LEAST))
    return np.asarray(logs - np.log(-np.expm1(logs)), dtype=np.float64)


def cross_validated_ece(
    scores: Sequence[Floats],
    targets: Sequence[int],
    kind: CalibrationKind,
    parts: int = PARTS,
    *,
    reads: Reads = "logit",
) -> tuple[float, float]:
    """``expected_calibration_error`` before and after: of the naive reading, and calibrated without the list's part.

    The naive reading is the score itself where it is a probability, else the softmax over the list.

    Raises:
        DataError: As ``fit_calibration``, or if there are fewer than two lists.
    """
    count = min(parts, len(scores))
    if count < 2:
        raise DataError(f"cross-validation needs at least two parts of at least one list, got {count}")
    before = [_naive(one, reads) for one in scores]
    after = list(before)
    for part in range(count):
        inside = [index for index in range(len(scores)) if index % count != part]
        found = fit_calibration([scores[i] for i in inside], [targets[i] for i in inside], kind, reads=reads)
        after[part::count] = [apply(found, one) for one in scores[part::count]]
    outcomes = _outcomes(scores, targets)
    errors = (expected_calibration_error(np.concatenate(one), outcomes) for one in (before, after))
    return next(errors), next(errors)


def expected_calibration_error(probabilities: Floats, outcomes: NDArray[np.bool_], bins: int = BINS) -> float:
    """Mean distance of what was said from what came, over the bins of ``reliability_table`` weighted by their items.

    Above 0 even for true probabilities, the more the fewer items there are.

    Raises:
        ValueError: As ``reliability_table``.

    Source: equal-mass bins, Nixon et al. 2019, arXiv 1904.01685; of equal width, Guo et al. 2017, nearly all items
    of lists with one target would fall into the lowest.
    """
    table = reliability_table(probabilities, outcomes, bins)
    return sum(one.count * abs(one.mean_probability - one.observed_share) for one in table) / len(probabilities)


def brier_score(probabilities: Floats, outcomes: NDArray[np.bool_]) -> float:
    """Mean squared distance of probability and outcome; 0 is best.

    Source: Brier 1950, Verification of forecasts expressed in terms of probability.
    """
    return float(np.mean((probabilities - outcomes) ** 2))


def reliability_table(
    probabilities: Floats, outcomes: NDArray[np.bool_], bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """What was said against what came, in bins of about equally many items by rising probability.

    Equal probabilities stay in one bin, so there may be fewer bins than asked for.

    Args:
        probabilities: ``(items,)`` in [0, 1].
        outcomes: ``(items,)`` True where the item was the target.
        bins: At most.

    Raises:
        ValueError: If there are no items, their numbers differ, ``bins`` is below 1, or a probability is none.
    """
    if probabilities.shape != outcomes.shape or not probabilities.size or bins < 1:
        raise ValueError(
            f"needed one outcome per probability and a bin or more, got {len(probabilities)} probabilities, "
            f"{len(outcomes)} outcomes and {bins} bins"
        )
    if not ((probabilities >= 0.0) & (probabilities <= 1.0)).all():
        raise ValueError("probabilities must lie in [0, 1]")
    edges = np.quantile(probabilities, np.arange(1, bins) / bins, method="inverted_cdf")
    bin_of = np.searchsorted(np.unique(edges), probabilities, side="left")
    members = [bin_of == number for number in np.unique(bin_of)]
    return tuple(
        ReliabilityBin(float(probabilities[one].mean()), float(outcomes[one].mean()), int(one.sum())) for one in members
    )


def _validation_scores(rankings: pa.Table, lists: pa.Table) -> dict[str, tuple[list[Floats], list[int]]]:
    """Per row, scores and target of each validation list that holds its target."""
    lists = lists.filter(pc.and_(pc.equal(lists["split"], "validation"), lists["hit"]))
    target_of = dict(zip(lists["list_id"].to_pylist(), lists["target_id"].to_pylist(), strict=True))
    found: dict[str, tuple[list[Floats], list[int]]] = {}
    for one in rankings.filter(pc.is_in(rankings["list_id"], value_set=lists["list_id"].combine_chunks())).to_pylist():
        scores, targets = found.setdefault(one["row"], ([], []))
        scores.append(np.asarray(one["scores"], np.float64))
        targets.append(one["item_ids"].index(target_of[one["list_id"]]))
    return found


def _outcomes(scores: Sequence[Floats], targets: Sequence[int]) -> NDArray[np.bool_]:
    """``(items,)`` of all lists, one after another: True for the target of each."""
    if not len(scores):
        raise DataError("calibration needs a validation list that holds its target, got none")
    for one, target in zip(scores, targets, strict=True):
        if not 0 <= target < len(one):
            raise DataError(f"calibration needs the target of each list, got index {target} among {len(one)} items")
    return np.concatenate([np.arange(len(one)) == target for one, target in zip(scores, targets, strict=True)])


def _fit_temperature(given: Floats, outcomes: Floats, reads: Reads) -> TemperatureCalibration:
    """Maximum likelihood in z-scores, where both numbers are near 1; scores that are all the same get no slope."""
    mean, spread = float(given.mean()), float(given.std())
    if spread <= 1e-12 * max(abs(mean), 1.0):
        return TemperatureCalibration(reads=reads, slope=0.0, intercept=float(logit(outcomes.mean())))
    known = (given - mean) / spread

    def loss(numbers: Floats) -> tuple[float, Floats]:
        logits = numbers[0] * known + numbers[1]
        off = expit(logits) - outcomes
        return float(np.mean(np.logaddexp(0.0, logits) - outcomes * logits)), np.array(
            [np.mean(off * known), off.mean()]
        )

    start = np.array([0.0, logit(outcomes.mean())])
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 500}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)], options=options).x
    slope = float(found[0]) / spread
    return TemperatureCalibration(reads=reads, slope=slope, intercept=float(found[1]) - slope * mean)


def _fit_isotonic(given: Floats, outcomes: Floats, reads: Reads) -> IsotonicCalibration:
    from sklearn.isotonic import IsotonicRegression  # slow to load, and rarely wanted

    found = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(given, outcomes)
    thresholds, values = found.X_thresholds_.tolist(), found.y_thresholds_.tolist()
    return IsotonicCalibration(reads=reads, thresholds=thresholds, values=values)


def _naive(scores: Floats, reads: Reads) -> Floats:
    if reads == "probability":
        return np.clip(scores, 0.0, 1.0)
    return np.asarray(np.exp(log_probabilities(scores, np.zeros(1, np.int64))))
