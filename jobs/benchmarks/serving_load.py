"""What a running service is put through, one kind of load after another."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from jobs.benchmarks.settings import ServingBenchmark
from jobs.load.capacity import Capacity, capacity
from jobs.load.hosting import Service
from jobs.load.outcomes import latency_ms, outcome_of, summary
from jobs.load.plan import Body, Load, Sent
from jobs.load.sender import send_one
from jobs.load.sending import send_all, sending, wait
from jobs.load.usage import memory_bytes, tree_of
from recranker.errors import RecrankerError

WARM_UP = 3
"""Lone requests that nobody counts."""
NORMAL_TIMES = 2.0
"""A lone request that takes no longer than so many times the usual is answered as if nothing had been."""
RECOVERY_S = 60.0
"""Seconds after overload within which that must be seen."""
LOOK_EVERY_S = 10.0
"""Seconds between two looks at memory during a soak, which take a part of a second themselves."""
FEWEST_LOOKS = 5

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A service and what is asked of it."""

    settings: ServingBenchmark
    service: Service
    load: Load

    @classmethod
    def of(cls, settings: ServingBenchmark, service: Service, bodies: Sequence[Body]) -> "Trial":
        """Requests ``bodies`` to ``service``."""
        return cls(
            settings,
            service,
            Load(service.url, bodies, timeout_s=settings.request_timeout_s, seed=settings.seed),
        )

    def lone(self) -> list[Sent]:
        """Requests one at a time.

        Raises:
            RecrankerError: If one of them is not answered.
        """
        found = send_all(replace(self.load, requests=WARM_UP + self.settings.lone_requests))[WARM_UP:]
        if failed := [one for one in found if outcome_of(one) != "ok"]:
            raise RecrankerError(
                f"{len(failed)} of {len(found)} lone requests were not answered in full, the first with status "
                f"{failed[0].status}; see what the service says of one"
            )
        return found

    def saturated(self) -> Capacity:
        """As many requests as it can answer."""
        return capacity(self.load, self.service.pid, clients=self.settings.clients, seconds=self.settings.saturation_s)

    def steady(self, rate: float) -> list[Sent]:
        """Requests that arrive by themselves."""
        return send_all(replace(self.load, rate=rate, seconds=self.settings.steady_s))

    def overload(self, can_answer: float, lone_ms: float) -> tuple[Row, dict[str, Any]]:
        """More requests than it can answer, each with a deadline; the row, and what it is judged by."""
        settings, deadline_ms = self.settings, round(self.settings.deadline_times * lone_ms)
        rate = settings.overload_times * can_answer
        before = memory_bytes(tree_of(self.service.pid))
        with sending(replace(self.load, rate=rate, deadline_ms=deadline_ms)) as under_way:
            wait(settings.overload_s, under_way)
            under_way.hush()
            normal_ms = NORMAL_TIMES * lone_ms
            # with a deadline, so that one that would wait too long is refused at once instead of joining the queue
            lone = replace(self.load, deadline_ms=round(normal_ms))
            recovered = recovery_s(lambda: send_one(lone), normal_ms / 1000)
            sent = under_way.finished()
        after = memory_bytes(tree_of(self.service.pid))
        figures = {
            **judged(sent, deadline_ms=deadline_ms, grace_ms=settings.grace_ms),
            "deadline_ms": deadline_ms,
            "seconds": settings.overload_s,
            "goodput_share": sum(one.status == 200 for one in sent) / settings.overload_s / can_answer,
            "recovery_s": recovered,
            **memory_figures(before, after),
        }
        return row("overload", sent, rate), figures

    def soak(self, can_answer: float) -> tuple[Row, dict[str, Any]]:
        """Half of what it can answer, for long."""
        seconds, rate = 60 * self.settings.soak_minutes, can_answer / 2
        samples: list[int] = []
        looks = max(FEWEST_LOOKS, round(seconds / LOOK_EVERY_S))
        with sending(replace(self.load, rate=rate)) as under_way:
            for _ in range(looks):
                wait(seconds / looks, under_way)
                samples.append(memory_bytes(tree_of(self.service.pid)))
            sent = under_way.stop()
        figures = {"minutes": self.settings.soak_minutes, **memory_figures(*warm_and_last(samples))}
        return row("soak", sent, rate), figures


def row(phase: str, sent: Sequence[Sent], rate: float | None = None) -> Row:
    """One kind of load as it stands in the table and in the JSON file."""
    return {"phase": phase, "rate": rate, **asdict(summary(sent))}


def judged(sent: Sequence[Sent], *, deadline_ms: float, grace_ms: float) -> dict[str, Any]:
    """What must hold of requests with a deadline: answered within it, or refused with the time to come again."""
    late = [one for one in sent if one.status == 200 and 1000 * (one.done_s - one.sent_s) > deadline_ms + grace_ms]
    found = asdict(summary(sent))
    return {**found, "late": len(late), "held": not late and found["other"] == 0}


def recovery_s(
    ask: Callable[[], Sent],
    normal_s: float,
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float | None:
    """Seconds from now until a lone request is sent that is answered in full and as fast as usual.

    None if there is none within ``RECOVERY_S``.
    """
    ended = now()
    while now() - ended < RECOVERY_S:
        sent = ask()
        if outcome_of(sent) == "ok" and sent.done_s - sent.sent_s <= normal_s:
            return max(0.0, sent.sent_s - ended)
        sleep(0.1)
    return None


def warm_and_last(samples: Sequence[int]) -> tuple[float, float]:
    """Medians of the second fifth of ``samples``, when all is warm, and of the last."""
    fifth = max(1, len(samples) // 5)
    return median(samples[fifth : 2 * fifth] or samples), median(samples[-fifth:])


def memory_figures(before: float, after: float) -> dict[str, float]:
    """All processes of the service together."""
    growth = 100 * (after - before) / before
    return {"rss_before_gb": before / 1e9, "rss_after_gb": after / 1e9, "rss_growth_percent": growth}


def median_ms(sent: Sequence[Sent]) -> float:
    """Median latency of requests that were all answered."""
    found = latency_ms(sent, 50)
    assert found is not None, "somebody was answered"
    return found
