import json
from pathlib import Path

import pytest

from jobs import benchmark
from jobs.benchmarks.instructions import STEPS, Outcome, figures, sampler_speed
from jobs.benchmarks.processes import run_measured
from recranker.errors import RecrankerError

SCRIPT = """
import subprocess, sys, time
held = bytearray(150_000_000)
for at in range(0, len(held), 4096):
    held[at] = 1
if len(sys.argv) < 2:
    subprocess.run([sys.executable, __file__, "child"], check=True)
started = time.process_time()
while time.process_time() - started < 1.0:
    pass
"""


def row(users: int, step: str, wall_s: float, memory: float = 1.0) -> dict[str, object]:
    return {"users": users, "step": step, "wall_s": wall_s, "peak_memory_gb": memory}


def test_figures_by_hand() -> None:
    rows = [row(100, step, 10.0) for step in STEPS]
    seconds = {"scan": 4.0, "sample": 40.0, "assemble": 90.0, "instruct": 60.0, "tokenise": 45.0}
    rows += [row(1000, step, wall_s, 1.5 if step == "sample" else 1.2) for step, wall_s in seconds.items()]
    found = figures(rows, 2e6)
    assert found["sampler_users_per_s_per_core"] == 2e6
    assert found["sample_over_scan"] == (40 - 20) / 4
    assert found["assembly_s"] == 90.0
    assert found["instruct_over_tokenizer"] == 45 / 60
    assert found["peak_rss_gb"] == 1.5
    assert found["growth_users"] == 10.0
    assert found["growth_time_10x"] == (40 + 60) / (10 + 10)
    assert found["growth_rss_10x"] == 1.5


def test_processes_that_a_command_starts_are_counted(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(SCRIPT)
    cost = run_measured(["busy"], {"PYTHONPATH": str(tmp_path)})
    assert 1.4 < cost.cpu_s < cost.wall_s + 1.0  # a second each, the last look a little before the end
    assert 0.3 < cost.peak_memory_gb < 0.6  # both hold 0.15 GB at the same time


def test_a_command_that_fails_says_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('no such user')")
    with pytest.raises(RecrankerError, match=r"^broken ended with code 1: no such user$"):
        run_measured(["broken"], {"PYTHONPATH": str(tmp_path)})


def test_the_samplers_speed_is_a_rate() -> None:
    assert sampler_speed(20_000, 1_000, seed=0) > 10_000


def test_options_are_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["instructions", "--users", "10", "20", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["users"] == [10, 20]


def test_the_outcome_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    more = {"events": 5000, "rows": 5000, "rows_per_s": 500.0, "cpu_s": 12.0, "peak_shared_gb": 0.5}
    outcome = Outcome([row(100, "sample", 10.0) | more], {"sample_over_scan": 3.25})
    benchmark.show_instructions(outcome, None)  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert "sample_over_scan 3.25" in printed
    assert "5,000" in printed
