"""A challenger beside the model that answers: it ranks some requests too, and how far both agree is counted.

It comes last: it is asked once the answer is made, by one request at a time, only where a task's replica is idle, in a
thread that gives way to all others. What it says, or that it fails, reaches no client.
"""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from recranker.errors import RecrankerError, first_line
from recranker.evaluation.metrics import kendall_tau, rank_biased_overlap
from recranker.randomness import key_of
from recranker.tasks.protocol import Answer, Prompt
from recranker.tasks.settings import TaskName
from serve.errors import RefusedError, where
from serve.messages import RankRequest, RankResponse
from serve.metrics import Metrics
from serve.ranking import answers_of, ask, respond
from serve.replica_sets import check_adapters
from serve.settings import ServeSettings
from serve.source import ServedRun, read_wanted
from serve.wanted import Wanted

logger = logging.getLogger("ray.serve")

LOWEST = 19
"""Niceness of the thread; beside a thread of niceness 0 on the same core it gets 1.5 % of the time."""
WAIT_S = 60.0
"""Seconds after which a challenger's answer is given up."""


class Shadow:
    """Compares the answers of a router with those a challenger would have given; used from one event loop.

    Args:
        settings: Of the service; nothing is done where ``settings.shadow`` is None.
        tasks: Handles of the tasks' deployments.
        metrics: Counts how far both agree.
    """

    def __init__(self, settings: ServeSettings, tasks: Mapping[TaskName, DeploymentHandle], metrics: Metrics) -> None:
        self.settings = settings
        self.tasks = tasks
        self.metrics = metrics
        self._run: ServedRun | None = None
        self._is_off = settings.shadow is None
        self._asking: asyncio.Task[None] | None = None

    def after(self, request: RankRequest, response: RankResponse, run: ServedRun) -> None:
        """Ask the challenger the same, if the request is one of its share; returns at once.

        Args:
            request: Complete, with history and candidates.
            response: What was answered to it.
            run: That answered.
        """
        shadow = self.settings.shadow
        if self._is_off or shadow is None or not is_chosen(request, shadow.share):
            return
        if response.order != "fused" or response.degraded or response.plan:
            self._count("degraded")
        elif self._asking is not None and not self._asking.done():
            self._count("busy")
        else:
            self._asking = asyncio.create_task(self._compare(request, response, run))

    async def _compare(self, request: RankRequest, response: RankResponse, run: ServedRun) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                challenger = await self._challenger()
                if challenger is None or challenger == run:
                    return
                ranked = await self._ranked(request, challenger)
        except RefusedError:  # beyond what the challenger was tuned on
            self._count("refused")
        except (RayError, RayServeException, TimeoutError) as error:
            logger.warning("challenger: no answer, %s", type(error).__name__)
            self._count("failed")
        except Exception as error:  # whatever it is, only the comparison is lost
            logger.error("challenger: no answer: %s", where(error))
            self._count("failed")
        else:
            self._observe(response, ranked)

    def _observe(self, response: RankResponse, ranked: RankResponse | None) -> None:
        if ranked is None:
            self._count("busy")
            return
        ours, theirs = ([one.id for one in order.ranking] for order in (response, ranked))
        tau = tau_of(ours, theirs)
        if not np.isnan(tau):
            self.metrics.shadow_tau.observe(tau)
        self.metrics.shadow_rbo.observe(rank_biased_overlap(ours, theirs))
        self._count("compared")

    async def _challenger(self) -> ServedRun | None:
        """The challenger's run, read once; None for good where it cannot be served."""
        assert self.settings.shadow is not None
        if self._run is None:
            try:
                found = await asyncio.to_thread(read_wanted, Wanted(run=self.settings.shadow.run), self.settings)
                if not set(found.tasks) <= set(self.tasks):
                    raise RecrankerError(f"it has tasks {', '.join(found.tasks)}, served are {', '.join(self.tasks)}")
                check_adapters(self.settings, found)
            except RecrankerError as error:
                logger.error("no challenger until the next start: %s", first_line(error))
                self._count("failed")
                self._is_off = True
                return None
            self._run = found
        return self._run

    async def _ranked(self, request: RankRequest, challenger: ServedRun) -> RankResponse | None:
        """The challenger's answer; None where a replica was busy or has not loaded it yet."""
        asked = ask(request, challenger, self.settings)
        answers: dict[TaskName, list[Answer]] = {}
        for task, prompt in asked.prompts.items():
            found = await self._answer(task, prompt, challenger)
            if found is None:
                return None
            answers[task] = answers_of(prompt, found)
        return respond(asked, answers, request, challenger)

    async def _answer(self, task: TaskName, prompt: Prompt, challenger: ServedRun) -> list[NDArray[np.float64]] | None:
        found: list[NDArray[np.float64]] | None = await self.tasks[task].score_if_idle.remote(prompt, challenger.key)
        return found

    def _count(self, outcome: str) -> None:
        self.metrics.shadowed.labels(outcome).inc()


def is_chosen(request: RankRequest, share: float) -> bool:
    """Whether ``request`` is one of the share; the same request always is, or never."""
    return key_of("shadow", request.model_dump_json()) < share * 2**64


def tau_of(first: list[str], second: list[str]) -> float:
    """Kendall's tau of two orders of the same ids; NaN where there is only one."""
    place = {one: at for at, one in enumerate(second)}
    falling = -np.arange(len(first), dtype=np.float64)
    return float(kendall_tau(falling[None], np.array([[-float(place[one]) for one in first]]))[0])


def yield_to_others() -> None:
    """Let this thread run only where no other wants to, on Linux, where a thread has a priority of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
