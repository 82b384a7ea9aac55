"""Which tasks have nobody who could answer: known from a call that was lost, until a replica can be asked again."""

import asyncio
import logging
from collections.abc import Mapping, Set

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from recranker.tasks.settings import TaskName

logger = logging.getLogger("ray.serve")

THERE_S = 1.0
"""Seconds in which a replica that has room says that it is there; a new one takes longer only to load its model."""
PAUSE_S = 0.5
"""Seconds between two calls where the one before was lost too."""


class Presence:
    """Watches tasks that have lost a replica.

    Serve holds a call that no replica can take, and a new replica loads a model first: without this every request
    would wait until its deadline for a task that cannot answer.
    """

    def __init__(self, tasks: Mapping[TaskName, DeploymentHandle]) -> None:
        self._tasks = tasks
        self._absent: set[TaskName] = set()
        self._watched: dict[TaskName, asyncio.Task[None]] = {}

    @property
    def absent(self) -> Set[TaskName]:
        """Tasks without a replica that could be asked."""
        return self._absent

    async def still_there(self, task: TaskName, patience_s: float) -> bool:
        """Whether another replica of ``task``, which has just lost one, can be asked.

        If none can within a second or ``patience_s``, the task is absent until one can.
        """
        if task not in self._watched:
            self._watched[task] = asyncio.create_task(self._watch(task))
        done, _ = await asyncio.wait({self._watched[task]}, timeout=min(THERE_S, patience_s))
        if not done and patience_s >= THERE_S and task not in self._absent:
            logger.warning("task %s: no replica left, requests go on without it", task)
            self._absent.add(task)
        return bool(done)

    async def _watch(self, task: TaskName) -> None:
        """Ends once a replica has answered."""
        try:
            while not await self._answers(task):
                await asyncio.sleep(PAUSE_S)
        finally:
            del self._watched[task]
            if task in self._absent:
                logger.warning("task %s: requests ask it again", task)
                self._absent.discard(task)

    async def _answers(self, task: TaskName) -> bool:
        """Whether a replica says that it is there; waits for one."""
        try:
            await self._tasks[task].is_there.remote()
        except (RayError, RayServeException):  # lost as well, or too many wait
            return False
        return True
