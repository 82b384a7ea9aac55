import socket
from pathlib import Path

import pytest

from recranker.errors import SettingsError, TrackingError
from recranker.registry import TUNING, Registry, Version, model_name


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """One database for all tests of this file: making one takes seconds."""
    made = Registry(f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}")
    assert made.versions("nobody") == []
    return made


def test_versions_are_registered_and_one_is_champion(registry: Registry) -> None:
    assert registry.champion("shop") is None
    first = registry.register("shop", "/runs/a", {TUNING: "aa", "note": "1"})
    registry.crown(first, instead_of=None)
    second = registry.register("shop", "s3://runs/b", {TUNING: "bb"})
    assert [(one.number, one.run, one.tuning) for one in registry.versions("shop")] == [
        (2, "s3://runs/b", "bb"),
        (1, "/runs/a", "aa"),
    ]
    champion = registry.champion("shop")
    assert champion is not None
    assert (champion.number, champion.aliases, champion.tags["note"]) == (1, ("champion",), "1")
    registry.crown(second, instead_of=champion)
    assert registry.find("models:/shop@champion").run == "s3://runs/b"
    assert registry.find("models:/shop/1").run == "/runs/a"
    assert second.uri == "models:/shop/2"


def test_a_champion_that_changed_meanwhile_is_not_overruled(registry: Registry) -> None:
    first, second = (registry.register("race", f"/runs/{name}", {TUNING: name}) for name in "ab")
    registry.crown(first, instead_of=None)
    with pytest.raises(TrackingError, match="version 1 became champion meanwhile, this one was checked against None"):
        registry.crown(second, instead_of=None)
    champion = registry.champion("race")
    assert champion is not None
    assert champion.number == 1


@pytest.mark.parametrize("uri", ["models:/shop", "models:/shop@champion/1", "models:/shop/champion", "runs:/shop"])
def test_what_names_no_version_is_refused(registry: Registry, uri: str) -> None:
    with pytest.raises(TrackingError, match="needed models:/NAME@champion or models:/NAME/3"):
        registry.find(uri)


def test_a_version_that_is_not_there_is_named_with_those_that_are(registry: Registry) -> None:
    registry.register("one", "/runs/a", {TUNING: "aa"})
    with pytest.raises(TrackingError, match=r"no models:/one@champion \(versions of that name: 1\)"):
        registry.find("models:/one@champion")


def test_a_version_of_somebody_else_is_refused() -> None:
    with pytest.raises(TrackingError, match=r"models:/x/1: lacks the tag 'recranker\.run'"):
        _ = Version("x", 1, {}).run


def test_a_store_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrackingError, match=r"no database at .*nothing\.db"):
        Registry(f"sqlite:///{tmp_path / 'nothing.db'}").find("models:/shop@champion")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(TrackingError, match=rf"127\.0\.0\.1:{port} cannot be used, nothing was changed"):
        Registry(f"http://127.0.0.1:{port}").champion("shop")
    with pytest.raises(SettingsError, match="must begin with one of"):
        Registry("/tmp/x").champion("shop")


def test_data_give_models_their_name() -> None:
    assert model_name("MovieLens-100K") == "recranker-movielens-100k"
    assert model_name("clicks.parquet and catalogue.csv") == "recranker-clicks.parquet-and-catalogue.csv"
