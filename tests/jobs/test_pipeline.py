"""The whole way of the data on a toy data set, as a user runs it: whole, again, killed, and with bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recranker.ranking.calibration import Calibrations, apply
from recranker.schema import ANSWERS, RANKINGS, RESULTS
from recranker.store import Store
from tests.jobs.small import ROOT, environment, hashes, job, job_here, write_config

pytestmark = pytest.mark.ray

STAGES = ["prepare", "backbone", "sample", "instruct", "tune", "rank", "evaluate"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of one unbroken run, and what it printed."""
    folder = tmp_path_factory.mktemp("pipeline")
    config = write_config(folder)
    done = job("pipeline", str(config), "--json", str(folder / "results.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def test_tuning_that_cannot_run_is_said_before_the_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = str(write_config(tmp_path))
    done = job_here("pipeline", config, "llm.device=cpu", "tune.offload=optimizer")
    assert done.returncode == 2, done.stderr
    assert "error: tune.offload='optimizer' moves state" in done.stderr
    assert not list((tmp_path / "home").glob("runs/small/*"))


def test_every_stage_publishes_and_the_table_is_printed(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = finished
    assert sorted(hashes(folder / "home")) == sorted(STAGES)
    for row in (
        "backbone",
        "random",
        "oracle",
        "popularity",
        "untuned_listwise",
        "pointwise",
        "hybrid_paper",
        "hybrid",
    ):
        assert row in done.stdout
    assert "make mlflow" in done.stdout
    assert (folder / "home/runs/small/evaluate/plots").glob("*.png")


def test_the_json_holds_the_same_table(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    rows = json.loads((finished[0] / "results.json").read_text())["rows"]
    by_name = {row["row"]: row for row in rows}
    assert all(list(row) == RESULTS.schema.names for row in rows)
    hit_rate = by_name["oracle"]["users_with_hit"] / by_name["oracle"]["users"]
    assert by_name["oracle"]["hr_at_3"] == pytest.approx(hit_rate)
    for row in rows:
        assert row["ndcg_at_3"] <= row["hr_at_3"] <= row["hr_at_5"] <= hit_rate + 1e-9
    assert by_name["backbone"]["difference_low"] == by_name["backbone"]["difference_high"] == 0.0


def test_tuned_rows_come_with_probabilities_and_what_they_were_calibrated_by(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    store = Store(str(finished[0] / "home/runs/small"))
    known = Calibrations.model_validate_json(Path(store.folder("rank", "fusion/calibration.json")).read_text())
    tuned = {"pointwise", "pairwise", "listwise", "hybrid_paper", "hybrid", "hybrid_conventional"}
    assert set(known.rows) == tuned
    for row in store.read("rank", RANKINGS).to_pylist():
        assert (row["probabilities"] is not None) == (row["row"] in tuned)
        if row["row"] in tuned:
            expected = apply(known.rows[row["row"]], np.array(row["scores"]))
            np.testing.assert_allclose(row["probabilities"], expected, atol=1e-6)
    facts = store.require("rank").facts
    assert set(facts["calibration"]) == {f"ece_{row}_{when}" for row in tuned for when in ("before", "after")}
    answers = store.read("rank", ANSWERS)
    assert facts["lists"] == len(set(answers["list_id"].to_pylist()))
    assert facts["cut_history_lines"] == 0


def test_answers_kept_while_ranking_are_dropped_when_they_are_published(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    assert list((finished[0] / "home/cache/training").iterdir()) == []
    assert "lists/s" in finished[1].stderr


def test_a_second_run_skips_everything(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, first = finished
    before = hashes(folder / "home")
    again = job("pipeline", str(folder / "small.toml"))
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stderr.count("unchanged, skipped") == len(STAGES)
    assert hashes(folder / "home") == before
    assert first.stdout.splitlines()[3] in again.stdout


def test_a_changed_setting_reruns_its_stage_and_what_follows(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    done = job("evaluate", str(finished[0] / "small.toml"), "evaluation.bootstrap_samples=300")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "evaluate: started" in done.stderr


def test_prompts_can_be_looked_at(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    done = job("instruct", str(finished[0] / "small.toml"), "--show", "3")
    assert done.stdout.count("===") == 3
    assert "--- listwise" in done.stdout


def kill_in(stage: str, config: Path, home: Path) -> None:
    """Start the pipeline and kill -9 it while ``stage`` has begun and not published."""
    command = [sys.executable, "-m", "jobs.pipeline", str(config)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = subprocess.Popen(command, cwd=ROOT, env=environment(), **quiet)
    partial = home / "runs" / "small" / f".{stage}.partial"
    deadline = time.monotonic() + 240
    while not partial.exists():
        assert running.poll() is None, f"the pipeline ended before stage {stage}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (home / "runs" / "small" / stage / "_manifest.json").exists()


@pytest.mark.slow
def test_killed_in_any_early_stage_the_same_command_gives_the_same_tables(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    unbroken = hashes(finished[0] / "home")
    text = (finished[0] / "small.toml").read_text()
    config = tmp_path / "small.toml"
    config.write_text(text.replace(str(finished[0] / "home"), str(tmp_path / "home")))
    for stage in ("prepare", "sample", "instruct"):
        kill_in(stage, config, tmp_path / "home")
    done = job("instruct", str(config))
    assert done.returncode == 0, done.stderr[-2000:]
    after = hashes(tmp_path / "home")
    assert after == {stage: unbroken[stage] for stage in ("prepare", "backbone", "sample", "instruct")}


def test_one_and_seven_blocks_give_the_same_tables(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = finished
    before = hashes(folder / "home")
    for stage in ("sample", "instruct"):
        (folder / "home/runs/small" / stage / "_manifest.json").unlink()
        done = job(stage, str(folder / "small.toml"), "ray.blocks=7")
        assert done.returncode == 0, done.stderr[-2000:]
    assert hashes(folder / "home") == before
