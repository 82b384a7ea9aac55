"""Which run becomes champion, and what is said where it does not."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from jobs import promote
from recranker.errors import ServiceError, TrackingError
from recranker.registry import Registry
from recranker.schema import CANDIDATES
from recranker.store import Store
from serve.settings import ServeSettings
from serve.source import read_run
from tests.evaluation.test_promotion import lists, rankings
from tests.models import tiny_model
from tests.serve.runs import ORIGIN, job_settings, publish_rank, publish_run, spoil_golden_answers

USERS = [f"u{number}" for number in range(12)]
GOOD, FAIR, BAD = "abcd", "bacd", "dcba"
"""Orders with the target, a, first, second and last."""
MODEL = "recranker-toys"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, as it takes seconds to create MLflow's database."""
    folder = tmp_path_factory.mktemp("home")
    tiny_model(folder / "model")
    return folder


@pytest.fixture
def given(home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> "Given":
    monkeypatch.setenv("RECRANKER_HOME", str(home))
    return Given(home, f"shop-{abs(hash(request.node.name))}")


class Given:
    """A home with runs, and a model of its own in the registry."""

    def __init__(self, home: Path, model: str) -> None:
        self.home = home
        self.model = model
        self.registry = Registry(f"sqlite:///{home / 'mlflow.db'}")

    def run(self, name: str, orders: str | list[str], *, seed: int = 0, error: float = 0.02, item: str = "a") -> Store:
        """A finished run that gave one order to all users, or each user one."""
        job = job_settings(str(self.home / "model"), name=name)
        each = [orders] * len(USERS) if isinstance(orders, str) else orders
        ranked = rankings(*((user, item, order) for user, order in zip(USERS, each, strict=True)))
        store = publish_run(self.home, job, seed)
        with store.publish("backbone", ORIGIN) as writer:
            writer.write(CANDIDATES, lists(*((user, item) for user in USERS)))
        publish_rank(store, job, ranked, error)
        return store

    def promote(self, *arguments: str) -> int:
        return promote.main([*arguments, "--name", self.model])

    @property
    def champion(self) -> str | None:
        found = self.registry.champion(self.model)
        return Path(found.run).name if found else None


def test_the_first_run_and_then_a_better_one_become_champion(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    given.run("one", FAIR)
    assert given.promote("one") == 0
    printed = capsys.readouterr().out
    assert "calibration error 0.020, golden answers reproduced: joint" in printed
    assert f"one is the champion, models:/{given.model}@champion" in printed
    assert "Next: python -m jobs.promote one --serve" in printed
    given.run("two", GOOD, seed=1)
    assert given.promote("two") == 0
    assert "NDCG@3 1.0000 against the champion's 0.6309, difference +0.3691" in capsys.readouterr().out
    assert given.champion == "two"
    assert given.promote("two") == 0
    assert "two is the champion already" in capsys.readouterr().out
    assert len(given.registry.versions(given.model)) == 2
    assert given.promote("two", "--show") == 0
    newest, oldest = capsys.readouterr().out.splitlines()
    assert "champion" in newest
    assert "two" in newest
    assert "champion" not in oldest
    served = read_run(ServeSettings(run=f"models:/{given.model}@champion", home=str(given.home)))
    assert (served.name, served.uri) == ("two", str(given.home / "runs" / "two"))
    assert read_run(ServeSettings(run=f"models:/{given.model}/1", home=str(given.home))).name == "one"


def test_a_run_that_is_worse_or_no_better_is_refused_with_the_interval(
    given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    given.run("one", FAIR)
    given.promote("one")
    given.run("worse", BAD, seed=1)
    given.run("equal", [GOOD, BAD] * 6, seed=2)
    capsys.readouterr()
    assert given.promote("worse") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: not promoted, worse than models:/{given.model}/1: validation NDCG@3 0.0000")
    assert error.count("\n") == 1
    assert given.promote("equal") == 2
    assert "no better than" in capsys.readouterr().err
    assert given.champion == "one"
    assert given.promote("equal", "--accept-equal") == 0
    assert given.champion == "equal"
    assert given.promote("worse", "--accept-equal") == 2
    assert given.promote("worse", "--force", "the new list policy") == 0
    champion = given.registry.champion(given.model)
    assert champion is not None
    assert (Path(champion.run).name, champion.tags["forced"]) == ("worse", "the new list policy")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("golden", "does not answer as the trained model did"),
        ("calibration", "its probabilities miss by 0.300 on validation lists, allowed 0.1"),
        ("data", "was made on another output of stage 'backbone'"),
        ("overwritten", "was tuned again since it became champion"),
        ("unfinished", "stage 'rank' has no finished output"),
    ],
)
def test_what_must_not_be_served_is_refused_in_one_line(
    given: Given, capsys: pytest.CaptureFixture[str], fault: str, message: str
) -> None:
    given.run("one", FAIR)
    given.promote("one")
    name = "one" if fault == "overwritten" else "two"
    kind: dict[str, Any] = {"calibration": {"error": 0.3}, "data": {"item": "b"}}.get(fault, {})
    store = given.run(name, GOOD, seed=1, **kind)
    if fault == "golden":
        spoil_golden_answers(store)
    if fault == "unfinished":
        (Path(store.folder("rank")) / "_manifest.json").unlink()
    capsys.readouterr()
    assert given.promote(name) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert len(given.registry.versions(given.model)) == 1


def test_a_dry_run_registers_nothing(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    given.run("one", FAIR)
    assert given.promote("one", "--dry-run") == 0
    assert "nothing was registered" in capsys.readouterr().out
    assert given.registry.versions(given.model) == []


def test_without_mlflow_nothing_is_moved(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    given.run("one", FAIR)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert given.promote("one", "--registry", f"http://127.0.0.1:{port}") == 2
    error = capsys.readouterr().err
    assert "cannot be used, nothing was changed" in error
    assert error.count("\n") == 1


def test_the_champion_stays_where_the_service_refuses(
    given: Given, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given.run("one", FAIR)
    given.promote("one")
    given.run("two", GOOD, seed=1)

    def refuse(_: Any) -> None:
        raise ServiceError("the service refused run 'two'")

    monkeypatch.setattr(promote, "service_at", lambda *_: refuse)
    assert given.promote("two", "--serve") == 2
    assert "the service refused run 'two'" in capsys.readouterr().err
    assert given.champion == "one"
    told: list[str] = []
    monkeypatch.setattr(promote, "service_at", lambda *_: lambda run: told.append(run.name))
    assert given.promote("two", "--serve") == 0
    assert (given.champion, told) == ("two", ["two"])
    assert len(given.registry.versions(given.model)) == 2


def test_where_mlflow_fails_behind_the_service_it_is_said_what_answers(
    given: Given, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TrackingError("the registry cannot be used")

    given.run("one", FAIR)
    monkeypatch.setattr(promote, "service_at", lambda *_: lambda run: None)
    monkeypatch.setattr(Registry, "crown", fail)
    assert given.promote("one", "--serve") == 2
    assert "cannot be used; the service answers with one already, so run this again" in capsys.readouterr().err


def test_a_settings_file_names_the_run_and_the_data_name_the_model(
    given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    store = given.run("filed", GOOD)
    settings = json.loads((Path(store.folder("rank")) / "settings.json").read_text())
    source = settings["data"]["source"]
    config = given.home / "filed.toml"
    config.write_text(
        f'name = "filed"\n[store]\nhome = "{given.home}"\n[data.source]\nkind = "files"\n'
        f'interactions = "{source["interactions"]}"\nitems = "{source["items"]}"\nrating_column = "rating"\n'
        f'[llm]\nmodel = "{given.home / "model"}"\n'
    )
    assert promote.main([str(config), "--show"]) == 0
    assert f"no version of {MODEL} yet" in capsys.readouterr().out
    assert promote.main(["filed", "seed=1"]) == 2
    assert "seed=1 goes with a settings file" in capsys.readouterr().err
