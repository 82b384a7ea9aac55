"""Task replicas without a model; they load no torch, so they start at once."""

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recranker.tasks.protocol import Prompt
from serve.wanted import ModelKey, Prepared


class Evenly:
    """Finds every label equally likely, and is always ready."""

    async def reconfigure(self, user_config: Any) -> None:
        """As ``TaskReplica``'s."""

    async def prepare(self, model: ModelKey, handover: str) -> Prepared:
        return Prepared("ready")

    async def score(self, prompt: Prompt, model: ModelKey | None = None) -> list[NDArray[np.float64]]:
        return [np.full(len(one.labels), -np.log(len(one.labels))) for one in prompt.questions]


class Slow(Evenly):
    """Takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def score(self, prompt: Prompt, model: ModelKey | None = None) -> list[NDArray[np.float64]]:
        await asyncio.sleep(self.seconds)
        return await super().score(prompt)


class Broken:
    """Fails at every question."""

    async def score(self, prompt: Prompt, model: ModelKey | None = None) -> list[NDArray[np.float64]]:
        raise RuntimeError("planted")


class DiesOnce(Evenly):
    """Takes its whole process down with the first question it is asked, in any process."""

    def __init__(self, mark: str) -> None:
        self.mark = Path(mark)

    async def score(self, prompt: Prompt, model: ModelKey | None = None) -> list[NDArray[np.float64]]:
        if not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        return await super().score(prompt)
