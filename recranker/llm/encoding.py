"""From prompts to token trees: one prefix, one branch per question."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from recranker.errors import ModelError, PromptTooLongError
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


@dataclass(frozen=True)
class SamePrefix:
    """Those questions of a prompt that see the same beginning of its prefix."""

    tree: Tree
    questions: tuple[int, ...]
    """Places in the prompt of the tree's branches."""


STEP = 32
"""Tokens to which a question's length is rounded up where it costs a history its oldest lines, so that questions of
about the same length see the same lines and share one computed prefix."""


def encode(prompt: Prompt, lm: LanguageModel, max_prompt_tokens: int) -> Tree:
    """One prompt as a tree; see ``encode_all``."""
    return encode_all([prompt], lm, max_prompt_tokens)[0]


def encode_all(prompts: Sequence[Prompt], lm: LanguageModel, max_prompt_tokens: int) -> list[Tree]:
    """Each prompt as one tree, as training computes it, all texts tokenised together.

    A prompt too long for ``max_prompt_tokens`` (prefix and longest branch) loses whole lines from the
    end of its prefix, where the oldest history stands; the tree says how many.

    Raises:
        ModelError: If a label is no single token or not distinct, or an answer is no label.
        PromptTooLongError: If a question leaves no room for any prefix.
    """
    trees = []
    for prompt, prefix, branches in _tokenised(prompts, lm):
        room = _room(prompt, branches, max_prompt_tokens - len(lm.frame.head_ids))
        trees.append(_tree(prompt, prefix, branches, room, lm))
    return trees


def encode_apart(prompts: Sequence[Prompt], lm: LanguageModel, max_prompt_tokens: int) -> list[list[SamePrefix]]:
    """Per prompt the trees of its questions, each question beside as much of the prefix as it alone leaves room for.

    So what one question holds, such as an item's title, never changes what another sees. Nearly always that is the
    whole prefix and one tree.

    Raises:
        ModelError: As ``encode_all``.
        PromptTooLongError: Likewise; ``tasks_too_long`` says which.
    """
    most = max_prompt_tokens - len(lm.frame.head_ids)
    return [_parts(prompt, prefix, branches, most, lm) for prompt, prefix, branches in _tokenised(prompts, lm)]


def tasks_too_long(prompt: Prompt, lm: LanguageModel, max_prompt_tokens: int) -> frozenset[TaskName]:
    """The tasks of which a question leaves no room for any prefix, so that ``encode_apart`` refuses the prompt."""
    most = max_prompt_tokens - len(lm.frame.head_ids)
    [(_, _, branches)] = _tokenised([prompt], lm)
    return frozenset(branch.task for branch in branches if len(branch.token_ids) >= most)


def _parts(prompt: Prompt, prefix: list[int], branches: list[Branch], most: int, lm: LanguageModel) -> list[SamePrefix]:
    _room(prompt, branches, most)
    by_room: dict[int, list[int]] = {}
    for number, branch in enumerate(branches):
        by_room.setdefault(_own_room(len(prefix), len(branch.token_ids), most), []).append(number)
    return [
        SamePrefix(_tree(prompt, prefix, [branches[number] for number in numbers], room, lm), tuple(numbers))
        for room, numbers in by_room.items()
    ] or [SamePrefix(_tree(prompt, prefix, [], most, lm), ())]


def _own_room(prefix: int, question: int, most: int) -> int:
    """Tokens of a prefix that a question of that length sees: all, or what is left beside its rounded length."""
    if prefix + question <= most:
        return prefix
    rounded = most - -(-question // STEP) * STEP
    return rounded if rounded >= 1 else most - question


def _tokenised(prompts: Sequence[Prompt], lm: LanguageModel) -> Iterator[tuple[Prompt, list[int], list[Branch]]]:
    """Each prompt with its prefix's tokens and its branches; the tokenizer is called once for all texts of a kind."""
    questions = [question for prompt in prompts for question in prompt.questions]
    prefixes = plain_ids(lm.tokenizer, [prompt.prefix for prompt in prompts])
    texts = iter(plain_ids(lm.tokenizer, [question.text for question in questions]))
    label_ids = _label_ids(lm.tokenizer, questions)
    for prompt, prefix in zip(prompts, prefixes, strict=True):
        yield prompt, prefix, _branches(prompt, texts, lm.frame.tail_ids, label_ids)


def _tree(prompt: Prompt, prefix: list[int], branches: list[Branch], room: int, lm: LanguageModel) -> Tree:
    kept, cut_lines = (prefix, 0) if len(prefix) <= room else _cut(lm.tokenizer, prompt.prefix, room)
    return Tree(prompt.prompt_id, [*lm.frame.head_ids, *kept], branches, cut_lines)


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
        raise PromptTooLongError(
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
