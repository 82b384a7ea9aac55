"""Conditional logit: weights that make the chosen item of each list likely under a softmax over the list."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]


def fit_choice(features: Sequence[Floats], targets: Sequence[int], *, l2: float, lowest: float | None = None) -> Floats:
    """``(signals,)`` weights that minimise the mean negative log-likelihood plus ``l2`` times their squares.

    Args:
        features: Per list, ``(items, signals)``.
        targets: Per list, the index of the chosen item.
        l2: Pull towards 0, so that a signal without evidence gets no weight.
        lowest: No weight below this; None: no bound.

    Source: McFadden 1974, Conditional logit analysis of qualitative choice behavior.
    """
    lists = np.repeat(np.arange(len(features)), [len(one) for one in features])
    starts = np.searchsorted(lists, np.arange(len(features)))
    stacked = np.concatenate(features)
    chosen = stacked[starts + np.asarray(targets)]

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits = stacked @ weights
        logits -= np.maximum.reduceat(logits, starts)[lists]
        odds = np.exp(logits)
        totals = np.add.reduceat(odds, starts)
        likelihood = (logits[starts + np.asarray(targets)] - np.log(totals)).mean()
        expected = np.add.reduceat(stacked * (odds / totals[lists])[:, None], starts)
        gradient = (expected - chosen).mean(axis=0)
        return float(l2 * weights @ weights - likelihood), gradient + 2 * l2 * weights

    width = stacked.shape[1]
    found = minimize(loss, np.zeros(width) + 0.1, jac=True, method="L-BFGS-B", bounds=[(lowest, None)] * width)
    return np.asarray(found.x, dtype=np.float64)


def standardised(scores: Floats) -> Floats:
    """``(items,)`` z-scores within one list; all zero where every score is the same."""
    spread = scores.std()
    return (scores - scores.mean()) / spread if spread > 1e-12 else np.zeros_like(scores)
