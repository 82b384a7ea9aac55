"""Run every stage from data to results, skipping those whose output still stands.

python -m jobs.pipeline jobs/configs/quickstart.toml tune.epochs=2 --json results.json
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from jobs import backbone, evaluate, instruct, prepare, rank, sample, tune
from jobs.settings import JobSettings
from jobs.sources import ROOT
from jobs.stage import (
    Stage,
    StageContext,
    check_stages,
    command_line,
    commit_of,
    dry_run,
    flattened,
    guarded,
    home_of,
    run_stages,
    store_of,
    tracker_of,
)
from recranker.settings import load_settings, settings_hash

logger = logging.getLogger("recranker.jobs")

STAGES: tuple[Stage, ...] = (
    prepare.STAGE,
    backbone.STAGE,
    sample.STAGE,
    instruct.STAGE,
    tune.STAGE,
    rank.STAGE,
    evaluate.STAGE,
)


def run_all(settings: JobSettings) -> None:
    """All stages in order, as children of one MLflow run."""
    tracker, store = tracker_of(settings), store_of(settings)
    check_stages(STAGES, settings, store)
    started = time.perf_counter()
    tags = {"commit": commit_of(ROOT)}
    key = settings_hash(settings)
    with tracker.pipeline_run(settings.name, flattened(settings.model_dump(mode="json")), tags, key=key) as parent:
        ran = run_stages(STAGES, settings, tracker, store, parent=parent.run_id)
        evaluate.log_results(StageContext(settings, store, record=parent))
    logger.info("%d stages ran, %d skipped, %.0f s", ran, len(STAGES) - ran, time.perf_counter() - started)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command_line("jobs.pipeline", __doc__ or "")
    evaluate.options(parser)
    parsed = parser.parse_intermixed_args(arguments)
    return guarded(lambda: _main(parsed))


def _main(parsed: argparse.Namespace) -> None:
    settings = load_settings(JobSettings, parsed.config, parsed.overrides)
    if parsed.dry_run:
        dry_run(settings, STAGES)
        return
    run_all(settings)
    store = store_of(settings)
    evaluate.show(StageContext(settings, store), parsed)
    print(
        f"\nWritten to {store.uri} (a folder per stage).\nNext:\n"
        f"  open {store.folder('evaluate')}/report/report.html\n"
        "  make mlflow     compare runs on a page\n"
        f"{_serve(settings, parsed.config)}\n"
        f"  make cluster    then submit the same job: see README; results stay under {home_of(settings)}"
    )


def _serve(settings: JobSettings, config: str) -> str:
    """How this run is ranked with over HTTP; ``make serve`` knows the quickstart's alone."""
    if settings.name == "quickstart":
        return "  make serve      rank over HTTP"
    publish = f"python -m jobs.publish {config}"
    return f"  {publish}; with run: {settings.name} in serve/config.yaml then serve run serve/config.yaml"


if __name__ == "__main__":
    sys.exit(main())
