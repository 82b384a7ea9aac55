"""One task's replica: the base model with that task's adapter, loaded once, checked before it answers."""

import asyncio
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recranker.llm.adapter import check_adapter, load_tuned
from recranker.llm.model import merge_adapter, resolve_model
from recranker.llm.scoring import make_scorer
from recranker.llm.tuned import adapter_for
from recranker.tasks.prefix import build_prefix
from recranker.tasks.protocol import Candidate, Prompt
from recranker.tasks.settings import TaskName
from serve.ranking import questions_of
from serve.source import ServedRun

logger = logging.getLogger("ray.serve")  # the one that Serve writes to the replica's log

PROBE = (Candidate("a", "A", 1), Candidate("b", "B", 2))


class TaskReplica:
    """Answers one task's questions.

    Scoring runs in a thread, so that Serve's health checks and queueing go on meanwhile, and one request at a
    time: a second pass beside the first would only slow both down.
    """

    def __init__(self, task: TaskName, run: ServedRun, cache: str) -> None:
        folder = adapter_for(run.adapters, task)
        lm = load_tuned(resolve_model(run.llm.model, Path(cache)), folder, run.llm)
        merge_adapter(lm)  # before the check, so that what is checked is what answers
        difference = check_adapter(lm, folder, run.llm)
        logger.info("task %s: golden answers reproduced within %.1g nats on %s", task, difference, lm.device)
        self.scorer = make_scorer(lm, run.llm)
        self.probe = Prompt("health", build_prefix([], [], run.templates), questions_of(PROBE, run, task)[:1])
        self.busy = asyncio.Lock()

    async def score(self, prompt: Prompt) -> list[NDArray[np.float64]]:
        """Per question of ``prompt``: ``(labels,)`` log-probabilities in nats.

        Raises:
            ModelError: If the prompt cannot be encoded, or an answer is not a number.
        """
        async with self.busy:
            return (await asyncio.to_thread(self.scorer.score, [prompt]))[0]

    async def check_health(self) -> None:
        """A real score of a tiny prompt; Serve replaces a replica that fails it or does not finish it."""
        await asyncio.to_thread(self.scorer.score, [self.probe])
