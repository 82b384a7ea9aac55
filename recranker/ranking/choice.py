"""Conditional logit: weights that make the chosen item of each list likely under a softmax over the list."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def fit_choice(features: Sequence[Floats], targets: Sequence[int], *, l2: float, lowest: float | None = None) -> Floats:
    """``fit_flat_choice`` of one ``(items, signals)`` array per list; ``targets`` count within their lists."""
    starts = starts_of(np.array([len(one) for one in features]))
    return fit_flat_choice(np.concatenate(features), starts, np.asarray(targets), l2=l2, lowest=lowest)


def fit_flat_choice(features: Floats, starts: Ints, targets: Ints, *, l2: float, lowest: float | None = None) -> Floats:
    """``(signals,)`` weights that minimise the mean negative log-likelihood plus ``l2`` times their squares.

    Args:
        features: ``(items, signals)`` of all lists, one list after another.
        starts: ``(lists,)`` where each list begins.
        targets: ``(lists,)`` the place of the chosen item within its list.
        l2: Pull towards 0, so that a signal without evidence gets no weight.
        lowest: No weight below this; None: no bound.

    Source: McFadden 1974, Conditional logit analysis of qualitative choice behavior.
    """
    chosen = features[starts + targets].mean(axis=0)

    def loss(weights: Floats) -> tuple[float, Floats]:
        logs = log_probabilities(features @ weights, starts)
        expected = np.exp(logs) @ features / len(starts)
        return float(l2 * weights @ weights - logs[starts + targets].mean()), expected - chosen + 2 * l2 * weights

    width = features.shape[1]
    found = minimize(loss, np.zeros(width) + 0.1, jac=True, method="L-BFGS-B", bounds=[(lowest, None)] * width)
    return np.asarray(found.x, dtype=np.float64)


def log_probabilities(logits: Floats, starts: Ints) -> Floats:
    """``(items,)`` log-softmax within each list."""
    lists = lists_of(starts, len(logits))
    logits = logits - reduced(np.maximum, logits, starts)[lists]
    return logits - np.log(reduced(np.add, np.exp(logits), starts)[lists])


def standardised(scores: Floats) -> Floats:
    """``(items,)`` z-scores within one list; all zero where every score is the same."""
    return standardised_lists(scores, np.zeros(1, np.int64))


def standardised_lists(scores: Floats, starts: Ints) -> Floats:
    """``(items, ...)`` z-scores within each list; zero where all known scores of it are the same, and where NaN."""
    lists, known = lists_of(starts, len(scores)), ~np.isnan(scores)
    counts = np.maximum(reduced(np.add, known.astype(np.float64), starts), 1.0)
    centred = np.where(known, scores, 0.0)
    centred = np.where(known, centred - (reduced(np.add, centred, starts) / counts)[lists], 0.0)
    spread = np.sqrt(reduced(np.add, centred**2, starts) / counts)[lists]
    return np.asarray(np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12))


def reduced(operation: np.ufunc, values: Floats, starts: Ints) -> Floats:
    """``(lists, ...)`` the operation over each list's items; 0 for a list without any."""
    full = np.diff(np.append(starts, len(values))) > 0
    found = np.zeros((len(starts), *values.shape[1:]))
    if full.any():
        found[full] = operation.reduceat(values, starts[full], axis=0)
    return found


def starts_of(lengths: Ints) -> Ints:
    """``(lists,)`` where each list begins in an array that holds one after another."""
    return np.asarray(np.cumsum(lengths) - lengths, dtype=np.int64)


def lists_of(starts: Ints, length: int) -> Ints:
    """``(items,)`` the number of the list that each item belongs to."""
    return np.repeat(np.arange(len(starts)), np.diff(np.append(starts, length)))
