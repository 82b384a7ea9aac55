"""What clients cannot tell Serve's proxy, and what its own answers become."""

import asyncio
import json
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.proxy import Wrap, kept, middlewares

JSON = [b"content-type", b"application/json"]
TEXT = [b"content-type", b"text/plain; charset=utf-8"]


def proxy(status: int | None, *headers: list[bytes], body: bytes = b"k4nary") -> ASGIApp:
    """An application that answers as Serve's proxy does; with no status not at all."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if status is not None:
            await send({"type": "http.response.start", "status": status, "headers": list(headers)})
            await send({"type": "http.response.body", "body": body[:2], "more_body": True})
            await send({"type": "http.response.body", "body": body[2:]})

    return app


def ask(app: ASGIApp) -> tuple[int, dict[str, str], bytes]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(Wrap(app)({"type": "http", "path": "/", "headers": []}, receive, send))
    start, *bodies = sent
    assert start["type"] == "http.response.start"
    assert {one["type"] for one in bodies} == {"http.response.body"}
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, b"".join(one["body"] for one in bodies)


@pytest.mark.parametrize(
    "name",
    [
        "x-request-timeout-seconds",
        "X-Request-Timeout-Seconds",
        "x-request-disconnect-disabled",
        "serve_multiplexed_model_id",
        "Serve-Multiplexed-Model-Id",
        "x-session-id",
        "x_session_id",
    ],
)
def test_headers_that_steer_the_proxy_are_taken_away(name: str) -> None:
    others = [(b"authorization", b"Bearer right"), (b"content-length", b"3")]
    assert kept([others[0], (name.encode(), b"0"), others[1]]) == others


@pytest.mark.parametrize(
    ("value", "stays"),
    [(b"a1-b2_c.d:e", True), (b"x" * 100, True), (b"x" * 101, False), (b"a b", False), (b"a\n", False), (b"", False)],
)
def test_only_a_plain_request_id_goes_into_logs(value: bytes, stays: bool) -> None:
    assert bool(kept([(b"x-request-id", value)])) is stays


def test_the_application_sees_nothing_of_them() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["headers"])
        await proxy(200, JSON)(scope, receive, send)

    scope = {"type": "http", "path": "/", "headers": [(b"x-request-timeout-seconds", b"0"), (b"host", b"here")]}
    asyncio.run(Wrap(app)(scope, None, lambda _: asyncio.sleep(0)))  # type: ignore[arg-type]
    assert seen == [[(b"host", b"here")]]


@pytest.mark.parametrize(("status", "header"), [(200, TEXT), (200, JSON), (422, JSON), (500, JSON), (503, JSON)])
def test_answers_of_the_service_pass_as_they_are(status: int, header: list[bytes]) -> None:
    assert ask(proxy(status, header)) == (status, {"content-type": header[1].decode()}, b"k4nary")


@pytest.mark.parametrize(
    ("status", "headers", "becomes", "code", "again"),
    [
        (503, [[b"Retry-After", b"7"]], 503, "busy", "7"),
        (429, [], 429, "busy", "1"),
        (408, [], 504, "deadline_exceeded", None),
        (500, [], 503, "unavailable", "1"),
        (404, [], 404, "not_found", None),
        (None, [], 503, "unavailable", "1"),
    ],
)
def test_errors_of_the_proxy_get_our_shape(
    status: int | None, headers: list[list[bytes]], becomes: int, code: str, again: str | None
) -> None:
    found, sent, body = ask(proxy(status, TEXT, *headers))
    assert found == becomes
    assert sent["content-type"] == "application/json"
    assert sent.get("retry-after") == again
    assert f'"code":"{code}"'.encode() in body
    assert b"k4nary" not in body


def test_serve_is_given_the_wrap() -> None:
    from ray.serve._private.http_util import validate_http_proxy_callback_return

    found = validate_http_proxy_callback_return(middlewares())
    assert [one.cls for one in found] == [Wrap]


def test_a_body_is_held_up_to_a_bound_and_then_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.proxy.MAX_BODY_BYTES", 25)
    seen: list[str] = []
    sent: list[Message] = []

    async def serve_holds_all(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            seen.append(message["type"])

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * 10, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(Wrap(serve_holds_all)({"type": "http", "path": "/", "headers": []}, receive, send))
    assert len(seen) == 2
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"])["limit"] == {"name": "RECRANKER_PROXY_MAX_BODY_BYTES", "value": 25}
