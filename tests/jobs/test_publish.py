import json
import socket
from pathlib import Path

import pytest

from jobs.publish import STAGE
from jobs.stage import main
from recranker.store import Store
from serve.settings import ServeSettings
from serve.users import open_users
from tests.serve.published import finished_tables
from tests.serve.runs import job_settings
from tests.serve.test_ranking import served

CONFIG = """
name = "{name}"
[store]
home = "{home}"
[data.source]
kind = "files"
interactions = "unused.csv"
items = "unused.csv"
rating_column = "rating"
[instruct]
max_liked = 3
max_disliked = 1
[llm]
model = "smollm2-135m-instruct"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, as it takes seconds to create MLflow's database."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def config(home: Path, request: pytest.FixtureRequest) -> str:
    """Of a run, named as the test, whose first two stages are finished."""
    name = request.node.name
    finished_tables(home / "runs", name)
    file = home / f"{name}.toml"
    file.write_text(CONFIG.format(name=name, home=home))
    return str(file)


def run_of(config: str) -> Path:
    return Path(config).parent / "runs" / Path(config).stem


def test_what_is_published_is_what_is_served(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(STAGE, [config]) == 0
    printed = capsys.readouterr().out
    assert "3 users, 2 with candidates of their own; 10 titles" in printed
    assert "Next: serve run serve/config.yaml" in printed
    instruct = job_settings(instruct={"max_liked": 3, "max_disliked": 1}).instruct
    run = served(uri=str(run_of(config)), instruct=instruct)
    users = open_users(ServeSettings(run="toy"), run)
    assert users is not None
    assert {one.user_id for one in users.demo_users} == {"u", "w"}
    manifest = Store(run.uri).require("publish")
    assert manifest.facts == {"histories": 3, "lists": 2, "items": 10}
    assert list(manifest.files) == ["users/users.sqlite"]


def test_it_is_a_stage_like_others(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for arguments in ([config], [config], [config, "instruct.max_liked=2"]):
        assert main(STAGE, arguments) == 0
        said.append(capsys.readouterr().err)
    assert "publish: done" in said[0]
    assert "publish: unchanged, skipped (users/users.sqlite)" in said[1]
    assert "publish: done" in said[2]


def test_before_its_inputs_it_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "toy.toml"
    file.write_text(CONFIG.format(name="toy", home=tmp_path))
    assert main(STAGE, [str(file)]) == 2
    assert capsys.readouterr().err.strip().endswith("run it first: python -m jobs.prepare CONFIG")


def test_a_redis_that_is_not_there_is_one_line(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("redis", reason="the client is missing: pip install 'recranker[redis]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"redis://:s3cret@127.0.0.1:{free.getsockname()[1]}/0"
    assert main(STAGE, [config, "--to", url]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: redis://127.0.0.1:")
    assert "does not take the users" in error
    assert "s3cret" not in error
    assert json.loads((run_of(config) / "publish/_manifest.json").read_text())["stage"] == "publish"
