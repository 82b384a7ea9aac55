"""The application on a Ray cluster: the real one with a tiny model, and the router over tasks that fail."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from recranker.tasks.protocol import Prompt
from serve.settings import ServeSettings
from tests.serve.runs import finished_run, job_settings

BODY = {
    "history": [{"title": "Alien", "rating": 5}, {"title": "Grease", "liked": False}],
    "candidates": [{"id": f"i{n}", "title": f"Film {n}", "backbone_score": -n} for n in range(7)],
}
IDS = {f"i{n}" for n in range(7)}


class Evenly:
    """Finds every label equally likely."""

    async def score(self, prompt: Prompt) -> list[NDArray[np.float64]]:
        return [np.full(len(one.labels), -np.log(len(one.labels))) for one in prompt.questions]


class Broken:
    """Fails at every question."""

    async def score(self, prompt: Prompt) -> list[NDArray[np.float64]]:
        raise RuntimeError("planted")


class DiesOnce(Evenly):
    """Takes its whole process down with the first question it is asked, in any process."""

    def __init__(self, mark: str) -> None:
        self.mark = Path(mark)

    async def score(self, prompt: Prompt) -> list[NDArray[np.float64]]:
        if not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        return await super().score(prompt)


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
    answer = answer_over(
        url, "degrades", pointwise=(Evenly,), pairwise=(Broken,), listwise=(DiesOnce, str(tmp_path / "died"))
    )
    assert (tmp_path / "died").exists()
    assert answer["degraded"] == ["pairwise"]
    assert answer["order"] == "fused"
    assert {one["id"] for one in answer["ranking"]} == IDS
    assert all(one["listwise"] is not None and one["pairwise"] is None for one in answer["ranking"])


@pytest.mark.ray
def test_with_every_task_down_the_backbones_order_comes_back_marked(url: str) -> None:
    answer = answer_over(url, "down", pointwise=(Broken,), pairwise=(Broken,), listwise=(Broken,))
    assert answer["degraded"] == ["pointwise", "pairwise", "listwise"]
    assert answer["order"] == "backbone"
    assert [one["id"] for one in answer["ranking"]] == [f"i{n}" for n in range(7)]


def answer_over(url: str, name: str, **tasks: tuple[Any, ...]) -> dict[str, Any]:
    """The answer to ``BODY`` of a router over these classes instead of the model."""
    from ray import serve

    from serve.app import router_deployment
    from tests.serve.test_ranking import served

    bound = {
        task: serve.deployment(kind, name=task, ray_actor_options={"num_cpus": 0.1}).bind(*arguments)
        for task, (kind, *arguments) in tasks.items()
    }
    settings = ServeSettings(run=job_settings().name, request_timeout_s=60)
    serve.run(router_deployment(settings, served(), bound), name=name, route_prefix=f"/{name}")
    try:
        response = httpx.post(f"{url}/{name}/v1/rank", json=BODY, timeout=90)
        assert response.status_code == 200, response.text
        return response.json()
    finally:
        serve.delete(name)


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
