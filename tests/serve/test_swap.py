"""A router on its way from one run to another, over tasks that say what they are told to."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from recranker.store import Store
from recranker.tasks.protocol import Prompt
from serve.messages import RankResponse
from serve.router import Router
from serve.settings import ServeSettings
from serve.source import ServedRun, run_at
from serve.wanted import ModelKey, Prepared
from tests.serve.fakes import Evenly
from tests.serve.published import published
from tests.serve.runs import ORIGIN, WEIGHTS, job_settings, publish_rank
from tests.serve.test_ranking import request

TASKS = ("pointwise", "pairwise", "listwise")


class Task:
    """A handle of a task whose replicas have the models of ``ready``, and refuse that of ``refuses``."""

    def __init__(self) -> None:
        self.ready: set[str] = {"a"}
        self.refuses: set[str] = set()
        self.replicas = 2
        self.asked: list[str] = []
        self.holds: asyncio.Event | None = None
        self.score = self

    async def remote(self, prompt: Prompt, model: ModelKey) -> Any:
        self.asked.append(name_of(model))
        if self.holds is not None:
            await self.holds.wait()
        return await Evenly().score(prompt)

    def broadcast(self, method: str, model: ModelKey, handover: str) -> Any:
        assert method == "prepare"
        self.told = name_of(model)
        return self

    async def results_async(self, timeout_s: float) -> list[Prepared]:
        if not self.replicas:
            raise RayActorError
        if self.told in self.refuses:
            return [Prepared("ready"), Prepared("refused", "golden_answers")][: self.replicas]
        states = ["ready" if self.told in self.ready else "loading"]
        return [Prepared("ready")] * (self.replicas - 1) + [Prepared(one) for one in states]  # type: ignore[arg-type]


def name_of(model: ModelKey) -> str:
    return Path(model.uri).name


def publish(folder: Path, name: str, **changes: Any) -> ServedRun:
    """A run without an adapter."""
    store = Store(str(folder / "runs" / name))
    with store.publish("tune", ORIGIN) as writer:
        writer.facts["name"] = name
    publish_rank(store, job_settings(name=name, **changes))
    return run_at(store.uri)


class Given:
    """Runs a, b and c, tasks, and a router that was built with a."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = {name: publish(folder, name) for name in "abc"}
        self.tasks = {task: Task() for task in TASKS}
        self.settings = ServeSettings(run="a", home=str(folder), swap_timeout_s=5)
        self.router = self.another_router()

    def another_router(self) -> Router:
        return Router(self.settings, self.runs["a"], self.tasks)  # type: ignore[arg-type]

    async def told(self, name: str, otherwise: str | None = None, router: Router | None = None) -> None:
        rest = {"run": self.runs[otherwise].uri} if otherwise else None
        config = {"run": str(self.folder / "runs" / name), "otherwise": rest, "handover": f"to {name}"}
        await (router or self.router).reconfigure(config)

    async def settled(self) -> None:
        async with asyncio.timeout(20):
            while self.router.swap.state.loading:
                await asyncio.sleep(0.01)

    def counted(self, name: str, **labels: str) -> float | None:
        return self.router.metrics.registry.get_sample_value(f"recranker_{name}", labels)


