"""The weights of adaptive user sampling: importance, clusters, and the penalty on repetition.

Source: RecRanker, arXiv 2312.16018, section 4.1.
"""

import numpy as np
from numpy.typing import NDArray


def importance(num_likes: NDArray[np.int64]) -> NDArray[np.float64]:
    """w_u = ln(training likes of u); a user with one like or none weighs 0."""
    return np.log(np.maximum(num_likes, 1).astype(np.float64))


def cluster_quotas(sizes: NDArray[np.number], num_draws: int) -> NDArray[np.int64]:
    """``(clusters,)`` draws per cluster in proportion to its size, by largest remainder; they sum to ``num_draws``.

    Fixed quotas keep every cluster represented in every sample, which drawing the clusters would
    do only on average.
    """
    exact = sizes / sizes.sum() * num_draws
    quotas: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - quotas), kind="stable")
    quotas[order[: num_draws - quotas.sum()]] += 1
    return quotas


def penalised_mass(occurrences: NDArray[np.int64], penalty: float) -> NDArray[np.float64]:
    """n_u * C^(n_u - 1): the mass of a user that stands n_u times in the pool."""
    return np.asarray(occurrences * penalty ** (occurrences - 1), dtype=np.float64)
