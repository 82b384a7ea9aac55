"""What all jobs share: the command line, the stage contract, MLflow runs, exit codes.

A stage is skipped when its manifest says that it was made from the same settings, code and inputs.
Exit codes: 0 done, 2 bad settings or data (one line), 1 anything else.
"""

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.settings import SETTINGS_FILE, JobSettings
from jobs.sources import ROOT, code_hash
from recranker.distributed import cluster
from recranker.errors import RecrankerError
from recranker.progress import Bar
from recranker.schema import TABLES_OF, TableSchema
from recranker.settings import load_settings, settings_hash
from recranker.store import Manifest, Origin, StageWriter, Store, outside_fingerprint, write_atomically
from recranker.tracking import StageRun, Tracker

logger = logging.getLogger("recranker.jobs")


@dataclass(frozen=True)
class Stage:
    """One step of the data's way: what it needs and the function that does it."""

    name: str
    run: Callable[[JobSettings, "StageContext"], None]
    reads: tuple[str, ...] = ()
    """Earlier stages whose tables it reads."""
    sections: tuple[str, ...] = ()
    """Sections of the settings that shape its output."""
    outside: Callable[[JobSettings], dict[str, str | None]] | None = None
    """Paths from outside the run that it reads, by name: a team's own files, a model's folder."""
    options: Callable[[argparse.ArgumentParser], None] | None = None
    """Adds options of its own to the command line."""
    show: Callable[["StageContext", argparse.Namespace], None] | None = None
    """Shows the finished output to a person; called after a skip too."""

    @property
    def file(self) -> str:
        """The job's own source file."""
        return self.run.__code__.co_filename

    def origin(self, settings: JobSettings, store: Store) -> Origin:
        """What the output would be made from now."""
        parts = [settings.seed, *(getattr(settings, section) for section in self.sections)]
        inputs = {name: store.require(name).fingerprint for name in self.reads}
        paths = self.outside(settings) if self.outside else {}
        inputs |= {name: outside_fingerprint(path) for name, path in paths.items() if path is not None}
        return Origin(settings_hash(*parts), code_hash(Path(self.file)), inputs)


@dataclass
class StageContext:
    """What a stage may touch: earlier outputs, its own output, the record of the run."""

    settings: JobSettings
    store: Store
    writer: StageWriter | None = None
    record: StageRun | None = None

    @property
    def cache(self) -> Path:
        """Downloads and converted models, shared by all runs."""
        return home_of(self.settings) / "cache"

    def read(self, stage: str, table: TableSchema) -> pa.Table:
        """A table of an earlier stage, checked and sorted by its key."""
        return self.store.read(stage, table)

    def facts_of(self, stage: str) -> dict[str, Any]:
        """The facts an earlier stage left in its manifest."""
        return self.store.require(stage).facts

    def published(self, stage: str) -> Path:
        """Local folder of an earlier stage's output."""
        return Path(self.store.folder(stage))

    def write(self, schema: TableSchema, table: pa.Table) -> None:
        """Write one whole table of this stage."""
        self._writer.write(schema, table)

    def files(self, name: str) -> Path:
        """Local folder for this stage's files that are no tables."""
        return self._writer.files(name)

    @property
    def facts(self) -> dict[str, Any]:
        """Counts and statements for the manifest; nothing that differs from run to run."""
        return self._writer.facts

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record numbers with MLflow."""
        if self.record:
            self.record.log_metrics(metrics, step=step)

    def log_artifact(self, path: Path) -> None:
        """Record a file or folder with MLflow."""
        if self.record and path.is_dir():
            self.record.log_artifacts(path)
        elif self.record:
            self.record.log_artifact(path)

    def progress(self, title: str, total: int) -> Bar:
        """A bar for a person, plain lines otherwise."""
        return Bar(title, total)

    def connect(self) -> None:
        """Join or start the Ray cluster."""
        cluster.connect(self.settings.ray.cpus, self.settings.ray.object_store_mb)

    @property
    def _writer(self) -> StageWriter:
        assert self.writer is not None, "only a running stage writes"
        return self.writer


def model_folder(settings: JobSettings) -> dict[str, str | None]:
    """The base model, where it is a local folder: an outside input of the stages that run it."""
    return {"llm.model": settings.llm.model if Path(settings.llm.model).expanduser().is_dir() else None}


def home_of(settings: JobSettings) -> Path:
    """The folder everything is kept in."""
    return Path(settings.store.home).expanduser().resolve()


def store_of(settings: JobSettings) -> Store:
    """Where this run's tables are."""
    runs = settings.store.runs or str(home_of(settings) / "runs")
    return Store(f"{runs.rstrip('/')}/{settings.name}")


