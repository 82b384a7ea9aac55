"""The recommender everything else has to beat: what most people like."""

import numpy as np
from numpy.typing import NDArray

from recranker.backbones.fit import FactorFit
from recranker.backbones.folds import FoldData


def like_counts(fold: FoldData) -> NDArray[np.int64]:
    """``(I,)`` training likes of each item within the fold."""
    counts: NDArray[np.int64] = np.bincount(fold.like_items, minlength=fold.num_items)
    return counts


def fit_popularity(fold: FoldData) -> FactorFit:
    """Scores every item by its likes, the same for all users."""
    counts = like_counts(fold).astype(np.float32)[:, None]
    return FactorFit(np.ones((fold.num_users, 1), np.float32), counts)
