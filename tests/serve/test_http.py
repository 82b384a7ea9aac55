import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serve.http import BusyError, make_api
from serve.messages import ModelInfo, RankRequest, RankResponse, Readiness
from serve.ranking import RefusedError
from serve.settings import ServeSettings

TWO = {"candidates": [{"title": "A"}, {"title": "B"}]}
SECRET = "k4nary"


class FakeService:
    """Answers everything with an empty ranking, or raises what it was given."""

    def __init__(self, token: str | None = None, error: Exception | None = None, replicas: int = 1) -> None:
        self.settings = ServeSettings(run="toy", max_body_bytes=2000, retry_after_s=1.5)
        self.token = token
        self.error = error
        self.replicas = replicas

    async def rank(self, request: RankRequest) -> RankResponse:
        if self.error:
            raise self.error
        model = ModelInfo(run="toy", model="m", adapter="0", preset="recranker", weights={})
        return RankResponse(ranking=(), model=model)

    async def readiness(self) -> Readiness:
        return Readiness(ready=self.replicas > 0, replicas={"pointwise": self.replicas})


def send(service: FakeService, method: str = "POST", path: str = "/v1/rank", **arguments: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(make_api(lambda: service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **arguments)

    return asyncio.run(call())


async def pieces() -> AsyncIterator[bytes]:
    for _ in range(30):
        yield b" " * 100


JSON = {"Content-Type": "application/json"}
BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "no JSON": ({"content": f"{{{SECRET}", "headers": JSON}, 422, "not valid JSON"),
    "too deep": ({"content": "[" * 1900, "headers": JSON}, 422, "not valid JSON"),
    "not UTF-8": ({"content": b'{"history": "\xff"}', "headers": JSON}, 422, "not valid JSON"),
    "not said to be JSON": ({"content": json.dumps(TWO)}, 422, "Content-Type"),
    "no object": ({"json": [SECRET]}, 422, "JSON object"),
    "a wrong type": ({"json": {**TWO, "tasks": [SECRET]}}, 422, "tasks.0: Input should be 'pointwise'"),
    "an unknown key": ({"json": {**TWO, SECRET: 1}}, 422, "body: a key is not known"),
    "a rule broken": ({"json": {**TWO, "history": [{"title": SECRET}]}}, 422, "history.0: give either"),
    "too large": ({"json": {**TWO, "history": SECRET * 1000}}, 413, "2000 bytes"),
    "too large, length unannounced": ({"content": pieces(), "headers": JSON}, 413, "2000 bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_bodies_get_their_code_and_are_not_echoed(case: str) -> None:
    arguments, status, message = BAD[case]
    response = send(FakeService(), **arguments)
    assert response.status_code == status
    assert set(response.json()) == {"code", "message"}
    assert message in response.json()["message"]
    assert SECRET not in response.text


@pytest.mark.parametrize("sent", [None, "Bearer wrong", "Basic right", "Bearer", "bearer wröng"])
def test_without_the_token_nothing_is_read(sent: str | None) -> None:
    headers = {"Authorization": sent.encode()} if sent else {}
    response = send(FakeService("right"), content="{", headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json()["code"] == "unauthorized"


def test_the_gate_holds_under_a_prefix_and_for_paths_that_do_not_exist() -> None:
    async def call(path: str) -> int:
        transport = httpx.ASGITransport(make_api(lambda: FakeService("right")), root_path="/prefix")
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.post(path, json=TWO)).status_code

    assert [asyncio.run(call(path)) for path in ("/prefix/v1/rank", "/v1/rank", "/nope", "//v1/rank")] == [401] * 4


def test_with_the_token_the_request_is_answered() -> None:
    assert send(FakeService("right"), json=TWO, headers={"Authorization": "Bearer right"}).status_code == 200


def test_full_queues_are_503_with_retry_after() -> None:
    response = send(FakeService(error=BusyError()), json=TWO)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "2"
    assert response.json()["code"] == "busy"


def test_refusals_are_422_and_failures_500_without_detail() -> None:
    refused = send(FakeService(error=RefusedError("at most 26 candidates")), json=TWO)
    assert (refused.status_code, refused.json()["message"]) == (422, "at most 26 candidates")
    failed = send(FakeService(error=RuntimeError(SECRET)), json=TWO)
    assert (failed.status_code, failed.json()["code"]) == (500, "internal_error")
    assert SECRET not in failed.text


def test_health_and_readiness_need_no_token() -> None:
    assert send(FakeService("right"), "GET", "/healthz").json() == {"status": "ok"}
    assert send(FakeService("right"), "GET", "/readyz").status_code == 200
    assert send(FakeService("right", replicas=0), "GET", "/readyz").status_code == 503


def test_unknown_paths_have_the_same_shape() -> None:
    assert send(FakeService(), "GET", "/nope").json()["code"] == "not_found"
    assert send(FakeService(), "GET", "/v1/rank").json()["code"] == "method_not_allowed"
