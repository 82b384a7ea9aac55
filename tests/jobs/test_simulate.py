"""The job that makes up a service, from its command line."""

from pathlib import Path

import pytest

from jobs.settings import JobSettings
from jobs.simulate import main
from recranker.schema import CANDIDATES, INTERACTIONS
from recranker.settings import load_settings
from recranker.store import Store
from tests.jobs.small import job

SMALL = ["--users", "60", "--items", "400", "--events-per-user", "20", "--workers", "1"]


def test_files_settings_and_the_next_command_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--out", str(tmp_path / "service")]) == 0
    config = tmp_path / "service" / "simulated.toml"
    said = capsys.readouterr().out
    assert " events of 60 users with " in said
    assert said.endswith(f"Next: python -m jobs.prepare {config}\n")
    settings = load_settings(JobSettings, str(config), [])
    assert (settings.name, settings.data.source.kind) == ("simulated", "files")
    assert settings.store.runs == str(tmp_path / "service" / "runs")


def test_a_prepared_run_is_found_by_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prepared", "scale", "--train-share", "1", "--shard-users", "25"]
    assert main([*SMALL, *options, "--out", str(tmp_path)]) == 0
    assert "Next: python -m jobs.sample " in capsys.readouterr().out
    settings = load_settings(JobSettings, str(tmp_path / "simulated.toml"), [])
    store = Store(f"{settings.store.runs}/{settings.name}")
    assert [len(store.files("prepare", INTERACTIONS)), len(store.files("backbone", CANDIDATES))] == [3, 3]
    assert store.require("backbone").facts["train_lists"] > 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--users", "0"],
            "error: jobs.simulate: setting 'users' = 0 is refused: Input should be greater than or equal",
        ),
        (["--users", "9", "--items", "5"], "error: jobs.simulate: setting 'items' = 5 is refused"),
    ],
)
def test_nonsense_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert main([*options, "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.startswith(says)
    assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([*SMALL, "--out", str(tmp_path / "file")]) == 2
    assert "error: cannot write" in capsys.readouterr().err


def test_no_processes_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*SMALL[:-1], "0", "--out", "x"])
    assert stopped.value.code == 2
    assert "must be a whole number from 1 on, got '0'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ray
def test_sampling_and_instructions_run_on_a_simulated_run(tmp_path: Path) -> None:
    assert main([*SMALL, "--prepared", "scale", "--train-share", "1", "--out", str(tmp_path)]) == 0
    config, home = str(tmp_path / "simulated.toml"), f"store.home={tmp_path / 'home'}"
    few = ["sampling.num_draws=20", "sampling.num_clusters=2", "ray.cpus=2", "ray.object_store_mb=100"]
    for name in ("sample", "instruct", "audit"):
        done = job(name, config, home, *few)
        assert done.returncode == 0, done.stderr
    assert Store(str(tmp_path / "runs" / "scale")).require("instruct").tables["prompts"]["rows"] > 60
