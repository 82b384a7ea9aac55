"""One task's replica: the base model with that task's adapter, loaded once, checked before it answers."""

import asyncio
import logging
from pathlib import Path

from recranker.llm.adapter import check_adapter, load_tuned
from recranker.llm.model import merge_adapter, resolve_model
from recranker.llm.scoring import make_scorer
from recranker.llm.tuned import adapter_for
from recranker.tasks.prefix import build_prefix
from recranker.tasks.protocol import Candidate, Prompt
from recranker.tasks.settings import TaskName
from serve.batching import Batcher
from serve.cost import measure
from serve.ranking import questions_of
from serve.scored import Scored
from serve.source import ServedRun

logger = logging.getLogger("ray.serve")  # the one that Serve writes to the replica's log

PROBE = (Candidate("a", "A", 1), Candidate("b", "B", 2))
LONG_LIST = tuple(Candidate(str(place), f"The Title of Item {place} (1990)", place) for place in range(1, 5))
LONG_HISTORY = tuple(f"The Title of a Liked Item {place} (1990)" for place in range(8))
"""What makes the second prompt several times as long as the first, where costs are measured."""


class TaskReplica:
    """Answers one task's questions.

    Scoring runs in a thread, so that Serve's health checks and queueing go on meanwhile, and one batch at a
    time: a second pass beside the first would only slow both down.

    Args:
        task: The task.
        run: What is served.
        cache: Folder of downloaded and converted models.
        max_batch_tokens: Tokens of requests scored together, at the most; None: as many as pay.
    """

    def __init__(self, task: TaskName, run: ServedRun, cache: str, max_batch_tokens: int | None = None) -> None:
        folder = adapter_for(run.adapters, task)
        lm = load_tuned(resolve_model(run.llm.model, Path(cache)), folder, run.llm)
        merge_adapter(lm)  # before the check, so that what is checked is what answers
        difference = check_adapter(lm, folder, run.llm)
        logger.info("task %s: golden answers reproduced within %.1g nats on %s", task, difference, lm.device)
        self.scorer = make_scorer(lm, run.llm)
        self.probe = Prompt("health", build_prefix([], [], run.templates), questions_of(PROBE, run, task)[:1])
        cost = measure(
            self.scorer.score_with_cost,
            self.probe,
            Prompt("cost", build_prefix(LONG_HISTORY, [], run.templates), questions_of(LONG_LIST, run, task)[:4]),
            batch_tokens=max_batch_tokens,
            token_budget=run.llm.token_budget,
        )
        logger.info(
            "task %s: %.1f ms a batch and %.3f ms a token; batches of %d tokens at the most",
            *(task, 1000 * cost.fixed_s, 1000 * cost.per_token_s, cost.batch_tokens),
        )
        self.batcher = Batcher(self.scorer.score_with_cost, cost)

    async def score(self, prompt: Prompt) -> Scored:
        """Log-probabilities of ``prompt``'s questions, and what they cost.

        Raises:
            ModelError: If the prompt cannot be encoded, or an answer is not a number.
        """
        return await self.batcher.score(prompt)

    async def check_health(self) -> None:
        """A real score of a tiny prompt; Serve replaces a replica that fails it or does not finish it."""
        await asyncio.to_thread(self.scorer.score, [self.probe])