def tracker_of(settings: JobSettings) -> Tracker:
    """Where this run is recorded."""
    uri = settings.tracking.uri or f"sqlite:///{home_of(settings) / 'mlflow.db'}"
    return Tracker(uri, settings.tracking.experiment)


def run_stage(stage: Stage, settings: JobSettings, tracker: Tracker, *, parent: str | None = None) -> bool:
    """Run ``stage`` unless its published output is made from the same settings, code and inputs.

    Returns:
        Whether it ran; False: skipped.
    """
    store = store_of(settings)
    origin = stage.origin(settings, store)
    known = store.manifest(stage.name)
    if known is not None and known.origin == origin:
        logger.info("%s: unchanged, skipped (%s)", stage.name, _counts(known))
        return False
    started = time.perf_counter()
    logger.info("%s: started", stage.name)
    commit = commit_of(ROOT)
    record = _record(tracker, stage, settings, origin, parent, commit)
    with store.publish(stage.name, origin, commit=commit) as writer, record as recorded:
        stage.run(settings, StageContext(settings, store, writer, recorded))
        write_atomically(writer.filesystem, f"{writer.root}/{SETTINGS_FILE}", settings.model_dump_json(indent=2) + "\n")
        recorded.log_metrics({"time/seconds": time.perf_counter() - started})
    logger.info(
        "%s: done in %.1f s (%s)", stage.name, time.perf_counter() - started, _counts(store.require(stage.name))
    )
    return True


def main(stage: Stage, arguments: Sequence[str] | None = None) -> int:
    """The command line of one stage; returns the exit code."""
    parser = command_line(f"jobs.{stage.name}", sys.modules[stage.run.__module__].__doc__ or "")
    if stage.options:
        stage.options(parser)
    parsed = parser.parse_intermixed_args(arguments)
    return guarded(lambda: _main(stage, parsed))


def command_line(name: str, description: str) -> argparse.ArgumentParser:
    """The arguments all jobs take."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="TOML file, for instance jobs/configs/quickstart.toml")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="settings that differ from the file"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and the inputs, then stop")
    return parser


def guarded(work: Callable[[], None]) -> int:
    """Run ``work``; a user's error becomes one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("recranker").setLevel(logging.INFO)
    try:
        work()
    except KeyboardInterrupt:
        sys.stderr.write("stopped; finished stages are kept, the same command goes on from them\n")
        return 130
    except Exception as error:
        ours = users_error(error)
        if ours is None:
            raise
        sys.stderr.write(f"error: {ours}\n")
        return 2
    finally:
        cluster.disconnect()
    return 0


def users_error(error: BaseException) -> RecrankerError | None:
    """The user's error inside what Ray or others wrapped around it, if there is one."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, RecrankerError):
            return (
                current if type(current).__module__ == RecrankerError.__module__ else RecrankerError(_message(current))
            )
        seen.add(id(current))
        current = getattr(current, "cause", None) or current.__cause__ or current.__context__
    return None


def dry_run(settings: JobSettings, stages: Sequence[Stage]) -> None:
    """Print the settings as they would be used, and each stage's inputs."""
    print(settings.model_dump_json(indent=2))
    store = store_of(settings)
    for stage in stages:
        for name in stage.reads:
            state = "finished" if store.manifest(name) else "not there yet"
            for table in TABLES_OF[name]:
                columns = ", ".join(f"{one.name}: {one.type}" for one in table.schema)
                print(f"{stage.name} reads {store.folder(name, table.name)} ({state}): {columns}")


def commit_of(folder: Path) -> str:
    """The git commit of the code, for people; 'unknown' outside a checkout."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``section.field`` to value, as MLflow wants parameters."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _main(stage: Stage, parsed: argparse.Namespace) -> None:
    settings = load_settings(JobSettings, parsed.config, parsed.overrides)
    if parsed.dry_run:
        dry_run(settings, [stage])
        return
    run_stage(stage, settings, tracker_of(settings))
    store = store_of(settings)
    if stage.show:
        stage.show(StageContext(settings, store), parsed)
    logger.info("written to %s", store.folder(stage.name))


def _record(
    tracker: Tracker, stage: Stage, settings: JobSettings, origin: Origin, parent: str | None, commit: str
) -> AbstractContextManager[StageRun]:
    shaping = settings.model_dump(mode="json", include={"seed", *stage.sections})
    name = f"{settings.name}/{stage.name}"
    return tracker.stage_run(name, parent, flattened(shaping), origin.inputs, {"commit": commit})


def _counts(manifest: Manifest) -> str:
    return ", ".join(f"{entry['rows']} {name}" for name, entry in manifest.tables.items())


def _message(error: BaseException) -> str:
    """The last line of an error that Ray has dressed in a traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].split(": ", 1)[-1] if lines else str(error)
