"""What a training worker says of its progress; light, so that whoever listens needs no torch."""

from dataclasses import dataclass

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
    task_losses: dict[TaskName, float]
    """Mean over the step's questions of each task, nats."""
