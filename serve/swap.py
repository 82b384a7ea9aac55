"""How a router goes from one run to another without losing a request.

Ray Serve hands every router a ``user_config`` that names the run to serve. The router reads it, waits until every
replica of every task has loaded its model and reproduced the golden answers, and only then answers with it. All that
belongs to a run, weights, calibrations, texts, users, is one object, which a request holds from beginning to end; so
those under way end as they began. A run that cannot be used is refused, and what answered goes on answering.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from recranker.errors import DataError, RecrankerError, first_line
from recranker.tasks.settings import TaskName
from serve.messages import ModelState, Refusal
from serve.metrics import Metrics
from serve.replica_sets import check_adapters
from serve.settings import ServeSettings
from serve.source import ServedRun, read_wanted
from serve.users import Users, open_users
from serve.wanted import ModelKey, RefusedRunError, Wanted, refusal, refusing

logger = logging.getLogger("ray.serve")

ASK_S = 0.25
"""Seconds between two questions to tasks whether they are ready."""
ANSWER_S = 5.0
"""Seconds within which the replicas of a task must say how far they are; one that is busy is asked again."""
START_S = 20.0
"""Seconds for which a new router waits for the run it is told to serve, before it begins with another one."""


@dataclass(frozen=True)
class Served:
    """A run and what belongs to it; never changes."""

    run: ServedRun
    users: Users | None


class Swap:
    """Which run a router answers with, now and soon; used from one event loop.

    Args:
        settings: Of the service.
        bound: The run that the application was built with.
        tasks: Handles of the tasks' deployments.
        metrics: Counts what became of runs.

    Raises:
        SettingsError: If users are kept where they cannot be read.
    """

    def __init__(
        self,
        settings: ServeSettings,
        bound: ServedRun,
        tasks: Mapping[TaskName, DeploymentHandle],
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.tasks = tasks
        self.metrics = metrics
        self.served = Served(bound, _users_at_start(settings, bound))
        self._loading: str | None = None
        self._refused: Refusal | None = None
        self._going_on: asyncio.Task[None] | None = None

    @property
    def state(self) -> ModelState:
        """What is told about it."""
        run = self.served.run
        return ModelState(run=run.name, adapter=run.tuning, loading=self._loading, refused=self._refused)

    async def follow(self, user_config: Any) -> None:
        """Begin to serve what ``user_config`` names; returns at once, as a replica that is told gets no requests.

        Only a router that has just started waits for it a little.
        """
        is_new = self._going_on is None
        if self._going_on is not None:
            self._going_on.cancel()
        try:
            wanted = Wanted.model_validate(user_config)
        except ValidationError as error:
            self._refuse(Refusal(run="unknown", code="invalid"), f"user_config: {error.error_count()} wrong entries")
            return
        if is_new and wanted.otherwise is not None:
            await self._start_with(wanted.otherwise)
        self._loading, self._refused = name_of(wanted), None
        self._going_on = asyncio.create_task(self._go_to(wanted, patient=is_new))
        if is_new:
            await asyncio.wait([self._going_on], timeout=START_S)

    async def _start_with(self, last: Wanted) -> None:
        """What answered before this router started, so that a run that is refused again changes nothing."""
        try:
            self.served = await asyncio.to_thread(self._read, last, patient=True)
            self.metrics.serves(self.served.run)
        except RecrankerError as error:
            logger.warning("not the run that was served before: %s", first_line(error))

    async def _go_to(self, wanted: Wanted, *, patient: bool) -> None:
        name = name_of(wanted)
        try:
            found = await self._ready(wanted, patient)
        except RefusedRunError as error:
            self._refuse(Refusal(run=name, code=error.code, handover=wanted.handover), first_line(error))
        except Exception as error:  # nothing that comes with a run may end the router
            self._refuse(Refusal(run=name, code="invalid", handover=wanted.handover), f"{type(error).__name__}")
        else:
            self._serve(found)
        finally:
            if self._going_on is asyncio.current_task():  # else another run is on its way already
                self._loading = None

    def _serve(self, found: Served) -> None:
        before = self.served.run
        if found.run == before:
            return
        self.served = found
        self.metrics.swapped(found.run)
        logger.info("run %s (tuning %s) answers in place of %s", found.run.name, found.run.tuning, before.name)

    def _refuse(self, refusal: Refusal, why: str) -> None:
        self._refused = refusal
        self.metrics.refused.labels(refusal.code).inc()
        logger.error("run %s refused, %s: %s; run %s goes on", refusal.run, refusal.code, why, self.served.run.name)

    async def _ready(self, wanted: Wanted, patient: bool) -> Served:
        """What is wanted, once every task is ready for it.

        Raises:
            RefusedRunError: If it cannot be served.
        """
        found = await asyncio.to_thread(self._read, wanted, patient=patient)
        if found is self.served:
            return found
        ends = time.monotonic() + self.settings.swap_timeout_s
        while not await self._all_ready(found.run.key, wanted.handover):
            if time.monotonic() > ends:
                raise refusal("late", f"not ready after {self.settings.swap_timeout_s:g} s (swap_timeout_s)")
            await asyncio.sleep(ASK_S)
        return found

    def _read(self, wanted: Wanted, *, patient: bool) -> Served:
        """The run and its users; the present one where it is the same.

        Args:
            wanted: Which.
            patient: Whether users may come later, as for a router that starts: the others serve the run already.
        """
        with refusing("not_readable"):
            run = read_wanted(wanted, self.settings)
        if run == self.served.run:
            return self.served
        if set(run.tasks) != set(self.tasks):
            raise refusal("other_tasks", f"it has tasks {', '.join(run.tasks)}, served are {', '.join(self.tasks)}")
        with refusing("other_tasks"):
            check_adapters(self.settings, run)
        with refusing("users"):
            users = open_users(self.settings, run, patient=patient)
        if users is None and self.served.users is not None:
            raise refusal("no_users", "no users are published for it; run jobs.publish for it, then promote it again")
        return Served(run, users)

    async def _all_ready(self, key: ModelKey, handover: str) -> bool:
        calls = (self._is_ready(task, key, handover) for task in self.tasks)
        return all(await asyncio.gather(*calls))

    async def _is_ready(self, task: TaskName, key: ModelKey, handover: str) -> bool:
        """Whether every replica of ``task`` that runs has the model.

        Raises:
            RefusedRunError: If one of them refuses it.
        """
        try:
            found = await self.tasks[task].broadcast("prepare", key, handover).results_async(timeout_s=ANSWER_S)
        except (TimeoutError, RayError, RayServeException):  # none runs just now, or one went away: ask again
            return False
        for one in found:
            if one.state == "refused":
                raise refusal(one.code or "not_loaded", f"by task {task}, whose log says why")
        return bool(found) and all(one.state == "ready" for one in found)


def _users_at_start(settings: ServeSettings, bound: ServedRun) -> Users | None:
    """Those of ``bound``; it was checked with them when it was deployed, and a router that is replaced must start."""
    try:
        return open_users(settings, bound, patient=True)
    except DataError as error:
        logger.error("no users of run %s are served: %s", bound.name, first_line(error))
        return None


def name_of(wanted: Wanted) -> str:
    """What a run is called before it has been read; where it lies is nobody's business."""
    return wanted.run.rstrip("/").rpartition("/")[2]
