"""Answers to prompts: log-probabilities of the labels, never text.

Three ways to the same numbers. ``packed`` computes a prompt's prefix once and all its questions as branches
of one row; ``kv`` computes the prefix once into a key-value cache and the questions as a padded batch, for
models that take no attention mask of their own; ``plain`` computes every question alone, the reference.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recranker.errors import ModelError
from recranker.llm.encoding import Branch, Tree, encode_all
from recranker.llm.model import LanguageModel
from recranker.llm.packing import check_packing, label_logits, pack
from recranker.llm.settings import LLMSettings
from recranker.tasks.protocol import Prompt

Passes = Callable[[LanguageModel, Sequence[Tree], int], Iterator[tuple[int, int, Tensor]]]
"""From a model, trees and a token budget to (tree index, question index, label logits)."""


@dataclass(frozen=True)
class Scored:
    """One prompt's answers and what they cost."""

    log_probabilities: list[NDArray[np.float64]]
    """Per question: ``(labels,)`` nats, normalised over the labels."""
    tokens: int
    """Tokens computed."""
    cut_lines: int
    """Lines of history dropped because the prompt was too long."""


class TreeScorer:
    """A ``tasks.protocol.Scorer`` round a language model."""

    def __init__(self, lm: LanguageModel, settings: LLMSettings) -> None:
        self.lm = lm
        self._max_prompt_tokens = settings.max_prompt_tokens
        self._token_budget = settings.token_budget
        self._passes = PASSES[settings.backend]
        if settings.backend == "packed":
            check_packing(lm, max_prompt_tokens=settings.max_prompt_tokens, way_out="score it with llm.backend=kv")
        self._tokens_of = _tokens_of_plain if settings.backend == "plain" else _tokens_of_tree

    def score(self, prompts: Sequence[Prompt]) -> list[list[NDArray[np.float64]]]:
        """Per prompt and question: ``(labels,)`` log-probabilities in nats, normalised over the question's labels.

        Raises:
            ModelError: If a prompt cannot be encoded, or an answer is not a number.
        """
        return [scored.log_probabilities for scored in self.score_with_cost(prompts)]

    def score_with_cost(self, prompts: Sequence[Prompt]) -> list[Scored]:
        """As ``score``, with the tokens computed and the lines cut per prompt."""
        trees = encode_all(prompts, self.lm, self._max_prompt_tokens)
        answers: list[dict[int, NDArray[np.float64]]] = [{} for _ in trees]
        self.lm.model.eval()
        with torch.inference_mode():
            for tree, question, logits in self._passes(self.lm, trees, self._token_budget):
                answers[tree][question] = _log_probabilities(logits, trees[tree].prompt_id, question)
        return [
            Scored([found[index] for index in range(len(tree.branches))], self._tokens_of(tree), tree.cut_lines)
            for tree, found in zip(trees, answers, strict=True)
        ]


def make_scorer(lm: LanguageModel, settings: LLMSettings) -> TreeScorer:
    """The scorer of ``settings.backend`` round ``lm``."""
    return TreeScorer(lm, settings)


def _log_probabilities(logits: Tensor, prompt_id: str, question: int) -> NDArray[np.float64]:
    found: NDArray[np.float64] = torch.log_softmax(logits.double(), dim=-1).cpu().numpy()
    if not np.isfinite(found).all():
        raise ModelError(f"prompt {prompt_id!r}, question {question}: the model's answer is not a number")
    return found


def _packed(lm: LanguageModel, trees: Sequence[Tree], token_budget: int) -> Iterator[tuple[int, int, Tensor]]:
    for group in _groups({index: tree.num_tokens for index, tree in enumerate(trees) if tree.branches}, token_budget):
        packed = pack([trees[index] for index in group], lm.device)
        numbers = [number for index in group for number in range(len(trees[index].branches))]
        for place, number, logits in zip(packed.trees, numbers, label_logits(lm.model, packed), strict=True):
            yield group[place], number, logits


def _groups(lengths: Mapping[int, int], token_budget: int) -> list[list[int]]:
    """Indices in passes of at most ``token_budget`` tokens, longest first; a longer one goes alone."""
    groups: list[list[int]] = []
    filled = 0
    for index in sorted(lengths, key=lambda index: (-lengths[index], index)):
        if not groups or filled + lengths[index] > token_budget:
            groups.append([])
            filled = 0
        groups[-1].append(index)
        filled += lengths[index]
    return groups


def _plain(lm: LanguageModel, trees: Sequence[Tree], token_budget: int) -> Iterator[tuple[int, int, Tensor]]:
    for index, tree in enumerate(trees):
        for number, branch in enumerate(tree.branches):
            input_ids = torch.tensor([tree.prefix_ids + branch.token_ids], device=lm.device)
            logits = lm.model(input_ids=input_ids, use_cache=False, logits_to_keep=1).logits[0, -1]
            yield index, number, logits[branch.label_ids].float()


def _kv(lm: LanguageModel, trees: Sequence[Tree], token_budget: int) -> Iterator[tuple[int, int, Tensor]]:
    for index, tree in enumerate(trees):
        if not tree.prefix_ids:
            yield from ((index, number, logits) for _, number, logits in _plain(lm, [tree], token_budget))
        elif tree.branches:
            yield from ((index, number, logits) for number, logits in enumerate(_kv_tree(lm, tree, token_budget)))


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
    logits_BV = lm.model(
        input_ids=torch.tensor(rows, device=lm.device),
        attention_mask=seen.long().to(lm.device),
        position_ids=(prefix_length + (columns[None, :] - gaps[:, None]).clamp(min=0)).to(lm.device),
        past_key_values=repeated,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return [logits_V[branch.label_ids].float() for logits_V, branch in zip(logits_BV, branches, strict=True)]


def _tokens_of_plain(tree: Tree) -> int:
    return sum(len(tree.prefix_ids) + len(branch.token_ids) for branch in tree.branches)


def _tokens_of_tree(tree: Tree) -> int:
    return tree.num_tokens if tree.branches else 0


PASSES: dict[str, Passes] = {"packed": _packed, "kv": _kv, "plain": _plain}
