"""A task replica without a model that has an opinion: what it makes of an item depends on the history, line by line."""

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recranker.randomness import generator
from recranker.tasks.protocol import Prompt, Question
from serve.scored import Scored
from serve.wanted import ModelKey
from tests.serve.fakes import Roll


class Opinions:
    """A handle as Serve's, for the router: ``handle.score.remote(prompt, model)``; tasks differ a little."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.asked: list[Prompt] = []
        self.score = self
        self.is_there = Roll()

    def remote(self, prompt: Prompt, model: ModelKey | None = None) -> "asyncio.Task[Scored]":
        self.asked.append(prompt)
        return asyncio.create_task(self._said(prompt))

    async def _said(self, prompt: Prompt) -> Scored:
        return Scored([self._answer(prompt, question) for question in prompt.questions], 100, 0.0)

    def _answer(self, prompt: Prompt, question: Question) -> NDArray[np.float64]:
        lines = prompt.prefix.splitlines()
        of_items = np.array([self._opinion(item_id, lines) for item_id in question.item_ids])
        if question.task == "pointwise":  # No, Yes; or the ratings, the worst first
            logits = of_items[0] * np.linspace(-0.5, 0.5, len(question.labels))
        else:  # letters; or No, Yes to the first of a pair
            logits = of_items[::-1] if question.task == "pairwise" else of_items
        return np.asarray(logits - np.log(np.exp(logits).sum()))

    def _opinion(self, item_id: str, lines: list[str]) -> float:
        of_lines = sum(generator("line", line, item_id).normal() for line in lines) / np.sqrt(len(lines))
        return float(of_lines + 0.5 * generator("task", self.task, item_id).normal())


def opinionated(*tasks: str) -> Any:
    """A handle per task."""
    return {task: Opinions(task) for task in tasks or ("pointwise", "pairwise", "listwise")}
