"""How many requests a service can answer."""

import time
from dataclasses import dataclass, replace

from jobs.load.outcomes import rate_within
from jobs.load.plan import Load, Sent
from jobs.load.sending import sending, wait
from jobs.load.usage import cpu_between, cpu_seconds, tree_of
from recranker.errors import RecrankerError

WARM_UP_SHARE = 0.25
"""Of the seconds measured, before they begin."""


@dataclass(frozen=True)
class Capacity:
    """Of a service with as much to do as it can do."""

    requests_per_s: float
    requests_per_cpu_s: float
    """Per CPU second of all its processes."""
    sent: list[Sent]
    """All requests, those before and after the measured time too."""


def capacity(load: Load, pid: int, *, clients: int, seconds: float) -> Capacity:
    """What the service below ``pid`` answers while so many clients wait for it.

    Raises:
        RecrankerError: If it answers nothing in full meanwhile.
    """
    with sending(replace(load, rate=None, clients=clients)) as under_way:
        wait(seconds * WARM_UP_SHARE, under_way)
        start_s, before = time.monotonic(), cpu_seconds(tree_of(pid))
        wait(seconds, under_way)
        end_s, after = time.monotonic(), cpu_seconds(tree_of(pid))
        sent = under_way.stop()
    rate = rate_within(sent, start_s, end_s)
    if rate == 0.0:
        raise RecrankerError(
            f"no request was answered in full in {seconds:g} s of {clients} clients; give them more time"
        )
    return Capacity(rate, rate * (end_s - start_s) / cpu_between(before, after), sent)
