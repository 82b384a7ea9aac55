"""The finished run that is served: its adapter, its settings, the weights it learned."""

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
from recranker.settings import check_settings
from recranker.store import Store
from recranker.tasks.protocol import RatingScale
from recranker.tasks.settings import InstructSettings, TaskName
from recranker.tasks.wording import Templates
from serve.settings import ServeSettings

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
        DataError: If it is not finished, or a file of it is broken.
        SettingsError: If its settings are not those of this version.
    """
    store = Store(run_uri(settings))
    store.require("rank")
    job = check_settings(JobSettings, _json(store, SETTINGS_FILE), where=f"{store.uri}/rank/{SETTINGS_FILE}")
    fusion = _json(store, "fusion/weights.json")
    return ServedRun(
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


def _calibrations(store: Store, served: str) -> Calibrations:
    name = "fusion/calibration.json"
    found = check_settings(Calibrations, _json(store, name), where=f"{store.uri}/rank/{name}")
    if served not in found.rows:
        raise DataError(f"{store.uri}/rank/{name}: needed a calibration of row {served!r}; run jobs.rank again")
    return found


def _templates(store: Store) -> Templates:
    facts = store.require("instruct").facts
    return check_settings(Templates, facts.get("templates", {}), where=f"{store.uri}/instruct (run it again)")


def run_uri(settings: ServeSettings) -> str:
    """Where the run is: ``settings.run`` as it stands, or a folder under home/runs for a bare name."""
    if "/" in settings.run:
        return settings.run
    return str(Path(settings.home).expanduser() / "runs" / settings.run)


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
