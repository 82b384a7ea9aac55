"""How sure a difference between two rankers is: the paired bootstrap over users."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from recranker.randomness import generator

CELLS_PER_BLOCK = 2_000_000
"""Resampling counts held at a time (16 MB); the result does not depend on it."""


def paired_bootstrap(
    differences: NDArray[np.float64],
    *,
    samples: int,
    seed: int,
    num_unchanged: int = 0,
    level: float = 0.95,
    cells_per_block: int = CELLS_PER_BLOCK,
) -> NDArray[np.float64]:
    """Percentile interval of each ranker's mean difference, resampling users with replacement.

    All rankers share the resamples. Users for whom no ranker can differ (their target was not
    retrieved) need no column of their own: they are drawn together, as ``num_unchanged`` zeros,
    which is exact and far cheaper where few users have a hit.

    Args:
        differences: ``(users, rankers)`` metric minus the baseline's, for users who can differ.
        samples: Resamples; 2,000 places the bounds within a few hundredths of the interval's width.
        seed: The run's seed; the stream is keyed by it.
        num_unchanged: Further users, all with difference 0.
        level: Coverage of the interval.
        cells_per_block: Counts held at a time.

    Returns:
        ``(rankers, 2)`` lower and upper bound; zeros where there are no users.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    num_users = len(differences) + num_unchanged
    if not num_users:
        return np.zeros((differences.shape[1], 2))
    means = np.concatenate(
        [
            counts @ differences / num_users
            for counts in _counts(len(differences), num_users, samples, seed, cells_per_block)
        ]
    )
    tail = 100.0 * (1.0 - level) / 2.0
    return np.asarray(np.percentile(means, [tail, 100.0 - tail], axis=0).T, dtype=np.float64)


def _counts(users: int, num_users: int, samples: int, seed: int, cells: int) -> Iterator[NDArray[np.float64]]:
    """Blocks of ``(samples, users)``: how often each resample of ``num_users`` draws each user."""
    stream = generator(seed, "bootstrap")
    shares = np.full(users + 1, 1.0 / num_users)
    shares[-1] = (num_users - users) / num_users  # all users who cannot differ, together
    per_block = max(cells // (users + 1), 1)
    for start in range(0, samples, per_block):
        size = min(per_block, samples - start)
        yield stream.multinomial(num_users, shares, size=size)[:, :users].astype(np.float64)
