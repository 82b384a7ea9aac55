"""The router: one call to each set of replicas, what came by the deadline, one order."""

import asyncio
import logging
import math
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from recranker.errors import SettingsError
from recranker.tasks.protocol import Answer, Prompt
from recranker.tasks.settings import TaskName
from serve.errors import BusyError, LateError, RefusedError, UnavailableError
from serve.explain import influences, without_each
from serve.http import make_api
from serve.messages import Influence, RankRequest, RankResponse, Readiness, UserState
from serve.metrics import ALL, LEFT_OUT, SHED, Metrics
from serve.planner import Planned
from serve.presence import Presence
from serve.queues import Queues
from serve.ranking import Asked, answers_of, ask, check_counts, respond
from serve.replica_sets import Call, ReplicaSet, calls_of, replica_sets
from serve.scored import Scored
from serve.settings import ServeSettings
from serve.shadow import Shadow
from serve.source import ServedRun
from serve.swap import Served, Swap
from serve.timing import current
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
LOOK_S = 10.0
"""Seconds between two looks at the number of replicas, while requests come."""
QUIET_S = 1.0
"""Seconds without an answer after which replicas with room are asked whether they are there."""
STATUS_S = 5.0
"""Seconds within which Serve's controller must say which replicas run; it may be on its way back from a fault."""


@dataclass(frozen=True)
class Heard:
    """What a request's tasks have answered."""

    values: dict[TaskName, list[NDArray[np.float64]]]
    """Per task that answered, per question: ``(labels,)`` log-probabilities in nats."""
    tokens: int = 0
    """That were computed for it."""
    too_long: frozenset[TaskName] = frozenset()
    """Tasks that had a question with more tokens than the model reads."""


