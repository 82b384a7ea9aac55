"""The router's patience and persistence, over handles that behave as Serve's do."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from recranker.errors import SettingsError
from recranker.tasks.protocol import Prompt, Question
from recranker.tasks.settings import TaskName
from serve import router
from serve.cost import Cost
from serve.errors import BusyError, LateError, RefusedError
from serve.messages import Candidate, ModelState, Plan, RankRequest, RankResponse, Readiness
from serve.presence import PAUSE_S, THERE_S
from serve.ranking import ask
from serve.replica_sets import SHARED
from serve.router import QUIET_S, TOKEN_VARIABLE, Router, read_token, running_replicas
from serve.scored import Scored
from serve.settings import ServeSettings
from serve.wanted import ModelKey
from tests.serve.fakes import Evenly, Roll, even
from tests.serve.test_ranking import request, served


class Handle:
    """A deployment handle whose calls go through ``faults`` before they are answered."""

    def __init__(self, *faults: Exception | float | None, cost: Cost | None = None) -> None:
        self.faults = list(faults)
        self.cost = cost
        self.calls = 0
        self.taken_back = 0
        self.asked: list[Prompt] = []
        self.score = self
        self.is_there = Roll()

    def remote(self, prompt: Prompt, model: ModelKey) -> "asyncio.Task[Scored]":
        self.calls += 1
        self.asked.append(prompt)
        return asyncio.create_task(self._answer(prompt))

    async def _answer(self, prompt: Prompt) -> Scored:
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        try:
            await asyncio.sleep(fault or 0.0)
        except asyncio.CancelledError:
            self.taken_back += 1
            raise
        return replace(await Evenly().score(prompt), cost=self.cost)


def rank(sent: RankRequest, limits: ServeSettings | None = None, **handles: Handle) -> RankResponse:
    settings = limits or ServeSettings(run="toy", request_timeout_s=20)
    return asyncio.run(Router(settings, served(), {**handles}).rank(sent))  # type: ignore[arg-type]


def counted(asked: Router, name: str, **labels: str) -> float | None:
    return asked.metrics.registry.get_sample_value(f"recranker_{name}", labels)


def lost() -> Exception:
    return RayActorError()


def failed() -> Exception:
    return RayTaskError("score", "traceback", RuntimeError("planted"))


def full() -> Exception:
    return BackPressureError(1, 1)


def test_a_lost_replica_is_asked_for_again_up_to_the_limit() -> None:
    twice, thrice = Handle(lost(), lost()), Handle(lost(), lost(), lost())
    response = rank(request(tasks=["pointwise", "listwise"]), pointwise=twice, listwise=thrice)
    assert response.degraded == ("listwise",)
    assert (twice.calls, thrice.calls) == (3, 3)


def test_a_task_without_replicas_is_left_out_at_once_until_there_is_one_again() -> None:
    gone = Handle(lost())

    async def life() -> None:
        asked = Router(ServeSettings(run="toy"), served(), {"pointwise": Handle(), "listwise": gone})  # type: ignore[dict-item]
        both = request(tasks=["pointwise", "listwise"])
        gone.is_there.there.clear()
        gone.is_there.faults = 1
        first, started = await asked.rank(both), time.monotonic()
        assert (first.degraded, first.plan) == (("listwise",), None)
        second = await asked.rank(both)
        assert time.monotonic() - started < 0.5
        assert second.plan == Plan(left_out={"listwise": "no_replica"})
        alone = await asked.rank(request(tasks=["listwise"]))
        assert (alone.order, alone.degraded) == ("backbone", ("listwise",))
        assert gone.calls == 1
        gone.is_there.there.set()
        await asyncio.sleep(2 * PAUSE_S)
        assert (await asked.rank(both)).degraded == ()

    started = time.monotonic()
    asyncio.run(life())
    assert time.monotonic() - started < 5.0


@pytest.mark.parametrize("replica_sets", ["per_task", "shared"])
def test_a_task_too_long_for_the_model_is_named_and_the_others_decide(
    replica_sets: Literal["per_task", "shared"],
) -> None:
    class Short(Handle):
        """Reads no lists."""

        async def _answer(self, prompt: Prompt) -> Scored:
            read = [one for one in prompt.questions if one.task != "listwise"]
            left_out = frozenset[TaskName]({"listwise"} if len(read) < len(prompt.questions) else ())
            return Scored([even(one) for one in read], 100, 0.01, too_long=left_out)

    async def life() -> None:
        limits = ServeSettings(run="toy", replica_sets=replica_sets)
        asked = Router(limits, served(), dict.fromkeys(("pointwise", "listwise"), Short()))  # type: ignore[arg-type]
        response = await asked.rank(request(tasks=["pointwise", "listwise"]))
        assert (response.degraded, response.order) == (("listwise",), "fused")
        assert response.plan == Plan(left_out={"listwise": "too_long"})
        assert counted(asked, "requests_total", task="listwise", outcome="left_out") == 1.0
        assert counted(asked, "requests_total", task="pointwise", outcome="answered") == 1.0
        alone = await asked.rank(request(tasks=["listwise"]))
        assert (alone.order, alone.plan) == ("backbone", Plan(left_out={"listwise": "too_long"}))

    asyncio.run(life())


def test_a_lost_call_with_little_time_left_says_nothing_about_the_next() -> None:
    gone = Handle(lost())

    async def life() -> None:
        asked = Router(ServeSettings(run="toy"), served(), {"listwise": gone})  # type: ignore[dict-item]
        gone.is_there.there.clear()
        hurried = await asked.rank(request(tasks=["listwise"]), time.monotonic() + 0.2)
        assert hurried.degraded == ("listwise",)
        assert (await asked.rank(request(tasks=["listwise"]))).degraded == ()

    asyncio.run(life())


def test_a_task_that_says_nothing_is_left_out_where_nobody_is_there() -> None:
    silent = Handle(30.0)  # its replica died idle: Serve keeps the call for the next one

    async def life() -> None:
        asked = Router(ServeSettings(run="toy"), served(), {"pointwise": Handle(), "listwise": silent})  # type: ignore[dict-item]
        both = request(tasks=["pointwise", "listwise"])
        silent.is_there.there.clear()
        assert (await asked.rank(both)).degraded == ("listwise",)
        assert silent.taken_back == 1
        assert (await asked.rank(both)).plan == Plan(left_out={"listwise": "no_replica"})
        assert counted(asked, "requests_total", task="listwise", outcome="lost") == 1.0
        silent.is_there.there.set()
        await asyncio.sleep(0.0)
        assert (await asked.rank(both)).degraded == ()

    started = time.monotonic()
    asyncio.run(life())
    assert time.monotonic() - started < 5.0


def test_a_slow_task_is_waited_for_where_somebody_is_there_or_all_have_their_hands_full() -> None:
    async def answered(asked: Router, requests: int) -> list[tuple[str, ...]]:
        sent = [asked.rank(request(tasks=["listwise"])) for _ in range(requests)]
        return [one.degraded for one in await asyncio.gather(*sent)]

    slow = QUIET_S + 2 * THERE_S
    settings = ServeSettings(run="toy", max_ongoing_requests=1)
    there, full_hands = Handle(slow), Handle(slow, slow)
    assert asyncio.run(answered(Router(settings, served(), {"listwise": there}), 1)) == [()]  # type: ignore[dict-item]
    full_hands.is_there.there.clear()
    assert asyncio.run(answered(Router(settings, served(), {"listwise": full_hands}), 2)) == [(), ()]  # type: ignore[dict-item]


def test_a_replica_that_hangs_does_not_take_the_task_from_one_that_does_not() -> None:
    slow = Handle(QUIET_S + 2 * THERE_S)
    slow.is_there.hung = 2

    async def life() -> None:
        asked = Router(ServeSettings(run="toy"), served(), {"listwise": slow})  # type: ignore[dict-item]
        assert (await asked.rank(request(tasks=["listwise"]))).degraded == ()
        assert asked.presence.absent == set()
        slow.is_there.hung = 100  # all of them: now it is gone
        slow.faults = [30.0]
        assert (await asked.rank(request(tasks=["listwise"]))).degraded == ("listwise",)
        assert slow.is_there.hung >= 90  # a few calls wait, not one for every moment
        slow.is_there.hung = 0
        assert asked.presence.absent == {"listwise"}

    asyncio.run(life())


@pytest.mark.parametrize("fault", [failed, full])
def test_a_task_that_failed_or_is_full_is_not_asked_again(fault: Callable[[], Exception]) -> None:
    bad = Handle(fault())
    response = rank(request(tasks=["pointwise", "listwise"]), pointwise=Handle(), listwise=bad)
    assert response.degraded == ("listwise",)
    assert bad.calls == 1


def test_a_slow_task_is_left_behind_at_the_deadline() -> None:
    limits = ServeSettings(run="toy", request_timeout_s=0.2)
    response = rank(request(tasks=["pointwise", "listwise"]), limits, pointwise=Handle(), listwise=Handle(30.0))
    assert response.degraded == ("listwise",)
    assert response.order == "fused"


def test_the_deadline_of_a_request_ends_the_waiting_before_it() -> None:
    asked = Router(ServeSettings(run="toy"), served(), {"listwise": Handle(30.0)})  # type: ignore[dict-item]
    started = time.monotonic()
    response = asyncio.run(asked.rank(request(tasks=["listwise"]), started + 0.2))
    assert time.monotonic() - started < 5.0
    assert (response.order, response.degraded) == ("backbone", ("listwise",))
    assert asyncio.run(asked.rank(request(tasks=["listwise"]), started)).order == "backbone"  # already over


def test_a_lookup_that_takes_too_long_leaves_nothing_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "completed", lambda *_: time.sleep(0.5))
    asked = Router(ServeSettings(run="toy"), served(), {"listwise": Handle()})  # type: ignore[dict-item]
    with pytest.raises(LateError):
        asyncio.run(asked.rank(RankRequest(user_id="u"), time.monotonic() + 0.05))
    assert counted(asked, "requests_total", task="all", outcome="late") == 1.0


def test_what_became_of_requests_and_tasks_is_counted() -> None:
    handles = {"pointwise": Handle(lost(), None), "pairwise": Handle(failed()), "listwise": Handle(full())}
    asked = Router(ServeSettings(run="toy", max_attempts=2), served(), handles)  # type: ignore[arg-type]
    asyncio.run(asked.rank(request()))
    outcomes = {"all": "fused", "pointwise": "answered", "pairwise": "failed", "listwise": "busy"}
    for task, outcome in outcomes.items():
        assert counted(asked, "requests_total", task=task, outcome=outcome) == 1.0
        assert counted(asked, "request_duration_seconds_count", task=task) == 1.0
    assert counted(asked, "task_retries_total", task="pointwise", reason="replica_lost") == 1.0
    assert [counted(asked, "degraded_total", missing=one) for one in handles] == [None, 1.0, 1.0]
    assert counted(asked, "candidates_sum") == 4.0
    assert counted(asked, "shed_total") == 0.0


@pytest.mark.parametrize(
    ("sent", "fault", "error", "outcome"),
    [
        (request(tasks=["listwise"]), full(), BusyError, "shed"),
        (request(30, tasks=["listwise"]), None, RefusedError, "refused"),
        (request(tasks=["listwise"]), ZeroDivisionError(), ZeroDivisionError, "failed"),
    ],
)
def test_requests_that_get_no_answer_are_counted_too(
    sent: RankRequest, fault: Exception | None, error: type[Exception], outcome: str
) -> None:
    handles = {"listwise": Handle(fault)}  # type: ignore[arg-type]
    asked = Router(ServeSettings(run="toy"), served(), handles)  # type: ignore[arg-type]
    with pytest.raises(error):
        asyncio.run(asked.rank(sent))
    assert counted(asked, "requests_total", task="all", outcome=outcome) == 1.0
    assert counted(asked, "shed_total") == float(outcome == "shed")


def test_ready_is_when_every_task_has_a_running_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Router(ServeSettings(run="toy"), served(), {"pointwise": Handle(), "listwise": Handle()})  # type: ignore[dict-item]
    counts = {"router": 1, "pointwise": 2}
    monkeypatch.setattr(router, "running_replicas", lambda: counts)
    state = ModelState(run="toy", adapter="0")
    found = Readiness(ready=False, replicas={"pointwise": 2, "listwise": 0}, missing=("listwise",), model=state)
    assert asyncio.run(asked.readiness()) == found
    counts["listwise"] = 1
    found = Readiness(ready=True, replicas={"pointwise": 2, "listwise": 1}, model=state)
    assert asyncio.run(asked.readiness()) == found

    def away() -> dict[str, int]:
        raise lost()

    monkeypatch.setattr(router, "running_replicas", away)
    assert asyncio.run(asked.readiness()) == found
    monkeypatch.setattr(router, "running_replicas", dict)  # the application is deployed anew: none is counted
    assert asyncio.run(asked.readiness()) == found


def test_replicas_are_not_counted_while_the_application_is_deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    apps: dict[str, Any] = {}
    monkeypatch.setattr(router.serve, "get_replica_context", lambda: SimpleNamespace(app_name="ranks"))
    monkeypatch.setattr(router.serve, "status", lambda: SimpleNamespace(applications=apps))
    assert running_replicas() == {}
    apps["ranks"] = SimpleNamespace(deployments={})
    assert running_replicas() == {}
    states = {"RUNNING": 2, "STARTING": 1}
    apps["ranks"].deployments["listwise"] = SimpleNamespace(replica_states=states)
    assert running_replicas() == {"listwise": 2}


def test_an_absent_controller_holds_one_thread_however_often_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Router(ServeSettings(run="toy"), served(), {"listwise": Handle()})  # type: ignore[dict-item]
    back, calls = threading.Event(), []

    def waits() -> dict[str, int]:
        calls.append(1)
        back.wait(30)
        return {"listwise": 1}

    monkeypatch.setattr(router, "running_replicas", waits)
    monkeypatch.setattr(router, "STATUS_S", 0.05)

    async def life() -> None:
        for _ in range(5):
            assert not (await asked.readiness()).ready
        back.set()
        while not (await asked.readiness()).ready:
            await asyncio.sleep(0.01)

    asyncio.run(life())
    assert len(calls) <= 2


SLOW = Cost(10.0, 0.0, 1.0)
"""Every prompt takes ten seconds, as the replica says."""


def known(**handles: Handle) -> Router:
    """A router that has heard what its tasks cost."""
    asked = Router(ServeSettings(run="toy"), served(), {**handles})  # type: ignore[arg-type]
    asyncio.run(asked.rank(request()))
    return asked


def within(asked: Router, seconds: float, **sent: Any) -> RankResponse:
    return asyncio.run(asked.rank(request(**sent), time.monotonic() + seconds))


def test_tasks_that_would_come_too_late_are_not_asked_and_named() -> None:
    handles = {"pointwise": Handle(cost=Cost(0.1, 0.0, 1.0)), "pairwise": Handle(), "listwise": Handle(cost=SLOW)}
    asked = known(**handles)
    response = within(asked, 5.0)
    assert (response.degraded, response.order) == (("listwise",), "fused")
    assert response.plan == Plan(left_out={"listwise": "deadline"})
    assert [one.calls for one in handles.values()] == [2, 2, 1]
    assert counted(asked, "requests_total", task="listwise", outcome="left_out") == 1.0
    assert counted(asked, "degraded_total", missing="listwise") == 1.0
    assert within(asked, 100.0).plan is None
    # three requests with 100 tokens of each task that answered
    assert counted(asked, "prompt_tokens_sum") == 300 + 200 + 300


def test_a_deadline_too_short_for_an_idle_service_leaves_the_retrievers_order() -> None:
    asked = known(**{task: Handle(cost=SLOW) for task in ("pointwise", "pairwise", "listwise")})
    response = within(asked, 5.0)
    assert (response.order, response.degraded) == ("backbone", ("pointwise", "pairwise", "listwise"))
    assert response.plan == Plan(left_out=dict.fromkeys(response.degraded, "deadline"))


def test_fewer_pairs_are_asked_where_there_is_time_for_some() -> None:
    a_byte = Cost(0.0, 0.01, 1.0)
    handle = Handle(cost=a_byte)
    asked = Router(ServeSettings(run="toy"), served(), {"pairwise": handle})  # type: ignore[dict-item]
    asyncio.run(asked.rank(request(8, tasks=["pairwise"])))
    whole = handle.asked[0]
    one_less = sum(len(one.text) for one in whole.questions[2:]) + len(whole.prefix)
    response = within(asked, 1.1 * 0.01 * (one_less + 50), num=8, tasks=["pairwise"])
    assert response.plan == Plan(pairs_asked=7, pairs_wanted=8)
    assert len(handle.asked[1].questions) == 14
    assert (response.order, response.degraded) == ("fused", ())


def test_a_full_service_sheds_at_the_door_and_says_when_it_will_have_room() -> None:
    async def overload(asked: Router) -> float:
        ends = time.monotonic() + 80.0
        first = [asyncio.create_task(asked.rank(request(tasks=["listwise"]), ends)) for _ in range(7)]
        await asyncio.sleep(0.0)
        with pytest.raises(BusyError) as caught:
            await asked.rank(request(tasks=["listwise"]), ends)
        await asyncio.gather(*first)
        assert (await asked.rank(request(tasks=["listwise"]), ends)).plan is None
        return caught.value.retry_after_s

    handle = Handle(None, *[0.5] * 7, cost=SLOW)
    handles = {"pointwise": Handle(), "pairwise": Handle(), "listwise": handle}
    assert asyncio.run(overload(known(**handles))) == pytest.approx(70.0, abs=0.5)
    assert handle.calls == 9


def test_what_nobody_waits_for_any_longer_is_taken_back() -> None:
    slow = Handle(30.0, 30.0)
    asked = Router(ServeSettings(run="toy"), served(), {"listwise": slow})  # type: ignore[dict-item]
    assert within(asked, 0.1, tasks=["listwise"]).degraded == ("listwise",)
    assert slow.taken_back == 1

    async def leave() -> None:
        call = asyncio.create_task(asked.rank(request(tasks=["listwise"])))
        await asyncio.sleep(0.05)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    asyncio.run(leave())
    assert slow.taken_back == 2
    assert [counted(asked, "requests_total", task=one, outcome="cancelled") for one in ("all", "listwise")] == [
        1.0,
        1.0,
    ]


def test_explanations_ask_the_tasks_and_pairs_that_were_asked() -> None:
    handles = {"pointwise": Handle(), "pairwise": Handle(), "listwise": Handle(cost=SLOW)}
    history = [{"title": "Alien", "rating": 5}, {"title": "Grease", "rating": 1}]
    response = within(known(**handles), 5.0, history=history, explain=True)
    assert response.influences is not None
    assert [one.history for one in response.influences] == [1, 0]
    assert [one.calls for one in handles.values()] == [4, 4, 1]


def test_replicas_are_counted_again_where_their_number_follows_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(router, "running_replicas", lambda: looks.append(1) or {"pointwise": 3, "listwise": 2})
    settings = ServeSettings(run="toy", max_replicas=4, per_task={"listwise": {"replicas": 1}})  # type: ignore[dict-item]

    async def counts() -> list[int]:
        asked = Router(settings, served(), {"pointwise": Handle(), "listwise": Handle()})  # type: ignore[dict-item]
        for _ in range(2):
            await asked.rank(request(tasks=["pointwise", "listwise"]))
            await asyncio.sleep(0.1)
        return [asked._replicas(one) for one in asked.sets]

    assert asyncio.run(counts()) == [3, 1]
    assert looks == [1]


def test_tasks_that_share_their_replicas_are_asked_in_one_call_and_answered_apart() -> None:
    shared, handle = ServeSettings(run="toy", replica_sets="shared"), Handle(lost())
    response = rank(request(5), shared, pointwise=handle, pairwise=handle, listwise=handle)
    apart = rank(request(5), pointwise=Handle(), pairwise=Handle(), listwise=Handle())
    assert response == apart
    assert handle.calls == 2  # the first was lost
    asked = ask(request(5), served(), shared).prompts.values()
    assert handle.asked[1].questions == tuple(question for prompt in asked for question in prompt.questions)
    some = rank(request(5, tasks=["listwise"]), shared, pointwise=handle, pairwise=handle, listwise=handle)
    assert (some.order, some.degraded) == ("fused", ())
    assert handle.asked[2].questions == asked_of("listwise")


def asked_of(task: TaskName) -> tuple[Question, ...]:
    return ask(request(5), served(), ServeSettings(run="toy")).prompts[task].questions


def test_tasks_that_share_their_replicas_are_missing_together(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ServeSettings(run="toy", replica_sets="shared", max_attempts=2)
    tasks: dict[TaskName, Any] = dict.fromkeys(("pointwise", "pairwise", "listwise"), Handle(failed()))
    asked = Router(shared, served(), tasks)
    response = asyncio.run(asked.rank(request()))
    assert (response.order, response.degraded) == ("backbone", tuple(tasks))
    assert [counted(asked, "requests_total", task=task, outcome="failed") for task in tasks] == [1.0] * 3
    assert asyncio.run(asked.rank(request())).degraded == ()
    assert counted(asked, "prompt_tokens_sum") == 100.0  # of one pass
    monkeypatch.setattr(router, "running_replicas", lambda: {"router": 1, SHARED: 2})
    assert asyncio.run(asked.readiness()).replicas == dict.fromkeys(tasks, 2)


def test_only_when_all_tasks_are_full_the_service_is_busy() -> None:
    sent = request(tasks=["pointwise", "listwise"])
    with pytest.raises(BusyError):
        rank(sent, pointwise=Handle(full()), listwise=Handle(full()))
    assert rank(sent, pointwise=Handle(full()), listwise=Handle(failed())).order == "backbone"


def test_the_token_comes_from_its_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("from the file\n")
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(ServeSettings(run="toy")) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "from the environment")
    assert read_token(ServeSettings(run="toy")) == "from the environment"
    assert read_token(ServeSettings(run="toy", token_file=str(file))) == "from the file"


def test_a_token_that_was_there_when_the_service_was_built_must_be_there_where_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "of the shell\n")
    assert Router(ServeSettings(run="toy"), served(), {}, needs_token=True).token == "of the shell"
    monkeypatch.delenv(TOKEN_VARIABLE)
    with pytest.raises(SettingsError, match=f"{TOKEN_VARIABLE} was set where the application was built"):
        Router(ServeSettings(run="toy"), served(), {}, needs_token=True)


def test_more_candidates_than_allowed_are_refused_before_any_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "completed", lambda *_: pytest.fail("looked up"))
    many = RankRequest(candidates=tuple(Candidate(id=str(place)) for place in range(27)))
    with pytest.raises(RefusedError, match="at most 26 candidates may be sent, got 27"):
        asyncio.run(Router(ServeSettings(run="toy"), served(), {"pointwise": Handle()}).rank(many))  # type: ignore[dict-item]


def test_a_token_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for name, message in (("missing", "cannot be read"), ("empty", "is empty")):
        with pytest.raises(SettingsError, match=message):
            read_token(ServeSettings(run="toy", token_file=str(tmp_path / name)))
