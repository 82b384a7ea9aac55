"""Who is measured: each system with each model, under the shared settings and under its own defaults."""

from dataclasses import dataclass
from typing import Any

from jobs.benchmarks.settings import BackbonesBenchmark
from recranker.backbones.settings import LightGCNSettings, MFSettings

OURS, RECBOLE, IMPLICIT = "recranker", "recbole", "implicit"
SAME, OWN = "same", "own"
DEFAULTS = {"lightgcn": LightGCNSettings(), "mf": MFSettings()}


@dataclass(frozen=True)
class Contestant:
    """One system with one model and one set of settings."""

    system: str
    """The worker is the module 'of_' and this."""
    model: str
    """'lightgcn' or 'mf'."""
    settings: str
    """'same': those all systems share; 'own': the system's defaults."""
    values: dict[str, Any]
    """What differs from the system's defaults, by recranker's names."""
    epochs: int
    threads: int

    def __str__(self) -> str:
        return f"{self.system} {self.model} ({self.settings} settings, {self.threads} thread{'s'[: self.threads - 1]})"


def contestants(settings: BackbonesBenchmark, threads: int) -> list[Contestant]:
    """Who trains with so many threads, in order."""
    found = []
    for model in settings.models:
        shared = shared_settings(settings, model)
        found += [Contestant(system, model, SAME, shared, settings.epochs, threads) for system in (OURS, RECBOLE)]
        if settings.own_defaults:
            found.append(Contestant(OURS, model, OWN, {}, DEFAULTS[model].epochs, threads))
    if "mf" in settings.models:
        found.append(Contestant(IMPLICIT, "mf", OWN, {"dim": settings.dim}, settings.epochs, threads))
    return found


def shared_settings(settings: BackbonesBenchmark, model: str) -> dict[str, Any]:
    """By recranker's names. RecBole's BPR has no L2 term, so MF is compared without."""
    values = settings.model_dump(include={"dim", "learning_rate", "batch_size"})
    if model == "lightgcn":
        return values | {"layers": settings.layers, "l2": settings.l2}
    return values | {"l2": 0.0}
