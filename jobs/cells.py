"""The cells of an experiment: their settings, what of them is still to be done, and how they are run.

All cells share one folder, ``runs/experiments/NAME``::

    prepare/KEY/  backbone/KEY/  ...   a stage's output; KEY stands for the settings, code and inputs it was made from
    summary/                           table and plot of the latest run
    .lock                              held by the process that is running it

so a stage that several cells have in common is run once, and a killed experiment goes on where it was.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem

from jobs import backbone, evaluate, pipeline
from jobs.settings import JobSettings
from jobs.sources import ROOT
from jobs.stage import Stage, commit_of, current, flattened, run_stages, runs_of, users_error
from recranker.errors import OutputError, RecrankerError, SettingsError
from recranker.evaluation.experiment_table import Measured
from recranker.evaluation.results import metrics_of
from recranker.evaluation.rows import BASELINES, ROW_ORDER
from recranker.evaluation.seeds import seed_runs
from recranker.experiments import Cell, ExperimentSettings, cells_of, read_base
from recranker.progress import duration
from recranker.schema import INTERACTIONS, RESULTS, USER_RESULTS
from recranker.settings import check_settings, settings_hash
from recranker.store import Store
from recranker.tracking import StageRun, Tracker

logger = logging.getLogger("recranker.jobs")


@dataclass(frozen=True)
class Job:
    """A cell that can be run."""

    cell: Cell
    settings: JobSettings

    @property
    def params(self) -> dict[str, Any]:
        """All settings and the points of the axes, under the same names for every cell."""
        axes = {f"axis.{axis}": point for axis, point in self.cell.points.items()}
        return axes | flattened(self.settings.model_dump(mode="json"))

    @property
    def data(self) -> str:
        """What the results call its data."""
        return self.cell.data or self.settings.data.source.kind

    def store(self, name: str) -> Store:
        """The folder of experiment ``name``, as this cell sees it."""
        return Store(f"{runs_of(self.settings)}/experiments/{name}", shared=True)

    def folder(self, name: str) -> Path:
        """The same as a local path.

        Raises:
            OutputError: If it is on no local or mounted filesystem.
        """
        store = self.store(name)
        if not isinstance(store.filesystem, LocalFileSystem):
            raise OutputError(
                f"an experiment needs a local or mounted filesystem, got {store.uri}; set store.runs to one"
            )
        return Path(store.root)


@dataclass
class Failures:
    """Cells that ended with an error, and what it said."""

    keep_going: bool
    found: dict[str, str]

    def add(self, cell: Cell, error: Exception) -> None:
        """Note the error, or raise it with the cell's name where the experiment shall stop."""
        ours = users_error(error)
        if not self.keep_going:
            logger.error("cell %s failed; finished cells are kept, the same command goes on from them", cell.label)
            if ours is None:
                raise error
            raise type(ours)(f"cell {cell.label}: {ours}") from error
        logger.error("cell %s failed: %s", cell.label, ours or repr(error), exc_info=None if ours else error)
        self.found[cell.label] = str(ours or repr(error))

    def check(self, total: int) -> None:
        """Raise if there were any."""
        if self.found:
            each = "; ".join(f"{label}: {error}" for label, error in self.found.items())
            raise RecrankerError(f"{len(self.found)} of {total} cells failed: {each}")


def stages_of(experiment: ExperimentSettings) -> list[Stage]:
    """The stages of every cell, in the order of the data's way; without 'rank' backbones alone are evaluated.

    Raises:
        SettingsError: If a stage is unknown, reads one that is not listed, or 'evaluate' is missing.
    """
    known = {stage.name: stage for stage in pipeline.STAGES}
    names = tuple(known) if experiment.stages == "all" else experiment.stages
    unknown = [name for name in names if name not in known]
    if unknown or "evaluate" not in names:
        raise SettingsError(f"stages must be among {', '.join(known)} and hold evaluate, got {', '.join(names)}")
    if "rank" not in names:
        known["evaluate"] = evaluate.BACKBONES
    stages = [stage for name, stage in known.items() if name in names]
    for stage in stages:
        for name in stage.reads:
            if name not in names:
                raise SettingsError(f"stages: {stage.name!r} reads {name!r}, which is not listed")
    return stages


def check_rows(experiment: ExperimentSettings, stages: Sequence[Stage]) -> None:
    """Refuse rankers that no cell can have, before the first one runs.

    Raises:
        SettingsError: If ``rows`` names one.
    """
    possible = ROW_ORDER if any(stage.name == "rank" for stage in stages) else BASELINES
    for row in experiment.rows:
        if row not in possible:
            raise SettingsError(f"rows names {row!r}; these stages can have {', '.join(possible)}")


def jobs_of(experiment: ExperimentSettings, path: str) -> list[Job]:
    """Every cell with its settings, checked before anything runs.

    Raises:
        SettingsError: If the grid is wrong, a setting of a cell is refused, or cells are kept in different places.
    """
    jobs = []
    for cell in cells_of(experiment, read_base(experiment, path)):
        name = f"{experiment.name}-{cell.slug}-{settings_hash(cell.values)[:6]}"
        where = f"{path}, cell {cell.label}"
        jobs.append(Job(cell, check_settings(JobSettings, cell.values | {"name": name}, where=where)))
    for job in jobs:
        if (job.settings.store, job.settings.tracking) != (jobs[0].settings.store, jobs[0].settings.tracking):
            raise SettingsError(f"{path}, cell {job.cell.label}: store and tracking must be those of all cells")
    return jobs


