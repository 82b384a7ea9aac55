"""One value per item out of questions that each compare a few of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

DECIMALS = 10
"""Kept of a potential: items that tie must come out the same, not apart by what the solver rounds off."""


def potential(
    measured: Sequence[Mapping[str, float]], item_ids: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Values whose differences are as near as possible to those measured within each question.

    Least squares over x[i, q] = u_i + c_q: the level c_q of a question says nothing, only differences within it
    count, so that an item gains by standing beside strong ones.

    Args:
        measured: Per question, x of every item it compares.
        item_ids: All items; every item measured is one of them.

    Returns:
        ``(items,)`` u, and ``(items,)`` how many items questions connect each with, itself included. Between items
        that are not connected nothing is known: u has mean 0 over each connected set (the minimum norm).

    Source: HodgeRank: Jiang, Lim, Yao & Ye 2011, doi:10.1007/s10107-010-0419-x.
    """
    place = {item_id: index for index, item_id in enumerate(item_ids)}
    laplacian, pull = np.zeros((len(place), len(place))), np.zeros(len(place))
    for one in measured:
        rows, values = [place[item_id] for item_id in one], np.array(list(one.values()))
        laplacian[rows, rows] += 1.0
        laplacian[np.ix_(rows, rows)] -= 1.0 / len(rows)
        pull[rows] += values - values.mean()
    _, connected = connected_components(laplacian != 0.0, directed=False)
    together = connected[:, None] == connected
    sizes = together.sum(axis=1)
    # alone the Laplacian leaves the mean of each connected set open; this term sets it to 0 and changes nothing else
    found: NDArray[np.float64] = np.linalg.solve(laplacian + together / sizes, pull)
    return found.round(DECIMALS), sizes
