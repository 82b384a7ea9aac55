"""What stands before the routes: token, size of the body, time for the body, time for everything.

All four are the service's own. Headers by which clients of Ray Serve can switch its time limit off or change it
(``x-request-timeout-seconds``, ``x-request-disconnect-disabled``) are read by Serve's proxy before a request comes
here, so they cannot be taken away here; ``serve/proxy.py`` does that, in the proxy. They change nothing of the timers
below: a request holds a place in the router for ``body_timeout_s`` until its body is there, and for
``request_timeout_s`` and a short grace altogether. With those headers a client can only harm its own request: have it
cut off early, or have work go on for which it no longer waits, until the same timers end it.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from typing import Protocol

from fastapi import HTTPException, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import LateError, Problem, problem, problem_of, where
from serve.messages import Limit
from serve.page import PAGE_PATHS
from serve.settings import ServeSettings
from serve.timing import timed, with_times

logger = logging.getLogger("ray.serve")

OPEN_PATHS = {"/healthz"} | PAGE_PATHS
"""Answered without a token; everything else, known or not, needs it."""
GRACE_S = 5.0
"""Seconds beyond request_timeout_s in which a request must have been answered somehow; the routes' own deadline, which
answers with what has come, ends first."""

ARRIVED = "recranker.arrived"
"""Key of the scope: when the request arrived, in seconds of ``time.monotonic``."""


class Guarded(Protocol):
    """What the gate needs of the service."""

    settings: ServeSettings
    token: str | None


class Gate:
    """Refuses requests without the token, and bodies that are too large or too slow, before anything reads them."""

    def __init__(self, app: ASGIApp, service: Callable[[], Guarded]) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope[ARRIVED] = time.monotonic()
        service = self.service()
        refusal = None if path_of(scope) in OPEN_PATHS else _refusal(Headers(scope=scope), service)
        if refusal:
            await refusal.response()(scope, receive, send)
        else:
            await self._guarded(scope, _limited(receive, scope[ARRIVED], service.settings), send, service.settings)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, settings: ServeSettings) -> None:
        """The app's answer, or, where it fails, an error that names no value; its message may quote a title."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(with_times(message, timing))

        try:
            async with asyncio.timeout(settings.request_timeout_s + GRACE_S):
                with timed(scope[ARRIVED]) as timing:
                    await self.app(scope, receive, watched)
        except Exception as error:
            logger.error("a request failed: %s", where(error))
            if not started:
                late = LateError() if isinstance(error, TimeoutError) else error
                await problem_of(late, settings.retry_after_s).response()(scope, receive, send)


def deadline_of(request: Request, settings: ServeSettings, deadline_ms: int | None) -> float:
    """When ``request`` must be answered, in seconds of ``time.monotonic``: the earlier of its own and the service's."""
    allowed = settings.request_timeout_s
    arrived: float = request.scope[ARRIVED]
    return arrived + (allowed if deadline_ms is None else min(allowed, deadline_ms / 1000))


def path_of(scope: Scope) -> str:
    """The path as the routes see it; ASGI's own has the prefix in front that the application is mounted under."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _refusal(headers: Headers, service: Guarded) -> Problem | None:
    if not _may_ask(headers, service.token):
        return problem(401, "send the header 'Authorization: Bearer TOKEN'", headers={"WWW-Authenticate": "Bearer"})
    if _announced(headers) > service.settings.max_body_bytes:
        return _too_large(service.settings.max_body_bytes)
    return None


def _may_ask(headers: Headers, token: str | None) -> bool:
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    return token is None or (scheme.lower() == "bearer" and hmac.compare_digest(sent.encode(), token.encode()))


def _announced(headers: Headers) -> int:
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() and len(length) < 20 else 0


def _limited(receive: Receive, arrived: float, settings: ServeSettings) -> Receive:
    """``receive`` that counts bytes and seconds until the body is there."""
    seen, complete = 0, False
    limit, ends = settings.max_body_bytes, arrived + settings.body_timeout_s

    async def counted() -> Message:
        nonlocal seen, complete
        if complete:  # what comes now is the client's leaving, which takes as long as it takes
            return await receive()
        try:
            async with asyncio.timeout(ends - time.monotonic()):
                message = await receive()
        except TimeoutError:
            raise ProblemError(_too_slow(settings.body_timeout_s)) from None
        seen += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if seen > limit:
            raise ProblemError(_too_large(limit))
        return message

    return counted


class ProblemError(HTTPException):
    """A problem found while the body is read; of FastAPI's own kind, which it lets through."""

    def __init__(self, found: Problem) -> None:
        super().__init__(found.status, found.body.message)
        self.found = found


def _too_large(limit: int) -> Problem:
    named = Limit(name="max_body_bytes", value=limit)
    return problem(413, f"the body may hold {limit} bytes at most", limit=named)


def _too_slow(limit: float) -> Problem:
    named = Limit(name="body_timeout_s", value=limit)
    return problem(408, f"the body must be there within {limit:g} s", limit=named)
