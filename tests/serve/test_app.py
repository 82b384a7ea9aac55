"""The application on a Ray cluster: the real one with a tiny model, and the router over tasks that fail."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from recranker.client import Client
from serve.settings import ServeSettings
from tests.serve.fakes import Batched, Broken, DiesOnce, Evenly, Slow
from tests.serve.runs import finished_run
from tests.serve.test_ranking import served

BODY: dict[str, Any] = {
    "history": [{"title": "Alien", "rating": 5}, {"title": "Grease", "liked": False}],
    "candidates": [{"id": f"i{n}", "title": f"Film {n}", "backbone_score": -n} for n in range(7)],
}
TASKS = ("pointwise", "pairwise", "listwise")
IDS = {f"i{n}" for n in range(7)}


@pytest.mark.ray
def test_the_application_ranks_with_a_tuned_model(url: str, tmp_path: Path) -> None:
    from ray import serve

    from serve.app import build

    (tmp_path / "token").write_text("right\n")
    settings = finished_run(tmp_path).model_copy(update={"token_file": str(tmp_path / "token")})
    serve.run(build(settings), name="ranks", route_prefix="/ranks")
    try:
        headers = {"Authorization": "Bearer right"}
        first = httpx.post(f"{url}/ranks/v1/rank", json=BODY, headers=headers, timeout=60)
        assert re.fullmatch(r"engine;dur=[\d.]+, queue;dur=[\d.]+, total;dur=[\d.]+", first.headers["server-timing"])
        answer = first.json()
        assert {one["id"] for one in answer["ranking"]} == IDS
        assert len(answer["ranking"]) == len(IDS)
        assert answer["degraded"] == []
        assert all(isinstance(one[task], float) for one in answer["ranking"] for task in TASKS)
        again = httpx.post(f"{url}/ranks/v1/rank", json=BODY, headers=headers, timeout=60).json()
        assert again == answer
        assert httpx.post(f"{url}/ranks/v1/rank", json=BODY, timeout=60).status_code == 401
        secret = {**BODY, "tasks": ["k4nary"]}
        refused = httpx.post(f"{url}/ranks/v1/rank", json=secret, headers=headers, timeout=60)
        assert refused.status_code == 422
        assert "k4nary" not in refused.text
        assert all(0.0 <= one["probability"] <= 1.0 for one in answer["ranking"])
        ready = httpx.get(f"{url}/ranks/readyz", headers=headers, timeout=60).json()
        replicas = {"pointwise": 1, "pairwise": 1, "listwise": 1}
        model = {"run": "toy", "adapter": answer["model"]["adapter"], "loading": None, "refused": None}
        assert ready == {"ready": True, "replicas": replicas, "missing": [], "model": model}
        with Client(f"{url}/ranks", "right") as client:
            assert [one.id for one in client.rank(["Alien"], ["A", "B"]).items] in (["0", "1"], ["1", "0"])
    finally:
        serve.delete("ranks")


@pytest.mark.ray
def test_replicas_shared_by_all_tasks_answer_as_those_of_each_task(url: str, tmp_path: Path) -> None:
    from ray import serve

    from serve.app import build

    per_task = finished_run(tmp_path)
    shared = per_task.model_copy(update={"replica_sets": "shared"})
    answers, tokens, deployments = [], [], []
    try:
        for settings in (per_task, shared):
            serve.run(build(settings), name="shares", route_prefix="/shares")
            answers.append(httpx.post(f"{url}/shares/v1/rank", json=BODY, timeout=60).json())
            told = httpx.get(f"{url}/shares/metrics", timeout=60).text
            tokens.append(float(re.search(r"^recranker_prompt_tokens_sum ([\d.e+]+)", told, re.M)[1]))  # type: ignore[index]
            deployments.append(set(serve.status().applications["shares"].deployments))
    finally:
        serve.delete("shares")
    assert deployments == [{"router", "pointwise", "pairwise", "listwise"}, {"router", "tasks"}]
    first, second = answers
    assert [one["id"] for one in first["ranking"]] == [one["id"] for one in second["ranking"]]
    for one, other in zip(first["ranking"], second["ranking"], strict=True):
        assert [one[task] for task in TASKS] == pytest.approx([other[task] for task in TASKS], abs=1e-4)
    assert tokens[1] < tokens[0]  # the history was read once


@pytest.mark.ray
def test_a_failing_task_is_named_and_a_dying_replica_hidden(url: str, tmp_path: Path) -> None:
    from ray import serve

    from serve.app import router_deployment

    kinds = {"pointwise": (Evenly,), "pairwise": (Broken,), "listwise": (DiesOnce, str(tmp_path / "died"))}
    tasks = {
        task: serve.deployment(kind, name=task, num_replicas=2, ray_actor_options={"num_cpus": 0.1}).bind(*arguments)
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


def end_router(app: str) -> None:
    """Kill the process of the application's router."""
    import ray
    from ray.util import list_named_actors

    names = [one["name"] for one in list_named_actors(all_namespaces=True)]
    for name in names:
        if name.startswith(f"SERVE_REPLICA::{app}#router#"):
            ray.kill(ray.get_actor(name, namespace="serve"))


