"""One order out of several scores: a weighted sum, with the paper's weights or learned ones."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from recranker.errors import DataError
from recranker.ranking.choice import fit_choice

PARTS = 5
"""Parts of the validation lists in cross-validation."""
SCALE_L2 = 0.02
"""Pull of the common scale of weights towards 0 per list; it keeps lists that one signal always decides finite."""
PAPER_WEIGHTS = {"pointwise": 1 / 3, "pairwise": 1 / 3, "listwise": 1 / 3}


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
    lists: Sequence[Mapping[str, NDArray[np.float64]]],
    targets: Sequence[int],
    *,
    alone: Sequence[str] = ("backbone",),
    l2: float = 0.5,
) -> dict[str, float]:
    """Non-negative weights of z-scored signals that make the targets likely under a softmax per list.

    The tasks repeat one another (all read the same hint), and some hundred lists cannot tell such signals apart: a
    fit left free gives one of them all the weight by chance. So the direction of the weights is pulled strongly
    towards each signal's own evidence, and their common scale, which orders nothing, is fitted apart.

    The weights must earn their place: where, on lists left out of their fit, the targets are not likelier under
    them than under the best of the signals ``alone``, that signal keeps all the weight.

    Args:
        lists: Per list, ``(items,)`` z-scores of its signals, those of ``alone`` among them; a signal that a list
            lacks says nothing about it.
        targets: Per list, the index of the true item.
        alone: Signals that cost nothing next to the language model; of equals the first is kept.
        l2: Pull towards 0 per list while the direction is fitted; the stronger, the more each signal's weight follows
            how well it does alone.

    Returns:
        Weight per signal; they sum to 1.

    Raises:
        DataError: If there is no list to learn from.

    Source: conditional logit, McFadden 1974; the choice by cross-validated likelihood, Stone 1974; why what each
    signal does alone is the better guide where lists are few, Bickel and Levina 2004, Bernoulli 10(6).
    """
    if not lists:
        raise DataError("no validation list holds its target, so fusion weights cannot be learned; use preset 'paper'")
    names = list(dict.fromkeys(name for one in lists for name in one))
    features = [  # (items, signals) each; what is 0 for all items changes no softmax
        np.stack([one.get(name, np.zeros_like(one[alone[0]])) for name in names], axis=1) for one in lists
    ]
    single = {name: _left_out([matrix[:, [names.index(name)]] for matrix in features], targets, l2) for name in alone}
    best = max(alone, key=lambda name: single[name].mean())
    found = _fit(features, targets, l2)
    if _left_out(features, targets, l2).mean() <= single[best].mean() or found.sum() < 1e-6:
        return {name: float(name == best) for name in names}
    return {name: float(weight / found.sum()) for name, weight in zip(names, found, strict=True)}


def _fit(features: Sequence[NDArray[np.float64]], targets: Sequence[int], l2: float) -> NDArray[np.float64]:
    """``(signals,)`` weights: their direction under ``l2``, their scale fitted to it."""
    direction = fit_choice(features, targets, l2=l2, lowest=0.0)
    if direction.sum() < 1e-6:
        return np.zeros_like(direction)
    direction /= direction.sum()
    along = [matrix @ direction[:, np.newaxis] for matrix in features]
    return np.asarray(direction * fit_choice(along, targets, l2=SCALE_L2, lowest=0.0))


def _left_out(features: Sequence[NDArray[np.float64]], targets: Sequence[int], l2: float) -> NDArray[np.float64]:
    """``(lists,)`` log-likelihood of each target under weights fitted without its part of the lists."""
    found = np.empty(len(features))
    for part in range(PARTS):
        inside = [index for index in range(len(features)) if index % PARTS != part]
        weights = np.zeros(features[0].shape[1])
        if inside:
            weights = _fit([features[i] for i in inside], [targets[i] for i in inside], l2)
        for index in range(part, len(features), PARTS):
            logits = features[index] @ weights
            found[index] = logits[targets[index]] - np.logaddexp.reduce(logits)
    return found
