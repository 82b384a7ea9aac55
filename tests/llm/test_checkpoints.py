import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from recranker.errors import OutputError
from recranker.llm.checkpoints import ABANDONED_S, MANIFEST, PROGRESS, STATE, Checkpoints, TrainingState
from recranker.llm.reports import Look, Progress, StepReport

REPORT = StepReport(
    step=1,
    loss=0.5,
    learning_rate=1e-3,
    tokens=10,
    step_tokens=10,
    task_losses={"pointwise": 0.5},
    prompt_ids=("train/0", "train/1"),
    questions=3,
    gradient_norm=1.5,
    seconds=0.1,
    memory_gb=1.0,
)


def state(number: float) -> TrainingState:
    parts = [{"a.lora_A": torch.full((2, 3), number + part), "b": torch.tensor([number])} for part in range(3)]
    return TrainingState(*parts)


def progress(steps: int, *looks: Look) -> Progress:
    return Progress(reports=tuple(replace(REPORT, step=step) for step in range(1, steps + 1)), looks=looks)


def written(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.write(state(step), progress(step))
    return checkpoints


def test_what_was_written_comes_back_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.newest() is None
    assert checkpoints.latest_step == 0
    told = progress(7, Look(7, 0.25))
    checkpoints.write(state(7.0), told)
    found = checkpoints.newest()
    assert found is not None
    assert found == told
    assert checkpoints.latest_step == found.step == 7
    for part in ("weights", "first_moments", "second_moments"):
        wanted, came = getattr(state(7.0), part), getattr(checkpoints.at(7), part)
        assert wanted.keys() == came.keys()
        assert all(torch.equal(wanted[name], came[name]) for name in wanted)


def test_the_two_newest_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    looks: list[Look] = []
    for step, gain in ((2, 0.1), (4, 0.3), (6, 0.2), (8, 0.2), (10, 0.1)):
        looks.append(Look(step, gain))
        checkpoints.write(state(step), progress(step, *looks))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000008", "step-00000010"]
    assert checkpoints.at(4).weights["b"].item() == 4.0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_first(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", [STATE, PROGRESS, MANIFEST])
@pytest.mark.parametrize("damage", [cut, flip_first, empty, Path.unlink])
def test_a_broken_checkpoint_is_set_aside_and_the_one_before_counts(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = written(tmp_path, 3, 6)
    damage(tmp_path / "step-00000006" / name)
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 3
    assert (tmp_path / "step-00000006.broken").is_dir()
    assert "a checkpoint is broken, training goes on from the one before it" in caplog.text
    checkpoints.write(state(6.0), progress(6))
    again = checkpoints.newest()
    assert again is not None
    assert again.step == 6


def with_looks(folder: Path, *gains: float) -> Checkpoints:
    """Checkpoints after steps 2, 4, ..., each looked at."""
    looks = [Look(2 * number, gain) for number, gain in enumerate(gains, start=1)]
    for number, look in enumerate(looks, start=1):
        Checkpoints(folder).write(state(look.step), progress(look.step, *looks[:number]))
    return Checkpoints(folder)


def test_a_broken_best_is_set_aside_and_the_best_of_those_that_are_there_takes_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = with_looks(tmp_path, 0.5, 0.4, 0.3, 0.1)  # the second is there no more
    flip_first(tmp_path / "step-00000002" / STATE)
    found = checkpoints.newest()
    assert found is not None
    assert (found.step, found.best, found.lost) == (8, Look(6, 0.3), (2, 4))
    assert (tmp_path / "step-00000002.broken").is_dir()
    assert "validation's best look, after step 2, is lost; that after step 6 takes its place" in caplog.text
    more = Progress(reports=progress(10).reports, looks=(*found.looks, Look(10, 0.2)), lost=found.lost)
    checkpoints.write(state(10.0), more)
    again = checkpoints.newest()
    assert again == more
    assert checkpoints.at(6).weights["b"].item() == 6.0  # kept as the best now


def test_the_newest_takes_the_place_of_a_best_that_left_no_other_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = with_looks(tmp_path, 0.5)
    checkpoints.write(state(3.0), progress(3, Look(2, 0.5)))
    (tmp_path / "step-00000002" / MANIFEST).unlink()
    found = checkpoints.newest()
    assert found is not None
    assert (found.step, found.best, found.lost) == (3, None, (2,))
    assert "after step 2, is lost; that after step 3 takes its place, unless a later look is better" in caplog.text


def test_a_best_that_verifies_stays_the_best(tmp_path: Path) -> None:
    found = with_looks(tmp_path, 0.5, 0.4, 0.3, 0.1).newest()
    assert found is not None
    assert (found.best, found.lost) == (Look(2, 0.5), ())


def test_progress_of_another_version_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 3)
    path = tmp_path / "step-00000003" / PROGRESS
    path.write_text(json.dumps({**json.loads(path.read_text()), "more": 1}))
    manifest = tmp_path / "step-00000003" / MANIFEST
    digests = json.loads(manifest.read_text()) | {PROGRESS: hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(digests))
    assert checkpoints.newest() is None


def test_a_checkpoint_left_half_written_is_nobodys_and_goes_in_time(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 3)
    old, young = tmp_path / ".step-00000009.aa.partial", tmp_path / ".step-00000009.bb.partial"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, time.time() - ABANDONED_S - 1))
    assert checkpoints.latest_step == 3
    checkpoints.write(state(6.0), progress(6))
    assert not old.exists()
    assert young.exists()  # somebody may be writing it


def test_a_repeated_step_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 3)
    checkpoints.write(state(30.0), progress(3))
    assert checkpoints.at(3).weights["b"].item() == 30.0


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot keep a checkpoint in '.*file/below': Not a directory; free some"):
        Checkpoints(tmp_path / "file" / "below").write(state(1.0), progress(1))


def test_a_disk_that_fills_up_is_named_and_what_was_half_written_gives_its_space_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = written(tmp_path, 3)

    def fill(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("recranker.llm.checkpoints.save_file", fill)
    with pytest.raises(OutputError, match=rf"checkpoint in '{tmp_path}': .*No space left.*; free some space or set"):
        checkpoints.write(state(6.0), progress(6))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
