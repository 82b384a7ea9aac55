"""What all jobs share: the command line, the stage contract, MLflow runs, exit codes.

A stage is skipped when its manifest says that it was made from the same settings, code and inputs.
Exit codes: 0 done, 2 bad settings or data (one line), 1 anything else.
"""

import argparse
import logging
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
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
from recranker.tracking import StageRun, Tracker, tracking_uri

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
    instead: Callable[[JobSettings, argparse.Namespace], bool] | None = None
    """Does what an option asks for in place of the stage; whether it did."""
    check: Callable[[JobSettings], None] | None = None
    """Refuses what cannot run here, as far as that can be said before anything is started."""
    resumes: Callable[[JobSettings], object] | None = None
    """What of its sections must be the same for a run to go on from a stopped one; None: all of them."""

    @property
    def file(self) -> str:
        """The job's own source file."""
        return self.run.__code__.co_filename

    def origin(self, settings: JobSettings, store: Store) -> Origin:
        """What the output would be made from now."""
        inputs = {name: store.require(name).fingerprint for name in self.reads}
        return Origin(self.settings_hash(settings), _code_of(self.file), inputs | self.outside_inputs(settings))

    def settings_hash(self, settings: JobSettings) -> str:
        """Digest of the settings that shape the output."""
        return settings_hash(settings.seed, *(getattr(settings, section) for section in self.sections))

    def scratch_key(self, settings: JobSettings, origin: Origin) -> str:
        """The same for runs that may go on from one another."""
        if self.resumes is None:
            return origin.key
        return replace(origin, settings=settings_hash(settings.seed, self.resumes(settings))).key

    def outside_inputs(self, settings: JobSettings) -> dict[str, str]:
        """Fingerprint of each path read from outside the run; 'missing' where there is nothing."""
        return {name: outside_fingerprint(path) for name, path in self.outside_paths(settings).items()}

    def outside_paths(self, settings: JobSettings) -> dict[str, str]:
        """Each path read from outside the run."""
        paths = self.outside(settings) if self.outside else {}
        return {name: path for name, path in paths.items() if path is not None}

    def missing(self, settings: JobSettings) -> dict[str, str]:
        """Those of them where there is nothing."""
        seen = self.outside_inputs(settings)
        return {name: path for name, path in self.outside_paths(settings).items() if seen[name] == "missing"}


@dataclass
class StageContext:
    """What a stage may touch: earlier outputs, its own output, the record of the run."""

    settings: JobSettings
    store: Store
    writer: StageWriter | None = None
    record: StageRun | None = None
    scratch_key: str | None = None

    @property
    def scratch(self) -> Path:
        """Where this stage keeps checkpoints while it runs; other code, inputs or settings never find them there.

        But for the settings that ``Stage.resumes`` leaves out.
        """
        assert self.scratch_key is not None, "only a running stage keeps checkpoints"
        return self.cache / "training" / f"{self.settings.name}-{self.scratch_key}"

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


def runs_of(settings: JobSettings) -> str:
    """The folder or prefix with a folder per run."""
    return (settings.store.runs or str(home_of(settings) / "runs")).rstrip("/")


def store_of(settings: JobSettings) -> Store:
    """Where this run's tables are."""
    return Store(f"{runs_of(settings)}/{settings.name}")


def tracker_of(settings: JobSettings) -> Tracker:
    """Where this run is recorded."""
    return Tracker(tracking_uri(settings.tracking.uri, home_of(settings)), settings.tracking.experiment)


def current(stage: Stage, settings: JobSettings, store: Store) -> tuple[Origin, Manifest | None]:
    """What ``stage`` would be made from now, and its manifest if its output was made from just that."""
    origin = stage.origin(settings, store)
    store.locate(stage.name, origin)
    known = store.manifest(stage.name)
    return origin, known if known is not None and known.origin == origin else None


def check_stages(stages: Sequence[Stage], settings: JobSettings, store: Store) -> None:
    """Let stages that have no output of these settings yet say what they cannot run, before the first one starts.

    Raises:
        SettingsError: If one cannot.
    """
    for stage in stages:
        known = store.manifest(stage.name)
        is_made = known is not None and known.origin.settings == stage.settings_hash(settings)
        if stage.check and not is_made:
            stage.check(settings)


def run_stages(stages: Sequence[Stage], settings: JobSettings, tracker: Tracker, store: Store, *, parent: str) -> int:
    """Run those of ``stages`` that must be run, in order, as children of one MLflow run; returns how many."""
    ran = 0
    for number, stage in enumerate(stages, start=1):
        logger.info("stage %d of %d", number, len(stages))
        ran += run_stage(stage, settings, tracker, store=store, parent=parent)
    return ran


