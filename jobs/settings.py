"""Everything one TOML file of ``jobs/configs`` may say; each section lives beside its owner."""

import os
from typing import Any

from pydantic import Field, field_validator, model_validator

from recranker.backbones.settings import BackboneSettings
from recranker.data.settings import DataSettings
from recranker.evaluation.settings import EvaluationSettings
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.ranking.settings import ConventionalSettings, RankingSettings
from recranker.sampling.settings import AdaptiveSampling, SamplingSettings
from recranker.settings import Settings
from recranker.tasks.settings import InstructSettings

SETTINGS_FILE = "settings.json"
"""Beside every stage's tables: the resolved settings it ran under."""


class StoreSettings(Settings):
    """Where everything is kept."""

    home: str = Field(default_factory=lambda: os.environ.get("RECRANKER_HOME", "~/.recranker"))
    """Folder of cache/ (downloads, models), runs/NAME/ (tables) and mlflow.db; RECRANKER_HOME moves the default."""
    runs: str | None = None
    """Folder or object-store URI of the runs, where it shall not be home/runs."""


class TrackingSettings(Settings):
    """Where MLflow keeps runs."""

    uri: str | None = None
    """Tracking server or database; None is the SQLite file mlflow.db in store.home."""
    experiment: str = "recranker"
    """MLflow experiment the runs are filed under."""


class RaySettings(Settings):
    """The Ray cluster a job runs on. A cluster already there (ray job submit, RAY_ADDRESS) is used as it is."""

    cpus: int | None = Field(default=None, ge=1)
    """CPUs of a cluster started for this job; None takes all."""
    object_store_mb: int = Field(default=512, ge=80)
    """Memory of the object store of such a cluster, MB."""
    blocks: int = Field(default=4, ge=1)
    """Blocks a table is cut into for Ray Data; results do not depend on it."""


class TokenizerSettings(Settings):
    """Whose tokens are counted."""

    model: str
    """As in llm.model."""


class JobSettings(Settings):
    """One run, from data to results."""

    name: str
    """Name of the run: its folder under runs/ and its name in MLflow."""
    seed: int = 0
    """Every random number is keyed by it."""
    store: StoreSettings = StoreSettings()
    data: DataSettings
    backbone: BackboneSettings = BackboneSettings()
    conventional: ConventionalSettings = ConventionalSettings()
    sampling: SamplingSettings = AdaptiveSampling()
    instruct: InstructSettings = InstructSettings()
    llm: LLMSettings
    tune: TuneSettings = TuneSettings()
    ranking: RankingSettings = RankingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tracking: TrackingSettings = TrackingSettings()
    ray: RaySettings = RaySettings()

    @model_validator(mode="before")
    @classmethod
    def _is_no_experiment(cls, values: Any) -> Any:
        if isinstance(values, dict) and "base" in values:
            raise ValueError("this is an experiment, so run it with python -m jobs.experiment")
        return values

    @field_validator("name")
    @classmethod
    def _is_a_folders_name(cls, name: str) -> str:
        if not name.strip() or name[0].isspace() or name.startswith(".") or "/" in name or "\\" in name:
            raise ValueError("needed a folder's name, without slashes and with no dot or blank in front")
        return name

    @property
    def tokenizer(self) -> TokenizerSettings:
        """All of section 'llm' that shapes prompts: not how the model is run, only which it is."""
        return TokenizerSettings(model=self.llm.model)
