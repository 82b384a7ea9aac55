"""One order out of several scores: a weighted sum, with the paper's weights or learned ones."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from recranker.errors import DataError

SIGNALS = ("pointwise", "pairwise", "listwise", "backbone")
PAPER_WEIGHTS = {"pointwise": 1 / 3, "pairwise": 1 / 3, "listwise": 1 / 3}


def standardised(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(items,)`` z-scores within one list; all zero where every score is the same."""
    spread = scores.std()
    return (scores - scores.mean()) / spread if spread > 1e-12 else np.zeros_like(scores)


def fuse(scores: Mapping[str, NDArray[np.float64]], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """``(items,)`` weighted sum of the scores present; weights are re-normalised over those present.

    Raises:
        DataError: If no score has a weight, or a score is not finite.
    """
    present = [name for name in scores if weights.get(name, 0.0) != 0.0]
    for name in present:
        if not np.isfinite(scores[name]).all():
            raise DataError(f"scores of '{name}' must be finite, got {scores[name].tolist()}")
    total = sum(abs(weights[name]) for name in present)
    if not present or total == 0.0:
        raise DataError(f"no score to fuse: scores of {sorted(scores)}, weights for {sorted(weights)}")
    summed = sum(weights[name] / total * scores[name] for name in present)
    return np.asarray(summed, dtype=np.float64)


def best_first(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """``(items,)`` indices by falling score; ties keep the order given (the retriever's).

    Raises:
        DataError: If a score is NaN.
    """
    if np.isnan(scores).any():
        raise DataError(f"cannot order NaN scores: {scores.tolist()}")
    return np.argsort(-scores, kind="stable")


def learn_weights(
    lists: Sequence[Mapping[str, NDArray[np.float64]]], targets: Sequence[int], *, l2: float = 0.02
) -> dict[str, float]:
    """Non-negative weights of z-scored signals that make the targets likely under a softmax per list.

    Args:
        lists: Per list, ``(items,)`` z-scores of the same signals.
        targets: Per list, the index of the true item.
        l2: Pull towards 0 per list, so that a signal without evidence gets no weight.

    Returns:
        Weight per signal; they sum to 1, or are all 0 but the backbone's where nothing helps.

    Raises:
        DataError: If there is no list to learn from.

    Source: conditional logit, McFadden 1974.
    """
    if not lists:
        raise DataError("no validation list holds its target, so fusion weights cannot be learned; use preset 'paper'")
    names = list(lists[0])
    features = [np.stack([one[name] for name in names], axis=1) for one in lists]  # (items, signals) each

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient = 0.0, np.zeros_like(weights)
        for matrix, target in zip(features, targets, strict=True):
            logits = matrix @ weights
            probabilities = np.exp(logits - np.logaddexp.reduce(logits))
            value -= np.log(probabilities[target])
            gradient += probabilities @ matrix - matrix[target]
        count = len(features)
        return float(value / count + l2 * weights @ weights), gradient / count + 2 * l2 * weights

    start = np.full(len(names), 0.1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * len(names))
    total = found.x.sum()
    if total < 1e-6:
        return {name: float(name == "backbone") for name in names}
    return {name: float(weight / total) for name, weight in zip(names, found.x, strict=True)}
