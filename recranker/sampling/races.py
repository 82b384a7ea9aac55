"""Weighted draws with replacement that do not depend on how users are split over machines.

M draws in proportion to weights w are the M earliest arrivals of independent Poisson processes
with rates w. Each user's process has a random stream of its own, keyed by (seed, step, user_id), so
shards can be raced apart and their earliest arrivals merged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recranker.randomness import keys_of, uniforms

SAFETY = 6.0
"""Standard deviations of the arrival count put on top of M when the horizon is set."""


@dataclass(frozen=True)
class Arrivals:
    """Draws in order of arrival: parallel arrays of length ``draws``."""

    times: NDArray[np.float64]
    user_ids: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.times)


def horizon(num_draws: int, total_rate: float) -> float:
    """A time by which ``num_draws`` arrivals have almost surely happened.

    Raises:
        ValueError: If no user has a positive rate.
    """
    if total_rate <= 0:
        raise ValueError(f"at least one user must have a positive weight, the weights sum to {total_rate}")
    return float((num_draws + SAFETY * np.sqrt(num_draws) + SAFETY**2) / total_rate)


def arrivals_until(user_ids: Sequence[str], rates: NDArray[np.float64], until: float, *key: str | int) -> Arrivals:
    """All arrivals of these users up to time ``until``, in no particular order.

    The j-th waiting time of a user is -ln(u_j) / rate, with u_j the j-th uniform of the user's stream.

    Args:
        user_ids: ``(users,)``.
        rates: ``(users,)`` weights; a user with weight 0 never arrives.
        until: The horizon.
        key: Seed and step.
    """
    names = np.asarray(user_ids, dtype=object)
    keys = keys_of(list(user_ids), *key)
    racing = np.flatnonzero(rates > 0)
    clock = np.zeros(len(names))
    times: list[NDArray[np.float64]] = []
    owners: list[NDArray[np.int64]] = []
    lap = 0
    while len(racing):
        clock[racing] -= np.log(uniforms(keys[racing], lap)) / rates[racing]
        racing = racing[clock[racing] <= until]
        times.append(clock[racing])
        owners.append(racing)
        lap += 1
    owner = np.concatenate(owners) if owners else np.empty(0, dtype=np.int64)
    return Arrivals(np.concatenate(times) if times else np.empty(0), names[owner])


def earliest(parts: Sequence[Arrivals], num_draws: int) -> Arrivals:
    """The ``num_draws`` earliest arrivals of all parts, in order; ties (never seen) go by user id."""
    times = np.concatenate([part.times for part in parts])
    names = np.concatenate([part.user_ids for part in parts])
    order = np.lexsort((names.astype(str), times))[:num_draws]
    return Arrivals(times[order], names[order])


def draw(user_ids: Sequence[str], rates: NDArray[np.float64], num_draws: int, *key: str | int) -> Arrivals:
    """``num_draws`` draws with replacement in proportion to ``rates``, in order of arrival (one shard).

    Raises:
        ValueError: If no user has a positive rate.
    """
    until = horizon(num_draws, float(rates.sum()))
    while True:
        found = earliest([arrivals_until(user_ids, rates, until, *key)], num_draws)
        if len(found) == num_draws:
            return found
        until *= 2
