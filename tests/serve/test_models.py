"""The models a replica holds, with a load that can be made to wait or fail."""

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recranker.errors import ModelError
from recranker.store import Store
from recranker.tasks.protocol import Prompt
from serve.models import Loaded, Models, measured_model, verified_model
from serve.settings import ServeSettings
from serve.source import ServedRun, read_run, run_at
from serve.wanted import ModelKey, Prepared, RefusedRunError, refusing
from tests.serve.runs import ORIGIN, another_run, finished_run, job_settings, publish_rank, spoil_golden_answers


def run_named(folder: Path, name: str) -> ServedRun:
    """A run without an adapter."""
    store = Store(str(folder / "runs" / name))
    with store.publish("tune", ORIGIN) as writer:
        writer.facts["name"] = name
    publish_rank(store, job_settings(name=name))
    return run_at(store.uri)


class Loads:
    """Loads a run at once; a broken one never, and a slow one when ``go`` is set."""

    def __init__(self, broken: tuple[str, ...] = (), slow: tuple[str, ...] = ()) -> None:
        self.broken = broken
        self.slow = slow
        self.go = threading.Event()
        self.loaded: list[str] = []

    def __call__(self, task: str, run: ServedRun, settings: ServeSettings, engine: asyncio.Lock) -> Loaded:
        self.loaded.append(run.name)
        if run.name in self.slow:
            assert self.go.wait(20)
        with refusing("golden_answers"):
            if run.name in self.broken:
                raise ModelError("planted")
        return Loaded(run, None, Prompt("health", "", ()), None)  # type: ignore[arg-type]


class Given:
    """Runs a, b and c, and the models of a replica that was built with a."""

    def __init__(self, folder: Path, loads: Loads) -> None:
        self.runs = {name: run_named(folder, name) for name in "abc"}
        self.loads = loads
        self.settings = ServeSettings(run="a", home=str(folder), request_timeout_s=0.01)
        self.models = Models("pointwise", self.runs["a"], self.settings, loads)

    def key(self, name: str) -> ModelKey:
        return self.runs[name].key

    def wanted(self, *names: str, handover: str = "") -> dict[str, Any]:
        """Serve's user_config: the first, else the next, and so on."""
        rest = self.wanted(*names[1:]) if names[1:] else None
        return {"run": self.runs[names[0]].uri, "otherwise": rest, "handover": handover}

    @property
    def held(self) -> list[str]:
        return sorted(Path(key.uri).name for key in self.models.held)

    async def until(self, state: str, name: str, handover: str = "") -> Prepared:
        """How far it is once that is ``state``."""
        async with asyncio.timeout(20):
            while (found := self.models.prepare(self.key(name), handover)).state != state:
                await asyncio.sleep(0.01)
        return found


def play(folder: Path, story: Callable[[Given], Awaitable[None]], loads: Loads | None = None) -> None:
    async def play_it() -> None:
        await story(Given(folder, loads or Loads()))

    asyncio.run(play_it())


def test_a_new_replica_begins_with_the_run_it_is_told(tmp_path: Path) -> None:
    async def story(given: Given) -> None:
        await given.models.follow(given.wanted("b"))
        assert given.held == ["b"]
        assert (await given.models.get()).run.name == "b"
        assert given.loads.loaded == ["b"]

    play(tmp_path, story)


def test_where_that_is_refused_it_begins_with_what_answered_before_and_else_as_it_was_built(tmp_path: Path) -> None:
    async def story(given: Given) -> None:
        await given.models.follow(given.wanted("c", "b"))
        assert given.held == ["b"]
        again = Models("pointwise", given.runs["a"], given.settings, given.loads)
        await again.follow(given.wanted("c"))
        assert again.held == (given.key("a"),)
        await Models("pointwise", given.runs["a"], given.settings, given.loads).follow({"run": 5})  # loads when asked

    play(tmp_path, story, Loads(broken=("c",)))


def test_the_old_model_answers_while_the_new_one_loads_and_goes_when_nobody_asks(tmp_path: Path) -> None:
    async def story(given: Given) -> None:
        await given.models.get(given.key("a"))
        await given.models.follow(given.wanted("b"))
        assert given.models.prepare(given.key("b"), "").state == "loading"
        assert (await given.models.get(given.key("a"))).run.name == "a"
        waits = asyncio.create_task(given.models.get(given.key("b")))
        await asyncio.sleep(0.05)
        assert not waits.done()
        given.loads.go.set()
        assert (await waits).run.name == "b"
        assert given.held == ["a", "b"]
        await asyncio.sleep(0.02)
        assert (await given.models.health()).run.name == "b"
        assert given.held == ["b"]
        assert given.loads.loaded == ["a", "b"]

    play(tmp_path, story, Loads(slow=("b",)))


