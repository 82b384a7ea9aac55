"""The router: one call per task, what came until the deadline, one order."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from recranker.errors import SettingsError
from recranker.tasks.protocol import Answer, Prompt
from recranker.tasks.settings import TaskName
from serve.errors import BusyError, LateError, RefusedError, UnavailableError
from serve.explain import influences, without_each
from serve.http import make_api
from serve.messages import Influence, RankRequest, RankResponse, Readiness, UserState
from serve.metrics import ALL, SHED, Metrics
from serve.ranking import Asked, answers_of, ask, respond
from serve.settings import ServeSettings
from serve.shadow import Shadow
from serve.source import ServedRun
from serve.swap import Served, Swap
from serve.users import Users, brings_everything, completed
from serve.wanted import ModelKey

logger = logging.getLogger("ray.serve")

TOKEN_VARIABLE = "RECRANKER_SERVE_TOKEN"

Missing = Literal["busy", "lost", "late", "failed"]
"""Why a task did not answer: its queue is full; its replicas went away too often; the deadline came; it failed."""

OUTCOMES: Mapping[type[BaseException], str] = {
    RefusedError: "refused",
    BusyError: SHED,
    UnavailableError: "unavailable",
    LateError: "late",
    asyncio.CancelledError: "cancelled",
}
"""What metrics call a request that ended in an error; any other 'failed'."""

ANSWER_S = 0.005
"""Seconds before the deadline at which waiting ends, so that the answer is there by then."""
STATUS_S = 5.0
"""Seconds within which Serve's controller must say which replicas run; it may be on its way back from a fault."""


