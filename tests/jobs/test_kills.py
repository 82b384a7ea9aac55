"""Sampling and instructions under kill -9 at any moment."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.jobs.small import ROOT, environment, hashes, job, write_config

MOMENTS = 20
LONGEST_S = 14.0
"""A stage of the small run takes less on a free machine, so some kills come after the end."""


def kill_after(seconds: float, stage: str, config: Path) -> None:
    """Start one stage and kill it, with the processes it holds, after a while."""
    command = [sys.executable, "-m", f"jobs.{stage}", str(config)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=quiet, stderr=quiet, start_new_session=True
    ) as running:
        try:
            running.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.ray
def test_killed_at_twenty_moments_nothing_half_done_is_taken_for_whole(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    for stage in ("prepare", "backbone", "sample", "instruct"):
        assert job(stage, str(config)).returncode == 0
    home = tmp_path / "home"
    whole = hashes(home)
    random = np.random.default_rng(0)
    killed = 0
    for number in range(MOMENTS):
        stage = ("sample", "instruct")[number % 2]
        (home / "runs" / "small" / stage / "_manifest.json").unlink(missing_ok=True)
        kill_after(float(random.uniform(1.0, LONGEST_S)), stage, config)
        there = hashes(home)
        killed += stage not in there
        assert there.get(stage, whole[stage]) == whole[stage]
        if stage not in there and stage == "sample":  # instruct needs its draws
            assert job(stage, str(config)).returncode == 0
    assert killed >= MOMENTS // 4
    assert job("instruct", str(config)).returncode == 0
    assert hashes(home) == whole
