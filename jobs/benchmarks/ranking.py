"""The ranking engine beside the same questions as full prompts and beside generated text, on real users.

All ways are taken in one go, one after the other, each in a process of its own, with the same users, model and threads.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from rich.table import Table

from jobs.benchmarks.own_process import in_own_process
from jobs.benchmarks.settings import RankingBenchmark
from jobs.benchmarks.users import Users
from jobs.benchmarks.ways import Answers, Measured, measure_engine, measure_generation, measure_trees
from recranker.evaluation.metrics import kendall_tau
from recranker.llm.model import resolve_model
from recranker.progress import Bar
from recranker.ranking.fusion import best_first
from recranker.ranking.utilities import task_scores
from recranker.tasks.protocol import Prompt

logger = logging.getLogger("recranker.jobs")

TEN = 10
"""Candidates of the lists that all ways answer (RecRanker: 10)."""
ENGINE, PLAIN, GENERATION = "engine", "full prompts by logits", "one generation per prompt"
HALVED = "engine in bfloat16"
BUDGETED = "engine, budgeted"

Row = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """Something to be measured."""

    name: str
    candidates: int
    prompts: Sequence[Prompt]
    measure: Callable[..., Measured]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """All that was measured."""

    rows: list[Row]
    """One per way and length of lists."""
    figures: dict[str, Any]
    """The ratios that the engine is judged by."""


def measure(settings: RankingBenchmark) -> Outcome:
    """Rank with every way, then compare random trees."""
    cache = Path(settings.store.home).expanduser().resolve() / "cache"
    model = str(resolve_model(settings.llm.model, cache))
    ways = _ways(settings, Users(settings, cache), model)
    found: list[Measured] = []
    with Bar("benchmark", len(ways) + 1) as bar:
        for way in ways:
            bar.set_text(f"{way.name}, {way.candidates} candidates, {len(way.prompts)} users")
            found.append(in_own_process(settings.llm.threads, way.measure, model, *way.arguments))
            logger.info("%s, %d candidates: %.2f CPU s a user", way.name, way.candidates, mean(found[-1].cpu_s))
            bar.advance()
        bar.set_text(f"{settings.trees} random trees")
        trees = settings.llm, ways[0].prompts, settings.trees, settings.seed
        difference = in_own_process(settings.llm.threads, measure_trees, model, *trees)
        bar.advance()
    rows = [_row(way, one) for way, one in zip(ways, found, strict=True)]
    return Outcome(rows, _figures(ways, found, difference))


def _ways(settings: RankingBenchmark, users: Users, model: str) -> list[Way]:
    llm = settings.llm
    ten = users.prompts(TEN, settings.instruct)
    few, fewest = ten[: settings.slow_users], ten[: settings.generated_users]
    texts = ["\n".join(users.titles_of(prompt.questions[-1].item_ids)) for prompt in fewest]
    ways = [
        Way(ENGINE, TEN, ten, measure_engine, (llm, ten)),
        Way(PLAIN, TEN, few, measure_engine, (llm.model_copy(update={"backend": "plain"}), few)),
        Way(GENERATION, TEN, fewest, measure_generation, (llm, fewest, texts)),
        Way(HALVED, TEN, ten, measure_engine, (llm.model_copy(update={"dtype": "bfloat16"}), ten)),
    ]
    for length in sorted({TEN, *settings.candidates}):
        prompts = users.prompts(length, settings.budgeted)[: settings.slow_users]
        ways.append(Way(BUDGETED, length, prompts, measure_engine, (llm, prompts)))
    return ways


def _row(way: Way, found: Measured) -> Row:
    users = len(way.prompts)
    return {
        "way": way.name,
        "candidates": way.candidates,
        "users": users,
        "questions_per_user": sum(len(prompt.questions) for prompt in way.prompts) / users,
        "cpu_s_per_user": mean(found.cpu_s),
        "wall_s_per_user": mean(found.wall_s),
        "tokens_per_user": found.tokens / users,
        "needed_tokens_per_user": found.needed / users,
        "gemm_gflops": 2e-9 * median(found.gemm_rates),
        "peak_rss_gb": found.peak_rss_gb,
    }


def _figures(ways: Sequence[Way], found: Sequence[Measured], difference: float) -> dict[str, Any]:
    by_name = {way.name: one for way, one in zip(ways, found, strict=True) if way.name != BUDGETED}
    engine, plain, generated, halved = (by_name[name] for name in (ENGINE, PLAIN, GENERATION, HALVED))
    ten = ways[0].prompts
    capacity = sum(engine.cpu_s) * median(engine.gemm_rates)
    budgeted = {way.candidates: one for way, one in zip(ways, found, strict=True) if way.name == BUDGETED}
    return {
        "speedup_over_generation": _times(generated, engine),
        "speedup_over_full_prompts": _times(plain, engine),
        "token_overhead": max(one.tokens / one.needed for one in (engine, *budgeted.values())),
        "gemm_share": (engine.linear_madds + engine.attention_madds) / capacity,
        "gemm_share_linear_layers": engine.linear_madds / capacity,
        "max_abs_logprob_difference": max(difference, _difference(plain, engine)),
        "same_orders": _same_orders(ten, plain, engine),
        "cost_by_candidates": {length: mean(one.cpu_s) / mean(budgeted[TEN].cpu_s) for length, one in budgeted.items()},
        "bfloat16_speedup": mean(engine.cpu_s) / mean(halved.cpu_s),
        "bfloat16_kendall_tau": _kendall_tau(ten, engine, halved),
        "peak_rss_gb": max(one.peak_rss_gb for one in (engine, *budgeted.values())),
    }


def _times(slow: Measured, fast: Measured) -> float:
    """How many times the CPU seconds of ``fast`` the other takes for the users that both ranked."""
    return mean(slow.cpu_s) / mean(fast.cpu_s[: len(slow.cpu_s)])


def _answers(found: Measured) -> Answers:
    assert found.answers is not None, "a way that yields text has no log-probabilities"
    return found.answers


def _difference(one: Measured, other: Measured) -> float:
    pairs = zip(_answers(one), _answers(other), strict=False)  # the slower way has fewer users
    return max(float(np.abs(a - b).max()) for x, y in pairs for a, b in zip(x, y, strict=True))


def _scores(prompt: Prompt, log_probabilities: Sequence[Any]) -> dict[str, Any]:
    """``(items,)`` per task."""
    answers = [question.answered(one) for question, one in zip(prompt.questions, log_probabilities, strict=True)]
    item_ids = list(dict.fromkeys(item_id for question in prompt.questions for item_id in question.item_ids))
    return task_scores(answers, item_ids)


def _same_orders(prompts: Sequence[Prompt], one: Measured, other: Measured) -> bool:
    """Whether every task orders every user's candidates alike both ways."""
    for prompt, first, second in zip(prompts, _answers(one), _answers(other), strict=False):
        left, right = _scores(prompt, first), _scores(prompt, second)
        if any(not np.array_equal(best_first(left[task]), best_first(right[task])) for task in left):
            return False
    return True


