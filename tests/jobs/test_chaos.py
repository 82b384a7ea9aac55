import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from jobs import chaos
from jobs.drills import serving
from jobs.drills.results import row
from jobs.drills.serving import Outcome, drills
from jobs.drills.settings import ServingDrill
from jobs.load.hosting import ENVIRONMENT
from jobs.sources import ROOT
from serve.settings import ServeSettings
from tests.jobs.drills.test_results import KILLS, SENT
from tests.jobs.load.published import USERS, published_run
from tests.jobs.small import job

TASKS = ("pointwise", "pairwise", "listwise")
MARK = "RECRANKER_TEST_MARK"
CONFIG = """
users = {users}
kills = 2
router_kills = 1
controller_kills = 1
proxy_kills = 1
stalls = 0
rate = 1.0
calm_s = 3
cpus = 2
object_store_mb = 100
[service]
run = "{run}"
home = "{home}"
"""


def settings(**changes: int) -> ServingDrill:
    return ServingDrill.model_validate({"service": {"run": "toy"}, **changes})


def test_tasks_are_lost_in_turn_and_the_router_with_a_client_that_tries_again() -> None:
    todo = drills(settings(kills=4, router_kills=1, controller_kills=2, proxy_kills=1, stalls=1), TASKS)
    assert [(one.name, one.victims, one.way) for one in todo] == [
        ("task replica", ("listwise", "pairwise", "pointwise", "listwise"), "plain"),
        ("router", ("router",), "client"),
        ("controller", ("controller", "controller"), "plain"),
        ("HTTP proxy", ("proxy",), "client"),
        ("task replica, stopped", ("listwise",), "plain"),
    ]
    assert [one.must_hold for one in todo] == [True, True, True, False, False]
    assert todo[-1].signal == signal.SIGSTOP
    assert drills(settings(kills=0, router_kills=0, controller_kills=0, proxy_kills=0, stalls=0), TASKS) == []


def outcome(failed: int) -> Outcome:
    from jobs.drills.results import Drilled

    rows = [row(Drilled("task replica", "plain", True, KILLS, SENT))]
    return Outcome(rows, {"kills": 2, "requests": 9, "failed": failed, "degraded": 1})


@pytest.mark.parametrize(("failed", "code"), [(0, 0), (2, 1)])
def test_a_request_that_must_not_fail_decides_the_exit_code(
    failed: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[ServingDrill] = []

    def fake(given: ServingDrill) -> Outcome:
        asked.append(given)
        return outcome(failed)

    monkeypatch.setattr(serving, "run", fake)
    assert chaos.main(["serving", "--kills", "7", "calm_s=1", "--json", str(tmp_path / "found.json")]) == code
    assert (asked[0].kills, asked[0].calm_s) == (7, 1.0)
    written = json.loads((tmp_path / "found.json").read_text())
    assert (written["failed"], written["degraded"], written["kills"], written["held"]) == (failed, 1, 2, not failed)
    assert written["rows"][0]["recovery_max_s"] == 10.0
    printed = capsys.readouterr().out
    assert "task replica" in printed
    assert f"2 kills of task replicas, routers and controllers: {failed} of 9 requests failed" in printed


def test_the_settings_file_loads_and_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chaos.main(["serving", "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kills"], shown["service"]["run"]) == (30, "quickstart")
    assert chaos.main(["serving", f"service.home={tmp_path}"]) == 2
    assert "run it first: python -m jobs.rank CONFIG" in capsys.readouterr().err


def test_a_drilled_service_has_the_environment_that_make_serve_gives_it() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nserve:")[1].split("\n\n")[0]
    assert all(f"{name}={value}" in recipe for name, value in ENVIRONMENT.items())


@pytest.mark.slow
@pytest.mark.ray
def test_no_request_is_lost_and_no_process_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, str(tmp_path))
    service: ServeSettings = published_run(tmp_path)
    config, found = tmp_path / "drill.toml", tmp_path / "found.json"
    config.write_text(CONFIG.format(users=USERS, run=service.run, home=service.home))
    done = job("chaos", "serving", str(config), "--json", str(found))
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads(found.read_text())
    assert (written["kills"], written["failed"], written["held"]) == (4, 0, True)
    assert [(one["component"], one["kills"]) for one in written["rows"]] == [
        ("task replica", 2),
        ("router", 1),
        ("controller", 1),
        ("HTTP proxy", 1),
    ]
    assert all(one["requests"] > 0 for one in written["rows"])
    assert left_of(str(tmp_path)) == []


def left_of(mark: str) -> list[int]:
    """Processes that were started with this mark in their environment."""
    return [one.pid for one in psutil.process_iter() if one.pid != os.getpid() and _marked(one, mark)]


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except psutil.Error:
        return False


def test_what_is_left_of_a_drill_would_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(MARK, str(tmp_path))
    with subprocess.Popen(["sleep", "60"]) as process:
        assert left_of(str(tmp_path)) == [process.pid]
        process.kill()
    assert left_of(str(tmp_path)) == []
