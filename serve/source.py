"""The finished run that is served: where it is, its adapter, its settings, the weights it learned."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.settings import SETTINGS_FILE, JobSettings
from recranker.data.facts import RatingMeaning, meaning_of
from recranker.data.settings import DataSettings
from recranker.errors import DataError
from recranker.llm.settings import LLMSettings
from recranker.ranking.calibration import Calibrations
from recranker.registry import MODELS, Registry
from recranker.settings import check_settings
from recranker.store import Store
from recranker.tasks.protocol import RatingScale
from recranker.tasks.settings import InstructSettings, TaskName
from recranker.tasks.wording import Templates
from recranker.tracking import tracking_uri
from serve.settings import ServeSettings
from serve.wanted import ModelKey, Wanted

FUSED_ROW = {"recranker": "hybrid", "paper": "hybrid_paper"}
"""Per preset, the row of RANKINGS that is served."""


@dataclass(frozen=True)
class ServedRun:
    """What router and task replicas take from a run; small, so that it travels to each of them."""

    name: str
    uri: str
    tuning: str
    """Fingerprint of the tune stage."""
    seed: int
    llm: LLMSettings
    instruct: InstructSettings
    templates: Templates
    """Those the run was tuned with."""
    data: DataSettings
    meaning: RatingMeaning
    tasks: tuple[TaskName, ...]
    preset: Literal["recranker", "paper"]
    weights: dict[str, float]
    calibrations: Calibrations
    """How scores become probabilities, learned on validation lists."""

    @property
    def key(self) -> ModelKey:
        """What tasks know its model by."""
        return ModelKey(self.uri, self.tuning)

    @property
    def wanted(self) -> Wanted:
        """This run and no other, as a ``user_config``."""
        return Wanted(run=self.uri, tuning=self.tuning)

    @property
    def scale(self) -> RatingScale:
        """The rating scale of the data."""
        return RatingScale(self.meaning.rating_min, self.meaning.rating_max)

    @property
    def adapters(self) -> Path:
        """Local folder of the adapter or adapters.

        Raises:
            DataError: If the run has been tuned again since it was deployed; tasks must not mix two tunings.
        """
        store = Store(self.uri)
        if store.require("tune").fingerprint != self.tuning:
            raise DataError(f"{self.uri}: tuned again since it was deployed; deploy it again")
        return Path(store.folder("tune")) / "adapter"


def read_run(settings: ServeSettings) -> ServedRun:
    """The run that ``settings`` name.

    Raises:
        DataError: If it is not finished, a file of it is broken, or it was tuned again since it was registered.
        SettingsError: If its settings are not those of this version.
        TrackingError: If it is named as a registered model and the registry has no such thing, or cannot be reached.
    """
    return read_wanted(Wanted(run=settings.run), settings)


def read_wanted(wanted: Wanted, settings: ServeSettings) -> ServedRun:
    """The run that ``wanted`` names, whatever it would be otherwise.

    Raises:
        DataError: See ``read_run``, likewise; also if its tuning is not the one wanted.
        SettingsError: Likewise.
        TrackingError: Likewise.
    """
    if not wanted.run.startswith(MODELS):
        return run_at(run_uri(wanted.run, settings.home), wanted.tuning)
    found = Registry(tracking_uri(settings.registry, settings.folder)).find(wanted.run)
    return run_at(found.run, wanted.tuning or found.tuning)


def run_at(uri: str, tuning: str | None = None) -> ServedRun:
    """The run in a folder or under a URI; with the given fingerprint of its tune stage, where there is one.

    Raises:
        DataError: See ``read_wanted``, likewise.
        SettingsError: Likewise.
    """
    store = Store(uri)
    store.require("rank")
    job = check_settings(JobSettings, _json(store, SETTINGS_FILE), where=f"{store.uri}/rank/{SETTINGS_FILE}")
    fusion = _json(store, "fusion/weights.json")
    run = ServedRun(
        name=job.name,
        uri=store.uri,
        tuning=store.require("tune").fingerprint,
        seed=job.seed,
        llm=job.llm,
        instruct=job.instruct,
        templates=_templates(store),
        data=job.data,
        meaning=meaning_of(store.require("prepare").facts),
        tasks=job.tune.tasks,
        preset=fusion["preset"],
        weights=fusion["weights"],
        calibrations=_calibrations(store, FUSED_ROW[fusion["preset"]]),
    )
    if tuning not in (None, run.tuning):
        raise DataError(f"{store.uri}: tuned again since it was chosen; promote it again: python -m jobs.promote RUN")
    return run


def _calibrations(store: Store, served: str) -> Calibrations:
    name = "fusion/calibration.json"
    found = check_settings(Calibrations, _json(store, name), where=f"{store.uri}/rank/{name}")
    if served not in found.rows:
        raise DataError(f"{store.uri}/rank/{name}: needed a calibration of row {served!r}; run jobs.rank again")
    return found


def _templates(store: Store) -> Templates:
    facts = store.require("instruct").facts
    return check_settings(Templates, facts.get("templates", {}), where=f"{store.uri}/instruct (run it again)")


def run_uri(run: str, home: str) -> str:
    """Where a run is: ``run`` as it stands, or a folder under home/runs for a bare name."""
    return run if "/" in run else str(Path(home).expanduser() / "runs" / run)


def _json(store: Store, name: str) -> dict[str, Any]:
    path = f"{store.folder('rank')}/{name}"
    try:
        with store.filesystem.open_input_file(path) as file:
            values = json.loads(file.read())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable: {error}; run it again: python -m jobs.rank CONFIG") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: needed a JSON object, got {type(values).__name__}; run jobs.rank again")
    return values
