"""What a run must show before it may become champion, and what is recorded of it then."""

import logging
from dataclasses import dataclass
from pathlib import Path

from recranker.errors import DataError, RecrankerError, first_line
from recranker.evaluation.promotion import Duel, duel
from recranker.registry import TUNING, Version
from recranker.schema import CANDIDATES, RANKINGS
from recranker.store import Store
from recranker.tasks.settings import TaskName
from serve.models import verified_model
from serve.replica_sets import adapters_of
from serve.source import FUSED_ROW, ServedRun, run_at

logger = logging.getLogger("recranker.jobs")

DATA = ("prepare", "backbone")
"""Stages whose output two runs must share to be compared."""
SAMPLES = 10_000
"""Bootstrap resamples behind the interval."""


@dataclass(frozen=True)
class Rules:
    """How strict the checks are."""

    max_calibration_error: float = 0.1
    """Cross-validated expected calibration error on validation lists, at the most."""
    accept_equal: bool = False
    """Whether an interval that holds 0 will do."""
    force: str | None = None
    """Why the run is not compared with the champion; None compares."""


@dataclass(frozen=True)
class Passed:
    """What was found."""

    calibration_error: float
    duel: Duel | None
    """None where there is no champion, or no comparison was wanted."""
    adapters: tuple[str, ...]
    """Whose golden answers were reproduced."""


def check(run: ServedRun, champion: Version | None, rules: Rules, cache: Path) -> Passed:
    """What the checks found; the costly one, a fresh load of every adapter, comes last.

    Args:
        run: A finished run.
        champion: Present champion; None where there is none.
        rules: How strict to be.
        cache: Keeps converted base models.

    Raises:
        RecrankerError: If the run must not become champion; says why, and the way out.
    """
    error = _calibration_error(run, rules.max_calibration_error)
    found = None
    if champion is not None and rules.force is None:
        found = _against(champion, run)
        _judge(found, champion, rules)
    return Passed(error, found, _reproduce_golden_answers(run, cache))


def is_same(run: ServedRun, version: Version) -> bool:
    """Whether ``version`` is ``run`` as it is now."""
    return version.run == run.uri and fingerprints(run).items() <= version.tags.items()


def record(run: ServedRun, passed: Passed, champion: Version | None, rules: Rules) -> dict[str, str]:
    """The tags of the version that ``run`` becomes."""
    tags = {**fingerprints(run), "name": run.name, "calibration_error": f"{passed.calibration_error:.4f}"}
    if champion is not None:
        tags["against"] = champion.uri
    if passed.duel is not None:
        tags["compared"] = str(passed.duel)
    if rules.force is not None:
        tags["forced"] = rules.force
    return tags


def fingerprints(run: ServedRun) -> dict[str, str]:
    """Of the stages that shape what is served."""
    store = Store(run.uri)
    return {**{stage: store.require(stage).fingerprint for stage in (*DATA, "tune", "rank")}, TUNING: run.tuning}


def _against(champion: Version, run: ServedRun) -> Duel:
    """The run beside the champion, on the validation lists both ranked."""
    nevertheless = "--force REASON promotes without the comparison"
    if champion.run == run.uri and champion.tuning != run.tuning:
        raise DataError(
            f"{run.uri} was tuned again since it became champion, so nothing is left to compare with; give runs names "
            f"of their own (name=...); {nevertheless}"
        )
    ours = Store(run.uri)
    changed = [stage for stage in DATA if ours.require(stage).fingerprint != champion.tags.get(stage)]
    if changed:
        raise DataError(
            f"{run.name}: the champion {champion.uri} was made on another output of stage '{changed[0]}', so their "
            f"validation lists differ; give this data a model of its own (--name NAME), or {nevertheless}"
        )
    try:
        theirs = run_at(champion.run, champion.tuning)
        sides = [(Store(one.uri).read("rank", RANKINGS), FUSED_ROW[one.preset]) for one in (run, theirs)]
    except RecrankerError as error:
        raise DataError(f"cannot compare with {champion.uri}: {first_line(error)}; {nevertheless}") from None
    return duel(sides[0], sides[1], ours.read("backbone", CANDIDATES), samples=SAMPLES, seed=run.seed)


def _judge(found: Duel, champion: Version, rules: Rules) -> None:
    if found.verdict == "worse":
        raise DataError(f"not promoted, worse than {champion.uri}: {found}; --force REASON promotes it nevertheless")
    if found.verdict == "equal" and not rules.accept_equal:
        raise DataError(f"not promoted, no better than {champion.uri}: {found}; --accept-equal takes that")


def _calibration_error(run: ServedRun, limit: float) -> float:
    """Of the served row, cross-validated."""
    row, facts = FUSED_ROW[run.preset], Store(run.uri).require("rank").facts
    found = facts.get("calibration", {}).get(f"ece_{row}_after")
    if found is None:
        raise DataError(
            f"{run.uri}/rank: no calibration error of row '{row}', which takes two validation lists; raise "
            "ranking.max_validation_lists and run jobs.rank again"
        )
    if not found <= limit:
        raise DataError(
            f"not promoted, its probabilities miss by {found:.3f} on validation lists, allowed {limit:g}: raise "
            "ranking.max_validation_lists, try ranking.calibration=isotonic, or set --max-calibration-error"
        )
    return float(found)


def _reproduce_golden_answers(run: ServedRun, cache: Path) -> tuple[str, ...]:
    """Load every adapter once; returns their names."""
    tasks: dict[str, TaskName] = {adapter.name: task for task, adapter in adapters_of(run).items()}
    for task in tasks.values():
        verified_model(task, run, cache)
    return tuple(sorted(tasks))
