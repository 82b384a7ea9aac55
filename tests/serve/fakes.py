"""Task replicas without a model; they load no torch, so they start at once."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayActorError

from recranker.tasks.protocol import Prompt, Question
from serve.batching import Batcher
from serve.cost import Cost
from serve.scored import Scored
from serve.wanted import ModelKey, Prepared


def even(question: Question) -> NDArray[np.float64]:
    """Every label equally likely."""
    return np.full(len(question.labels), -np.log(len(question.labels)))


class Evenly:
    """Finds every label equally likely, and is always ready."""

    async def reconfigure(self, user_config: Any) -> None:
        """As ``TaskReplica``'s."""

    async def prepare(self, model: ModelKey, handover: str) -> Prepared:
        return Prepared("ready")

    async def is_there(self) -> None:
        """As ``TaskReplica``'s."""

    async def score(self, prompt: Prompt, model: ModelKey | None = None) -> Scored:
        return Scored([even(one) for one in prompt.questions], 100, 0.01)


class Roll:
    """A handle's call to ask whether a replica is there: waits until there is one; the next ``faults`` are lost, then
    as many as ``hung`` meet a replica that says nothing."""

    def __init__(self) -> None:
        self.there = asyncio.Event()
        self.there.set()
        self.faults = self.hung = 0

    async def remote(self) -> None:
        if self.faults:
            self.faults -= 1
            raise RayActorError
        if self.hung:
            self.hung -= 1
            await asyncio.Event().wait()
        await self.there.wait()


class Slow(Evenly):
    """Takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def score(self, prompt: Prompt, model: ModelKey | None = None) -> Scored:
        await asyncio.sleep(self.seconds)
        return await super().score(prompt)


class Broken:
    """Fails at every question."""

    async def score(self, prompt: Prompt, model: ModelKey | None = None) -> Scored:
        raise RuntimeError("planted")


class DiesOnce(Evenly):
    """Takes its whole process down with the first question it is asked, in any process."""

    def __init__(self, mark: str) -> None:
        self.mark = Path(mark)

    async def score(self, prompt: Prompt, model: ModelKey | None = None) -> Scored:
        if not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        return await super().score(prompt)


@dataclass(frozen=True)
class Answered:
    """What an engine says to one prompt."""

    log_probabilities: list[NDArray[np.float64]]
    tokens: int = 100
    cut_lines: int = 0


class Batched(Evenly):
    """Takes its time for one prompt after the other, and notes how many candidates each list has that it computes."""

    def __init__(self, notes: str, seconds: float) -> None:
        self.notes = Path(notes)
        self.seconds = seconds
        self.batcher = Batcher(self.compute, Cost(0.0, 0.0, 1.0))

    def compute(self, prompts: Sequence[Prompt]) -> list[Answered]:
        """The engine."""
        with self.notes.open("a") as file:
            file.writelines(f"{len(one.questions[0].item_ids)}\n" for one in prompts)
        time.sleep(self.seconds)
        return [Answered([even(one) for one in prompt.questions]) for prompt in prompts]

    async def score(self, prompt: Prompt, model: ModelKey | None = None) -> Scored:
        return replace(await self.batcher.score(prompt), cost=None)  # the router is to find out by waiting
