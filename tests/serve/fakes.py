"""Task replicas without a model; they load no torch, so they start at once."""

import asyncio
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recranker.tasks.protocol import Prompt


class Evenly:
    """Finds every label equally likely."""

    async def score(self, prompt: Prompt) -> list[NDArray[np.float64]]:
        return [np.full(len(one.labels), -np.log(len(one.labels))) for one in prompt.questions]


class Slow(Evenly):
    """Takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def score(self, prompt: Prompt) -> list[NDArray[np.float64]]:
        await asyncio.sleep(self.seconds)
        return await super().score(prompt)


class Broken:
    """Fails at every question."""

    async def score(self, prompt: Prompt) -> list[NDArray[np.float64]]:
        raise RuntimeError("planted")


class DiesOnce(Evenly):
    """Takes its whole process down with the first question it is asked, in any process."""

    def __init__(self, mark: str) -> None:
        self.mark = Path(mark)

    async def score(self, prompt: Prompt) -> list[NDArray[np.float64]]:
        if not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        return await super().score(prompt)
