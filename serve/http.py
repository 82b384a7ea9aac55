"""The HTTP face of the router: routes, the gate before them, and one shape for every error."""

import hmac
import math
from collections.abc import Callable
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import messages
from serve.messages import ErrorMessage, RankRequest, RankResponse, Readiness
from serve.ranking import RefusedError
from serve.settings import ServeSettings

CODES = {401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 413: "too_large", 422: "invalid_request"}
KNOWN_NAMES = {
    name
    for kind in (messages.RankRequest, messages.Candidate, messages.HistoryEntry, messages.Weights)
    for name in kind.model_fields
}

MAX_COMPLAINTS = 5
"""Complaints listed in one answer; a large body can be wrong in thousands of places."""
OPEN_PATHS = {"/healthz", "/readyz", "/docs", "/openapi.json"}
"""Answered without a token; everything else, known or not, needs it."""


class Service(Protocol):
    """What the routes need; the router replica, or a fake in a test."""

    settings: ServeSettings
    token: str | None

    async def rank(self, request: RankRequest) -> RankResponse: ...

    async def readiness(self) -> Readiness: ...


class BusyError(Exception):
    """No task has room for the request."""


class Gate:
    """Refuses requests without the token, and bodies that are too large, before anything reads them."""

    def __init__(self, app: ASGIApp, service: Callable[[], Service]) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _path(scope) in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        service, headers = self.service(), Headers(scope=scope)
        limit = service.settings.max_body_bytes
        if not _may_ask(headers, service.token):
            refusal = error_response(
                401, "send the header 'Authorization: Bearer TOKEN'", {"WWW-Authenticate": "Bearer"}
            )
            await refusal(scope, receive, send)
        elif _announced(headers) > limit:
            await error_response(413, _too_large(limit))(scope, receive, send)
        else:
            await self.app(scope, _limited(receive, limit), send)


def make_api(service: Callable[[], Service]) -> FastAPI:
    """The routes over ``service()``, which is looked up at each request."""
    api = FastAPI(title="recranker", description="Orders candidates with a tuned language model.")
    api.add_middleware(Gate, service=service)
    errors: dict[int | str, dict[str, Any]] = {code: {"model": ErrorMessage} for code in (401, 413, 422, 503)}

    @api.post("/v1/rank", responses=errors)
    async def rank(request: RankRequest) -> RankResponse:
        """Order the candidates of one user."""
        return await service().rank(request)

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the router runs."""
        return {"status": "ok"}

    @api.get("/readyz", responses={503: {"model": Readiness}})
    async def readyz() -> JSONResponse:
        """Whether at least one task can answer."""
        readiness = await service().readiness()
        return JSONResponse(readiness.model_dump(), status_code=200 if readiness.ready else 503)

    _add_error_handlers(api, service)
    return api


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in the one shape they all have."""
    code = CODES.get(status, "internal_error" if status >= 500 else "refused")
    return JSONResponse(ErrorMessage(code=code, message=message).model_dump(), status_code=status, headers=headers)


def _add_error_handlers(api: FastAPI, service: Callable[[], Service]) -> None:
    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(422, "; ".join(_complaint(one) for one in error.errors()[:MAX_COMPLAINTS]))

    @api.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return error_response(422, str(error))

    @api.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        seconds = math.ceil(service().settings.retry_after_s)
        body = ErrorMessage(code="busy", message=f"all queues are full; try again in {seconds} s")
        return JSONResponse(body.model_dump(), status_code=503, headers={"Retry-After": str(seconds)})

    @api.exception_handler(StarletteHTTPException)
    async def other(_: Request, error: StarletteHTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's answer to a body it cannot even parse
            return error_response(422, "the body is not valid JSON")
        return error_response(error.status_code, error.detail, dict(error.headers or {}))

    @api.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return error_response(500, "the request could not be answered; the service's log says why")


def _complaint(error: dict[str, Any]) -> str:
    """Where and what, without the value sent; a key that is not ours is not repeated either."""
    place = ".".join(str(part) for part in error["loc"][1:] if isinstance(part, int) or part in KNOWN_NAMES)
    if error["type"] == "json_invalid":
        return "the body is not valid JSON"
    if error["loc"] == ("body",) and error["type"] != "value_error":
        return "the body must be a JSON object, sent with Content-Type: application/json"
    if error["type"] == "extra_forbidden":
        return f"{place or 'body'}: a key is not known here; see /docs"
    return f"{place or 'body'}: {error['msg'].removeprefix('Value error, ')}"


def _path(scope: Scope) -> str:
    """The path as the routes see it; ASGI's own has the prefix in front that the application is mounted under."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _may_ask(headers: Headers, token: str | None) -> bool:
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    return token is None or (scheme.lower() == "bearer" and hmac.compare_digest(sent.encode(), token.encode()))


def _announced(headers: Headers) -> int:
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0


def _too_large(limit: int) -> str:
    return f"the body may hold {limit} bytes at most"


def _limited(receive: Receive, limit: int) -> Receive:
    """``receive`` that counts, for bodies that do not announce their length."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return counted
