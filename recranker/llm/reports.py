"""What a training worker says of its progress; light, so that whoever listens needs no torch."""

from dataclasses import dataclass

from recranker.settings import Settings
from recranker.tasks.settings import TaskName


@dataclass(frozen=True)
class StepReport:
    """One optimizer step."""

    step: int
    """1 = first."""
    loss: float
    """Mean over the step's questions, nats."""
    learning_rate: float
    tokens: int
    """Tokens computed since the start, all workers."""
    step_tokens: int
    """Tokens computed in the step, all workers."""
    task_losses: dict[TaskName, float]
    """Mean over the step's questions of each task, nats."""
    prompt_ids: tuple[str, ...]
    """The step's prompts, in the order drawn."""
    questions: int
    """Of the step."""
    gradient_norm: float
    """Euclidean norm of the step's gradient, before it was clipped."""
    seconds: float
    """The step took on the first worker."""
    memory_gb: float
    """Most that the first worker has held so far: on a GPU of its memory, otherwise of the machine's."""


@dataclass(frozen=True)
class Look:
    """The validation lists, ranked after some step."""

    step: int
    """The last step before it."""
    ndcg_at_3: float
    """Mean over the lists, all of which hold their target."""


class Progress(Settings):
    """How far a training has come: all that it has reported."""

    reports: tuple[StepReport, ...] = ()
    """One per step, from the first on."""
    looks: tuple[Look, ...] = ()
    """In the order of their steps."""
    lost: tuple[int, ...] = ()
    """Steps of looks whose adapter is there no more, so that none of them can be the best."""

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.reports)

    @property
    def best(self) -> Look | None:
        """The look with the highest NDCG@3 of those not lost, the earliest of equals."""
        there = (look for look in self.looks if look.step not in self.lost)
        return max(there, key=lambda look: (look.ndcg_at_3, -look.step), default=None)

    def is_patient(self, patience: int | None) -> bool:
        """Whether fewer than ``patience`` looks have gone by since the best one."""
        if patience is None or self.best is None:
            return True
        return len(self.looks) - 1 - self.looks.index(self.best) < patience
