"""From kills and requests to the table of a drill."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from jobs.drills.gate import Kill
from jobs.load.outcomes import latency_ms, outcome_of
from jobs.load.plan import Sent, Way

Row = dict[str, Any]


@dataclass(frozen=True)
class Drilled:
    """What was done and what became of the requests meanwhile."""

    component: str
    way: Way
    must_hold: bool
    kills: tuple[Kill, ...]
    sent: tuple[Sent, ...]


def row(drilled: Drilled) -> Row:
    """One drill as it stands in the table and in the JSON file."""
    kills, sent = drilled.kills, drilled.sent
    recoveries = [kill.recovery_s for kill in kills]
    return {
        "component": drilled.component,
        "client": drilled.way,
        "must_hold": drilled.must_hold,
        "kills": len(kills),
        "requests": len(sent),
        "under_way": sum(one.sent_s < kill.at_s < one.done_s for kill in kills for one in sent),
        "failed": failed(sent),
        "degraded": degraded(sent),
        "recovery_p50_s": median(recoveries),
        "recovery_max_s": max(recoveries),
        "before_p50_ms": _p50(sent, lambda at: at < kills[0].at_s),
        "during_p50_ms": _p50(sent, lambda at: any(kill.at_s <= at < kill.good_s for kill in kills)),
        "after_p50_ms": _p50(sent, lambda at: at >= kills[-1].good_s),
        "slowest_ms": latency_ms([one for one in sent if one.status == 200], 100),
    }


def _p50(sent: Sequence[Sent], within: Callable[[float], bool]) -> float | None:
    """Median latency of the requests answered that were due within a time."""
    return latency_ms([one for one in sent if one.status == 200 and within(one.scheduled_s)], 50)


def failed(sent: Sequence[Sent]) -> int:
    """Requests without an answer of 200: a refusal counts too, at a load that the service can bear."""
    return sum(one.status != 200 for one in sent)


def degraded(sent: Sequence[Sent]) -> int:
    """Requests answered without one of the tasks."""
    return sum(outcome_of(one) == "degraded" for one in sent)


def totals(drilled: Sequence[Drilled]) -> dict[str, int]:
    """Of the drills in which no request may fail."""
    must = [one for one in drilled if one.must_hold]
    return {
        "kills": sum(len(one.kills) for one in must),
        "requests": sum(len(one.sent) for one in must),
        "failed": sum(failed(one.sent) for one in must),
        "degraded": sum(degraded(one.sent) for one in must),
    }


def table(rows: Sequence[Row]) -> Table:
    """For a person."""
    shown = Table(title="requests while processes of the service are lost")
    shown.add_column("component")
    shown.add_column("client")
    for name in ("kills", "requests", "under way", "failed", "degraded", "recovery s", "max s"):
        shown.add_column(name, justify="right")
    for name in ("p50 ms before", "during", "after"):
        shown.add_column(name, justify="right")
    for one in rows:
        counts = (str(one[name]) for name in ("kills", "requests", "under_way", "failed", "degraded"))
        recovery = (f"{one[name]:.1f}" for name in ("recovery_p50_s", "recovery_max_s"))
        times = (one[f"{when}_p50_ms"] for when in ("before", "during", "after"))
        client = "recranker's" if one["client"] == "client" else "plain"
        shown.add_row(
            one["component"], client, *counts, *recovery, *("" if ms is None else f"{ms:.0f}" for ms in times)
        )
    return shown
