"""The ways to the answers, each measured in a process of its own, so that peaks of memory are its own too.

Clocks count all of a user's way: text to tokens, forward passes, log-probabilities. The model is loaded and one
question is answered before they start.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.benchmarks.own_process import peak_rss_gb
from recranker.llm.encoding import Tree, encode_all
from recranker.llm.model import LanguageModel, load_model
from recranker.llm.packing import alone_logits, answer_logits, pack_parts, passes
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings
from recranker.tasks.protocol import Prompt

GEMM_SIZE = 2048
"""Rows and columns of the square matrices whose product tells how fast the machine is."""
GENERATED = 2
"""Tokens generated for a rating or a yes: the word and the end of the turn."""

Answers = list[list[NDArray[np.float64]]]
"""Per prompt and question: ``(labels,)`` log-probabilities."""


@dataclass(frozen=True)
class Measured:
    """One way over some users."""

    cpu_s: list[float]
    """Per user, all threads together."""
    wall_s: list[float]
    """Per user."""
    tokens: int
    """Computed, all users."""
    needed: int
    """That any way must compute, prefixes once and every question, all users."""
    gemm_rates: list[float]
    """Multiply-adds per CPU second of a large float32 product, between users."""
    linear_madds: float
    """Multiply-adds of all linear layers for the tokens needed."""
    attention_madds: float
    """Multiply-adds between all pairs of tokens that see each other."""
    peak_rss_gb: float
    """Of the process."""
    answers: Answers | None
    """None where the way yields text."""


def measure_engine(model: str, settings: LLMSettings, prompts: Sequence[Prompt]) -> Measured:
    """``settings.backend``, user by user."""
    lm = load_model(Path(model), settings)
    scorer = make_scorer(lm, settings)
    answers: Answers = []
    tokens: list[int] = []

    def answer(index: int) -> None:
        scored = scorer.score_with_cost([prompts[index]])[0]
        answers.append(scored.log_probabilities)
        tokens.append(scored.tokens)

    return _measured(lm, settings, prompts, answer, tokens, answers)


def measure_generation(
    model: str, settings: LLMSettings, prompts: Sequence[Prompt], list_texts: Sequence[str]
) -> Measured:
    """One ``generate`` per question, greedy, as many tokens as a right answer has.

    Args:
        model: Folder.
        settings: Of the model.
        prompts: One per user.
        list_texts: Per user, what a listwise answer spells out: all titles, a line each.
    """
    lm = load_model(Path(model), settings)
    tokens: list[int] = []

    def answer(index: int) -> None:
        tree = encode_all([prompts[index]], lm, settings.max_prompt_tokens)[0]
        length = len(lm.tokenizer(list_texts[index], add_special_tokens=False)["input_ids"])
        computed = 0
        for branch in tree.branches:
            ids = torch.tensor([tree.prefix_ids + branch.token_ids])
            wanted = length if branch.task == "listwise" else GENERATED
            generate(lm, ids, wanted)
            computed += ids.shape[1] + wanted
        tokens.append(computed)

    return _measured(lm, settings, prompts, answer, tokens, None)


def generate(lm: LanguageModel, ids: torch.Tensor, count: int) -> torch.Tensor:
    """``ids`` and ``count`` tokens more, the likeliest at each step."""
    found: torch.Tensor = lm.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=count,
        max_new_tokens=count,
        pad_token_id=lm.tokenizer.eos_token_id,
    )
    return found


def measure_trees(model: str, settings: LLMSettings, prompts: Sequence[Prompt], count: int, seed: int) -> float:
    """Greatest difference of log-probabilities between packed and single questions, over random trees, nats.

    Trees are cut out of the prompts' own text: what a model makes of random tokens can hang on the last bit.
    """
    lm = load_model(Path(model), settings)
    random = np.random.default_rng(seed)
    real = encode_all(prompts, lm, settings.max_prompt_tokens)
    trees = [_random_tree(random, real[index % len(real)]) for index in range(count)]
    worst = 0.0
    with torch.inference_mode():
        for parts in passes(trees, settings.token_budget, {}, can_keep=True):
            packed = pack_parts(parts)
            for index, number, found in zip(packed.trees, packed.numbers, answer_logits(lm, packed), strict=True):
                wanted = alone_logits(lm, trees[index], trees[index].branches[number])
                difference = torch.log_softmax(found, -1) - torch.log_softmax(wanted, -1)
                worst = max(worst, float(difference.abs().max()))
    return worst


def _random_tree(random: np.random.Generator, real: Tree) -> Tree:
    """Pieces of a real tree: a prefix of 0 to 40 tokens, 1 to 4 branches of 1 to 12, the labels of a real question."""
    text = [*real.prefix_ids, *(token for branch in real.branches for token in branch.token_ids)]

    def piece(least: int, most: int) -> list[int]:
        length = int(random.integers(least, most + 1))
        start = int(random.integers(len(text) - length))
        return text[start : start + length]

    asked = [real.branches[int(random.integers(len(real.branches)))] for _ in range(random.integers(1, 5))]
    return Tree(real.prompt_id, piece(0, 40), [replace(one, token_ids=piece(1, 12)) for one in asked])


def gemm_rate() -> float:
    """Multiply-adds per CPU second of a large float32 product, as this process runs it."""
    left, right = torch.rand(GEMM_SIZE, GEMM_SIZE), torch.rand(GEMM_SIZE, GEMM_SIZE)
    left @ right
    started = time.process_time()
    left @ right
    return float(GEMM_SIZE**3 / (time.process_time() - started))


def _measured(
    lm: LanguageModel,
    settings: LLMSettings,
    prompts: Sequence[Prompt],
    answer: Callable[[int], None],
    tokens: list[int],
    answers: Answers | None,
) -> Measured:
    make_scorer(lm, settings).score([replace(prompts[0], questions=prompts[0].questions[:1])])
    rates, cpu_s, wall_s = [gemm_rate()], [], []
    for index in range(len(prompts)):
        cpu, wall = time.process_time(), time.perf_counter()
        answer(index)
        cpu_s.append(time.process_time() - cpu)
        wall_s.append(time.perf_counter() - wall)
        rates.append(gemm_rate())
    trees = encode_all(prompts, lm, settings.max_prompt_tokens)
    needed = sum(tree.num_tokens for tree in trees)
    return Measured(
        cpu_s,
        wall_s,
        sum(tokens),
        needed,
        rates,
        float(needed * _linear_weights(lm)),
        float(sum(map(_visible_pairs, trees)) * 2 * _attention_width(lm)),
        peak_rss_gb(),
        answers,
    )


def _linear_weights(lm: LanguageModel) -> int:
    """Of all layers; embedding and output head left out."""
    return sum(
        module.weight.numel() for module in lm.model.model.layers.modules() if isinstance(module, torch.nn.Linear)
    )


def _attention_width(lm: LanguageModel) -> int:
    """Numbers of a query over all heads and layers."""
    config = lm.model.config
    return int(config.num_hidden_layers * config.num_attention_heads * config.head_dim)


def _visible_pairs(tree: Tree) -> int:
    prefix, branches = len(tree.prefix_ids), [len(branch.token_ids) for branch in tree.branches]
    return _triangle(prefix) + sum(one * prefix + _triangle(one) for one in branches)


def _triangle(length: int) -> int:
    return length * (length + 1) // 2