class Router:
    """Validates, asks every task once that has time for it, fuses.

    Ranking changes nothing, so a call lost with its replica is repeated.

    Args:
        settings: Of the service.
        run: That is served.
        tasks: Handles of the tasks' deployments.
        needs_token: Whether a token was there when the application was built, so that it must be here too.

    Raises:
        SettingsError: If the token is missing that clients must send, or its file cannot be read.
    """

    def __init__(
        self,
        settings: ServeSettings,
        run: ServedRun,
        tasks: Mapping[TaskName, DeploymentHandle],
        *,
        needs_token: bool = False,
    ) -> None:
        self.settings = settings
        self.tasks = tasks
        self.sets = replica_sets(settings, tasks)
        self.token = read_token(settings, needed=needs_token)
        self.metrics = Metrics(run, uuid.uuid4().hex[:8] if settings.routers > 1 else None)
        self.swap = Swap(settings, run, tasks, self.metrics)
        self.shadow = Shadow(settings, tasks, self.metrics)
        self.seen = Readiness(ready=False, replicas=dict.fromkeys(tasks, 0), missing=tuple(tasks))
        self.wanted = {one: settings.replicas_of(one.first) for one in self.sets}
        self.looked_at = -math.inf
        self.looking: asyncio.Task[Readiness] | None = None
        self.counting: asyncio.Future[dict[str, int]] | None = None
        self.presence = Presence(tasks)
        self.queues = Queues(self.sets, self._replicas, settings.routers)

    @property
    def run(self) -> ServedRun:
        """The run that answers now."""
        return self.swap.served.run

    @property
    def users(self) -> Users | None:
        """Its users."""
        return self.swap.served.users

    async def reconfigure(self, user_config: Any) -> None:
        """Ray Serve's call: serve the run that ``user_config`` names (``serve.wanted.Wanted``)."""
        await self.swap.follow(user_config)

    async def rank(self, request: RankRequest, deadline: float | None = None) -> RankResponse:
        """The candidates of ``request``, best first; tasks that do not answer in time are named, not waited for.

        Args:
            request: What to rank.
            deadline: When it must be answered, in seconds of ``time.monotonic``; request_timeout_s from now where
                nothing is said.

        Raises:
            RefusedError: If the request asks for what is not served.
            BusyError: If no task has room for it, or none by its deadline.
            UnavailableError: If it needs what is stored, and the store does not answer.
            LateError: If the store has not answered by the deadline.
        """
        started, outcome = time.monotonic(), "failed"
        if timing := current():
            timing.ranks = True
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
        self._look_again()
        planned = self.queues.plan(asked, deadline, absent=self.presence.absent)
        asked = replace(asked, prompts={**asked.prompts, **planned.prompts})
        heard = await self._heard(planned, deadline, asked.model)
        response = respond(asked, _answers(asked, heard), request, run)
        response = response.model_copy(update={"user": user, "plan": planned.without(heard.too_long).message()})
        self._count(planned, heard, response)
        self.shadow.after(request, response, run)
        influences = (
            await self._influences(asked, heard.values, response, request, deadline, run) if request.explain else None
        )
        return response.model_copy(update={"influences": influences})

    async def _completed(
        self, request: RankRequest, deadline: float, served: Served
    ) -> tuple[RankRequest, UserState | None]:
        """``request`` with what is stored of the user and items it names; looked up beside the loop."""
        check_counts(len(request.candidates), len(request.history), self.settings)  # before any of them is looked up
        if brings_everything(request):
            return request, None
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                done = await asyncio.to_thread(completed, request, served.users)
        except TimeoutError:
            raise LateError from None  # without candidates there is not even the retriever's order
        return done.request, done.user

    async def _influences(
        self,
        asked: Asked,
        tasks: Iterable[TaskName],
        response: RankResponse,
        request: RankRequest,
        deadline: float,
        run: ServedRun,
    ) -> tuple[Influence, ...]:
        """What the latest entries of the history change, as far as tasks have room and time to say it."""
        if response.order != "fused":
            return ()
        parts = without_each(asked, request, run, self.settings)
        found = await asyncio.gather(*(self._heard_if_room(one, tasks, deadline) for one in parts.values()))
        answers = {place: _answers(parts[place], heard) for place, heard in zip(parts, found, strict=True)}
        return influences(response, parts, answers, request, run)

    async def _heard_if_room(self, asked: Asked, tasks: Iterable[TaskName], deadline: float) -> Heard:
        """What ``tasks`` say to ``asked`` where they have room and time for all of it."""
        wanted = replace(asked, prompts={task: asked.prompts[task] for task in tasks})
        try:
            planned = self.queues.plan(wanted, deadline, absent=self.presence.absent, shorten=False)
            return await self._heard(planned, deadline, asked.model)
        except BusyError:
            return Heard({})

    async def _heard(self, planned: Planned, deadline: float, model: ModelKey) -> Heard:
        """What the tasks have answered by the deadline."""
        if planned.full:
            raise BusyError(self.queues.drain_s(planned.full))
        calls = calls_of(self.sets, planned.prompts)
        found = await asyncio.gather(*(self._begun(call, deadline, model) for call in calls))
        if found and all(one == "busy" for one in found):
            raise BusyError(self.queues.drain_s(planned.prompts))
        heard = Heard({})
        for call, one in zip(calls, found, strict=True):
            if isinstance(one, Scored):
                values = {**heard.values, **call.by_task(one)}
                heard = Heard(values, heard.tokens + one.tokens, heard.too_long | one.too_long)
        return heard

    def _begun(self, call: Call, deadline: float, model: ModelKey) -> asyncio.Task[Scored | Missing]:
        """A call that is in its replicas' queue from now on until it ends, however it ends."""
        prompt = call.prompt
        task = asyncio.create_task(self._timed_answer(call, prompt, deadline, model))
        task.add_done_callback(self.queues.enter(call.replicas, prompt))
        return task

    def _count(self, planned: Planned, heard: Heard, response: RankResponse) -> None:
        for task in planned.left_out:
            self.metrics.requests.labels(task, LEFT_OUT).inc()
        for task in response.degraded:
            self.metrics.degraded.labels(task).inc()
        if heard.tokens:
            self.metrics.prompt_tokens.observe(heard.tokens)

    def _replicas(self, one: ReplicaSet) -> int:
        """How many replicas; where their number follows the load, those that ran when somebody looked last."""
        wanted = self.wanted[one]
        return wanted.fewest if wanted.fewest == wanted.most else max(self.seen.replicas[one.first], wanted.fewest)

    def _look_again(self) -> None:
        """Ask beside the request how many replicas run, where their number follows the load."""
        now = time.monotonic()
        if now - self.looked_at > LOOK_S and any(one.fewest < one.most for one in self.wanted.values()):
            self.looked_at = now
            self.looking = asyncio.create_task(self.readiness())

    async def readiness(self) -> Readiness:
        """Whether every task has a running replica, as Serve's controller counts them.

        A replica runs once it has been told what to serve, and has a model that reproduced the golden answers of its
        adapter (``serve/models.py``). While the controller is away nothing is replaced, and while it deploys the
        application anew it counts none of its replicas; what was seen last still answers.
        """
        try:
            async with asyncio.timeout(STATUS_S):
                running = await self._counted()
        except (TimeoutError, RayError, RayServeException) as error:
            logger.warning("readiness as seen last: no word from Serve's controller, %s", type(error).__name__)
            running = {}
        if not running:
            return self.seen.model_copy(update={"model": self.swap.state})
        replicas: dict[str, int] = {task: running.get(one.deployment, 0) for one in self.sets for task in one.tasks}
        missing = tuple(task for task, number in replicas.items() if not number)
        self.seen = Readiness(ready=not missing, replicas=replicas, missing=missing)
        return self.seen.model_copy(update={"model": self.swap.state})

    async def _counted(self) -> dict[str, int]:
        """``running_replicas``, asked once at a time: while the controller is away a thread waits for each question,
        and the lookups of users need theirs."""
        if self.counting is None or self.counting.done():
            self.counting = asyncio.ensure_future(asyncio.to_thread(running_replicas))
        return await asyncio.shield(self.counting)

    async def _timed_answer(self, call: Call, prompt: Prompt, deadline: float, model: ModelKey) -> Scored | Missing:
        started, outcome = time.monotonic(), "failed"
        found: Scored | Missing = "failed"
        try:
            found = await self._answer(call, prompt, deadline, model)
            outcome = "answered" if isinstance(found, Scored) else found
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            too_long = found.too_long if isinstance(found, Scored) else frozenset()
            for task in call.prompts:
                self.metrics.finished(task, LEFT_OUT if task in too_long else outcome, time.monotonic() - started)
        if isinstance(found, Scored):
            self.queues.heard(call.replicas, found)
            if timing := current():
                timing.answered(found)
        return found

    async def _answer(self, call: Call, prompt: Prompt, deadline: float, model: ModelKey) -> Scored | Missing:
        """The answers to ``prompt``, or why there are none."""
        name = call.replicas.deployment
        attempt = 1
        while (left := deadline - ANSWER_S - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    found = await self._while_there(call.replicas, prompt, model, left)
                    return found or _missing(name, "lost", TimeoutError())
            except BackPressureError:
                return "busy"
            except RayActorError as error:  # the replica went away with the question, rather than failing at it
                left = deadline - ANSWER_S - time.monotonic()
                if attempt == self.settings.max_attempts or not await self.presence.still_there(call.replicas, left):
                    return _missing(name, "lost", error)
                for task in call.prompts:
                    self.metrics.retries.labels(task, "replica_lost").inc()
                logger.warning("%s: replica lost in attempt %d, asking another", name, attempt)
                attempt += 1
            except TimeoutError:
                break
            except (RayError, RayServeException) as error:
                return _missing(name, "failed", error)
        return _missing(name, "late", TimeoutError())

    async def _while_there(self, replicas: ReplicaSet, prompt: Prompt, model: ModelKey, left_s: float) -> Scored | None:
        """What ``replicas`` answer; None where they say nothing for a while and none is there.

        A replica that dies idle takes no call with it from which that would be known, and Serve keeps the next one for
        a replica that is still to start.
        """
        answer = asyncio.create_task(_answered(self.tasks[replicas.first].score.remote(prompt, model)))
        there: asyncio.Task[bool] | None = None
        try:
            await asyncio.wait({answer}, timeout=QUIET_S)
            has_room = self.queues.under_way(replicas) <= self._replicas(replicas) * self.settings.max_ongoing_requests
            if not answer.done() and has_room:  # a full one could not be asked whether it is there
                there = asyncio.create_task(self.presence.still_there(replicas, left_s - QUIET_S))
                await asyncio.wait({answer, there}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done() and not there.result():
                    return None
            return await answer
        finally:
            for one in (answer, there):
                if one is not None:
                    one.cancel()


async def _answered(call: DeploymentResponse) -> Scored:
    """What ``call`` returns; where nobody waits for it any longer it is taken back, so that it is not computed."""
    try:
        found: Scored = await call
    except asyncio.CancelledError:
        call.cancel()  # Serve itself goes on with a call that a replica has taken
        raise
    return found


def _answers(asked: Asked, heard: Heard) -> dict[TaskName, list[Answer]]:
    return {task: answers_of(asked.prompts[task], values) for task, values in heard.values.items()}


def running_replicas() -> dict[str, int]:
    """Replicas of each deployment of this application that run; asks Serve's controller, and waits for it.

    None of them is there while the application is deployed anew.
    """
    name = serve.get_replica_context().app_name  # first, as status would start a cluster where there is none
    application = serve.status().applications.get(name)
    deployments = application.deployments if application else {}
    return {task: one.replica_states.get("RUNNING", 0) for task, one in deployments.items()}


def replica_api() -> FastAPI:
    """The routes over the router of this process; Serve calls it in the replica, as an app built here cannot travel."""
    return make_api(lambda: serve.get_replica_context().servable_object)


def read_token(settings: ServeSettings, *, needed: bool = False) -> str | None:
    """The bearer token clients must send; None where none is asked for.

    Raises:
        SettingsError: If the token's file cannot be read or is empty, or there is none though one is needed.
    """
    if settings.token_file is None:
        found = os.environ.get(TOKEN_VARIABLE, "").strip() or None
        if needed and found is None:
            raise SettingsError(
                f"{TOKEN_VARIABLE} was set where the application was built and is not where its router runs; set it on "
                "every node before Ray starts, or write the token into a file there and name it: token_file"
            )
        return found
    try:
        token = Path(settings.token_file).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"token_file {settings.token_file!r} cannot be read: {error.strerror}") from None
    if not token:
        raise SettingsError(f"token_file {settings.token_file!r} is empty; write the token into it")
    return token


def _missing(deployment: str, why: Missing, error: Exception) -> Missing:
    logger.warning("%s: no answer, %s: %s", deployment, why, type(error).__name__)  # a message might quote a title
    return why
