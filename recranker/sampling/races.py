"""Weighted draws with replacement that do not depend on how users are split over machines.

M draws in proportion to weights w are the M earliest arrivals of independent Poisson processes
with rates w. Each user's process has a random stream of its own, keyed by (seed, step, user_id), so
shards can be raced apart and their earliest arrivals merged. Users may stand in groups, each with
a number of draws of its own: every group is a race of its own, run in the same pass.

All of it works on whole arrays; ids are looked at only to key them, and copied only for arrivals.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recranker.data.lookup import places
from recranker.randomness import keys_of, uniforms

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]

SAFETY = 6.0
"""Standard deviations of the arrival count put on top of M when the horizon is set."""
_USERS_AT_A_TIME = 1 << 14
"""Users raced at a time, so that all arrays of a step stay in the cache; arrivals do not depend on it."""

ARRIVALS = pa.schema([("group", pa.int32()), ("time", pa.float64()), ("user_id", pa.string())])
"""Draws: which group's, when they arrive, and who."""


@dataclass(frozen=True)
class Field:
    """Who runs: users, how fast each is, and in which group."""

    user_ids: pa.Array | pa.ChunkedArray
    """``(users,)`` each user once."""
    rates: Floats
    """``(users,)`` weights, finite; a user with weight 0 never arrives."""
    groups: Ints
    """``(users,)`` group of each, from 0."""

    def totals(self, num_groups: int) -> Floats:
        """``(groups,)`` sum of the rates of each group.

        Raises:
            ValueError: If a rate is negative or no number.
        """
        if not (np.isfinite(self.rates) & (self.rates >= 0)).all():
            raise ValueError(f"weights must be finite and at least 0, got {self.rates.min()} to {self.rates.max()}")
        return np.asarray(np.bincount(self.groups, weights=self.rates, minlength=num_groups), dtype=np.float64)


def horizons(quotas: Ints, totals: Floats) -> Floats:
    """``(groups,)`` times by which each group's draws have almost surely arrived; 0 for a group without draws.

    Args:
        quotas: ``(groups,)`` draws.
        totals: ``(groups,)`` summed rates of all shards.

    Raises:
        ValueError: If nobody in a group with draws has a positive rate.
    """
    idle = np.flatnonzero((quotas > 0) & (totals <= 0))
    if len(idle):
        raise ValueError(f"at least one user must have a positive weight, the weights of group {idle[0]} sum to 0")
    wanted = quotas + SAFETY * np.sqrt(quotas) + SAFETY**2
    return np.divide(wanted, totals, out=np.zeros(len(quotas)), where=quotas > 0)


def arrivals_until(field: Field, until: Floats, *key: str | int) -> pa.Table:
    """ARRIVALS of these users up to their group's horizon, in no particular order.

    The j-th waiting time of a user is -ln(u_j) / rate, with u_j the j-th uniform of the user's stream.

    Args:
        field: The users of one shard.
        until: ``(groups,)`` the horizons.
        key: Seed and step.
    """
    keys = keys_of(field.user_ids, *key)
    users: list[Ints] = [np.empty(0, dtype=np.int64)]
    times = [np.empty(0)]
    for start in range(0, len(keys), _USERS_AT_A_TIME):
        some = slice(start, start + _USERS_AT_A_TIME)
        who, when = _race(keys[some], field.rates[some], until[field.groups[some]])
        users.append(who + start)
        times.append(when)
    arrived = np.concatenate(users)
    ids = field.user_ids.take(pa.array(arrived))
    return pa.table([field.groups[arrived].astype(np.int32), np.concatenate(times), ids], schema=ARRIVALS)


def _race(keys: NDArray[np.uint64], rates: Floats, until: Floats) -> tuple[Ints, Floats]:
    """Who arrives, by place in ``keys``, and when; a user who comes again stands there again."""
    users, times = [], []
    running, clock, lap = np.arange(len(keys)), np.zeros(len(keys)), 0
    while len(running):
        laps = np.arange(lap, lap + max(1, _USERS_AT_A_TIME // len(running) // 4))  # few runners: many laps in one go
        with np.errstate(divide="ignore"):  # a rate of 0 waits for ever
            waits = -np.log(uniforms(keys[running, None], laps)) / rates[running, None]
        waits[:, 0] += clock
        arrives = np.add.accumulate(waits, axis=1)  # one after the other, so that laps in one go round no differently
        who, which = np.nonzero(arrives <= until[running, None])
        users.append(running[who])
        times.append(arrives[who, which])
        still = arrives[:, -1] <= until[running]
        running, clock, lap = running[still], arrives[still, -1], lap + len(laps)
    return np.concatenate(users), np.concatenate(times)


def earliest(arrivals: pa.Table, quotas: Ints) -> pa.Table:
    """The earliest arrivals of each group, as many as its quota, by group and time; ties (never seen) go by user id.

    Taken again, alone or with those of other shards, it gives what all arrivals together would.

    Args:
        arrivals: ARRIVALS of one shard or several, in any order.
        quotas: ``(groups,)`` draws.
    """
    ordered = arrivals.combine_chunks().sort_by([(name, "ascending") for name in ("group", "time", "user_id")])
    groups = ordered["group"].to_numpy()
    return ordered.filter(pa.array(places(groups) < quotas[groups]))


def earliest_of_all(arrivals_by: Callable[[Floats], pa.Table], quotas: Ints, totals: Floats) -> pa.Table:
    """ARRIVALS that fill every group's quota, by group and time; the race is run again in the rare case that it must.

    Args:
        arrivals_by: From the groups' horizons to ARRIVALS that hold, of each group, its quota's earliest.
        quotas: ``(groups,)`` draws.
        totals: ``(groups,)`` summed rates of all shards.

    Raises:
        ValueError: If nobody in a group with draws has a positive rate.
    """
    until = horizons(quotas, totals)
    while True:
        found = earliest(arrivals_by(until), quotas)
        short = np.bincount(found["group"].to_numpy(), minlength=len(quotas)) < quotas
        if not short.any():
            return found
        until = np.where(short, 2 * until, until)


def draw(field: Field, quotas: Ints, *key: str | int) -> pa.Table:
    """ARRIVALS: draws with replacement in proportion to the rates, ``quotas`` of each group (one shard).

    Args:
        field: All users.
        quotas: ``(groups,)`` draws.
        key: Seed and step.

    Raises:
        ValueError: If nobody in a group with draws has a positive rate, or a rate is no weight.
    """
    return earliest_of_all(lambda until: arrivals_until(field, until, *key), quotas, field.totals(len(quotas)))
