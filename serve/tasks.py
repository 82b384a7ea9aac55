"""A replica of one task, or of all that share an adapter: models with that adapter, each checked before it answers."""

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recranker.errors import PromptTooLongError
from recranker.tasks.protocol import Prompt
from recranker.tasks.settings import TaskName
from serve.models import Loaded, Models
from serve.scored import Scored
from serve.settings import ServeSettings
from serve.shadow import yield_to_others
from serve.source import ServedRun
from serve.wanted import ModelKey, Prepared

PROOF_S = 10.0
"""Seconds for which an answer proves that the engine is well."""


class TaskReplica:
    """Answers the questions of a task, and of others that have the same adapter.

    Scoring runs in a thread, so that Serve's health checks and queueing go on meanwhile, and one batch at a time: a
    second pass beside the first would only slow both down. Models are loaded by ``reconfigure``, which Serve calls
    before a new replica gets any request, or by the first question.
    """

    def __init__(self, task: TaskName, run: ServedRun, settings: ServeSettings) -> None:
        self.models = Models(task, run, settings)
        self.idle_only = ThreadPoolExecutor(1, "shadow", yield_to_others)
        self.answered_at = -math.inf
        """When the engine last answered, in seconds of ``time.monotonic``."""

    async def reconfigure(self, user_config: Any) -> None:
        """Ray Serve's call: make the run ready that ``user_config`` names (``serve.wanted.Wanted``)."""
        await self.models.follow(user_config)

    async def prepare(self, model: ModelKey, handover: str) -> Prepared:
        """How far this replica is with a model that is to answer soon."""
        return self.models.prepare(model, handover)

    async def is_there(self) -> None:
        """Returns at once: whoever hears of it knows that this replica takes calls."""

    async def score(self, prompt: Prompt, model: ModelKey | None = None) -> Scored:
        """Log-probabilities of ``prompt``'s questions, and what they cost.

        Titles within every limit can still make a list longer than the model reads: its task is left out then.

        Args:
            prompt: What is asked.
            model: Who is asked; None is the model that answered last.

        Raises:
            RefusedRunError: If the model cannot be used.
            ModelError: If the prompt cannot be encoded, or an answer is not a number.
        """
        loaded = await self.models.get(model)
        try:
            found = await loaded.batcher.score(prompt)
        except PromptTooLongError:
            found = await self._without_too_long(loaded, prompt)
        self.answered_at = time.monotonic()
        return found

    async def _without_too_long(self, loaded: Loaded, prompt: Prompt) -> Scored:
        """What the other tasks of ``prompt`` answer, and which are left out."""
        async with self.models.engine:  # it has the tokenizer, too
            tasks = await asyncio.to_thread(loaded.scorer.too_long, prompt)
        rest = replace(prompt, questions=tuple(one for one in prompt.questions if one.task not in tasks))
        found = await loaded.batcher.score(rest) if rest.questions else Scored([], 0, 0.0)
        return replace(found, too_long=tasks)

    async def score_if_idle(self, prompt: Prompt, model: ModelKey) -> list[NDArray[np.float64]] | None:
        """As ``score``, for a challenger; None where the replica is busy or does not hold the model yet.

        It runs in a thread that gives way to all others, so that a request that comes meanwhile is not kept waiting.
        """
        found = None if self.models.engine.locked() else self.models.beside(model)
        if found is None:
            return None
        loop = asyncio.get_running_loop()
        return (await loop.run_in_executor(self.idle_only, found.scorer.score, [prompt]))[0]

    async def check_health(self) -> None:
        """A real score of a tiny prompt, where nothing was answered lately.

        Serve asks every other second, which is how soon it sees that a process is gone, and replaces a replica that
        fails this or does not finish it.
        """
        found = await self.models.health()
        if time.monotonic() - self.answered_at > PROOF_S:
            await asyncio.to_thread(found.scorer.score, [found.probe])
            self.answered_at = time.monotonic()
