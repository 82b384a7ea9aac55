"""What a router has asked of each task and not heard of yet, and so how long a new question would wait."""

import math
from collections.abc import Callable, Iterable, Sequence, Set
from itertools import count
from time import monotonic

from recranker.tasks.protocol import Prompt
from recranker.tasks.settings import TaskName
from serve.cost import Cost, bytes_of
from serve.planner import Load, Planned, plan
from serve.ranking import Asked
from serve.replica_sets import ReplicaSet
from serve.scored import Scored

RECHECK = 20
"""Times in a row that a task is left out as too slow for the deadline, after which it is asked all the same: it may
have become faster, and only an answer tells."""
RECHECK_S = 10.0
"""Seconds since it was asked last that must have gone by too."""
TRANSPORT_S = 0.01
"""Seconds on the way to a replica and back."""


class Queue:
    """The calls of one task that have not been answered."""

    def __init__(self) -> None:
        self.cost: Cost | None = None
        self._sizes: dict[int, int] = {}
        self._keys = count()
        self._moved = self._asked = -math.inf
        """When a call last ended or found nobody before it, and when the last one began."""
        self._too_slow = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def enter(self, num_bytes: int, now: float) -> int:
        """Count a call of a prompt of that size; returns its key."""
        if not self._sizes:
            self._moved = now
        key = next(self._keys)
        self._sizes[key], self._asked, self._too_slow = num_bytes, now, 0
        return key

    def too_slow(self) -> None:
        """A request has left it out, as no idle replica would be done in time."""
        self._too_slow += 1

    def leave(self, key: int, now: float) -> None:
        """A call has ended, in whatever way."""
        del self._sizes[key]
        self._moved = now

    def load(self, now: float, *, replicas: int, routers: int = 1) -> Load | None:
        """What a new call would find; None where the task must be asked for that to be known.

        Args:
            now: In seconds of the clock of the calls.
            replicas: Replicas of the task.
            routers: Routers that ask it; each is thought to wait for as many calls.
        """
        if self.cost is None or (self._too_slow >= RECHECK and now - self._asked > RECHECK_S):
            return None
        number = len(self) * routers
        if number < replicas:
            return Load(self.cost, 0.0)
        tokens = self.cost.tokens(sum(self._sizes.values()) * routers)
        batches = self.cost.batches(tokens, number)
        whole = self.cost.seconds(tokens, batches)
        done = min(now - self._moved, whole / batches)  # of the batch that is computed now
        before = number - replicas + 1  # with as many done, one replica is free
        return Load(self.cost, max(0.0, whole * before / number / replicas - done / replicas))


class Queues:
    """Those of all tasks; tasks that share their replicas share a queue.

    Args:
        sets: Who answers the tasks.
        replicas: Number of replicas of a set by now.
        routers: Routers that ask them.
        clock: Seconds.
    """

    def __init__(
        self,
        sets: Sequence[ReplicaSet],
        replicas: Callable[[ReplicaSet], int],
        routers: int = 1,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._sets = {task: one for one in sets for task in one.tasks}
        self._queues = {one: Queue() for one in sets}
        self._replicas = replicas
        self._routers = routers
        self._clock = clock

    def plan(
        self, asked: Asked, deadline: float, *, absent: Set[TaskName] = frozenset(), shorten: bool = True
    ) -> Planned:
        """What of ``asked`` to ask, to be there by ``deadline``; nothing of the tasks that are ``absent``."""
        loads = {task: load for task in asked.prompts if (load := self._load(task)) is not None}
        places = {one.item_id: one.place for one in asked.candidates}
        left_s = deadline - TRANSPORT_S - self._clock()
        together = len(self._queues) < len(self._sets)
        planned = plan(asked.prompts, places, loads, left_s, absent=absent, shorten=shorten, together=together)
        for one in {self._sets[task] for task, why in planned.left_out.items() if why == "deadline"}:
            self._queues[one].too_slow()
        return planned

    def enter(self, replicas: ReplicaSet, prompt: Prompt) -> Callable[[object], None]:
        """Count a call; returns what is to be called when it has ended."""
        queue = self._queues[replicas]
        key = queue.enter(bytes_of(prompt), self._clock())
        return lambda _: queue.leave(key, self._clock())

    def under_way(self, replicas: ReplicaSet) -> int:
        """Calls of all routers that have not been answered; each is thought to wait for as many."""
        return len(self._queues[replicas]) * self._routers

    def heard(self, replicas: ReplicaSet, scored: Scored) -> None:
        """Take over what a replica says about its cost."""
        if scored.cost is not None:
            self._queues[replicas].cost = scored.cost

    def drain_s(self, tasks: Iterable[TaskName]) -> float:
        """Seconds until one of ``tasks`` has room; 0 where that is not known."""
        return min((load.wait_s for task in tasks if (load := self._load(task)) is not None), default=0.0)

    def _load(self, task: TaskName) -> Load | None:
        one = self._sets[task]
        return self._queues[one].load(self._clock(), replicas=self._replicas(one), routers=self._routers)
