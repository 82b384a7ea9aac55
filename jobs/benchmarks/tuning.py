"""Packed training beside padded prompts and transformers' own Trainer, on real prompts; then every ZeRO stage.

All ways are taken in one go, one after the other, each in a process of its own, with the same prompts, model, adapter
and threads.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from jobs.benchmarks.own_process import in_own_process
from jobs.benchmarks.settings import TuningBenchmark
from jobs.benchmarks.tuning_prompts import training_prompts
from jobs.benchmarks.tuning_ways import Given, Trained, measure_packed, measure_padded, measure_trainer
from jobs.benchmarks.tuning_zero import zero_cases, zero_row
from recranker.llm.model import resolve_model
from recranker.progress import Bar
from recranker.tasks.protocol import Prompt

logger = logging.getLogger("recranker.jobs")

PACKED, PADDED, TRAINER = "packed", "padded", "trainer"

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """All that was measured."""

    rows: list[Row]
    """One per way."""
    losses: list[Row]
    """One per optimizer step, with both ways' loss."""
    zero_step_seconds: list[Row]
    """One per ZeRO stage and number of workers; none where nobody asked."""
    figures: dict[str, Any]
    """What the trainer is judged by."""


def measure(settings: TuningBenchmark) -> Outcome:
    """Make the prompts, train every way, then under every ZeRO stage."""
    prompts = training_prompts(settings)
    model = resolve_model(settings.llm.model, Path(settings.store.home).expanduser().resolve() / "cache")
    cases = zero_cases(settings) if settings.zero else []
    with Bar("benchmark", len(WAYS) + len(cases)) as bar:
        found = _trained(settings, prompts, model, bar)
        zero = []
        for workers, stage in cases:
            bar.set_text(f"ZeRO-{stage}, workers {workers}")
            zero.append(zero_row(settings, prompts[: settings.zero_prompts], model, workers, stage))
            bar.advance()
    rows = [row_of(way, one) for way, one in found.items()]
    return Outcome(rows, loss_rows(found), zero, figures(found))


def _trained(settings: TuningBenchmark, prompts: Sequence[Prompt], model: Path, bar: Bar) -> dict[str, Trained]:
    given = Given(str(model), settings.llm, settings.tune, prompts, settings.training_seed)
    found: dict[str, Trained] = {}
    for way, (work, options) in WAYS.items():
        bar.set_text(way)
        found[way] = in_own_process(settings.llm.threads, work, given, *options(settings))
        logger.info("%s: %.2f instructions per CPU second", way, _speed(found[way]))
        bar.advance()
    return found


WAYS: dict[str, tuple[Callable[..., Trained], Callable[[TuningBenchmark], tuple[int, ...]]]] = {
    PACKED: (measure_packed, lambda settings: ()),
    PADDED: (measure_padded, lambda settings: (settings.rows,)),
    TRAINER: (measure_trainer, lambda settings: (settings.rows, settings.trainer_steps)),
}
"""By name, what is measured and what it wants to know besides the prompts."""


def _speed(found: Trained) -> float:
    """Instructions per CPU second."""
    return sum(step.questions for step in found.steps) / sum(found.cpu_s)


def row_of(way: str, found: Trained) -> Row:
    """One way as it stands in the table and in the JSON file."""
    return {
        "way": way,
        "instructions": sum(step.questions for step in found.steps),
        "tokens": sum(step.tokens for step in found.steps),
        "cpu_s": sum(found.cpu_s),
        "instructions_per_cpu_s": _speed(found),
        "gemm_gflops": 2e-9 * median(found.gemm_rates),
        "peak_rss_gb": found.peak_rss_gb,
    }


def loss_rows(found: dict[str, Trained]) -> list[Row]:
    """Both curves that are means of the same loss over the same questions."""
    pairs = zip(found[PACKED].steps, found[PADDED].steps, strict=True)
    return [
        {"step": number, "instructions": ours.questions, PACKED: ours.loss, PADDED: other.loss}
        for number, (ours, other) in enumerate(pairs, start=1)
    ]


def figures(found: dict[str, Trained]) -> dict[str, Any]:
    """What the trainer is judged by."""
    packed = found[PACKED]
    assert packed.work is not None, "the packed way counts what it must compute"
    capacity = sum(packed.cpu_s) * median(packed.gemm_rates)
    return {
        "speedup_over_padded": _times(found[PADDED], packed),
        "speedup_over_trainer": _times(found[TRAINER], packed),
        "gemm_share": (packed.work.linear + packed.work.attention) / capacity,
        "gemm_share_without_attention": packed.work.linear / capacity,
        "largest_loss_difference": max(abs(row[PACKED] - row[PADDED]) for row in loss_rows(found)),
    }


def _times(slow: Trained, fast: Trained) -> float:
    """How many times the instructions per CPU second of ``slow`` the other does, over those that both have done."""
    questions, steps = sum(step.questions for step in slow.steps), 0
    while sum(step.questions for step in fast.steps[:steps]) < questions:
        steps += 1
    both = Trained(fast.steps[:steps], fast.cpu_s[:steps], fast.gemm_rates, fast.peak_rss_gb)
    return _speed(both) / _speed(slow)


def table(rows: Sequence[Row]) -> Table:
    """The ways, for a person."""
    shown = _table("the same questions trained on", "way", "instructions", "tokens", "CPU s")
    for name in ("instructions per CPU s", "GEMM GFLOP/s", "peak RSS GB"):
        shown.add_column(name, justify="right")
    for row in rows:
        counts = (f"{row[name]:,}" for name in ("instructions", "tokens"))
        numbers = (f"{row['cpu_s']:.1f}", f"{row['instructions_per_cpu_s']:.3f}", f"{row['gemm_gflops']:.1f}")
        shown.add_row(row["way"], *counts, *numbers, f"{row['peak_rss_gb']:.2f}")
    return shown


def loss_table(rows: Sequence[Row]) -> Table:
    """The curves, for a person."""
    shown = _table("loss of each step, nats", "step", "instructions", PACKED, PADDED, "difference")
    for row in rows:
        losses = (f"{row[name]:.6f}" for name in (PACKED, PADDED))
        shown.add_row(str(row["step"]), str(row["instructions"]), *losses, f"{row[PACKED] - row[PADDED]:.1e}")
    return shown


def zero_table(rows: Sequence[Row]) -> Table:
    """Seconds of a step, for a person: a row per ZeRO stage, a column per number of workers."""
    workers = sorted({row["workers"] for row in rows})
    names = [f"{one} workers" if one > 1 else "1 worker" for one in workers]
    shown = _table("seconds of an optimizer step, median", "ZeRO", *names)
    by_case = {(row["zero_stage"], row["workers"]): f"{row['seconds']:.2f}" for row in rows}
    for stage in sorted({row["zero_stage"] for row in rows}):
        shown.add_row(str(stage), *(by_case.get((stage, one), "") for one in workers))
    return shown


def _table(title: str, first: str, *others: str) -> Table:
    shown = Table(title=title)
    shown.add_column(first)
    for name in others:
        shown.add_column(name, justify="right")
    return shown