def play(folder: Path, story: Callable[[Given], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.swap.ASK_S", 0.01)

    async def play_it() -> None:
        given = Given(folder)
        await given.told("a")  # as Serve does it before the first request
        await story(given)

    asyncio.run(play_it())


def test_a_router_goes_over_once_every_replica_of_every_task_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(given: Given) -> None:
        given.tasks["pointwise"].ready.add("b")
        given.tasks["pairwise"].ready.add("b")
        await asyncio.wait_for(given.told("b"), 1.0)
        await asyncio.sleep(0.05)
        response = await given.router.rank(request())
        assert response.model.run == "a"
        assert given.router.swap.state.loading == "b"
        given.tasks["listwise"].ready.add("b")
        await given.settled()
        response = await given.router.rank(request())
        assert (response.model.run, response.model.adapter) == ("b", given.runs["b"].tuning)
        assert {name for task in given.tasks.values() for name in task.asked} == {"a", "b"}
        assert given.counted("model_swaps_total") == 1.0
        assert given.counted("build_info", version="unknown", model_sha=given.runs["a"].tuning) is None

    play(tmp_path, story, monkeypatch)


def test_a_request_under_way_ends_with_the_run_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(given: Given) -> None:
        given.tasks["pairwise"].holds = asyncio.Event()
        old = asyncio.create_task(given.router.rank(request(history=[{"title": "Alien", "liked": True}], explain=True)))
        await asyncio.sleep(0.01)
        for task in given.tasks.values():
            task.ready.add("b")
        await given.told("b")
        await given.settled()
        given.tasks["pairwise"].holds.set()
        found: RankResponse = await old
        assert found.model.run == "a"
        assert given.router.run.name == "b"
        assert {name for task in given.tasks.values() for name in task.asked} == {"a"}  # the explanation, too

    play(tmp_path, story, monkeypatch)


def refused(given: Given) -> tuple[str, str] | None:
    found = given.router.swap.state.refused
    return (found.run, found.code) if found else None


def test_a_run_that_one_replica_refuses_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(given: Given) -> None:
        given.tasks["pairwise"].refuses.add("b")
        await given.told("b")
        await given.settled()
        assert refused(given) == ("b", "golden_answers")
        assert (await given.router.rank(request())).model.run == "a"
        assert given.counted("model_refused_total", reason="golden_answers") == 1.0
        assert given.counted("model_swaps_total") == 0.0
        assert "run b refused, golden_answers: by task pairwise, whose log says why; run a goes on" in caplog.text
        given.tasks["pairwise"].refuses.clear()
        for task in given.tasks.values():
            task.ready.add("c")
        await given.told("c")
        await given.settled()
        assert refused(given) is None
        assert given.router.run.name == "c"

    play(tmp_path, story, monkeypatch)


@pytest.mark.parametrize(
    ("fault", "code"),
    [("missing", "not_readable"), ("weights", "not_readable"), ("tasks", "other_tasks"), ("slow", "late")],
)
def test_what_cannot_be_served_is_refused_for_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, code: str
) -> None:
    async def story(given: Given) -> None:
        if fault == "weights":
            (tmp_path / "runs" / "b" / "rank" / "fusion" / "weights.json").write_text("{")
        if fault == "tasks":
            publish(tmp_path, "b", tune={"tasks": ["pointwise"]})
        if fault == "slow":
            given.router.swap.settings = given.settings.model_copy(update={"swap_timeout_s": 0.1})
        await given.told("nothing" if fault == "missing" else "b")
        await given.settled()
        assert refused(given) == ("nothing" if fault == "missing" else "b", code)
        assert given.router.run.name == "a"

    play(tmp_path, story, monkeypatch)


def test_a_user_config_of_another_shape_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(given: Given) -> None:
        await given.router.reconfigure({"model": "b"})
        assert refused(given) == ("unknown", "invalid")
        assert given.router.run.name == "a"

    play(tmp_path, story, monkeypatch)


def test_a_new_router_waits_for_its_run_and_else_begins_with_what_answered_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(given: Given) -> None:
        for task in given.tasks.values():
            task.ready.add("b")
        router = given.another_router()
        await given.told("b", "a", router)
        assert router.run.name == "b"
        given.tasks["listwise"].refuses.add("c")
        router = given.another_router()
        await given.told("c", "b", router)
        assert router.run.name == "b"
        assert router.swap.state.refused is not None

    play(tmp_path, story, monkeypatch)


def test_the_later_of_two_runs_is_the_one_that_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(given: Given) -> None:
        await given.told("b")  # never ready
        for task in given.tasks.values():
            task.ready.add("c")
        await given.told("c")
        await given.settled()
        assert given.router.run.name == "c"
        for task in given.tasks.values():
            task.ready.add("b")
        await asyncio.sleep(0.1)
        assert given.router.run.name == "c"

    play(tmp_path, story, monkeypatch)


def test_tasks_without_a_running_replica_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(given: Given) -> None:
        for task in given.tasks.values():
            task.ready.add("b")
        given.tasks["listwise"].replicas = 0
        await given.told("b")
        await asyncio.sleep(0.05)
        assert given.router.run.name == "a"
        given.tasks["listwise"].replicas = 1
        await given.settled()
        assert given.router.run.name == "b"

    play(tmp_path, story, monkeypatch)


def test_a_run_without_users_does_not_take_the_place_of_one_that_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_users = published(tmp_path / "published")

    async def story(given: Given) -> None:
        router = Router(given.settings, with_users, given.tasks)  # type: ignore[arg-type]
        assert router.users is not None
        await given.told("b", router=router)
        state = router.swap.state.refused
        assert state is not None
        assert state.code == "no_users"
        assert router.users is not None

    play(tmp_path, story, monkeypatch)


def test_the_weights_of_a_run_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(given: Given) -> None:
        path = tmp_path / "runs" / "b" / "rank" / "fusion" / "weights.json"
        path.write_text('{"preset": "recranker", "weights": {"pointwise": 1.0}}')
        for task in given.tasks.values():
            task.ready.add("b")
        before = await given.router.rank(request())
        await given.told("b")
        await given.settled()
        after = await given.router.rank(request())
        assert before.model.weights == pytest.approx(WEIGHTS)
        assert after.model.weights == {"pointwise": 1.0}

    play(tmp_path, story, monkeypatch)


def test_a_run_with_adapters_of_its_own_for_tasks_cannot_have_shared_replicas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(given: Given) -> None:
        given.settings = given.settings.model_copy(update={"replica_sets": "shared"})
        for name in "ab":
            adapters = given.runs[name].adapters
            for task in TASKS if name == "b" else ("joint",):
                (adapters / task).mkdir(parents=True)
        for task in given.tasks.values():
            task.ready.add("b")
        router = given.another_router()
        await given.told("b", router=router)
        async with asyncio.timeout(20):
            while router.swap.state.loading:
                await asyncio.sleep(0.01)
        refused = router.swap.state.refused
        assert refused is not None
        assert refused.code == "other_tasks"
        assert router.run == given.runs["a"]

    play(tmp_path, story, monkeypatch)


def test_a_router_that_is_replaced_starts_though_the_users_of_its_run_fit_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stale = published(tmp_path / "published")
    manifest = Path(Store(stale.uri).folder("backbone")) / "_manifest.json"
    manifest.write_text(manifest.read_text().replace('"facts": {}', '"facts": {"fitted": "again"}'))

    async def story(given: Given) -> None:
        router = Router(given.settings, stale, given.tasks)  # type: ignore[arg-type]
        assert router.users is None
        assert "another output of stage 'backbone'" in caplog.text
        assert (await router.rank(request())).order == "fused"

    play(tmp_path, story, monkeypatch)
