"""A wrap round Ray Serve's own HTTP proxy: no header of a client steers it, and its errors have our shape.

Serve 2.60 lets any client switch off the proxy's time limit (``x-request-timeout-seconds: 0``), have work go on after
it left (``x-request-disconnect-disabled: ?1``), or wait for a replica that has a model of some name loaded
(``serve_multiplexed_model_id``). It reads them in the proxy, before a router sees the request, so only here can they be
taken away. Where the wrap is not there, the router's own timers hold (``serve/gate.py``). Serve is told of it by the
environment in which its processes start:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.proxy:middlewares

What the proxy itself answers is plain text without a code, or nothing where a router's replica was lost with the
request: both become the JSON that all errors are, the latter a 503 that may be tried again, as ranking changes nothing.

The proxy takes a body as fast as it comes, before a router that may be busy counts it; what it holds of one is bounded
by ``RECRANKER_PROXY_MAX_BODY_BYTES``.
"""

import os
import re

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import Problem, problem
from serve.messages import Limit

STEERING = {
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
    b"serve-multiplexed-model-id",
}
"""Headers that Serve obeys, whichever of '-' and '_' they are written with."""
REQUEST_ID = b"x-request-id"
PLAIN_ID = re.compile(rb"[A-Za-z0-9._:-]{1,100}")
"""A request's id ends up in logs: another one is dropped, and Serve makes one."""
AGAIN = {"Retry-After": "1"}
MAX_BODY_BYTES = int(os.environ.get("RECRANKER_PROXY_MAX_BODY_BYTES", 16_000_000))
"""Far above what a router allows (max_body_bytes), whose refusal names the setting."""


def middlewares() -> list[Middleware]:
    """What Serve's proxy calls at its start."""
    return [Middleware(Wrap)]


class Wrap:
    """Takes steering headers away and puts errors into shape."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, answer = Body(receive), Answer(send)
        await self.app({**scope, "headers": kept(scope["headers"])}, body.receive, answer.send)
        if not answer.started:  # Serve sends nothing where the router's replica was lost, or the client seems to be
            await (_too_large() if body.is_too_large else _lost()).response()(scope, receive, send)


class Body:
    """Passes a body on until it is too large; then the client seems to have left."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._bytes = 0

    @property
    def is_too_large(self) -> bool:
        """Whether more has come than is taken."""
        return self._bytes > MAX_BODY_BYTES

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        return {"type": "http.disconnect"} if self.is_too_large else message


class Answer:
    """Passes an answer on; of an error that is not JSON it keeps the status and says the rest itself."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._instead: Problem | None = None
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._instead = in_shape(message)
        if self._instead is None:
            await self._send(message)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._instead.response()({"type": "http"}, _nothing, self._send)


def kept(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """``headers`` without those that would steer the proxy."""
    return [(name, value) for name, value in headers if not _steers(name.lower(), value)]


def in_shape(start: Message) -> Problem | None:
    """What to answer in place of an error that Serve's proxy words itself; None for all else."""
    headers = {name.lower(): value for name, value in start.get("headers", ())}
    status = start["status"]
    if status < 400 or headers.get(b"content-type", b"").startswith(b"application/json"):
        return None
    if status == 408:
        return problem(504, "the time for the request is over, and nothing could be answered within it")
    if status in (429, 503):
        again = {"Retry-After": headers.get(b"retry-after", b"1").decode("latin-1")}
        return problem(status, "the service is full or not up; try again", code="busy", headers=again)
    return _lost() if status >= 500 else problem(status, "refused before it reached the service")


def _too_large() -> Problem:
    limit = Limit(name="RECRANKER_PROXY_MAX_BODY_BYTES", value=MAX_BODY_BYTES)
    return problem(413, f"the body may hold {MAX_BODY_BYTES} bytes at most", limit=limit)


def _lost() -> Problem:
    return problem(503, "the request was lost on its way; try again", headers=AGAIN)


def _steers(name: bytes, value: bytes) -> bool:
    if name == REQUEST_ID:
        return not PLAIN_ID.fullmatch(value)
    return name.replace(b"_", b"-") in STEERING


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
