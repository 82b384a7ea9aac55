"""The router: one call per task, what came until the deadline, one order."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

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
from serve.http import BusyError, make_api
from serve.messages import RankRequest, RankResponse, Readiness
from serve.ranking import answers_of, ask, respond
from serve.settings import ServeSettings
from serve.source import ServedRun

logger = logging.getLogger("ray.serve")

TOKEN_VARIABLE = "RECRANKER_SERVE_TOKEN"

Missing = Literal["busy", "failed"]
"""Why a task did not answer: its queue is full; it failed, was lost too often, or took too long."""


class Router:
    """Validates, asks every task once, fuses. Ranking changes nothing, so a call lost with its replica is repeated."""

    def __init__(self, settings: ServeSettings, run: ServedRun, tasks: Mapping[TaskName, DeploymentHandle]) -> None:
        self.settings = settings
        self.run = run
        self.tasks = tasks
        self.token = read_token(settings)

    async def rank(self, request: RankRequest) -> RankResponse:
        """The candidates of ``request``, best first; tasks that do not answer in time are named, not waited for.

        Raises:
            RefusedError: If the request asks for what is not served.
            BusyError: If no task had room for it.
        """
        deadline = time.monotonic() + self.settings.request_timeout_s
        asked = ask(request, self.run, self.settings)
        found = await asyncio.gather(*(self._answer(task, prompt, deadline) for task, prompt in asked.prompts.items()))
        by_task = dict(zip(asked.prompts, found, strict=True))
        if all(one == "busy" for one in found):
            raise BusyError
        answers = {task: one for task, one in by_task.items() if isinstance(one, list)}
        return respond(asked, answers, request, self.run)

    async def readiness(self) -> Readiness:
        """Running replicas per task, as Serve's controller counts them."""
        context = serve.get_replica_context()
        status = await asyncio.to_thread(serve.status)
        deployments = status.applications[context.app_name].deployments
        running: dict[str, int] = {task: deployments[task].replica_states.get("RUNNING", 0) for task in self.tasks}
        return Readiness(ready=any(running.values()), replicas=running)

    async def _answer(self, task: TaskName, prompt: Prompt, deadline: float) -> list[Answer] | Missing:
        """The task's answers, or why there are none."""
        attempt = 1
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    found: list[NDArray[np.float64]] = await self.tasks[task].score.remote(prompt)
                    return answers_of(prompt, found)
            except BackPressureError:
                return "busy"
            except RayActorError as error:  # the replica went away with the question, rather than failing at it
                if attempt == self.settings.max_attempts:
                    return _failed(task, error)
                logger.warning("task %s: replica lost in attempt %d, asking another", task, attempt)
                attempt += 1
            except (TimeoutError, RayError, RayServeException) as error:
                return _failed(task, error)


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


def _failed(task: TaskName, error: Exception) -> Missing:
    logger.warning("task %s: no answer, %s", task, type(error).__name__)  # a message might quote a title
    return "failed"
