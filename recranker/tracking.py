"""Runs, settings, data fingerprints, numbers and files in MLflow; the only file that imports it.

MLflow is a witness, never a condition: what cannot be delivered is kept, tried again now and then,
and counted at the end. Runs are written through the client API with explicit ids, so that several
may be open in one process, and nothing depends on MLflow's global state.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from recranker.errors import SettingsError, TrackingError, first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
else:
    MlflowClient = Any

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

SCHEMES = ("http", "https", "sqlite")
MAX_PARAM_CHARACTERS = 6000
"""MLflow's limit for the value of a parameter."""
MAX_TAG_CHARACTERS = 8000
"""MLflow's limit for the value of a tag."""
PARAMS_PER_CALL = 100
"""MLflow's limit for one batch."""
RETRY_AFTER_S = 60.0
"""Wait before an unreachable store is tried again."""
KEY_TAG = "recranker.key"
"""Tag by which a run that did not finish is known again."""
MAX_KEPT = 10_000
"""Calls kept for a store that cannot be reached; later ones are counted and dropped."""
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds; its defaults make a lost server cost minutes per call
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the retrying is done here, between calls
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # a new database tells of a hundred migrations otherwise; errors are told here
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for the results table
}
"""Set before MLflow is imported, where the user has not set them."""


@dataclass
class _Run:
    """A run as far as the store knows it."""

    local_id: str
    id: str | None = None
    """MLflow's id, once the store has been reached."""
    stored: dict[str, int] | None = None
    """Last step of each metric it held when it was taken up; None: it was begun here."""
    is_open: bool = True
    """Whether its block has not ended."""


@dataclass
class _Call:
    """One write, kept until it has been delivered."""

    what: str
    send: Callable[[MlflowClient], None]


