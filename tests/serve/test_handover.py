"""Handing runs to a service: in a small real one, under load, and to one that only says what it is told."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from recranker.errors import ServiceError
from serve.handover import BUILDER, find_service, hand_over, look, serves_now, told, wait_until_served
from serve.messages import ModelState, Readiness, Refusal
from serve.source import ServedRun, run_at
from serve.wanted import Wanted
from tests.serve.runs import another_run, finished_run, spoil_golden_answers
from tests.serve.test_ranking import served

BODY = {
    "history": [{"title": "Alien", "rating": 5}, {"title": "Grease", "liked": False}],
    "candidates": [{"id": f"i{n}", "title": f"Film {n}", "backbone_score": -n} for n in range(5)],
}


class Requests:
    """Sends one request after another until the block ends, and keeps what came."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[tuple[int, Any]] = []
        self._ended = threading.Event()

    def _send(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._ended.is_set():
                answer = client.post(f"{self.url}/v1/rank", json=BODY)
                self.answers.append((answer.status_code, answer.json()))

    def __enter__(self) -> "Requests":
        self._pool = ThreadPoolExecutor(2)
        self._sent = [self._pool.submit(self._send) for _ in range(2)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for one in self._sent:
            one.result()
        self._pool.shutdown()


class RestApi:
    """As the REST API of a cluster without a dashboard."""

    def get_serve_details(self) -> dict[str, Any]:
        import ray
        from ray.serve.context import _get_global_client

        return ray.get(_get_global_client()._controller.get_serve_instance_details.remote())  # type: ignore[no-any-return]

    def deploy_applications(self, config: dict[str, Any]) -> None:
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))


def deploy(url: str, **settings: Any) -> None:
    """The application, as ``serve deploy`` does it."""
    app = {"name": "lives", "route_prefix": "/lives", "import_path": BUILDER, "args": settings}
    RestApi().deploy_applications({"applications": [app]})
    ends = time.monotonic() + 300
    while time.monotonic() < ends:
        try:
            if look(f"{url}/lives", None).ready:
                return
        except ServiceError:
            pass
        time.sleep(0.2)
    raise TimeoutError("the application is not ready")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("replica_sets", "deployment"), [("per_task", "pointwise"), ("shared", "tasks")])
def test_a_swap_and_a_refused_one_lose_no_request(url: str, tmp_path: Path, replica_sets: str, deployment: str) -> None:
    settings = finished_run(tmp_path).model_copy(update={"replica_sets": replica_sets})
    good = run_at(another_run(tmp_path, "good").uri)
    bad_store = another_run(tmp_path, "bad", 2)
    spoil_golden_answers(bad_store)
    bad = run_at(bad_store.uri)
    deploy(url, **settings.model_dump(exclude_none=True))
    api = RestApi()
    before = look(f"{url}/lives", None).model
    assert before is not None
    assert before.run == "toy"

    def hand(run: ServedRun, handover: str) -> None:
        service = find_service(api)
        state = look(service.url, None).model
        hand_over(api, service, run, otherwise=serves_now(service, state), handover=handover)
        wait_until_served(run, handover, lambda: look(service.url, None), routers=1, timeout_s=300)

    with Requests(f"{url}/lives") as sent:
        hand(good, "first")
        time.sleep(0.5)
        with pytest.raises(ServiceError, match=r"refused run 'bad' \(golden_answers\).*run 'good' goes on"):
            hand(bad, "second")
        time.sleep(0.5)
    assert {status for status, _ in sent.answers} == {200}
    assert not [answer for _, answer in sent.answers if answer["degraded"]]
    models = [(answer["model"]["run"], answer["model"]["adapter"]) for _, answer in sent.answers]
    assert set(models) == {("toy", before.adapter), ("good", good.tuning)}
    scores = {answer["model"]["run"]: scores_of(answer) for _, answer in sent.answers}
    for _, answer in sent.answers:  # the run named is the one that answered
        assert scores_of(answer) == pytest.approx(scores[answer["model"]["run"]], abs=1e-6)
    assert scores["toy"] != pytest.approx(scores["good"], abs=1e-3)
    state = look(f"{url}/lives", None).model
    assert state == ModelState(
        run="good", adapter=good.tuning, refused=Refusal(run="bad", code="golden_answers", handover="second")
    )
    metrics = httpx.get(f"{url}/lives/metrics").text
    assert "recranker_model_swaps_total 1.0" in metrics
    assert 'recranker_model_refused_total{reason="golden_answers"} 1.0' in metrics

    end_replicas("lives", "router", deployment)
    ends = time.monotonic() + 300
    while (replaced := answered(f"{url}/lives")) is None and time.monotonic() < ends:
        time.sleep(0.2)
    assert replaced is not None
    assert replaced["model"]["run"] == "good"
    assert scores_of(replaced) == pytest.approx(scores["good"], abs=1e-6)


def scores_of(answer: dict[str, Any]) -> list[float]:
    return [one["score"] for one in answer["ranking"]]


def answered(url: str) -> dict[str, Any] | None:
    """A whole answer, if one comes."""
    try:
        answer = httpx.post(f"{url}/v1/rank", json=BODY, timeout=10)
    except httpx.HTTPError:
        return None
    found: dict[str, Any] = answer.json()
    return found if answer.status_code == 200 and not found["degraded"] else None


def end_replicas(app: str, *deployments: str) -> None:
    """Kill the processes of all replicas of these deployments."""
    import ray
    from ray.util import list_named_actors

    starts = tuple(f"SERVE_REPLICA::{app}#{one}#" for one in deployments)
    for name in [one["name"] for one in list_named_actors(all_namespaces=True)]:
        if name.startswith(starts):
            ray.kill(ray.get_actor(name, namespace="serve"))


