"""Which tasks are answered by the same replicas, and what those are asked in one call."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recranker.errors import SettingsError
from recranker.llm.tuned import adapter_for
from recranker.tasks.protocol import Prompt
from recranker.tasks.settings import TaskName
from serve.scored import Scored
from serve.settings import ServeSettings
from serve.source import ServedRun

SHARED = "tasks"
"""Name of the deployment that answers all tasks."""


@dataclass(frozen=True)
class ReplicaSet:
    """One deployment and the tasks it answers."""

    deployment: str
    tasks: tuple[TaskName, ...]

    @property
    def first(self) -> TaskName:
        """The task that stands for all, where one is enough to tell the set."""
        return self.tasks[0]


def replica_sets(settings: ServeSettings, tasks: Iterable[TaskName]) -> tuple[ReplicaSet, ...]:
    """The deployments that answer ``tasks``."""
    if settings.replica_sets == "shared":
        return (ReplicaSet(SHARED, tuple(tasks)),)
    return tuple(ReplicaSet(task, (task,)) for task in tasks)


def adapters_of(run: ServedRun) -> dict[TaskName, Path]:
    """The adapter that answers each task.

    Raises:
        RecrankerError: If the run has been tuned again, or has no adapter for a task.
    """
    folder = run.adapters
    return {task: adapter_for(folder, task) for task in run.tasks}


def check_adapters(settings: ServeSettings, run: ServedRun) -> None:
    """Refuse a run whose tasks cannot be answered by the same replicas, where they are to be.

    Raises:
        SettingsError: If tasks share their replicas and have adapters of their own.
        RecrankerError: See ``adapters_of``.
    """
    if settings.replica_sets == "shared" and len(set(adapters_of(run).values())) > 1:
        raise SettingsError(
            f"replica_sets is 'shared', but tasks of run {run.name} have adapters of their own; serve it with "
            "replica_sets: per_task, or tune it with tune.adapters=joint"
        )


@dataclass(frozen=True)
class Call:
    """What one set of replicas is asked for a request."""

    replicas: ReplicaSet
    prompts: dict[TaskName, Prompt]
    """Of those of its tasks that are asked; with one prefix."""

    @property
    def prompt(self) -> Prompt:
        """All questions, under the prefix that their tasks share, so that it is read once."""
        asked = list(self.prompts.values())
        if len(asked) == 1:
            return asked[0]
        return Prompt("serve", asked[0].prefix, tuple(question for prompt in asked for question in prompt.questions))

    def by_task(self, scored: Scored) -> dict[TaskName, list[NDArray[np.float64]]]:
        """The answers to ``prompt``, per question ``(labels,)``, as those of each task that was not too long."""
        left = iter(scored.values)
        answered = {task: prompt for task, prompt in self.prompts.items() if task not in scored.too_long}
        return {task: [next(left) for _ in prompt.questions] for task, prompt in answered.items()}


def calls_of(sets: Iterable[ReplicaSet], prompts: Mapping[TaskName, Prompt]) -> list[Call]:
    """A call for each set that has something to answer."""
    found = [Call(one, {task: prompts[task] for task in one.tasks if task in prompts}) for one in sets]
    return [call for call in found if call.prompts]