def run_stage(
    stage: Stage, settings: JobSettings, tracker: Tracker, *, store: Store | None = None, parent: str | None = None
) -> bool:
    """Run ``stage`` unless its published output is made from the same settings, code and inputs.

    Returns:
        Whether it ran; False: skipped.
    """
    store = store or store_of(settings)
    origin, known = current(stage, settings, store)
    if known is not None:
        logger.info("%s: unchanged, skipped (%s)", stage.name, _counts(known))
        return False
    started = time.perf_counter()
    logger.info("%s: started", stage.name)
    commit = commit_of(ROOT)
    record = _record(tracker, stage, settings, origin, parent, commit)
    with store.publish(stage.name, origin, commit=commit) as writer, record as recorded:
        context = StageContext(settings, store, writer, recorded, stage.scratch_key(settings, origin))
        stage.run(settings, context)
        write_atomically(writer.filesystem, f"{writer.root}/{SETTINGS_FILE}", settings.model_dump_json(indent=2) + "\n")
        recorded.log_metrics({"time/seconds": time.perf_counter() - started})
    shutil.rmtree(context.scratch, ignore_errors=True)  # not before: a kill until here goes on from it
    logger.info(
        "%s: done in %.1f s (%s)", stage.name, time.perf_counter() - started, _counts(store.require(stage.name))
    )
    return True


def main(stage: Stage, arguments: Sequence[str] | None = None) -> int:
    """The command line of one stage; returns the exit code."""
    parser = command_line(f"jobs.{stage.name}", sys.modules[stage.run.__module__].__doc__ or "")
    parser.epilog = _place(stage)
    if stage.options:
        stage.options(parser)
    parsed = parser.parse_intermixed_args(arguments)
    return guarded(lambda: _main(stage, parsed))


def command_line(name: str, description: str, *, example: str = "quickstart.toml") -> argparse.ArgumentParser:
    """The arguments all jobs take."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help=f"TOML file, for instance jobs/configs/{example}")
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
        missing = stage.missing(settings)
        for name, path in stage.outside_paths(settings).items():
            print(f"{stage.name} reads {name}: {path!r} ({'is not there' if name in missing else 'is there'})")
        for name in stage.reads:
            state = "finished" if store.manifest(name) else "not there yet"
            for table in TABLES_OF[name]:
                columns = ", ".join(f"{one.name}: {one.type}" for one in table.schema)
                print(f"{stage.name} reads {store.folder(name, table.name)} ({state}): {columns}")


def commit_of(folder: Path) -> str:
    """The git commit of the code, for people; 'unknown' outside a checkout and where there is no git."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True)
    except OSError:
        return "unknown"
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
    if stage.instead and stage.instead(settings, parsed):
        return
    run_stage(stage, settings, tracker_of(settings))
    store = store_of(settings)
    if stage.show:
        stage.show(StageContext(settings, store), parsed)
    logger.info("written to %s", store.folder(stage.name))
    if following := _next(stage):
        logger.info("next: python -m jobs.%s %s", following, shlex.join([parsed.config, *parsed.overrides]))


def _place(stage: Stage) -> str:
    """Where a stage stands on the data's way, for its help."""
    way = " -> ".join(TABLES_OF)
    made = ", ".join(table.name for table in TABLES_OF.get(stage.name, ()))
    reads = f"reads the output of {', '.join(stage.reads)}" if stage.reads else "reads no other stage"
    return f"{way}\n{stage.name} {reads}" + (f"; writes the tables {made}" if made else "")


def _next(stage: Stage) -> str | None:
    """The stage that follows on the data's way, if there is one."""
    return next((after for name, after in pairwise(TABLES_OF) if name == stage.name), None)


def _record(
    tracker: Tracker, stage: Stage, settings: JobSettings, origin: Origin, parent: str | None, commit: str
) -> AbstractContextManager[StageRun]:
    shaping = settings.model_dump(mode="json", include={"seed", *stage.sections})
    name = f"{settings.name}/{stage.name}"
    return tracker.stage_run(
        name, parent, flattened(shaping), origin.inputs, {"commit": commit}, key=settings_hash(name, origin.key)
    )


@cache
def _code_of(file: str) -> str:
    """Hash of a job's sources as they were when first asked for: those this process has loaded."""
    return code_hash(Path(file))


def _counts(manifest: Manifest) -> str:
    return ", ".join(f"{entry['rows']} {name}" for name, entry in manifest.tables.items()) or ", ".join(manifest.files)


def _message(error: BaseException) -> str:
    """The last line of an error that Ray has dressed in a traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].split(": ", 1)[-1] if lines else str(error)
