"""From prompts to token trees: one prefix, one branch per question."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from recranker.errors import ModelError
from recranker.llm.chat import plain_ids
from recranker.llm.model import LanguageModel
from recranker.tasks.protocol import Prompt, Question
from recranker.tasks.settings import TaskName


@dataclass(frozen=True)
class Branch:
    """One question after the shared prefix; its answer is the next token."""

    token_ids: list[int]
    """Question and the end of the turn."""
    label_ids: list[int]
    """One token per label, in the question's order."""
    answer: int | None
    """Index into ``label_ids`` of the right label; None outside training."""
    task: TaskName
    soft_labels: tuple[float, ...] | None = None
    """A teacher's probability of each label; None outside training and without a teacher."""


@dataclass(frozen=True)
class Tree:
    """All questions of one prompt."""

    prompt_id: str
    prefix_ids: list[int]
    branches: list[Branch]
    cut_lines: int = 0
    """Lines of history that were dropped, or cut short, to make the prompt fit."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the prefix, once, and of all branches."""
        return len(self.prefix_ids) + sum(len(branch.token_ids) for branch in self.branches)


def encode(prompt: Prompt, lm: LanguageModel, max_prompt_tokens: int) -> Tree:
    """One prompt as a tree; see ``encode_all``."""
    return encode_all([prompt], lm, max_prompt_tokens)[0]


def encode_all(prompts: Sequence[Prompt], lm: LanguageModel, max_prompt_tokens: int) -> list[Tree]:
    """Each prompt as a tree, all texts tokenised together.

    A prompt too long for ``max_prompt_tokens`` (prefix and longest branch) loses whole lines from the
    end of its prefix, where the oldest history stands; the tree says how many.

    Raises:
        ModelError: If a label is no single token or not distinct, an answer is no label, or a question
            leaves no room for any prefix.
    """
    questions = [question for prompt in prompts for question in prompt.questions]
    prefixes = plain_ids(lm.tokenizer, [prompt.prefix for prompt in prompts])
    texts = iter(plain_ids(lm.tokenizer, [question.text for question in questions]))
    label_ids = _label_ids(lm.tokenizer, questions)
    trees = []
    for prompt, prefix in zip(prompts, prefixes, strict=True):
        branches = _branches(prompt, texts, lm.frame.tail_ids, label_ids)
        room = _room(prompt, branches, max_prompt_tokens - len(lm.frame.head_ids))
        kept, cut_lines = (prefix, 0) if len(prefix) <= room else _cut(lm.tokenizer, prompt.prefix, room)
        trees.append(Tree(prompt.prompt_id, [*lm.frame.head_ids, *kept], branches, cut_lines))
    return trees


def _branches(
    prompt: Prompt, texts: Iterator[list[int]], tail_ids: Sequence[int], label_ids: dict[str, int]
) -> list[Branch]:
    return [
        Branch(
            [*next(texts), *tail_ids],
            _labels(prompt, question, label_ids),
            _answer(prompt, question),
            question.task,
            question.soft_labels,
        )
        for question in prompt.questions
    ]


def _labels(prompt: Prompt, question: Question, label_ids: dict[str, int]) -> list[int]:
    ids = [label_ids[label] for label in question.labels]
    if len(ids) < 2 or len(set(ids)) != len(ids):
        raise ModelError(
            f"prompt {prompt.prompt_id!r}: a {question.task} question needs two or more labels with a token each "
            f"of its own, got {list(question.labels)}"
        )
    return ids


def _answer(prompt: Prompt, question: Question) -> int | None:
    if question.answer is None:
        return None
    if question.answer not in question.labels:
        raise ModelError(
            f"prompt {prompt.prompt_id!r}: the answer {question.answer!r} is none of the labels {list(question.labels)}"
        )
    return question.labels.index(question.answer)


def _label_ids(tokenizer: Any, questions: Sequence[Question]) -> dict[str, int]:
    """The token of every label in use."""
    labels = sorted({label for question in questions for label in question.labels})
    found = dict(zip(labels, plain_ids(tokenizer, labels), strict=True))
    for label, ids in found.items():
        if len(ids) != 1:
            raise ModelError(f"label {label!r} must be one token of this model's tokenizer, it is {len(ids)}")
    return {label: ids[0] for label, ids in found.items()}


def _room(prompt: Prompt, branches: list[Branch], max_tokens: int) -> int:
    """Tokens left for the prefix beside the longest branch."""
    longest = max((len(branch.token_ids) for branch in branches), default=0)
    room = max_tokens - longest
    if room < 1:
        raise ModelError(
            f"prompt {prompt.prompt_id!r}: its longest question ({longest} tokens) leaves no room for a prefix; "
            "raise llm.max_prompt_tokens"
        )
    return room


def _cut(tokenizer: Any, text: str, room: int) -> tuple[list[int], int]:
    """The longest whole-line beginning of ``text`` of at most ``room`` tokens, and the lines lost.

    A first line that is too long by itself is cut between tokens, and counts as lost too.
    """
    ending = "\n" if text.endswith("\n") else ""
    lines = text.removesuffix("\n").split("\n")

    def beginning(count: int) -> list[int]:
        return plain_ids(tokenizer, ["\n".join(lines[:count]) + ending])[0]

    fitting = bisect_right(range(1, len(lines)), room, key=lambda count: len(beginning(count)))
    kept = max(fitting, 1)
    found = beginning(kept)
    return found[:room], len(lines) - kept + (len(found) > room)
