"""What a task's replica answers: log-probabilities, and what they cost. Loads no torch, as the router reads it too."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recranker.tasks.settings import TaskName
from serve.cost import Cost


@dataclass(frozen=True)
class Scored:
    """One prompt's answers."""

    values: list[NDArray[np.float64]]
    """Per question of the tasks that are not too long: ``(labels,)`` log-probabilities in nats."""
    tokens: int
    """Tokens the engine computed for this prompt."""
    seconds: float
    """This prompt's share of the engine's time: a batch's, shared out by tokens."""
    waited: float = 0.0
    """Seconds in the replica beyond those: until the engine was free, and for the others of the batch."""
    cost: Cost | None = None
    """What a prompt costs in this replica by now; None where it does not say."""
    too_long: frozenset[TaskName] = frozenset()
    """Tasks with a question that is longer than the model reads; none of their questions has an answer."""
