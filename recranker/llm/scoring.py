"""Answers to prompts: log-probabilities of the labels, never text.

Three ways to the same numbers. ``packed`` computes a prompt's prefix once and all its questions as branches
of one row; ``kv`` computes the prefix once into a key-value cache and the questions as a padded batch, for
models that take no attention mask of their own; ``plain`` computes every question alone, the reference.
"""

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recranker.errors import ModelError
from recranker.llm.attention import PrefixState
from recranker.llm.encoding import Branch, Tree, encode_apart, tasks_too_long
from recranker.llm.model import LanguageModel, answering
from recranker.llm.packing import (
    PackingError,
    alone_logits,
    answer_logits,
    check_packing,
    chosen,
    label_ids_of,
    label_rows,
    pack_parts,
    passes,
)
from recranker.llm.settings import LLMSettings
from recranker.tasks.protocol import Prompt
from recranker.tasks.settings import TaskName

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """One prompt's answers and what they cost."""

    log_probabilities: list[NDArray[np.float64]]
    """Per question: ``(labels,)`` nats, normalised over the labels."""
    tokens: int
    """Tokens computed."""
    cut_lines: int
    """Lines of history dropped or cut short because the prompt was too long."""


@dataclass
class Work:
    """Trees to be computed, and what has been."""

    trees: Sequence[Tree]
    token_budget: int
    """Tokens of a forward pass, at the most."""
    prefixes: Mapping[int, PrefixState] = field(default_factory=dict)
    """By tree: where its prefix is, or will be, kept."""
    tokens: list[int] = field(init=False)
    """Per tree: tokens computed so far."""

    def __post_init__(self) -> None:
        self.tokens = [0] * len(self.trees)


Backend = Callable[[LanguageModel, Work], Iterator[tuple[int, int, Tensor]]]
"""Does the work, and yields (tree index, question index, label logits on the CPU) as they come."""


class TreeScorer:
    """A ``tasks.protocol.Scorer`` round a language model."""

    def __init__(self, lm: LanguageModel, settings: LLMSettings) -> None:
        self.lm = lm
        self._max_prompt_tokens = settings.max_prompt_tokens
        self._token_budget = settings.token_budget
        self.backend = settings.backend
        if settings.backend == "packed":
            try:
                check_packing(
                    lm, max_prompt_tokens=settings.max_prompt_tokens, way_out="it is scored with llm.backend=kv"
                )
            except PackingError as error:
                logger.warning("%s: every prefix goes through a key-value cache, which is slower", error)
                self.backend = "kv"
        self._kept: OrderedDict[tuple[int, ...], PrefixState] | None = None

    def score(self, prompts: Sequence[Prompt]) -> list[list[NDArray[np.float64]]]:
        """Per prompt and question: ``(labels,)`` log-probabilities in nats, normalised over the question's labels.

        Raises:
            ModelError: If a prompt cannot be encoded, or an answer is not a number.
            PromptTooLongError: If a question is longer than ``max_prompt_tokens`` allows.
        """
        return [scored.log_probabilities for scored in self.score_with_cost(prompts)]

    def score_with_cost(self, prompts: Sequence[Prompt]) -> list[Scored]:
        """As ``score``, with the tokens computed and the lines cut per prompt."""
        parts = [
            (index, part)
            for index, found in enumerate(encode_apart(prompts, self.lm, self._max_prompt_tokens))
            for part in found
        ]
        trees = [part.tree for _, part in parts]
        answers: list[dict[int, NDArray[np.float64]]] = [{} for _ in prompts]
        tokens, cut_lines = [0] * len(prompts), [0] * len(prompts)
        work = Work(trees, self._token_budget, self._states(trees))
        with answering(self.lm):
            for tree, branch, logits in BACKENDS[self.backend](self.lm, work):
                index, part = parts[tree]
                question = part.questions[branch]
                answers[index][question] = _log_probabilities(logits, prompts[index].prompt_id, question)
        for (index, part), computed in zip(parts, work.tokens, strict=True):
            tokens[index] += computed
            cut_lines[index] = max(cut_lines[index], part.tree.cut_lines)
        return [
            Scored([answers[index][number] for number in range(len(prompt.questions))], tokens[index], cut_lines[index])
            for index, prompt in enumerate(prompts)
        ]

    def too_long(self, prompt: Prompt) -> frozenset[TaskName]:
        """The tasks whose questions make ``prompt`` too long, whatever its prefix."""
        return tasks_too_long(prompt, self.lm, self._max_prompt_tokens)

    @contextmanager
    def keeping_prefixes(self) -> Iterator[None]:
        """Within this block a prefix that was computed once is read again, the latest ``token_budget`` tokens of them.

        For questions that come in rounds. The model must stay as it is meanwhile. Backends other than 'packed', and
        CUDA, compute every prefix again.
        """
        self._kept = OrderedDict()
        try:
            yield
        finally:
            self._kept = None

    def _states(self, trees: Sequence[Tree]) -> dict[int, PrefixState]:
        """By tree: the state of its prefix, where prefixes are kept."""
        if self._kept is None or not keeps_prefixes(self.lm, self.backend):
            return {}
        found = {}
        for index, tree in enumerate(trees):
            prefix = tuple(tree.prefix_ids)
            found[index] = self._kept.setdefault(prefix, PrefixState())
            self._kept.move_to_end(prefix)
        while len(self._kept) > 1 and sum(map(len, self._kept)) > self._token_budget:
            self._kept.popitem(last=False)
        return found