def _kendall_tau(prompts: Sequence[Prompt], one: Measured, other: Measured) -> dict[str, float]:
    """Per task, the mean over users of tau-b between the scores of both ways."""
    taus: dict[str, list[float]] = {}
    for prompt, first, second in zip(prompts, _answers(one), _answers(other), strict=True):
        left, right = _scores(prompt, first), _scores(prompt, second)
        for task, scores in left.items():
            taus.setdefault(task, []).append(float(kendall_tau(scores[None], right[task][None])[0]))
    return {task: float(np.nanmean(values)) for task, values in taus.items()}


def table(rows: Sequence[Row]) -> Table:
    """For a person."""
    shown = Table(title="one user's candidates ranked")
    shown.add_column("way")
    for name in (
        "candidates",
        "questions",
        "CPU s",
        "wall s",
        "tokens",
        "of them needed",
        "GEMM GFLOP/s",
        "peak RSS GB",
    ):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            row["way"],
            str(row["candidates"]),
            f"{row['questions_per_user']:.0f}",
            f"{row['cpu_s_per_user']:.2f}",
            f"{row['wall_s_per_user']:.2f}",
            f"{row['tokens_per_user']:.0f}",
            f"{row['needed_tokens_per_user']:.0f}",
            f"{row['gemm_gflops']:.0f}",
            f"{row['peak_rss_gb']:.2f}",
        )
    return shown