@dataclass
class StageRun:
    """An open run: what is logged to it goes to MLflow, or waits until MLflow is there."""

    _tracker: "Tracker"
    _run: _Run

    @property
    def run_id(self) -> str:
        """Key of this run for ``stage_run(parent_id=...)``; MLflow's own id once the store has been reached."""
        return self._run.id or self._run.local_id

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record numbers, at ``step`` where there is one.

        Raises:
            ValueError: If a name holds '@', which MLflow refuses.
        """
        for name in metrics:
            if "@" in name:
                raise ValueError(
                    f"metric name {name!r} holds '@', which MLflow refuses; write {name.replace('@', '_at_')!r}"
                )
        now = _now_ms()

        def send(client: MlflowClient) -> None:
            from mlflow.entities import Metric

            known = self._run.stored or {}
            fresh = {name: value for name, value in metrics.items() if step is None or step > known.get(name, -1)}
            values = [Metric(name, float(value), now, step or 0) for name, value in fresh.items()]
            client.log_batch(self._known_id(), metrics=values)

        self._tracker._write(f"metrics {', '.join(metrics)}", send)

    def log_artifact(self, path: Path) -> None:
        """Record a file."""
        self._tracker._write(f"file {path.name}", lambda client: client.log_artifact(self._known_id(), str(path)))

    def log_artifacts(self, folder: Path) -> None:
        """Record a folder with all in it, under its own name."""
        self._tracker._write(
            f"folder {folder.name}", lambda client: client.log_artifacts(self._known_id(), str(folder), folder.name)
        )

    def _known_id(self) -> str:
        if self._run.id is None:
            raise LookupError("the run itself could not be recorded")
        return self._run.id


@dataclass
class Tracker:
    """One MLflow experiment in one store.

    Args:
        uri: A server (``http://...``) or a local database (``sqlite:////home/me/mlflow.db``).
        experiment: Name of the experiment; created where it is missing. In a SQLite store its files
            go to ``mlflow-artifacts`` beside the database.

    Raises:
        SettingsError: If ``uri`` is neither; a team shares a database through a server.
    """

    uri: str
    experiment: str
    _kept: list[_Call] = field(default_factory=list, init=False)
    _runs: dict[str, _Run] = field(default_factory=dict, init=False)
    _client: MlflowClient | None = field(default=None, init=False)
    _experiment_id: str = field(default="", init=False)
    _retry_at: float = field(default=0.0, init=False)
    _dropped: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _check_uri(self.uri)

    @contextmanager
    def pipeline_run(
        self,
        name: str,
        params: dict[str, Any],
        tags: dict[str, str] | None = None,
        *,
        parent_id: str | None = None,
        key: str | None = None,
    ) -> Iterator[StageRun]:
        """An open run that stage runs may name as their parent; itself under ``parent_id`` where it is one of many.

        A run under the same ``key`` that failed, or whose process was killed, is taken up.
        """
        with self._run(name, params, {**(tags or {}), **_parent_tag(parent_id)}, key) as run:
            yield run

    @contextmanager
    def stage_run(
        self,
        name: str,
        parent_id: str | None,
        params: dict[str, Any],
        fingerprints: dict[str, str],
        tags: dict[str, str] | None = None,
        *,
        key: str | None = None,
    ) -> Iterator[StageRun]:
        """An open run under ``parent_id``, with the fingerprint of each stage it reads as a data set input.

        A run under the same ``key`` that failed, or whose process was killed, is taken up, and steps it holds are not
        recorded twice.
        """
        with self._run(name, params, {**(tags or {}), **_parent_tag(parent_id)}, key) as run:
            if fingerprints:
                self._write("data fingerprints", lambda client: _log_inputs(client, run._known_id(), fingerprints))
            yield run

    @contextmanager
    def _run(self, name: str, params: dict[str, Any], tags: dict[str, str], key: str | None) -> Iterator[StageRun]:
        """A run whose status tells how the block ended: FINISHED, FAILED, or KILLED by an interrupt."""
        run = StageRun(self, _Run(f"pending-{uuid4().hex}"))
        self._runs[run.run_id] = run._run
        self._create(run._run, name, params, tags, key)
        status = "KILLED"
        try:
            yield run
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            self._end(run, status)

    def _create(self, run: _Run, name: str, params: dict[str, Any], tags: dict[str, str], key: str | None) -> None:
        started = _now_ms()

        def create(client: MlflowClient) -> None:
            known = {tag: _cut(self._resolved(value), MAX_TAG_CHARACTERS) for tag, value in tags.items()}
            if key is not None:
                known[KEY_TAG] = key
                if self._take_up(run, client, key, known):
                    return
            made = client.create_run(self._experiment_id, start_time=started, tags=known, run_name=name)
            run.id = made.info.run_id

        self._write(f"run {name}", create)
        pairs = [(key, _cut(str(value), MAX_PARAM_CHARACTERS)) for key, value in params.items()]
        for start in range(0, len(pairs), PARAMS_PER_CALL):
            self._write("settings", _params_call(run, pairs[start : start + PARAMS_PER_CALL]))

    def _take_up(self, run: _Run, client: MlflowClient, key: str, tags: dict[str, str]) -> bool:
        """Go on with the newest run of the same key that did not finish, if there is one."""
        query = f"attributes.status != 'FINISHED' AND tags.`{KEY_TAG}` = '{key}'"
        newest = ["attributes.start_time DESC"]
        left = client.search_runs([self._experiment_id], query, max_results=1, order_by=newest)
        mine = {one.id for one in self._runs.values() if one.is_open}
        if not left or left[0].info.run_id in mine:
            return False
        run.id = left[0].info.run_id
        client.update_run(run.id, status="RUNNING")
        run.stored = {name: client.get_metric_history(run.id, name)[-1].step for name in left[0].data.metrics}
        for tag, value in tags.items():
            client.set_tag(run.id, tag, value)
        logger.info("MLflow run %s was left unfinished; this goes on with it", run.id)
        return True

    def _end(self, run: StageRun, status: str) -> None:
        ended = _now_ms()
        run._run.is_open = False
        self._write(f"end of run, {status}", lambda client: client.set_terminated(run._known_id(), status, ended))
        if not any(one.is_open for one in self._runs.values()):
            self._finish()

    def _resolved(self, value: str) -> str:
        """MLflow's id where ``value`` is the key of a run that was opened before the store was reached."""
        run = self._runs.get(value)
        return run.id if run is not None and run.id else value

    def _write(self, what: str, send: Callable[[MlflowClient], None]) -> None:
        """Deliver now if the store can be reached, keep otherwise; never raises for the store's sake."""
        if len(self._kept) >= MAX_KEPT:
            self._dropped += 1
            return
        self._kept.append(_Call(what, send))
        if time.monotonic() >= self._retry_at:
            self._deliver()

    def _deliver(self) -> None:
        errors = _errors_of_the_store()
        try:
            client = self._connected()
        except errors as error:
            self._postpone(error)
            return
        while self._kept:
            try:
                self._kept[0].send(client)
            except errors as error:
                if not _is_final(error):
                    self._postpone(error)
                    return
                self._drop(self._kept[0], error)
            self._kept.pop(0)
        if self._retry_at:
            self._retry_at = 0.0
            logger.info("MLflow at %s is reached again, nothing is waiting", self.uri)

    def _postpone(self, error: Exception) -> None:
        if not self._retry_at:
            logger.warning("MLflow at %s cannot be used, going on without it: %s", self.uri, _reason(error))
        self._retry_at = time.monotonic() + RETRY_AFTER_S

    def _drop(self, call: _Call, error: Exception) -> None:
        if not self._dropped:
            logger.warning("MLflow at %s did not take %s: %s", self.uri, call.what, _reason(error))
        self._dropped += 1

    def _finish(self) -> None:
        """A last try for what is still kept, then one line on what was lost."""
        if self._kept:
            self._deliver()
        lost = len(self._kept) + self._dropped
        if lost:
            logger.warning("MLflow: %d entries were not recorded at %s; all results are in the store", lost, self.uri)
        self._kept.clear()
        self._dropped = 0

    def _connected(self) -> MlflowClient:
        if self._client is None:
            client = _client_for(self.uri)
            self._experiment_id = _experiment_id(client, self.experiment, _artifact_root(self.uri))
            self._client = client
        return self._client


def tracking_uri(uri: str | None, home: Path) -> str:
    """The store that a setting names, or the database in the folder everything is kept in."""
    return uri or f"sqlite:///{home / 'mlflow.db'}"


def ask(uri: str, call: Callable[[MlflowClient], Answer], *, create: bool = False) -> Answer:
    """What ``call`` finds in the store at ``uri``, now; for what cannot wait until the store is there again.

    Args:
        uri: As ``Tracker`` takes it.
        call: Given a client; may ask for several things.
        create: Whether a SQLite database that is missing is made.

    Raises:
        TrackingError: If the store cannot be reached, or refuses.
        SettingsError: If ``uri`` is no store.
    """
    _check_uri(uri)
    path = _sqlite_path(uri)
    if path is not None and not path.exists() and not create:
        raise TrackingError(f"MLflow: no database at {path}; nothing has been registered there yet")
    errors = _errors_of_the_store()
    try:
        return call(_client_for(uri))
    except errors as error:
        raise TrackingError(f"MLflow at {uri} cannot be used, nothing was changed: {_reason(error)}") from None


def _check_uri(uri: str) -> None:
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in SCHEMES:
        raise SettingsError(f"tracking.uri must begin with one of {', '.join(SCHEMES)}, got {uri!r}")


def _errors_of_the_store() -> tuple[type[Exception], ...]:
    """What a call may raise for reasons that are not ours; imports MLflow, in the environment it needs."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError, LookupError)


def _client_for(uri: str) -> MlflowClient:
    path = _sqlite_path(uri)
    if path is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("creating the MLflow database %s, once; this takes some seconds", path)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment_id(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """Id of the experiment, made where it is missing."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # another job may have made it in between
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _parent_tag(parent_id: str | None) -> dict[str, str]:
    return {} if parent_id is None else {"mlflow.parentRunId": parent_id}


def metric_name(text: str) -> str:
    """``text`` with what MLflow refuses in the name of a metric or parameter replaced."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", text)


def _log_inputs(client: MlflowClient, run_id: str, fingerprints: dict[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(stage, digest[:36], source_type="recranker", source=f"stage {stage}"),
            [InputTag("mlflow.data.context", "input")],
        )
        for stage, digest in fingerprints.items()
    ]
    client.log_inputs(run_id, datasets=inputs)


def _params_call(run: _Run, pairs: list[tuple[str, str]]) -> Callable[[MlflowClient], None]:
    def send(client: MlflowClient) -> None:
        from mlflow.entities import Param

        if run.id is None:
            raise LookupError("the run itself could not be recorded")
        client.log_batch(run.id, params=[Param(key, value) for key, value in pairs])

    return send


def _is_final(error: Exception) -> bool:
    """Whether trying again cannot help: the store answered no, or the file is gone."""
    if isinstance(error, (FileNotFoundError, LookupError)):
        return True
    status = getattr(error, "get_http_status_code", lambda: 503)()
    return 400 <= status < 500 and status not in (408, 429)


def _artifact_root(uri: str) -> str | None:
    """Folder beside a SQLite database; None leaves it to the server."""
    path = _sqlite_path(uri)
    return None if path is None else (path.parent / "mlflow-artifacts").as_uri()


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _reason(error: BaseException) -> str:
    """The first line of what lies at the bottom of an error that several libraries have wrapped."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return first_line(error)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
