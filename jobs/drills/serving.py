"""The drills of the service: what clients see while its processes are lost, one kind of them after another."""

import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from jobs.drills.gate import Kill, Watched, WatchedService, lose_one
from jobs.drills.results import Drilled, Row, row, totals
from jobs.drills.settings import ServingDrill
from jobs.load.bodies import bodies
from jobs.load.capacity import capacity
from jobs.load.hosting import Service, hosted, ranking_service
from jobs.load.plan import Load, Way
from jobs.load.sending import sending, wait
from recranker.errors import RecrankerError
from recranker.progress import Bar
from recranker.randomness import generator

logger = logging.getLogger("recranker.jobs")


@dataclass(frozen=True)
class Drill:
    """One kind of process that is lost."""

    name: str
    victims: tuple[str, ...]
    """Components, a kill each, in order."""
    way: Way
    """How the clients send meanwhile."""
    signal: int = signal.SIGKILL
    must_hold: bool = True
    """Whether no request may fail."""


@dataclass(frozen=True)
class Outcome:
    """All that was seen."""

    rows: list[Row]
    """One per drill."""
    figures: dict[str, Any]
    """``kills``, ``failed`` and ``degraded`` of the drills in which no request may fail, and the load."""

    @property
    def held(self) -> bool:
        """Whether no request failed that must not."""
        return not self.figures["failed"]


def drills(settings: ServingDrill, tasks: Sequence[str]) -> list[Drill]:
    """Those that are asked for; replicas of tasks and controllers are lost under clients that do not try again."""
    in_turn = tuple(islice(cycle(sorted(tasks)), settings.kills))
    stalled = tuple(islice(cycle(sorted(tasks)), settings.stalls))
    found = [
        Drill("task replica", in_turn, "plain"),
        Drill("router", ("router",) * settings.router_kills, "client"),
        Drill("controller", ("controller",) * settings.controller_kills, "plain"),
        Drill("HTTP proxy", ("proxy",) * settings.proxy_kills, "client", must_hold=False),
        Drill("task replica, stopped", stalled, "plain", signal.SIGSTOP, must_hold=False),
    ]
    return [one for one in found if one.victims]


def run(settings: ServingDrill) -> Outcome:
    """Start the service, find out what it can answer, and drill it.

    Raises:
        RecrankerError: If it does not start, or a process is not replaced in time.
    """
    asked = bodies(settings)
    with hosted(ranking_service(settings), ready="/readyz", timeout_s=settings.start_timeout_s) as service:
        watched = WatchedService(service)
        load = Load(
            service.url,
            asked,
            timeout_s=settings.request_timeout_s,
            deadline_ms=settings.deadline_ms,
            seed=settings.seed,
        )
        rate = settings.rate or settings.load_share * _can_answer(settings, service, load)
        well = watched.state()
        todo = drills(settings, list(_tasks(well)))
        with Bar("chaos", sum(len(one.victims) for one in todo)) as bar:
            done = [_drilled(one, settings, watched, well, replace(load, rate=rate), bar) for one in todo]
    return Outcome([row(one) for one in done], {**totals(done), "rate": rate})


def _can_answer(settings: ServingDrill, service: Service, load: Load) -> float:
    """Requests a second, each answered in full."""
    patient = replace(load, deadline_ms=None)
    found = capacity(patient, service.pid, clients=settings.clients, seconds=settings.probe_s).requests_per_s
    logger.info("it answers %.2f requests a second", found)
    return found


def _tasks(well: dict[str, Any]) -> dict[str, int]:
    """Replicas by task."""
    try:
        replicas: dict[str, int] = well["readiness"]["replicas"]
        return replicas
    except KeyError:
        raise RecrankerError(f"the service was ready and is no more: it says {well}") from None


def _drilled(
    drill: Drill, settings: ServingDrill, watched: Watched, well: dict[str, Any], load: Load, bar: Bar
) -> Drilled:
    """Lose all victims of one drill under load."""
    kills: list[Kill] = []
    random = generator(settings.seed, "drill", drill.name)
    with sending(replace(load, way=drill.way)) as under_way:
        wait(settings.calm_s, under_way)
        for victim in drill.victims:
            bar.set_text(f"{drill.name}: {victim}")
            wait(float(random.uniform(0.0, settings.pause_s)), under_way)
            kills.append(lose_one(victim, watched, well, number=drill.signal, timeout_s=settings.replaced_s))
            logger.info("%s lost, replaced after %.1f s", victim, kills[-1].recovery_s)
            bar.advance()
        wait(settings.calm_s, under_way)
        sent = under_way.stop()
    return Drilled(drill.name, drill.way, drill.must_hold, tuple(kills), tuple(sent))