@pytest.mark.ray
def test_headers_do_not_steer_the_proxy_and_lost_requests_have_our_shape(url: str) -> None:
    from ray import serve

    from serve.app import router_deployment

    tasks = {
        task: serve.deployment(kind, name=task, ray_actor_options={"num_cpus": 0.1}).bind(*arguments)
        for task, kind, *arguments in (("pointwise", Slow, 3.0), ("listwise", Evenly))
    }
    run = served(tasks=("pointwise", "listwise"))
    settings = ServeSettings(run="toy", request_timeout_s=20)
    serve.run(router_deployment(settings, run, tasks), name="slow", route_prefix="/slow")
    try:
        short = {"x-request-timeout-seconds": "0.5", "x-request-id": "mine"}
        answer = httpx.post(f"{url}/slow/v1/rank", json=BODY, headers=short, timeout=60)
        assert (answer.status_code, answer.json()["degraded"]) == (200, [])
        assert answer.headers.get_list("x-request-id") == ["mine"]

        never = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1", "x-request-id": "not plain!"}
        started = time.monotonic()
        answer = httpx.post(f"{url}/slow/v1/rank", json={**BODY, "deadline_ms": 1000}, headers=never, timeout=60)
        assert time.monotonic() - started < 2.5
        assert (answer.status_code, answer.json()["degraded"]) == (200, ["pointwise"])
        assert answer.headers["x-request-id"] != "not plain!"

        with ThreadPoolExecutor() as pool:
            plain = pool.submit(httpx.post, f"{url}/slow/v1/rank", json=BODY, timeout=60)
            persistent = pool.submit(Client(f"{url}/slow", timeout_s=60).rank, ["Alien"], ["A", "B"])
            time.sleep(1.5)
            end_router("slow")
            lost = plain.result()
            assert (lost.status_code, lost.json()["code"], lost.headers["retry-after"]) == (503, "unavailable", "1")
            assert persistent.result().order == "fused"
    finally:
        serve.delete("slow")


@pytest.mark.ray
def test_what_is_too_late_or_left_by_its_client_is_not_computed(url: str, tmp_path: Path) -> None:
    from ray import serve

    from serve.app import router_deployment

    computed = tmp_path / "computed"
    task = serve.deployment(Batched, name="listwise", ray_actor_options={"num_cpus": 0.1}).bind(str(computed), 2.0)
    settings = ServeSettings(run="toy", request_timeout_s=20)
    application = router_deployment(settings, served(tasks=("listwise",)), {"listwise": task})
    serve.run(application, name="expires", route_prefix="/expires")

    def ask(number: int, timeout: float = 60, **changes: int) -> httpx.Response:
        body = {**BODY, "candidates": BODY["candidates"][:number], **changes}
        return httpx.post(f"{url}/expires/v1/rank", json=body, timeout=timeout)

    try:
        with ThreadPoolExecutor() as pool:
            first = pool.submit(ask, 2)
            time.sleep(0.5)
            late, gone, last = (
                pool.submit(ask, 3, deadline_ms=500),
                pool.submit(ask, 4, timeout=0.5),
                pool.submit(ask, 5),
            )
            assert late.result().json()["degraded"] == ["listwise"]
            with pytest.raises(httpx.ReadTimeout):
                gone.result()
            assert [one.result().json()["degraded"] for one in (first, last)] == [[], []]
        assert computed.read_text().split() == ["2", "5"]
    finally:
        serve.delete("expires")
