"""Seconds of an optimizer step under every ZeRO stage, with the trainer that jobs run: Ray Train and DeepSpeed."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from jobs.benchmarks.settings import TuningBenchmark
from recranker.distributed import cluster
from recranker.distributed.training import tune_adapters
from recranker.llm.settings import TuneSettings
from recranker.llm.training import plan_adapters
from recranker.settings import check_settings
from recranker.tasks.protocol import Prompt

Row = dict[str, Any]


def zero_cases(settings: TuningBenchmark) -> list[tuple[int, int]]:
    """Workers and ZeRO stage of every training."""
    return [(workers, stage) for workers in settings.zero_workers for stage in settings.zero_stages]


def zero_row(settings: TuningBenchmark, prompts: Sequence[Prompt], model: Path, workers: int, stage: int) -> Row:
    """Train on ``prompts`` from the start to the saved adapter, on a cluster that is started where there is none."""
    values = settings.tune.model_dump() | {"workers": workers, "zero_stage": stage}
    tune = check_settings(TuneSettings, values, where="zero_workers, zero_stages")
    cluster.connect(settings.ray.cpus, settings.ray.object_store_mb)
    with tempfile.TemporaryDirectory(prefix="recranker-benchmark-") as scratch:
        folder = Path(scratch)
        _, done = tune_adapters(
            plan_adapters(prompts, tune, settings.llm.max_prompt_tokens),
            model=model,
            folder=folder / "adapter",
            work=folder / "work",
            llm=settings.llm,
            tune=tune,
            seed=settings.seed,
            tell=lambda name, report: None,
        )
    reports = [report for progress in done.values() for report in progress.reports]
    return {
        "workers": workers,
        "zero_stage": stage,
        "steps": len(reports),
        "seconds": median(report.seconds for report in reports),
        "memory_gb": max(report.memory_gb for report in reports),
    }