def keeps_prefixes(lm: LanguageModel, backend: str) -> bool:
    """Whether a pass can read a prefix that an earlier one computed."""
    return backend == "packed" and lm.device.type == "cpu"


def make_scorer(lm: LanguageModel, settings: LLMSettings) -> TreeScorer:
    """The scorer of ``settings.backend`` round ``lm``."""
    return TreeScorer(lm, settings)


def _log_probabilities(logits: Tensor, prompt_id: str, question: int) -> NDArray[np.float64]:
    found: NDArray[np.float64] = torch.log_softmax(logits.double(), dim=-1).numpy()
    if not np.isfinite(found).all():
        raise ModelError(f"prompt {prompt_id!r}, question {question}: the model's answer is not a number")
    return found


def _on_cpu(logits: list[Tensor]) -> list[Tensor]:
    """Per question: ``(labels,)`` float32; a GPU is waited for once, not for each."""
    return list(torch.cat(logits).float().cpu().split_with_sizes([len(one) for one in logits]))


def _packed(lm: LanguageModel, work: Work) -> Iterator[tuple[int, int, Tensor]]:
    can_keep = keeps_prefixes(lm, "packed")
    for parts in passes(work.trees, work.token_budget, work.prefixes, can_keep=can_keep):
        packed = pack_parts(parts, lm.device)
        for part in parts:
            work.tokens[part.index] += part.num_tokens
        yield from zip(packed.trees, packed.numbers, _on_cpu(answer_logits(lm, packed)), strict=True)


def _plain(lm: LanguageModel, work: Work) -> Iterator[tuple[int, int, Tensor]]:
    for index, tree in enumerate(work.trees):
        for number, branch in enumerate(tree.branches):
            work.tokens[index] += len(tree.prefix_ids) + len(branch.token_ids)
            yield index, number, alone_logits(lm, tree, branch).cpu()


def _kv(lm: LanguageModel, work: Work) -> Iterator[tuple[int, int, Tensor]]:
    for index, tree in enumerate(work.trees):
        if not tree.branches:
            continue
        work.tokens[index] += tree.num_tokens
        if tree.prefix_ids:
            found = _kv_tree(lm, tree, work.token_budget)
        else:
            found = (alone_logits(lm, tree, branch).cpu() for branch in tree.branches)
        yield from ((index, number, logits) for number, logits in enumerate(found))


def _kv_tree(lm: LanguageModel, tree: Tree, token_budget: int) -> Iterator[Tensor]:
    prefix = torch.tensor([tree.prefix_ids], device=lm.device)
    cache = lm.model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values
    longest = max(len(branch.token_ids) for branch in tree.branches)
    per_pass = max(1, token_budget // (len(tree.prefix_ids) + longest))  # cached tokens fill memory too
    for start in range(0, len(tree.branches), per_pass):
        yield from _kv_pass(lm, cache, len(tree.prefix_ids), tree.branches[start : start + per_pass])


def _kv_pass(lm: LanguageModel, cache: Any, prefix_length: int, branches: Sequence[Branch]) -> list[Tensor]:
    """Label logits of ``branches``, one per row, padded on the left so that every answer is the last token."""
    longest = max(len(branch.token_ids) for branch in branches)
    gaps = torch.tensor([longest - len(branch.token_ids) for branch in branches])
    rows = [[0] * (longest - len(branch.token_ids)) + branch.token_ids for branch in branches]
    columns = torch.arange(longest)
    real = columns[None, :] >= gaps[:, None]
    seen = torch.cat([torch.ones(len(branches), prefix_length, dtype=torch.bool), real], dim=1)
    repeated = copy.deepcopy(cache)  # the pass appends to it
    repeated.batch_repeat_interleave(len(branches))
    with label_rows(lm.model, label_ids_of(branches, lm.device)) as places:
        logits_BV = lm.model(
            input_ids=torch.tensor(rows, device=lm.device),
            attention_mask=seen.long().to(lm.device),
            position_ids=(prefix_length + (columns[None, :] - gaps[:, None]).clamp(min=0)).to(lm.device),
            past_key_values=repeated,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
    return _on_cpu(chosen(logits_BV, places))


BACKENDS: dict[str, Backend] = {"packed": _packed, "kv": _kv, "plain": _plain}