def common_params(jobs: Sequence[Job]) -> dict[str, Any]:
    """Settings that are the same in every cell."""
    first, *others = [job.params for job in jobs]
    missing = object()
    return {name: value for name, value in first.items() if all(one.get(name, missing) == value for one in others)}


def missing_files(stages: Sequence[Stage], job: Job) -> list[str]:
    """The files from outside that a cell would read and that are not there."""
    missing = {name: path for stage in stages for name, path in stage.missing(job.settings).items()}
    return [f"{name} {path!r}" for name, path in missing.items()]


def plan(jobs: Sequence[Job], stages: Sequence[Stage], name: str) -> list[dict[str, str]]:
    """For each cell, stage to what will happen: 'skipped', 'shared' with an earlier cell, or 'run'."""
    seen: set[str] = set()
    return [dict(_plan(job, stages, name, seen)) for job in jobs]


def _plan(job: Job, stages: Sequence[Stage], name: str, seen: set[str]) -> Iterator[tuple[str, str]]:
    store = job.store(name)
    recipes: dict[str, str] = {}
    finished: set[str] = set()
    for stage in stages:
        inputs = [recipes[read] for read in stage.reads]
        recipe = settings_hash(
            [stage.name, stage.settings_hash(job.settings), stage.outside_inputs(job.settings), inputs]
        )
        recipes[stage.name] = recipe
        if finished.issuperset(stage.reads) and current(stage, job.settings, store)[1] is not None:
            finished.add(stage.name)
            yield stage.name, "skipped"
        else:
            yield stage.name, "shared" if recipe in seen else "run"
        seen.add(recipe)


def run_jobs(
    jobs: Sequence[Job],
    stages: Sequence[Stage],
    experiment: ExperimentSettings,
    tracker: Tracker,
    parent: StageRun,
    failures: Failures,
) -> list[Measured]:
    """Run every cell, one after another, as children of one MLflow run; returns what each reached.

    Raises:
        SettingsError: If a stage of any cell cannot run here, before the first one runs.
    """
    planned = plan(jobs, stages, experiment.name)
    _check_runnable(jobs, stages, planned)
    busy = ["run" in states.values() for states in planned]
    measured: list[Measured] = []
    spent = 0.0
    for number, job in enumerate(jobs):
        logger.info("cell %d of %d, %s%s", number + 1, len(jobs), job.cell.label, _time_left(busy, number, spent))
        started = time.perf_counter()
        try:
            measured += _run_job(job, stages, experiment, tracker, parent)
        except Exception as error:
            failures.add(job.cell, error)
        spent += busy[number] * (time.perf_counter() - started)
    return measured


def _check_runnable(jobs: Sequence[Job], stages: Sequence[Stage], planned: Sequence[Mapping[str, str]]) -> None:
    for job, states in zip(jobs, planned, strict=True):
        for stage in stages:
            if stage.check and states[stage.name] == "run":
                try:
                    stage.check(job.settings)
                except SettingsError as error:
                    raise SettingsError(f"cell {job.cell.label}: {error}") from None


def _time_left(busy: Sequence[bool], number: int, spent: float) -> str:
    """From the mean time of the cells so far that had something to do."""
    done, left = sum(busy[:number]), sum(busy[number:])
    return f", about {duration(spent / done * left)} left" if done and left else ""


def _run_job(
    job: Job, stages: Sequence[Stage], experiment: ExperimentSettings, tracker: Tracker, parent: StageRun
) -> list[Measured]:
    store, settings = job.store(experiment.name), job.settings
    tags = {"commit": commit_of(ROOT), "experiment": experiment.name}
    started = time.perf_counter()
    with tracker.pipeline_run(job.cell.label, job.params, tags, parent_id=parent.run_id) as run:
        ran = run_stages(stages, settings, tracker, store, parent=run.run_id)
        rankers = experiment.rows or (_main_row(stages, store),)
        run.log_metrics(metrics_of(store.read("evaluate", RESULTS), served=rankers[0]))
        hits = store.require("backbone").facts
        run.log_metrics(backbone.hit_rates(hits, settings.backbone.num_candidates))
        run.log_metrics({"time/seconds": time.perf_counter() - started, "stages/run": float(ran)})
        return _measure(job, store, rankers)


def _main_row(stages: Sequence[Stage], store: Store) -> str:
    """The ranker a cell is judged by."""
    ranked = any(stage.name == "rank" for stage in stages)
    return str(store.require("evaluate").facts["served"]) if ranked else "backbone"


def _measure(job: Job, store: Store, rankers: Sequence[str]) -> list[Measured]:
    results = store.read("evaluate", RESULTS)
    runs = seed_runs(store.read("prepare", INTERACTIONS), results, store.read("evaluate", USER_RESULTS))
    unknown = [ranker for ranker in rankers if ranker not in runs]
    if unknown:
        raise SettingsError(f"rows names {unknown[0]!r}; the results have {', '.join(runs)}")
    return [Measured(job.data, job.cell.row, ranker, runs[ranker]) for ranker in rankers]
