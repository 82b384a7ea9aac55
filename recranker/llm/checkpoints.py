"""Checkpoints of a training: whole or not there, verified before use, the same for any number of workers.

A checkpoint is a folder ``step-00000020`` that holds the adapter and AdamW's moments, one tensor per weight however
many workers share them, and the record of all steps up to it. No random state is in it: order, dropout and start are
keyed by seed and step. It is written beside its place, with the SHA-256 of each file, brought to disk, and moved; one
that does not verify is set aside as ``.broken`` and the one before it counts.
"""

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recranker.errors import ModelError, not_written
from recranker.llm.reports import Progress

logger = logging.getLogger(__name__)

STATE = "state.safetensors"
PROGRESS = "progress.json"
MANIFEST = "manifest.json"
PARTS = ("weights", "first_moments", "second_moments")
KEPT = 2
"""Newest checkpoints that stay; the best one stays as well."""
ABANDONED_S = 600.0
"""Nobody writes one checkpoint for so long: what is older was left by a kill."""


@dataclass(frozen=True)
class TrainingState:
    """What the next step depends on, whole: no worker's share of anything."""

    weights: dict[str, Tensor]
    """Of the adapter, by parameter name."""
    first_moments: dict[str, Tensor]
    """AdamW's running mean of each weight's gradient, shaped like it."""
    second_moments: dict[str, Tensor]
    """AdamW's running mean of its square."""


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: On a filesystem that all workers share; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, state: TrainingState, progress: Progress) -> None:
        """Keep ``state`` after the last step of ``progress``, and remove what is older than needed.

        Raises:
            OutputError: If it cannot be written.
        """
        place = self._place(progress.step)
        partial = self.folder / f".{place.name}.{uuid.uuid4().hex}.partial"
        try:
            partial.mkdir(parents=True)
            save_file(_flat(state), partial / STATE)
            (partial / PROGRESS).write_text(progress.model_dump_json() + "\n", encoding="utf-8")
            digests = {name: _sha256(partial / name) for name in (STATE, PROGRESS)}
            (partial / MANIFEST).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
            _to_disk(partial)
            _set_aside(place, ".replaced")  # a step that was repeated
            partial.rename(place)
            _sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)  # on a full disk the next try needs its space
            raise not_written(f"cannot keep a checkpoint in {str(self.folder)!r}", error) from None
        self._prune(progress)

    def newest(self, say: Callable[[str], None] = logger.warning) -> Progress | None:
        """How far the latest checkpoint that verifies has come; None where there is none.

        Where validation's best adapter is gone or does not verify, the best of those that do takes its place.

        Args:
            say: Told in a line of each checkpoint that is broken, and of a best adapter lost.
        """
        for place in reversed(self._places()):
            progress = _verified(place, say, "training goes on from the one before it")
            if progress is not None:
                return self._with_best(progress, say)
        return None

    def at(self, step: int) -> TrainingState:
        """The checkpoint after ``step``.

        Raises:
            ModelError: If it is not there, or does not verify.
        """
        place = self._place(step)
        _verify(place)
        try:
            return _unflat(load_file(place / STATE))
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(f"{place}: not readable: {error}") from None

    @property
    def latest_step(self) -> int:
        """Step of the latest checkpoint, verified or not; 0: there is none."""
        return max((int(place.name.removeprefix("step-")) for place in self._places()), default=0)

    def _places(self) -> list[Path]:
        return sorted(self.folder.glob("step-*[0-9]"))

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _with_best(self, progress: Progress, say: Callable[[str], None]) -> Progress:
        """``progress`` with the best look of those whose adapter is there; that of its last step is known to be."""

        def is_whole(step: int) -> bool:
            place = self._place(step)
            return step == progress.step or (place.exists() and _verified(place, say, "it counts no more") is not None)

        best = progress.best
        if best is None or is_whole(best.step):
            return progress
        lost = tuple(look.step for look in progress.looks if not is_whole(look.step))
        found = progress.model_copy(update={"lost": lost})
        now = found.best.step if found.best else progress.step
        say(
            f"the adapter of validation's best look, after step {best.step}, is lost; that after step {now} takes its "
            "place, unless a later look is better"
        )
        return found

    def _prune(self, progress: Progress) -> None:
        places = self._places()
        kept = {*places[-KEPT:], *([self._place(progress.best.step)] if progress.best else [])}
        for place in places:
            if place not in kept:
                shutil.rmtree(place, ignore_errors=True)
        for rest in [*self.folder.glob(".step-*.partial"), *self.folder.glob("step-*.replaced")]:
            if _age_s(rest) > ABANDONED_S:
                shutil.rmtree(rest, ignore_errors=True)


def _verify(place: Path) -> Progress:
    """What a checkpoint tells of its steps, once all its files are known to be those that were written.

    Raises:
        ModelError: If one is not.
    """
    try:
        wanted = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        for name in (STATE, PROGRESS):
            if _sha256(place / name) != wanted[name]:
                raise ModelError(f"{place / name}: not the file that was written")
        return Progress.model_validate_json((place / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        first = "other entries than this version writes" if isinstance(error, ValidationError) else error
        raise ModelError(f"{place}: not readable: {first}") from None


def _verified(place: Path, say: Callable[[str], None], otherwise: str) -> Progress | None:
    """As ``_verify``; a checkpoint that does not is set aside, ``say`` is told, and nothing returned."""
    try:
        return _verify(place)
    except ModelError as error:
        aside = _set_aside(place, ".broken")
        say(f"a checkpoint is broken, {otherwise}: {error}; kept as {aside}")
        return None


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:  # gone meanwhile
        return 0.0


def _flat(state: TrainingState) -> dict[str, Tensor]:
    return {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part in PARTS
        for name, tensor in getattr(state, part).items()
    }


def _unflat(tensors: Mapping[str, Tensor]) -> TrainingState:
    found: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        found[part][name] = tensor
    return TrainingState(**found)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(folder: Path) -> None:
    for path in folder.iterdir():
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _set_aside(place: Path, ending: str) -> Path | None:
    """Rename a folder, if it is there, so that nobody takes it for a checkpoint; returns its new place."""
    if not place.exists():
        return None
    aside = place.with_name(f"{place.name}{ending}")
    shutil.rmtree(aside, ignore_errors=True)
    return place.rename(aside)
