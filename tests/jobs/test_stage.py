import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.stage import commit_of, flattened, guarded, users_error
from recranker.errors import DataError, LeakageError
from tests.jobs.small import ROOT, job, job_here, write_config

CONFIG = str(ROOT / "jobs/configs/quickstart.toml")
JOBS = ["prepare", "backbone", "sample", "instruct", "tune", "rank", "evaluate", "pipeline", "publish"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("stage"))


def fails_with(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def work() -> None:
        raise error

    return guarded(work), capsys.readouterr().err


def test_a_users_error_is_one_line_and_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails_with(DataError("needed a, got b"), capsys) == (2, "error: needed a, got b\n")


def test_other_errors_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        fails_with(ZeroDivisionError(), capsys)


def test_a_users_error_is_found_under_what_wraps_it() -> None:
    wrapped = RuntimeError("worker failed")
    wrapped.__cause__ = LeakageError("target in history")
    assert str(users_error(wrapped)) == "target in history"
    assert users_error(RuntimeError("x")) is None


def test_settings_are_flattened_for_mlflow() -> None:
    assert flattened({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


@pytest.mark.parametrize("name", JOBS)
def test_every_job_shows_what_it_would_do(name: str) -> None:
    done = job_here(name, CONFIG, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert '"movielens-100k"' in done.stdout
    if name not in ("prepare", "pipeline"):
        assert f"{name} reads" in done.stdout


def test_a_dry_run_says_whether_the_users_own_files_are_there(config: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.csv"
    done = job_here("prepare", str(config), "--dry-run", f"data.source.interactions={gone}")
    assert done.returncode == 0, done.stderr
    assert f"prepare reads interactions: '{gone}' (is not there)" in done.stdout
    assert "(is there)" in done.stdout


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert commit_of(tmp_path) == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(ROOT) == "unknown"


def test_help_shows_a_command_to_try_and_what_stands_before_and_after() -> None:
    said = job("tune", "--help").stdout
    assert "python -m jobs.tune jobs/configs/quickstart.toml" in said
    assert "instruct -> tune -> rank" in said
    assert re.search(r"tune reads the output of .*instruct; writes the tables training_log", said)


def test_a_finished_stage_says_the_command_of_the_next_one(config: Path) -> None:
    done = job_here("prepare", str(config), "name=a b")
    assert done.returncode == 0, done.stderr
    assert f"next: python -m jobs.backbone {config} 'name=a b'" in done.stderr


def test_a_stage_before_its_inputs_says_what_to_run(config: Path) -> None:
    done = job_here("sample", str(config))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().endswith("run it first: python -m jobs.prepare CONFIG")


@pytest.mark.parametrize(
    ("run", "override", "says"),
    [
        (job, "data.source.interactions=none.csv", "'none.csv' is not there"),  # once as a user does it
        (job_here, "tune.learning_rte=1", "unknown setting 'tune.learning_rte'"),
        (job_here, "data.source.user_column=who", "'who'"),
        (job_here, "data.rating_max=4", "rating"),
        (job_here, "store.home=/proc/none", "set store.home to a writable place"),
        (job_here, "data.source.kind=movielens-100k", "data.source"),
    ],
)
def test_bad_input_ends_with_two_and_one_line_and_leaves_nothing(
    config: Path, run: Callable[..., "subprocess.CompletedProcess[str]"], override: str, says: str
) -> None:
    done = run("prepare", str(config), override)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert "Traceback" not in done.stderr
    assert not list(config.parent.glob("home/runs/small/prepare/_manifest.json"))


def test_jobs_import_no_model_library_until_they_need_it() -> None:
    code = "import jobs.prepare, sys; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"
