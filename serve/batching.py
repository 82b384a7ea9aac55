"""Requests that wait while the engine is busy are scored together, as many as fit; none suffers for another's fault."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from recranker.tasks.protocol import Prompt, ScoredPrompt
from serve.cost import Compute, Cost, bytes_of
from serve.errors import where
from serve.scored import Scored

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Waiting:
    """A prompt that somebody waits for."""

    prompt: Prompt
    num_bytes: int
    since: float
    """When it came, in seconds of ``perf_counter``."""
    answer: asyncio.Future[Scored]
    """Cancelled where nobody waits any longer."""


class Batcher:
    """Scores prompts in a thread, one batch at a time, oldest first.

    Args:
        compute: The engine.
        cost: Of its prompts; says how many tokens are scored together.
        engine: Held while the engine computes; batchers that share one take turns.
    """

    def __init__(self, compute: Compute, cost: Cost, engine: asyncio.Lock | None = None) -> None:
        self.cost = cost
        self._compute = compute
        self._engine = engine or asyncio.Lock()
        self._waiting: deque[Waiting] = deque()
        self._running: asyncio.Task[None] | None = None

    async def score(self, prompt: Prompt) -> Scored:
        """The answers to ``prompt``; not computed where the caller leaves before its turn.

        Raises:
            Exception: What the engine raises at this prompt alone.
        """
        answer: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(prompt, bytes_of(prompt), perf_counter(), answer))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await answer  # a caller that is cancelled here cancels the answer

    async def _run(self) -> None:
        while self._waiting:
            async with self._engine:  # whoever comes before it is free is in the batch
                await self._answer(self._next())

    def _next(self) -> list[Waiting]:
        """The oldest prompts that fit one batch; none where all of them were given up."""
        batch: list[Waiting] = []
        tokens = 0.0
        while self._waiting:
            first = self._waiting[0]
            tokens += 0.0 if first.answer.done() else self.cost.tokens(first.num_bytes)
            if batch and tokens > self.cost.batch_tokens:
                break
            self._waiting.popleft()
            if not first.answer.done():
                batch.append(first)
        return batch

    async def _answer(self, batch: Sequence[Waiting]) -> None:
        wanted = [one for one in batch if not one.answer.done()]
        if not wanted:
            return
        started = perf_counter()
        try:
            found = await asyncio.to_thread(self._compute, [one.prompt for one in wanted])
            scored = self._shared_out(wanted, found, started)
        except Exception as error:
            await self._failed(wanted, error)
            return
        for one, its in zip(wanted, scored, strict=True):
            if not one.answer.done():
                one.answer.set_result(its)

    async def _failed(self, batch: Sequence[Waiting], error: Exception) -> None:
        """Each prompt of a failed batch is scored alone, so that only the one at fault fails."""
        if len(batch) == 1:
            if not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        logger.warning("a batch of %d failed, each is scored alone: %s", len(batch), where(error))
        for one in batch:
            await self._answer([one])

    def _shared_out(self, batch: Sequence[Waiting], found: Sequence[ScoredPrompt], started: float) -> list[Scored]:
        """The answers with each prompt's share of the time, and what was learned of the cost."""
        ended = perf_counter()
        total = sum(one.tokens for one in found)
        self.cost = self.cost.learned(sum(one.num_bytes for one in batch), total, ended - started)
        scored = []
        for one, its in zip(batch, found, strict=True):
            seconds = (ended - started) * its.tokens / max(total, 1)
            waited = ended - one.since - seconds
            scored.append(Scored(list(its.log_probabilities), its.tokens, seconds, waited, self.cost))
        return scored