class Router:
    """Validates, asks every task once, fuses. Ranking changes nothing, so a call lost with its replica is repeated."""

    def __init__(self, settings: ServeSettings, run: ServedRun, tasks: Mapping[TaskName, DeploymentHandle]) -> None:
        self.settings = settings
        self.tasks = tasks
        self.token = read_token(settings)
        self.metrics = Metrics(run)
        self.swap = Swap(settings, run, tasks, self.metrics)
        self.shadow = Shadow(settings, tasks, self.metrics)
        self.seen = Readiness(ready=False, replicas=dict.fromkeys(tasks, 0), missing=tuple(tasks))

    @property
    def run(self) -> ServedRun:
        """The run that answers now."""
        return self.swap.served.run

    @property
    def users(self) -> Users | None:
        """Its users."""
        return self.swap.served.users

    async def reconfigure(self, user_config: Any) -> None:
        """Ray Serve's call: serve the run that ``user_config`` names (``serve.source.Wanted``)."""
        await self.swap.follow(user_config)

    async def rank(self, request: RankRequest, deadline: float | None = None) -> RankResponse:
        """The candidates of ``request``, best first; tasks that do not answer in time are named, not waited for.

        Args:
            request: What to rank.
            deadline: When it must be answered, in seconds of ``time.monotonic``; request_timeout_s from now where
                nothing is said.

        Raises:
            RefusedError: If the request asks for what is not served.
            BusyError: If no task had room for it.
            UnavailableError: If it needs what is stored, and the store does not answer.
            LateError: If the store has not answered by the deadline.
        """
        started, outcome = time.monotonic(), "failed"
        try:
            ends = started + self.settings.request_timeout_s if deadline is None else deadline
            response = await self._rank(request, ends)
            outcome = response.order
            return response
        except BaseException as error:
            outcome = OUTCOMES.get(type(error), outcome)
            raise
        finally:
            self.metrics.finished(ALL, outcome, time.monotonic() - started)

    async def _rank(self, request: RankRequest, deadline: float) -> RankResponse:
        served = self.swap.served  # one run from here to the answer, whatever is served meanwhile
        run = served.run
        request, user = await self._completed(request, deadline, served)
        asked = ask(request, run, self.settings)
        self.metrics.arrived(request, run.data.max_title_characters)
        response = respond(asked, await self._answers(asked, deadline), request, run)
        for task in response.degraded:
            self.metrics.degraded.labels(task).inc()
        self.shadow.after(request, response, run)
        influences = await self._influences(asked, response, request, deadline, run) if request.explain else None
        return response.model_copy(update={"user": user, "influences": influences})

    async def _completed(
        self, request: RankRequest, deadline: float, served: Served
    ) -> tuple[RankRequest, UserState | None]:
        """``request`` with what is stored of the user and items it names; looked up beside the loop."""
        if brings_everything(request):
            return request, None
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                done = await asyncio.to_thread(completed, request, served.users)
        except TimeoutError:
            raise LateError from None  # without candidates there is not even the retriever's order
        return done.request, done.user

    async def _influences(
        self, asked: Asked, response: RankResponse, request: RankRequest, deadline: float, run: ServedRun
    ) -> tuple[Influence, ...]:
        """What the latest entries of the history change, as far as tasks have room and time to say it."""
        if response.order != "fused":
            return ()
        parts = without_each(asked, request, run, self.settings)
        found = await asyncio.gather(*(self._answers_if_room(one, deadline) for one in parts.values()))
        return influences(response, parts, dict(zip(parts, found, strict=True)), request, run)

    async def _answers_if_room(self, asked: Asked, deadline: float) -> dict[TaskName, list[Answer]]:
        """What ``_answers`` says, nothing where all tasks are full."""
        try:
            return await self._answers(asked, deadline)
        except BusyError:
            return {}

    async def _answers(self, asked: Asked, deadline: float) -> dict[TaskName, list[Answer]]:
        """What the tasks have answered by the deadline."""
        calls = [self._timed_answer(task, prompt, deadline, asked.model) for task, prompt in asked.prompts.items()]
        found = await asyncio.gather(*calls)
        if found and all(one == "busy" for one in found):
            raise BusyError
        return {task: one for task, one in zip(asked.prompts, found, strict=True) if isinstance(one, list)}

    async def readiness(self) -> Readiness:
        """Whether every task has a running replica, as Serve's controller counts them.

        A replica runs once it is constructed, and it is constructed only if its model has reproduced the golden answers
        of its adapter (``serve/tasks.py``). While the controller is away nothing is replaced, and what was seen last
        still answers.
        """
        try:
            async with asyncio.timeout(STATUS_S):
                running = await asyncio.to_thread(running_replicas)
        except (TimeoutError, RayError, RayServeException) as error:
            logger.warning("readiness as seen last: no word from Serve's controller, %s", type(error).__name__)
            return self.seen.model_copy(update={"model": self.swap.state})
        replicas: dict[str, int] = {task: running.get(task, 0) for task in self.tasks}
        missing = tuple(task for task, number in replicas.items() if not number)
        self.seen = Readiness(ready=not missing, replicas=replicas, missing=missing)
        return self.seen.model_copy(update={"model": self.swap.state})

    async def _timed_answer(
        self, task: TaskName, prompt: Prompt, deadline: float, model: ModelKey
    ) -> list[Answer] | Missing:
        started = time.monotonic()
        found = await self._answer(task, prompt, deadline, model)
        outcome = "answered" if isinstance(found, list) else found
        self.metrics.finished(task, outcome, time.monotonic() - started)
        return found

    async def _answer(self, task: TaskName, prompt: Prompt, deadline: float, model: ModelKey) -> list[Answer] | Missing:
        """The task's answers, or why there are none."""
        attempt = 1
        while (left := deadline - ANSWER_S - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    found: list[NDArray[np.float64]] = await self.tasks[task].score.remote(prompt, model)
                    return answers_of(prompt, found)
            except BackPressureError:
                return "busy"
            except RayActorError as error:  # the replica went away with the question, rather than failing at it
                if attempt == self.settings.max_attempts:
                    return _missing(task, "lost", error)
                self.metrics.retries.labels(task, "replica_lost").inc()
                logger.warning("task %s: replica lost in attempt %d, asking another", task, attempt)
                attempt += 1
            except TimeoutError:
                break
            except (RayError, RayServeException) as error:
                return _missing(task, "failed", error)
        return _missing(task, "late", TimeoutError())


def running_replicas() -> dict[str, int]:
    """Replicas of each deployment of this application that run; asks Serve's controller, and waits for it."""
    status = serve.status().applications[serve.get_replica_context().app_name]
    return {name: one.replica_states.get("RUNNING", 0) for name, one in status.deployments.items()}


def replica_api() -> FastAPI:
    """The routes over the router of this process; Serve calls it in the replica, as an app built here cannot travel."""
    return make_api(lambda: serve.get_replica_context().servable_object)


def read_token(settings: ServeSettings) -> str | None:
    """The bearer token clients must send; None where none is asked for.

    Raises:
        SettingsError: If the token's file cannot be read or is empty.
    """
    if settings.token_file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = Path(settings.token_file).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"token_file {settings.token_file!r} cannot be read: {error.strerror}") from None
    if not token:
        raise SettingsError(f"token_file {settings.token_file!r} is empty; write the token into it")
    return token


def _missing(task: TaskName, why: Missing, error: Exception) -> Missing:
    logger.warning("task %s: no answer, %s: %s", task, why, type(error).__name__)  # a message might quote a title
    return why
