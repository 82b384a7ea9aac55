"""What became of a load: how many requests ended how, and how long they took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jobs.load.plan import Sent

Outcome = Literal["ok", "degraded", "busy", "other"]
"""All of the answer; a part of it; refused for now, with the time to come again; anything else, a lost one too."""
BUSY = (429, 503)


def outcome_of(sent: Sent) -> Outcome:
    """How one request ended."""
    if sent.status == 200:
        return "degraded" if sent.degraded else "ok"
    return "busy" if sent.status in BUSY and sent.retry_after else "other"


@dataclass(frozen=True)
class Summary:
    """Of many requests; latencies from the scheduled arrival, of those answered with 200, None where none was."""

    requests: int
    ok: int
    degraded: int
    busy: int
    other: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    busy_p99_ms: float | None
    """Of those refused for now."""


def summary(sent: Sequence[Sent]) -> Summary:
    """Of requests in any order."""
    outcomes = [outcome_of(one) for one in sent]
    answered = [one for one in sent if one.status == 200]
    busy = [one for one, outcome in zip(sent, outcomes, strict=True) if outcome == "busy"]
    return Summary(
        len(sent),
        outcomes.count("ok"),
        outcomes.count("degraded"),
        len(busy),
        outcomes.count("other"),
        latency_ms(answered, 50),
        latency_ms(answered, 95),
        latency_ms(answered, 99),
        latency_ms(busy, 99),
    )


def latency_ms(sent: Sequence[Sent], percent: float) -> float | None:
    """A percentile of latencies, interpolated between the two nearest; None of none."""
    return float(np.percentile([1000 * one.latency_s for one in sent], percent)) if sent else None


def router_ms(sent: Sequence[Sent]) -> list[float]:
    """Per request that tells its engine's time: the latency on top of it, ms."""
    return [1000 * one.latency_s - one.engine_ms for one in sent if one.engine_ms is not None]


def rate_within(sent: Sequence[Sent], start_s: float, end_s: float) -> float:
    """Requests answered in full per second of ``start_s`` to ``end_s``."""
    answered = sum(outcome_of(one) == "ok" and start_s <= one.done_s < end_s for one in sent)
    return answered / (end_s - start_s)
