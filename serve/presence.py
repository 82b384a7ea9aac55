"""Which tasks have nobody who could answer: from a call that is lost or hangs until a replica can be asked again."""

import asyncio
import logging
from collections.abc import Mapping

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from recranker.tasks.settings import TaskName
from serve.replica_sets import ReplicaSet

logger = logging.getLogger("ray.serve")

THERE_S = 1.0
"""Seconds in which a replica that has room says that it is there; a new one takes longer only to load its model."""
PAUSE_S = 0.5
"""Seconds between two calls where the one before was lost too."""
AGAIN_S = 0.25
"""Seconds after which another call goes beside one that is not answered: that one may have met a replica that hangs,
while others do not. It is left to wait there, so that Serve counts it and sends the next one elsewhere."""
MOST = 4
"""Calls that one watch lets wait."""


class Presence:
    """Watches tasks that have lost a replica, or say nothing.

    Serve holds a call that no replica can take, and a new replica loads a model first: without this every request
    would wait until its deadline for a task that cannot answer.
    """

    def __init__(self, tasks: Mapping[TaskName, DeploymentHandle]) -> None:
        self._tasks = tasks
        self._absent: set[ReplicaSet] = set()
        self._watched: dict[ReplicaSet, asyncio.Task[None]] = {}
        self._calls: set[asyncio.Task[bool]] = set()
        """That wait, also when nobody waits for them any more: until the replica they met goes on, or is replaced."""

    @property
    def absent(self) -> set[TaskName]:
        """Tasks without a replica that could be asked."""
        return {task for one in self._absent for task in one.tasks}

    async def still_there(self, replicas: ReplicaSet, patience_s: float) -> bool:
        """Whether any of ``replicas`` can be asked.

        If none can within a second, their tasks are absent until one can; less patience than that says nothing of it.
        """
        if replicas not in self._watched:
            self._watched[replicas] = asyncio.create_task(self._watch(replicas))
        done, _ = await asyncio.wait({self._watched[replicas]}, timeout=min(THERE_S, patience_s))
        if not done and patience_s >= THERE_S and replicas not in self._absent:
            logger.warning("%s: no replica left, requests go on without it", replicas.deployment)
            self._absent.add(replicas)
        return bool(done)

    async def _watch(self, replicas: ReplicaSet) -> None:
        """Ends once a replica has answered."""
        try:
            while not await self._one_answers(replicas):
                await asyncio.sleep(PAUSE_S)
        finally:
            del self._watched[replicas]

    async def _one_answers(self, replicas: ReplicaSet) -> bool:
        """Whether the first of a few calls to be answered says that a replica is there; False: it was lost."""
        calls: set[asyncio.Task[bool]] = set()
        while True:
            if len(calls) < MOST:
                call = asyncio.create_task(self._answers(replicas))
                calls.add(call)
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
            done, _ = await asyncio.wait(calls, timeout=AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return any(one.result() for one in done)

    async def _answers(self, replicas: ReplicaSet) -> bool:
        """Whether a replica says that it is there; waits for one."""
        try:
            await self._tasks[replicas.first].is_there.remote()
        except (RayError, RayServeException):  # lost as well, or too many wait
            return False
        if replicas in self._absent:
            logger.warning("%s: requests ask it again", replicas.deployment)
            self._absent.discard(replicas)
        return True
