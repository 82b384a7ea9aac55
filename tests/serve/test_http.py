import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, get_args

import httpx
import pytest

from serve.errors import BusyError, LateError, RefusedError, UnavailableError
from serve.http import make_api
from serve.messages import ErrorCode, Limit
from tests.serve.fake_service import FakeService, send

TWO = {"candidates": [{"title": "A"}, {"title": "B"}]}
SECRET = "k4nary"


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
    body = response.json()
    assert set(body) - {"limit"} == {"code", "message"}
    assert body.get("limit") == ({"name": "max_body_bytes", "value": 2000} if status == 413 else None)
    assert body["code"] in get_args(ErrorCode)
    assert message in body["message"]
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
    away = send(FakeService(error=UnavailableError("not just now")), json=TWO)
    assert (away.status_code, away.headers["Retry-After"]) == (503, "2")
    assert away.json() == {"code": "unavailable", "message": "not just now"}


def test_refusals_are_422_and_name_the_limit() -> None:
    limit = Limit(name="max_candidates", value=26)
    refused = send(FakeService(error=RefusedError("too many", code="limit_exceeded", limit=limit)), json=TWO)
    assert refused.status_code == 422
    body = {"code": "limit_exceeded", "message": "too many", "limit": {"name": "max_candidates", "value": 26}}
    assert refused.json() == body
    assert send(FakeService(error=RefusedError("no")), json=TWO).json() == {"code": "invalid_request", "message": "no"}


def test_failures_are_500_without_detail_and_the_log_names_the_line(caplog: pytest.LogCaptureFixture) -> None:
    failed = send(FakeService(error=RuntimeError(SECRET)), json=TWO)
    assert (failed.status_code, failed.json()["code"]) == (500, "internal_error")
    assert SECRET not in failed.text
    assert "RuntimeError at fake_service.py:" in caplog.text
    assert SECRET not in caplog.text


def test_only_where_nothing_could_be_answered_in_time_the_answer_is_504() -> None:
    late = send(FakeService(error=LateError()), json=TWO)
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("path", ["/readyz", "/metrics", "/redoc", "/openapi.json", "/v2", "/v2/health/live", "/nope"])
def test_every_route_but_healthz_needs_the_token(path: str) -> None:
    assert send(FakeService("right"), "GET", "/healthz").json() == {"status": "ok"}
    assert send(FakeService("right"), "GET", path).status_code == 401
    assert send(FakeService("right"), "GET", path, headers={"Authorization": "Bearer right"}).status_code != 401
    assert send(FakeService(), "GET", path).status_code != 401


def test_readiness_is_of_every_task_and_names_those_missing() -> None:
    assert send(FakeService(), "GET", "/readyz").json()["ready"] is True
    response = send(FakeService(replicas=0), "GET", "/readyz")
    assert response.status_code == 503
    assert response.json() == {
        "ready": False,
        "replicas": {"pointwise": 1, "pairwise": 0, "listwise": 1},
        "missing": ["pairwise"],
        "model": None,
    }


def test_unknown_paths_have_the_same_shape() -> None:
    assert send(FakeService(), "GET", "/nope").json()["code"] == "not_found"
    assert send(FakeService(), "GET", "/v1/rank").json()["code"] == "method_not_allowed"


def test_every_error_is_described_in_one_shape() -> None:
    paths = send(FakeService(), "GET", "/openapi.json").json()["paths"]
    schemas = {
        answer["content"]["application/json"]["schema"]["$ref"]
        for path, routes in paths.items()
        for route in routes.values()
        for status, answer in route["responses"].items()
        if status.startswith("4") and "content" in answer
    }
    assert schemas == {"#/components/schemas/ErrorMessage"}


def test_the_description_says_which_operations_need_the_token() -> None:
    described = send(FakeService(), "GET", "/openapi.json").json()
    (scheme,) = described["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    open_ones = {
        path for path, one in described["paths"].items() if not all(each.get("security") for each in one.values())
    }
    assert open_ones == {"/healthz"}
