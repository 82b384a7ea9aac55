"""A client that hides faults that pass, on a clock that only waits move."""

import asyncio
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import httpx
import pytest

from recranker import client
from recranker.client import AsyncClient, Candidate, Client, HistoryEntry, RankRequest
from recranker.errors import ServiceError
from serve import messages
from tests.serve.fake_service import FakeService, served_on_loopback

RANKING = {
    "ranking": [{"id": "1", "rank": 1, "score": 1.0, "probability": 0.5, "of_a_newer_service": 1}],
    "degraded": ["pairwise"],
    "plan": {"left_out": {"pairwise": "queue"}},
    "order": "fused",
    "model": {"run": "toy"},
    "also_newer": 1,
}


class Clock:
    """Time that passes while one sleeps, and at no other time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The client's clock, and a jitter that is always the longest."""
    found = Clock()
    monkeypatch.setattr(client, "time", found)
    monkeypatch.setattr(client.random, "uniform", lambda lowest, highest: highest)
    return found


class Script:
    """A service that gives these answers one after another and keeps what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]) -> None:
        self.answers: Iterator[Any] = iter(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(one.content) for one in self.asked]


def good() -> httpx.Response:
    return httpx.Response(200, json=RANKING)


def bad(status: int, *, after: str | None = None, **body: Any) -> httpx.Response:
    return httpx.Response(status, json=body, headers={"Retry-After": after} if after else {})


def ask(script: Script, **settings: Any) -> client.Ranking:
    with Client("http://test/", transport=httpx.MockTransport(script), **settings) as asking:
        return asking.rank(["Alien"], ["Big", "Aliens"])


def test_what_was_said_is_sent_and_the_rest_left_out() -> None:
    script = Script(good())
    with Client("http://test/prefix/", "secret", transport=httpx.MockTransport(script)) as asking:
        ranking = asking.rank(
            ["Alien", HistoryEntry("Grease", rating=1.0)],
            ["Big", Candidate("Aliens", id="a", backbone_score=0.5)],
            weights={"listwise": 1.0},
            tasks=("listwise",),
            deadline_ms=200,
            request_id="r1",
        )
    assert script.bodies[0] == {
        "history": [{"title": "Alien", "liked": True}, {"title": "Grease", "rating": 1.0}],
        "candidates": [{"title": "Big"}, {"title": "Aliens", "id": "a", "backbone_score": 0.5}],
        "weights": {"listwise": 1.0},
        "tasks": ["listwise"],
        "deadline_ms": 200,
    }
    assert str(script.asked[0].url) == "http://test/prefix/v1/rank"
    assert script.asked[0].headers["Authorization"] == "Bearer secret"
    assert script.asked[0].headers["x-request-id"] == "r1"
    assert (ranking.items[0].id, ranking.items[0].probability) == ("1", 0.5)
    assert (ranking.degraded, ranking.order, ranking.model) == (("pairwise",), "fused", {"run": "toy"})
    assert ranking.plan == {"left_out": {"pairwise": "queue"}}


def test_a_user_takes_the_place_of_a_history() -> None:
    script = Script(good())
    with Client("http://test", transport=httpx.MockTransport(script)) as asking:
        asking.rank(user_id="u7", explain=True, deadline_ms=1)
    assert script.bodies[0] == {"user_id": "u7", "explain": True, "deadline_ms": 1}


@pytest.mark.parametrize(
    "fault",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("closed"),
        bad(429),
        bad(502),
        bad(503),
        bad(504),
        httpx.Response(500, text="Internal Server Error"),  # of Serve's proxy: the replica that had it is gone
    ],
)
def test_faults_that_pass_are_hidden_under_one_request_id(fault: Any, clock: Clock) -> None:
    script = Script(fault, fault, good())
    assert ask(script).items[0].rank == 1
    assert len({one.headers["x-request-id"] for one in script.asked}) == 1
    assert clock.waits == [0.1, 0.2]


@pytest.mark.parametrize(
    ("status", "code"), [(401, "unauthorized"), (413, "too_large"), (422, "limit_exceeded"), (500, "internal_error")]
)
def test_what_would_end_the_same_is_not_tried_again(status: int, code: str, clock: Clock) -> None:
    limit = {"name": "max_candidates", "value": 26}
    script = Script(bad(status, code=code, message="at most 26", limit=limit))
    with pytest.raises(ServiceError, match=r"^at most 26 \(after 1 attempt, request \w{32}\)$") as caught:
        ask(script)
    assert (caught.value.status, caught.value.code, caught.value.limit) == (status, code, limit)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.code, again.limit) == (str(caught.value), code, limit)
    assert clock.waits == []


def test_waits_double_up_to_the_longest_beside_what_the_service_asks_for(clock: Clock) -> None:
    faults = [bad(503, after="3"), *(bad(503) for _ in range(7))]
    ask(Script(*faults, good()), timeout_s=100)
    assert clock.waits == pytest.approx([3.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


def test_waits_are_drawn_between_nothing_and_the_backoff(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(client.random, "uniform", lambda lowest, highest: lowest)
    ask(Script(bad(503), bad(503, after="2"), good()))
    assert clock.waits == [0.0, 2.0]


def test_retry_after_may_be_a_date_or_nonsense(clock: Clock) -> None:
    clock.now = 1_000_000_000.0  # Sun, 09 Sep 2001 01:46:40 GMT
    faults = [bad(503, after=after) for after in ("Sun, 09 Sep 2001 01:46:45 GMT", "soon", "-1")]
    ask(Script(*faults, good()))
    assert clock.waits == pytest.approx([5.1, 0.2, 0.4])


def test_the_service_is_told_the_time_that_is_left(clock: Clock) -> None:
    script = Script(bad(503, after="4"), good())
    ask(script, timeout_s=10)
    assert [one["deadline_ms"] for one in script.bodies] == pytest.approx([9000, (10 - 4.1) * 900], abs=1)
    assert [one.extensions["timeout"]["read"] for one in script.asked] == pytest.approx([10.0, 5.9])


def test_a_deadline_of_ones_own_ends_with_the_time_that_is_left(clock: Clock) -> None:
    script = Script(bad(503, after="4"), good())
    with Client("http://test", transport=httpx.MockTransport(script), timeout_s=10) as asking:
        asking.rank(["Alien"], ["Big"], deadline_ms=7000)
    assert [one["deadline_ms"] for one in script.bodies] == pytest.approx([7000, (10 - 4.1) * 900], abs=1)


@pytest.mark.parametrize("fault", [httpx.LocalProtocolError("header"), httpx.UnsupportedProtocol("scheme")])
def test_what_can_never_be_sent_is_not_tried_again(fault: Exception, clock: Clock) -> None:
    script = Script(fault)
    with pytest.raises(ServiceError, match=rf"{type(fault).__name__} \(after 1 attempt,"):
        ask(script)
    assert clock.waits == []


def test_a_token_may_come_from_a_file_with_its_newline() -> None:
    script = Script(good())
    with Client("http://test", "secret\n", transport=httpx.MockTransport(script)) as asking:
        asking.rank(["Alien"], ["Big"])
    assert script.asked[0].headers["Authorization"] == "Bearer secret"


def test_no_wait_goes_beyond_the_time(clock: Clock) -> None:
    with pytest.raises(ServiceError, match=r"full \(after 2 attempts") as caught:
        ask(Script(bad(503, after="4"), bad(503, after="6", code="busy", message="full")), timeout_s=10)
    assert caught.value.code == "busy"
    assert clock.waits == [4.1]


def test_attempts_have_an_end(clock: Clock) -> None:
    script = Script(*(httpx.ConnectError("refused") for _ in range(9)))
    with pytest.raises(ServiceError, match=r"^no answer from the service: ConnectError \(after 3 attempts") as caught:
        ask(script, max_attempts=3)
    assert caught.value.status is None
    assert len(script.asked) == 3


@pytest.mark.parametrize("answer", [httpx.Response(200, text="<html>"), httpx.Response(200, json={"results": []})])
def test_an_answer_of_something_else_is_named(answer: httpx.Response) -> None:
    with pytest.raises(ServiceError, match=r"needed a (JSON object|ranking), got"):
        ask(Script(answer))


def test_an_address_without_http_is_refused() -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        Client("localhost:8000")


def test_a_batch_gives_a_ranking_or_an_error_for_each() -> None:
    error = {"code": "invalid_request", "message": "candidates: Field required"}
    answers = [{"status": 200, "response": RANKING, "error": None}, {"status": 422, "response": None, "error": error}]
    script = Script(httpx.Response(200, json={"answers": answers}))
    with Client("http://test", transport=httpx.MockTransport(script)) as asking:
        first, second = asking.rank_batch([RankRequest(["Alien"], ["Big"]), RankRequest(["Alien"])])
    assert script.bodies[0]["requests"] == [
        {"history": [{"title": "Alien", "liked": True}], "candidates": [{"title": "Big"}]},
        {"history": [{"title": "Alien", "liked": True}]},
    ]
    assert isinstance(first, client.Ranking)
    assert isinstance(second, ServiceError)
    assert (second.status, second.code, str(second)) == (422, "invalid_request", "candidates: Field required")


def test_what_a_batch_had_no_room_for_is_sent_again_alone_and_in_its_place(clock: Clock) -> None:
    busy = {"status": 503, "response": None, "error": {"code": "busy", "message": "full"}}
    wrong = {"status": 422, "response": None, "error": {"code": "invalid_request", "message": "no"}}
    done = {"status": 200, "response": RANKING, "error": None}
    script = Script(
        httpx.Response(200, json={"answers": [busy, wrong, busy]}),
        httpx.Response(200, json={"answers": [busy, done]}),
        httpx.Response(200, json={"answers": [done]}),
    )
    with Client("http://test", transport=httpx.MockTransport(script)) as asking:
        found = asking.rank_batch([RankRequest(user_id=name) for name in "abc"])
    assert [[one["user_id"] for one in body["requests"]] for body in script.bodies] == [
        ["a", "b", "c"],
        ["a", "c"],
        ["a"],
    ]
    assert [getattr(one, "status", 200) for one in found] == [200, 422, 200]
    assert clock.waits == [client.FIRST_S, 2 * client.FIRST_S]


def test_a_batch_that_finds_no_room_in_its_time_says_so_for_each(clock: Clock) -> None:
    busy = {"status": 503, "response": None, "error": {"code": "busy", "message": "full"}}
    script = Script(*[httpx.Response(200, json={"answers": [busy]}) for _ in range(3)])
    with Client("http://test", timeout_s=0.5, transport=httpx.MockTransport(script)) as asking:
        [found] = asking.rank_batch([RankRequest(user_id="a")])
    assert isinstance(found, ServiceError)
    assert (found.status, found.code) == (503, "busy")
    assert clock.waits == [client.FIRST_S, 2 * client.FIRST_S]  # a third of 0.4 s would end behind the time


def test_ready_is_a_question_with_two_answers() -> None:
    script = Script(httpx.Response(200), httpx.Response(503), httpx.ConnectError("refused"), bad(401, message="token"))
    with Client("http://test", transport=httpx.MockTransport(script)) as asking:
        assert [asking.ready() for _ in range(3)] == [True, False, False]
        with pytest.raises(ServiceError, match="token"):
            asking.ready()


def test_the_awaiting_client_does_the_same(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(seconds: float) -> None:
        clock.sleep(seconds)

    async def run(script: Script) -> Any:
        async with AsyncClient("http://test", transport=httpx.MockTransport(script)) as asking:
            assert await asking.ready()
            assert (await asking.rank(["Alien"], ["Big", "Aliens"])).items[0].rank == 1
            return await asking.rank_batch([])

    monkeypatch.setattr(client.asyncio, "sleep", sleep)
    script = Script(httpx.Response(200), bad(503), httpx.ConnectError("x"), good(), bad(422, message="no", code="x"))
    with pytest.raises(ServiceError, match="no"):
        asyncio.run(run(script))
    assert clock.waits == [0.1, 0.2]


@pytest.mark.parametrize("name", ["HistoryEntry", "Candidate", "RankRequest", "RankedItem", "Influence"])
def test_what_the_client_says_is_what_the_service_reads(name: str) -> None:
    assert {one.name for one in fields(getattr(client, name))} == set(getattr(messages, name).model_fields)


def test_the_client_reads_all_of_an_answer() -> None:
    known = {one.name for one in fields(client.Ranking)}
    assert known - {"items"} == set(messages.RankResponse.model_fields) - {"ranking"}


def test_the_service_itself_understands_the_client() -> None:
    service = FakeService("right")
    with served_on_loopback(service) as url, Client(url, "right", timeout_s=20) as asking:
        assert asking.ready()
        ranking = asking.rank(["Alien", HistoryEntry("Grease", liked=False)], ["Big", Candidate("Aliens", id="a")])
        found = asking.rank_batch([RankRequest([], ["A", "B"]), RankRequest([], [])])
        with Client(url, "wrong") as stranger, pytest.raises(ServiceError, match="Authorization") as caught:
            stranger.rank([], ["A", "B"])
    assert [one.id for one in ranking.items] == ["a", "0"]
    assert [one.liked for one in service.asked[0].history] == [True, False]
    assert (service.asked[0].deadline_ms or 0) in range(10_000, 18_001)
    assert isinstance(found[0], client.Ranking)
    assert [one.id for one in found[0].items] == ["1", "0"]
    assert isinstance(found[1], ServiceError)
    assert caught.value.status == 401
