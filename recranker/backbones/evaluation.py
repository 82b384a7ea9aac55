"""How often a fit finds held-out likes: the number early stopping watches and the stage reports."""

import numpy as np
from numpy.typing import NDArray

from recranker.backbones.fit import Fit
from recranker.backbones.topk import ItemSets, ranks_of

BLOCK = 1024
"""Users scored at a time."""


def target_ranks(
    fit: Fit,
    users: NDArray[np.int64],
    targets: NDArray[np.int64],
    *,
    masked: ItemSets,
    eligible: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """``(users,)`` rank of each target among all items, 1 = best.

    Args:
        masked: Items of each user index that are out of the race, normally the known likes.
        eligible: ``(I,)`` False for items that may be no candidate at all.
    """
    ranks = [np.empty(0, np.int64)]
    for start in range(0, len(users), BLOCK):
        block = users[start : start + BLOCK]
        scores = fit.scores(block)
        scores[:, ~eligible] = -np.inf
        scores[masked.pairs(block)] = -np.inf
        ranks.append(ranks_of(scores, targets[start : start + BLOCK]))
    return np.concatenate(ranks)
