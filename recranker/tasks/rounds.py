"""Asking in rounds: later shuffles of a list are asked only where the earlier ones left its order unsettled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recranker.tasks import listwise
from recranker.tasks.protocol import Answer, Prompt, Question, ScoredPrompt


@dataclass(frozen=True)
class Asked:
    """The questions of one prompt that were asked, their answers, and what they cost over all rounds."""

    questions: tuple[Question, ...]
    """In the order of the prompt, those never asked left out."""
    log_probabilities: tuple[NDArray[np.float64], ...]
    """Per question: ``(labels,)`` nats, normalised over the labels."""
    tokens: int
    """Tokens computed over all rounds."""
    cut_lines: int
    """Lines of history dropped because the prompt was too long, in the round that lost most."""

    @property
    def answers(self) -> list[Answer]:
        """Question and log-probabilities together."""
        return [one.answered(found) for one, found in zip(self.questions, self.log_probabilities, strict=True)]


def ask_in_rounds(
    score: Callable[[Sequence[Prompt]], Sequence[ScoredPrompt]], prompts: Sequence[Prompt]
) -> list[Asked]:
    """Every prompt's round 0 in one call, then each further round of the prompts that are not settled, a call each.

    Args:
        score: Answers prompts, one result per prompt in their order.
        prompts: With questions of any number of rounds; each must have a round 0.

    Returns:
        Per prompt, in the order given.
    """
    asked = _ask(score, prompts, 0)
    waiting = list(range(len(prompts)))
    number = 0
    while waiting := [index for index in waiting if _wants(prompts[index], asked[index], number + 1)]:
        number += 1
        for index, further in zip(waiting, _ask(score, [prompts[one] for one in waiting], number), strict=True):
            asked[index] = _added(asked[index], further)
    return asked


def _ask(
    score: Callable[[Sequence[Prompt]], Sequence[ScoredPrompt]], prompts: Sequence[Prompt], number: int
) -> list[Asked]:
    """The questions of round ``number`` alone, under the same prefixes."""
    parts = [replace(one, questions=tuple(q for q in one.questions if q.round == number)) for one in prompts]
    return [
        Asked(part.questions, tuple(scored.log_probabilities), scored.tokens, scored.cut_lines)
        for part, scored in zip(parts, score(parts), strict=True)
    ]


def _wants(prompt: Prompt, asked: Asked, number: int) -> bool:
    """Whether the prompt has a round ``number`` and needs it."""
    if not any(question.round == number for question in prompt.questions):
        return False
    answers = [one for one in asked.answers if one.task == "listwise"]
    return not listwise.settled(answers, list(dict.fromkeys(item_id for one in answers for item_id in one.item_ids)))


def _added(before: Asked, further: Asked) -> Asked:
    return Asked(
        (*before.questions, *further.questions),
        (*before.log_probabilities, *further.log_probabilities),
        before.tokens + further.tokens,
        max(before.cut_lines, further.cut_lines),
    )