PER_TASK = ("router", "pointwise", "pairwise", "listwise")


def details(
    *, deployments: list[dict[str, Any]] | None = None, running: tuple[str, ...] = PER_TASK, **changes: Any
) -> dict[str, Any]:
    """What Serve's REST API says; ``deployments`` as the file has them, ``running`` as Serve has."""
    config = {
        "name": "ranks",
        "route_prefix": "/",
        "import_path": BUILDER,
        "args": {"run": "toy", "routers": 2},
        "deployments": deployments or [],
        **changes,
    }
    other = {"name": "other", "import_path": "other.app:build", "args": {}}
    return {
        "http_options": {"host": "0.0.0.0", "port": 8000, "root_path": ""},
        "proxy_location": "HeadOnly",
        "target_capacity": None,
        "controller_info": {},
        "applications": {
            "ranks": {"deployed_app_config": config, "deployments": {name: {} for name in running}},
            "other": {"deployed_app_config": other},
            "by hand": {"deployed_app_config": None},
        },
    }


class Api:
    """A Serve instance that keeps what it is told."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        self.config: dict[str, Any] = {}

    def get_serve_details(self) -> dict[str, Any]:
        return self.found

    def deploy_applications(self, config: dict[str, Any]) -> None:
        self.config = config


def test_only_the_user_config_of_our_deployments_differs() -> None:
    kept = {"name": "pairwise", "num_replicas": 2, "user_config": {"run": "old"}}
    api = Api(details(deployments=[kept, {"name": "router", "num_replicas": 2}]))
    service = find_service(api)
    assert service.url == "http://127.0.0.1:8000"
    assert service.settings.routers == 2
    hand_over(api, service, served(uri="/runs/b", tuning="bb"), otherwise=Wanted(run="/runs/a"), handover="h")
    wanted = Wanted(run="/runs/b", tuning="bb", otherwise=Wanted(run="/runs/a"), handover="h").model_dump(mode="json")
    assert api.config["http_options"] == api.found["http_options"]
    assert api.config["proxy_location"] == "HeadOnly"
    ours, other = api.config["applications"]
    assert other == api.found["applications"]["other"]["deployed_app_config"]
    before = api.found["applications"]["ranks"]["deployed_app_config"]
    assert {**ours, "deployments": before["deployments"]} == before
    assert ours["deployments"] == [
        {"name": "pairwise", "num_replicas": 2, "user_config": wanted},
        {"name": "router", "num_replicas": 2, "user_config": wanted},
        {"name": "pointwise", "user_config": wanted},
        {"name": "listwise", "user_config": wanted},
    ]
    assert kept["user_config"] == {"run": "old"}  # what Serve said is not touched
    assert api.config == told(service, Wanted.model_validate(wanted))


def test_replicas_that_all_tasks_share_are_told_and_no_deployment_that_is_not_there() -> None:
    api = Api(details(running=("router", "tasks"), args={"run": "toy", "replica_sets": "shared"}))
    hand_over(api, find_service(api), served(), otherwise=None, handover="h")
    assert [one["name"] for one in api.config["applications"][0]["deployments"]] == ["router", "tasks"]
    api = Api(details(running=()))
    with pytest.raises(ServiceError, match=r"'ranks' has no deployments just now: it is being deployed, or"):
        hand_over(api, find_service(api), served(), otherwise=None, handover="h")
    assert api.config == {}


def test_what_serves_now_is_known_from_what_the_service_was_told() -> None:
    before = Wanted(run="/runs/c", tuning="cc", otherwise=Wanted(run="/runs/b", tuning="bb"), handover="h")
    service = find_service(Api(details(deployments=[{"name": "router", "user_config": before.model_dump()}])))
    assert serves_now(service, ModelState(run="c", adapter="cc")) == Wanted(run="/runs/c", tuning="cc")
    assert serves_now(service, ModelState(run="b", adapter="bb")) == Wanted(run="/runs/b", tuning="bb")  # c was refused
    assert serves_now(service, ModelState(run="a", adapter="aa")) is None  # as it was built
    assert serves_now(find_service(Api(details())), ModelState(run="a", adapter="aa")) is None


def test_a_service_that_cannot_be_told_is_refused() -> None:
    with pytest.raises(ServiceError, match=r"found 0 among ranks, other, by hand"):
        find_service(Api(details(import_path="serve.app:another")))


class Clock:
    """Moves on where somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


OLD, NEW = ModelState(run="old", adapter="0"), ModelState(run="toy", adapter="0")


def wait(*states: ModelState | Exception, routers: int = 1) -> float:
    """Seconds until the run 'toy' counts as served, where /readyz says one thing after the other."""
    said, clock = list(states), Clock()

    def readyz() -> Readiness:
        one = said.pop(0) if len(said) > 1 else said[0]
        if isinstance(one, Exception):
            raise one
        return Readiness(ready=True, replicas={}, model=one)

    wait_until_served(served(), "h", readyz, routers=routers, timeout_s=60, now=clock, sleep=clock.sleep)
    return clock.seconds


def test_the_outcome_of_this_attempt_is_waited_for() -> None:
    assert wait(OLD, ServiceError("away"), OLD, NEW) == 1.5
    assert wait(NEW, OLD, NEW, routers=2) == 3.5  # six looks in a row
    stale = OLD.model_copy(update={"refused": Refusal(run="toy", code="late", handover="earlier")})
    assert wait(stale, NEW) == 0.5
    mine = OLD.model_copy(update={"refused": Refusal(run="toy", code="golden_answers", handover="h")})
    with pytest.raises(ServiceError, match=r"refused run 'toy' \(golden_answers\).*run 'old' goes on"):
        wait(OLD, mine)
    with pytest.raises(ServiceError, match="does not serve run 'toy' after 60 s"):
        wait(OLD)
