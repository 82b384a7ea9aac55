"""Tuning under kill -9: of a worker, of the controller over them, of the driver, of the whole cluster."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from mlflow import MlflowClient
from numpy.random import Generator
from safetensors.torch import load_file

from recranker.llm.checkpoints import Checkpoints
from recranker.schema import TRAINING_LOG
from recranker.store import Store
from tests.jobs.small import ROOT, environment, job, write_config

STEPS = 150
INTERVAL = 10
KILLS = 5
"""Per kind of process: twenty in all."""
LONGEST_S = 0.6
"""Between a checkpoint and the kill: about as long as it takes to the next one."""
OVERRIDES = (
    "tune.epochs=50",
    f"tune.checkpoint_steps={INTERVAL}",
    "tune.workers=2",
    "tune.warmup_steps=5",
    "tune.max_failures=5",  # moments may lie so close that nothing new is kept between two kills
)
WEIGHTS = "runs/small/tune/adapter/joint/adapter_model.safetensors"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is finished up to its prompts, and has been tuned once without a kill."""
    folder = tmp_path_factory.mktemp("run")
    written = write_config(folder)
    for stage in ("prepare", "backbone", "sample", "instruct"):
        assert job(stage, str(written)).returncode == 0
    assert job("tune", str(written), *OVERRIDES).returncode == 0
    return written


def outcome(home: Path) -> tuple[pa.Table, dict[str, torch.Tensor]]:
    """The log of all steps, and the adapter."""
    return Store(str(home / "runs" / "small")).read("tune", TRAINING_LOG), load_file(home / WEIGHTS)


def named(part: str) -> Callable[[psutil.Process], list[psutil.Process]]:
    """Finds processes below the driver by a part of their title."""
    return lambda driver: [one for one in driver.children(recursive=True) if part in _title(one)][:1]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


VICTIMS: dict[str, Callable[[psutil.Process], list[psutil.Process]]] = {
    "worker": named("RayTrainW"),
    "controller": named("TrainController"),
    "driver": lambda driver: [driver],
    "cluster": lambda driver: driver.children(recursive=True),
}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("victim", list(VICTIMS))
def test_killed_training_ends_as_the_unbroken_one(config: Path, tmp_path: Path, victim: str) -> None:
    home = config.parent / "home"
    log, adapter = outcome(home)
    (home / "runs" / "small" / "tune" / "_manifest.json").unlink()
    random = np.random.default_rng(list(VICTIMS).index(victim))
    moments = sorted(random.choice(np.arange(1, STEPS - INTERVAL), KILLS, replace=False).tolist())
    said, runs = "", 0
    while moments or not runs:
        code, output, moments = _run(config, VICTIMS[victim], moments, random)
        said, runs = said + output, runs + 1
    if code != 0:
        code, output, _ = _run(config, VICTIMS[victim], [], random)
    assert code == 0, said + output
    again, weights = outcome(home)
    for name in ("step", "prompt_ids", "tokens", "learning_rate"):
        assert again[name] == log[name]
    np.testing.assert_allclose(again["loss"], log["loss"], atol=1e-6)
    for name, weight in adapter.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=0)
    lost = re.findall(r"lost after step (\d+), it goes on behind step (\d+)", said)
    assert all(int(after) - int(behind) <= INTERVAL for after, behind in lost)
    assert (len(lost), runs) == (KILLS, 1) or (victim in ("driver", "cluster") and runs >= KILLS)
    if victim in ("driver", "cluster"):  # the same command goes on, rather than beginning anew
        assert re.search(r"training goes on behind step [1-9]", said)
    assert steps_recorded(home) == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.ray
def test_after_a_lost_driver_tuning_goes_on_with_another_number_of_workers(config: Path) -> None:
    home = config.parent / "home"
    log, adapter = outcome(home)
    (home / "runs" / "small" / "tune" / "_manifest.json").unlink()
    _run(config, VICTIMS["driver"], [2 * INTERVAL], np.random.default_rng(0))
    done = job("tune", str(config), *OVERRIDES, "tune.workers=1")
    assert done.returncode == 0, done.stderr
    behind = re.findall(rf"adapter joint: training goes on behind step (\d+) of {STEPS}\n", done.stderr)
    assert len(behind) == 1
    assert 2 * INTERVAL <= int(behind[0]) < STEPS
    again, weights = outcome(home)
    np.testing.assert_allclose(again["loss"], log["loss"], atol=1e-4)
    for name, weight in adapter.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-4, rtol=0)


def steps_recorded(home: Path) -> list[int]:
    """Steps whose loss the newest MLflow run of the stage holds; none of them is left open."""
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    newest_first = ["attributes.start_time DESC"]
    found = client.search_runs(experiments, "attributes.run_name = 'small/tune'", order_by=newest_first)
    assert {one.info.status for one in found} == {"FINISHED"}
    return [one.step for one in client.get_metric_history(found[0].info.run_id, "tune/joint/loss")]


def _run(
    config: Path, choose: Callable[[psutil.Process], list[psutil.Process]], moments: list[int], random: Generator
) -> tuple[int, str, list[int]]:
    """Tune until the end, or until the driver is gone, killing a while after each step; returns those that are left."""
    said = config.parent / "said.txt"
    left = list(moments)
    with said.open("w+") as file:
        command = [sys.executable, "-m", "jobs.tune", str(config), *OVERRIDES]
        driver = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=file)
        watched = psutil.Process(driver.pid)
        while driver.poll() is None:
            time.sleep(0.02)
            recovered = len(moments) - len(left) == said.read_text().count("lost after step")
            if not left or not recovered or _step(config) < left[0]:
                continue
            time.sleep(float(random.uniform(0.0, LONGEST_S)))
            if victims := choose(watched):
                for one in victims:
                    _kill(one)
                left.pop(0)
    return driver.returncode, said.read_text(), left


def _step(config: Path) -> int:
    folders = list((config.parent / "home" / "cache" / "training").glob("small-*/checkpoints/joint"))
    return max((Checkpoints(folder).latest_step for folder in folders), default=0)


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(OSError):  # it may be gone
        os.kill(process.pid, signal.SIGKILL)