def test_a_refused_model_changes_nothing_and_is_tried_again_by_the_next_handover(tmp_path: Path) -> None:
    async def story(given: Given) -> None:
        await given.models.get(given.key("a"))
        await given.models.follow(given.wanted("b", handover="1"))
        assert (await given.until("refused", "b", "1")).code == "golden_answers"
        with pytest.raises(RefusedRunError, match="planted"):
            await given.models.get(given.key("b"))
        assert given.loads.loaded == ["a", "b"]  # not loaded again for every question
        assert (await given.models.get()).run.name == "a"
        given.loads.broken = ()
        assert given.models.prepare(given.key("b"), "2").state == "loading"
        assert (await given.until("ready", "b", "2")).code is None

    play(tmp_path, story, Loads(broken=("b",)))


def test_at_most_two_are_held_and_never_the_answering_one_is_let_go(tmp_path: Path) -> None:
    async def story(given: Given) -> None:
        await given.models.get(given.key("b"))
        await given.models.get(given.key("a"))
        await given.models.follow(given.wanted("c"))
        await given.until("ready", "c")
        assert given.held == ["a", "c"]

    play(tmp_path, story)


def test_a_refused_model_is_not_kept_by_the_error_that_is(tmp_path: Path) -> None:
    class Model:
        """As large as they are."""

    seen: list[weakref.ref[Model]] = []

    def load(*_: Any) -> Loaded:
        model = Model()
        seen.append(weakref.ref(model))
        with refusing("golden_answers"):
            raise ModelError("planted")

    async def story(given: Given) -> None:
        models = Models("pointwise", given.runs["a"], given.settings, load)
        with pytest.raises(RefusedRunError, match="planted"):
            await models.get()
        assert seen[0]() is None
        with pytest.raises(RefusedRunError, match="planted"):
            await models.get()
        assert len(seen) == 1

    play(tmp_path, story)


def test_a_challenger_is_loaded_only_where_there_is_room(tmp_path: Path) -> None:
    async def story(given: Given) -> None:
        await given.models.get(given.key("a"))
        assert given.models.beside(given.key("b")) is None
        await given.until("ready", "b")
        found = given.models.beside(given.key("b"))
        assert found is not None
        assert found.run.name == "b"
        assert given.models.beside(given.key("c")) is None
        await asyncio.sleep(0.05)
        assert given.loads.loaded == ["a", "b"]
        await given.models.get(given.key("c"))  # what is to answer takes the challenger's place
        assert given.held == ["a", "c"]

    play(tmp_path, story)


def test_a_challenger_stays_however_long_its_next_request_is_in_coming(tmp_path: Path) -> None:
    async def story(given: Given) -> None:
        await given.models.get(given.key("a"))
        given.models.beside(given.key("b"))
        await given.until("ready", "b")
        await asyncio.sleep(0.02)  # longer than any request lasts
        await given.models.health()
        assert given.held == ["a", "b"]
        assert given.models.beside(given.key("b")) is not None
        assert given.loads.loaded == ["a", "b"]

    play(tmp_path, story)


def test_replicas_without_a_gpu_of_their_own_score_on_the_cpu(tmp_path: Path) -> None:
    settings = finished_run(tmp_path)
    run = read_run(settings)
    tuned_on_gpu = replace(run, llm=run.llm.model_copy(update={"device": "cuda"}))
    loaded = measured_model("pointwise", tuned_on_gpu, settings, asyncio.Lock())
    assert loaded.scorer.lm.device.type == "cpu"


def test_a_model_tuned_again_since_is_refused(tmp_path: Path) -> None:
    async def story(given: Given) -> None:
        with pytest.raises(RefusedRunError, match="tuned again"):
            await given.models.get(ModelKey(given.runs["b"].uri, "another"))

    play(tmp_path, story)


@pytest.mark.parametrize("fault", ["golden_answers", "not_loaded", "not_readable"])
def test_broken_adapters_are_refused_for_their_reason(tmp_path: Path, fault: str) -> None:
    finished_run(tmp_path)
    store = another_run(tmp_path, "broken")
    run, folder = run_at(store.uri), Path(store.folder("tune")) / "adapter" / "joint"
    if fault == "golden_answers":
        spoil_golden_answers(store)
    elif fault == "not_loaded":
        (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 100)
    else:
        (folder).rename(folder.with_name("elsewhere"))
    with pytest.raises(RefusedRunError) as refused:
        verified_model("pointwise", run, tmp_path / "cache")
    assert refused.value.code == fault
