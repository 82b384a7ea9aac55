"""What passes between the tasks and a language model: prompts in, label log-probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recranker.tasks.settings import TaskName


@dataclass(frozen=True)
class Answer:
    """What the model made of one question."""

    task: TaskName
    item_ids: tuple[str, ...]
    """The items asked about, in the order shown."""
    log_probabilities: NDArray[np.float64]
    """``(labels,)``, normalised over the question's labels."""
    round: int = 0
    """The question's."""


@dataclass(frozen=True)
class Question:
    """One question about a user, answered by one of its labels."""

    task: TaskName
    text: str
    """What follows the prefix."""
    labels: tuple[str, ...]
    """The possible answers; each must be a single token of the model's tokenizer."""
    item_ids: tuple[str, ...]
    """The items asked about, in the order shown."""
    answer: str | None = None
    """The right label, known in training only."""
    soft_labels: tuple[float, ...] | None = None
    """A teacher's probability of each label, known in training only."""
    round: int = 0
    """0: always asked; above: asked only where the rounds before left the order unsettled."""
    tokens: int | None = field(default=None, compare=False)
    """Of the text and the frame behind it, where they were counted."""

    def answered(self, log_probabilities: NDArray[np.float64]) -> Answer:
        """The ``(labels,)`` log-probabilities as an answer to this question."""
        return Answer(self.task, self.item_ids, log_probabilities, self.round)


@dataclass(frozen=True)
class Prompt:
    """All questions about one user and one candidate list; they share a prefix."""

    prompt_id: str
    prefix: str
    questions: tuple[Question, ...]
    prefix_tokens: int | None = field(default=None, compare=False)
    """Of the prefix and the frame before it, where they were counted."""


class Scorer(Protocol):
    """Anything that can answer prompts: the tuned model, the untuned one, a fake in a test."""

    def score(self, prompts: Sequence[Prompt]) -> list[list[NDArray[np.float64]]]:
        """Per prompt and question: ``(labels,)`` log-probabilities in nats, normalised over the question's labels."""
        ...


class ScoredPrompt(Protocol):
    """What a scorer that counts its costs returns for one prompt."""

    @property
    def log_probabilities(self) -> Sequence[NDArray[np.float64]]:
        """Per question: ``(labels,)`` in nats, normalised over the question's labels."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens computed."""
        ...

    @property
    def cut_lines(self) -> int:
        """Lines of history dropped because the prompt was too long."""
        ...


@dataclass(frozen=True)
class Candidate:
    """An item the retriever offers, with the signals a question may mention."""

    item_id: str
    title: str
    place: int
    """Place from 1 in the order that hints quote: the re-ranker's or the retriever's."""
    predicted_rating: float | None = None
    """The rating predictor's guess on the data's scale; None where there are no ratings."""
    probability: float | None = None
    """A teacher's probability that this is the one the user likes next; sums to 1 over the list; training only."""


@dataclass(frozen=True)
class RatingScale:
    """The data's own scale; it comes from the manifest of the data, never from a guess."""

    lowest: float
    highest: float

    @property
    def labels(self) -> tuple[str, ...]:
        """The whole ratings of the scale as label texts, lowest first."""
        return tuple(str(rating) for rating in range(round(self.lowest), round(self.highest) + 1))
