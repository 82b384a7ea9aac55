"""The service under load from a second process, beside the engine in one process and a service that generates text.

All are taken in one go, one after the other, with the same requests, model and cores; each is ended before the next.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from rich.table import Table

from jobs.benchmarks.serving_engine import Speed, engine_speed
from jobs.benchmarks.serving_load import Row, Trial, median_ms, row
from jobs.benchmarks.settings import ServingBenchmark
from jobs.load.bodies import bodies
from jobs.load.capacity import Capacity
from jobs.load.hosting import args_of, hosted, hosted_app, ranking_service
from jobs.load.outcomes import router_ms
from jobs.load.plan import Body, Load, Sent
from jobs.load.sending import send_all
from jobs.load.usage import cpu_between, cpu_seconds, tree_of
from recranker.errors import RecrankerError
from recranker.progress import Bar

logger = logging.getLogger("recranker.jobs")

GENERATE_APP = "jobs.benchmarks.serving_generate:build"


@dataclass(frozen=True)
class Served:
    """What the service did."""

    rows: list[Row]
    """One per kind of load."""
    lone: list[Sent]
    saturated: Capacity
    overload: dict[str, Any] | None
    soak: dict[str, Any] | None


@dataclass(frozen=True)
class Outcome:
    """All that was measured."""

    rows: list[Row]
    """One per kind of load."""
    figures: dict[str, Any]
    """What the service is judged by."""


def measure(settings: ServingBenchmark) -> Outcome:
    """The service, then the engine alone, then the service that generates text."""
    asked = bodies(settings)
    steps = 4 + len(settings.steady_shares) + settings.shared + sum(map(bool, _optional(settings)))
    with Bar("benchmark", steps) as bar:
        served = _served(settings, asked, bar)
        engine = _engine(settings, asked, bar, one_tree=False)
        tree = _engine(settings, asked, bar, one_tree=True)
        shared = _shared(settings, asked, bar) if settings.shared and tree else None
        generated = _generated(settings, asked, bar) if settings.generated_requests else None
    found = {**figures(served, engine, tree, generated), **shared_figures(shared, tree, generated)}
    if found["router_ms_p50"] is None:
        logger.warning("the service reports no engine time (Server-Timing), so router_ms_p50 stays empty")
    return Outcome(
        [*served.rows, *(shared.rows if shared else ())], {**found, "generated_requests": settings.generated_requests}
    )


def _optional(settings: ServingBenchmark) -> tuple[float, ...]:
    return settings.overload_s, settings.soak_minutes, settings.generated_requests


def _served(settings: ServingBenchmark, asked: Sequence[Body], bar: Bar) -> Served:
    app = ranking_service(settings)
    with hosted(app, ready="/readyz", timeout_s=settings.start_timeout_s) as service:
        trial = Trial.of(settings, service, asked)
        bar.set_text("one request at a time")
        lone = trial.lone()
        rows = [row("one at a time", lone)]
        _next(bar, f"{settings.clients} clients")
        saturated = trial.saturated()
        can_answer = saturated.requests_per_s
        logger.info("%.2f requests a second", can_answer)
        rows.append(row(f"{settings.clients} clients", saturated.sent, can_answer))
        for share in settings.steady_shares:
            _next(bar, f"{share:g} of what it can answer")
            rows.append(row(f"{share:g} of it", trial.steady(share * can_answer), share * can_answer))
        overload = soak = None
        if settings.overload_s:
            _next(bar, f"{settings.overload_times:g} times what it can answer")
            overloaded, overload = trial.overload(can_answer, median_ms(lone))
            rows.append(overloaded)
        if settings.soak_minutes:
            _next(bar, f"soak, {settings.soak_minutes:g} minutes")
            soaked, soak = trial.soak(can_answer)
            rows.append(soaked)
        bar.advance()
    return Served(rows, lone, saturated, overload, soak)


def _shared(settings: ServingBenchmark, asked: Sequence[Body], bar: Bar) -> Served:
    bar.set_text("replicas that all tasks share")
    changed = {"replica_sets": "shared", "replicas": cores_of(settings), "max_replicas": None, "per_task": {}}
    settings = settings.model_copy(update={"service": settings.service.model_copy(update=changed)})
    with hosted(ranking_service(settings), ready="/readyz", timeout_s=settings.start_timeout_s) as service:
        trial = Trial.of(settings, service, asked)
        lone, saturated = trial.lone(), trial.saturated()
    bar.advance()
    clients = f"{settings.clients} clients, shared replicas"
    rows = [row("one at a time, shared replicas", lone), row(clients, saturated.sent, saturated.requests_per_s)]
    return Served(rows, lone, saturated, overload=None, soak=None)


def cores_of(settings: ServingBenchmark) -> int:
    """Processes that compute where each has one core."""
    return settings.cores or len(os.sched_getaffinity(0))


def _next(bar: Bar, text: str) -> None:
    bar.advance()
    bar.set_text(text)


def _engine(settings: ServingBenchmark, asked: Sequence[Body], bar: Bar, *, one_tree: bool) -> Speed | None:
    bar.set_text("the engine alone" + ", one tree a request" * one_tree)
    found = engine_speed(
        settings.service,
        asked,
        processes=cores_of(settings),
        batch=settings.engine_batch,
        seconds=settings.saturation_s,
        one_tree=one_tree,
    )
    bar.advance()
    return found


def _generated(settings: ServingBenchmark, asked: Sequence[Body], bar: Bar) -> float:
    """Requests per CPU second of the service that generates text."""
    bar.set_text(f"{settings.generated_requests} requests answered with generated text")
    args = {"service": args_of(settings.service), "tokens": settings.generated_tokens}
    app = hosted_app(settings, GENERATE_APP, args)
    with hosted(app, ready="/-/healthz", timeout_s=settings.start_timeout_s) as service:
        load = Load(service.url, asked, timeout_s=600.0, requests=1)
        send_all(load)  # to warm up
        before = cpu_seconds(tree_of(service.pid))
        sent = send_all(replace(load, requests=settings.generated_requests))
        spent = cpu_between(before, cpu_seconds(tree_of(service.pid)))
    bar.advance()
    if any(one.status != 200 for one in sent):
        raise RecrankerError("the service that generates text did not answer all requests; see what it says of one")
    return len(sent) / spent


def figures(served: Served, engine: Speed | None, tree: Speed | None, generated: float | None) -> dict[str, Any]:
    """What the service is judged by; None where a part was not measured."""
    rate, per_cpu_s = served.saturated.requests_per_s, served.saturated.requests_per_cpu_s
    return {
        "router_ms_p50": _median_on_top(served.lone),
        "requests_per_s": rate,
        "requests_per_cpu_s": per_cpu_s,
        "engine_requests_per_s": engine.requests_per_s if engine else None,
        "engine_requests_per_cpu_s": engine.requests_per_cpu_s if engine else None,
        "engine_one_tree_requests_per_s": tree.requests_per_s if tree else None,
        "throughput_share": rate / engine.requests_per_s if engine else None,
        "throughput_share_of_cpu_s": per_cpu_s / engine.requests_per_cpu_s if engine else None,
        "throughput_share_one_tree": rate / tree.requests_per_s if tree else None,
        "generate_app_requests_per_cpu_s": generated,
        "speedup_over_generate_app": per_cpu_s / generated if generated else None,
        "overload": served.overload,
        "soak": served.soak,
    }


def shared_figures(shared: Served | None, tree: Speed | None, generated: float | None) -> dict[str, Any]:
    """Likewise, of replicas that all tasks share."""
    found = shared.saturated if shared else None
    return {
        "shared_router_ms_p50": _median_on_top(shared.lone) if shared else None,
        "shared_requests_per_s": found.requests_per_s if found else None,
        "shared_requests_per_cpu_s": found.requests_per_cpu_s if found else None,
        "shared_throughput_share_one_tree": found.requests_per_s / tree.requests_per_s if found and tree else None,
        "shared_speedup_over_generate_app": found.requests_per_cpu_s / generated if found and generated else None,
    }


def _median_on_top(lone: Sequence[Sent]) -> float | None:
    """Milliseconds beside the engine's; None where the service does not say what those were."""
    found = router_ms(lone)
    return median(found) if found else None


def table(rows: Sequence[Row]) -> Table:
    """The kinds of load, for a person."""
    shown = Table(title="requests of ranked users over HTTP")
    shown.add_column("load")
    for name in ("requests/s", "requests", "ok", "degraded", "busy", "other", "p50 ms", "p95 ms", "p99 ms"):
        shown.add_column(name, justify="right")
    for one in rows:
        rate = "" if one["rate"] is None else f"{one['rate']:.2f}"
        counts = (str(one[name]) for name in ("requests", "ok", "degraded", "busy", "other"))
        times = ("" if one[name] is None else f"{one[name]:.0f}" for name in ("p50_ms", "p95_ms", "p99_ms"))
        shown.add_row(one["phase"], rate, *counts, *times)
    return shown
