"""The application on a Ray cluster: the real one with a tiny model, and the router over tasks that fail."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from serve.settings import ServeSettings
from tests.serve.fakes import Broken, DiesOnce, Evenly
from tests.serve.runs import finished_run
from tests.serve.test_ranking import served

BODY = {
    "history": [{"title": "Alien", "rating": 5}, {"title": "Grease", "liked": False}],
    "candidates": [{"id": f"i{n}", "title": f"Film {n}", "backbone_score": -n} for n in range(7)],
}
IDS = {f"i{n}" for n in range(7)}


@pytest.fixture(scope="module")
def url(ray_cluster: None) -> Iterator[str]:
    """Base address of a Serve instance that ends with this module."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.mark.ray
def test_the_application_ranks_with_a_tuned_model(url: str, tmp_path: Path) -> None:
    from ray import serve

    from serve.app import build

    (tmp_path / "token").write_text("right\n")
    settings = finished_run(tmp_path).model_copy(update={"token_file": str(tmp_path / "token")})
    serve.run(build(settings), name="ranks", route_prefix="/ranks")
    try:
        headers = {"Authorization": "Bearer right"}
        answer = httpx.post(f"{url}/ranks/v1/rank", json=BODY, headers=headers, timeout=60).json()
        assert {one["id"] for one in answer["ranking"]} == IDS
        assert len(answer["ranking"]) == len(IDS)
        assert answer["degraded"] == []
        assert all(
            isinstance(one[task], float) for one in answer["ranking"] for task in ("pointwise", "pairwise", "listwise")
        )
        again = httpx.post(f"{url}/ranks/v1/rank", json=BODY, headers=headers, timeout=60).json()
        assert again == answer
        assert httpx.post(f"{url}/ranks/v1/rank", json=BODY, timeout=60).status_code == 401
        secret = {**BODY, "tasks": ["k4nary"]}
        refused = httpx.post(f"{url}/ranks/v1/rank", json=secret, headers=headers, timeout=60)
        assert refused.status_code == 422
        assert "k4nary" not in refused.text
        ready = httpx.get(f"{url}/ranks/readyz", timeout=60).json()
        assert ready == {"ready": True, "replicas": {"pointwise": 1, "pairwise": 1, "listwise": 1}}
    finally:
        serve.delete("ranks")


@pytest.mark.ray
def test_a_failing_task_is_named_and_a_dying_replica_hidden(url: str, tmp_path: Path) -> None:
    from ray import serve

    from serve.app import router_deployment

    kinds = {"pointwise": (Evenly,), "pairwise": (Broken,), "listwise": (DiesOnce, str(tmp_path / "died"))}
    tasks = {
        task: serve.deployment(kind, name=task, ray_actor_options={"num_cpus": 0.1}).bind(*arguments)
        for task, (kind, *arguments) in kinds.items()
    }
    settings = ServeSettings(run="toy", request_timeout_s=60)
    serve.run(router_deployment(settings, served(), tasks), name="degrades", route_prefix="/degrades")
    try:
        answer = httpx.post(f"{url}/degrades/v1/rank", json=BODY, timeout=90).json()
        assert (tmp_path / "died").exists()
        assert (answer["degraded"], answer["order"]) == (["pairwise"], "fused")
        assert {one["id"] for one in answer["ranking"]} == IDS
        assert all(one["listwise"] is not None and one["pairwise"] is None for one in answer["ranking"])

        answer = httpx.post(f"{url}/degrades/v1/rank", json={**BODY, "tasks": ["pairwise"]}, timeout=90).json()
        assert (answer["degraded"], answer["order"]) == (["pairwise"], "backbone")
        assert [one["id"] for one in answer["ranking"]] == [f"i{n}" for n in range(7)]
    finally:
        serve.delete("degrades")


def test_the_config_names_a_builder_and_settings_that_exist() -> None:
    import serve.app

    config = yaml.safe_load((Path(serve.app.__file__).parent / "config.yaml").read_text())
    application = config["applications"][0]
    settings = ServeSettings.model_validate(application["args"])
    module, _, function = application["import_path"].partition(":")
    assert (module, function) == ("serve.app", "build")
    assert callable(serve.app.build)
    assert config["http_options"]["host"] == "127.0.0.1"
    assert config["http_options"]["request_timeout_s"] > settings.request_timeout_s
