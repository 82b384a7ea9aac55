"""Run a grid over any settings and seeds, and print what each point reached, with intervals.

    python -m jobs.experiment jobs/configs/backbones.toml
    python -m jobs.experiment jobs/configs/backbones.toml --dry-run
    python -m jobs.experiment jobs/configs/backbones.toml seeds=[0,1] ray.cpus=2 --skip-missing --json backbones.json

An experiment is a file such as this; the cells are all combinations of a point of each axis, once per seed:

    name = "rates"
    base = "quickstart.toml"                 # beside this file; every cell starts from its settings
    seeds = [0, 1, 2]
    stages = ["prepare", "backbone", "evaluate"]      # or "all", the default
    settings = { "evaluation.bootstrap_samples" = 5000 }

    [axes.dataset.ml-100k]                   # a point: the settings it changes
    "data.source.kind" = "movielens-100k"
    [axes.dataset.ours]
    "data.source" = { kind = "files", interactions = "$DATA/clicks.csv", items = "$DATA/items.csv" }
    seeds = [0]                              # seeds of this point only

    [axes.backbone.mf]                       # a table with a kind replaces the one of the base whole
    "backbone.retriever" = { kind = "mf" }
    [axes.backbone.lightgcn]
    "backbone.retriever" = { kind = "lightgcn" }

    [grid]                                   # axes in short: a setting and its values
    "backbone.retriever.learning_rate" = [1e-3, 3e-3]

    [[exclude]]                              # leave out cells that match all of this
    dataset = "ours"
    backbone = ["lightgcn"]

On the command line, settings of all cells are section.field=value, as for any job, and what stands in the file is
addressed from its top: axes.dataset.ours.data.source.items=new.csv. A stage that cells have in common is run once;
the same command after a kill goes on from what is finished. Each cell is an MLflow run under the experiment's.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv

from jobs.cells import Failures, Job, check_rows, common_params, jobs_of, missing_files, plan, run_jobs, stages_of
from jobs.evaluate import TABLE_WIDTH
from jobs.output import console, write_json
from jobs.sources import ROOT
from jobs.stage import Stage, command_line, commit_of, guarded, tracker_of
from recranker.errors import DataError
from recranker.evaluation.experiment_plot import plot_experiment
from recranker.evaluation.experiment_table import (
    experiment_json,
    experiment_markdown,
    experiment_table,
    format_experiment,
)
from recranker.evaluation.rows import METRICS
from recranker.experiments import ExperimentSettings, addressed
from recranker.settings import load_settings
from recranker.store import locked
from recranker.tracking import StageRun, metric_name

logger = logging.getLogger("recranker.jobs")


def run(
    experiment: ExperimentSettings, jobs: Sequence[Job], stages: Sequence[Stage], parsed: argparse.Namespace
) -> None:
    """All cells under one MLflow run, then the table: printed, written, recorded."""
    tracker, first = tracker_of(jobs[0].settings), jobs[0].settings
    tags = {"commit": commit_of(ROOT), "experiment": experiment.name, "cells": str(len(jobs))}
    failures = Failures(parsed.keep_going, {})
    folder = jobs[0].folder(experiment.name)
    with locked(folder), tracker.pipeline_run(experiment.name, common_params(jobs), tags) as parent:
        measured = run_jobs(jobs, stages, experiment, tracker, parent, failures)
        if measured:
            table = experiment_table(measured, samples=first.evaluation.bootstrap_samples, seed=first.seed)
            write(table, folder / "summary", experiment.name)
            record(table, folder / "summary", parent)
            show(table, experiment.name, parsed.json)
            logger.info("written to %s", folder / "summary")
        failures.check(len(jobs))


def write(table: pa.Table, folder: Path, title: str) -> None:
    """The table as CSV, Markdown and JSON, and its plot."""
    folder.mkdir(exist_ok=True)
    csv.write_csv(table, folder / "table.csv")
    (folder / "table.md").write_text(experiment_markdown(table), encoding="utf-8")
    (folder / "table.json").write_text(json.dumps(experiment_json(table), indent=2) + "\n", encoding="utf-8")
    plot_experiment(table, [folder / "ndcg_at_3.png", folder / "ndcg_at_3.svg"], title=title)


def record(table: pa.Table, folder: Path, parent: StageRun) -> None:
    """The table's means as metrics of the experiment's run, its files as artifacts."""
    parent.log_metrics(
        {
            metric_name(f"summary/{row['dataset']}/{row['row']}/{name}"): float(row[name])
            for row in table.to_pylist()
            for name in METRICS
        }
    )
    parent.log_artifacts(folder)


def show(table: pa.Table, title: str, path: Path | None) -> None:
    """Print the table, and write it as JSON where asked.

    Raises:
        OutputError: If the file cannot be written.
    """
    shown = console(TABLE_WIDTH)
    for one in format_experiment(table, title=title):
        shown.print(one)
    write_json(path, experiment_json(table))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command_line("jobs.experiment", __doc__ or "", example="backbones.toml")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the table to FILE")
    parser.add_argument("--skip-missing", action="store_true", help="leave out cells whose own files are not there")
    parser.add_argument("--keep-going", action="store_true", help="after a cell that fails go on with the next; exit 2")
    parsed = parser.parse_intermixed_args(arguments)
    return guarded(lambda: _main(parsed))


def _main(parsed: argparse.Namespace) -> None:
    experiment = load_settings(ExperimentSettings, parsed.config, addressed(parsed.overrides))
    stages, jobs = stages_of(experiment), jobs_of(experiment, parsed.config)
    check_rows(experiment, stages)
    if parsed.skip_missing or not parsed.dry_run:
        jobs = _with_files(experiment, jobs, stages, skip_missing=parsed.skip_missing)
    if parsed.dry_run:
        _dry_run(experiment, jobs, stages)
    else:
        run(experiment, jobs, stages, parsed)


def _with_files(
    experiment: ExperimentSettings, jobs: Sequence[Job], stages: Sequence[Stage], *, skip_missing: bool
) -> list[Job]:
    """The cells whose own files are all there.

    Raises:
        DataError: If a file of any is missing and none is to be left out, or if none is left.
    """
    missing = {job.cell.label: found for job in jobs if (found := missing_files(stages, job))}
    for label, found in missing.items():
        text = f"cell {label}: {', '.join(found)} not there"
        if not skip_missing:
            raise DataError(f"{text}; give the right place, or leave such cells out with --skip-missing")
        logger.warning("left out: %s", text)
    left = [job for job in jobs if job.cell.label not in missing]
    if not left:
        raise DataError(f"experiment {experiment.name!r}: the files of every cell are missing")
    return left


def _dry_run(experiment: ExperimentSettings, jobs: Sequence[Job], stages: Sequence[Stage]) -> None:
    """Print every cell and what would become of its stages."""
    planned = plan(jobs, stages, experiment.name)
    for job, states in zip(jobs, planned, strict=True):
        notes = [f"{path} not there" for path in missing_files(stages, job)]
        print(f"{job.cell.label}: {', '.join([f'{stage} {state}' for stage, state in states.items()] + notes)}")
    runs = {stage.name: sum(states[stage.name] == "run" for states in planned) for stage in stages}
    print(f"{len(jobs)} cells; to run: {', '.join(f'{count} {name}' for name, count in runs.items())}")


if __name__ == "__main__":
    sys.exit(main())
