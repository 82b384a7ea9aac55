"""The HTTP face of the router: routes, and one shape for every error."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException

from serve.batch import rank_batch
from serve.errors import (
    MAX_COMPLAINTS,
    BusyError,
    LateError,
    RefusedError,
    UnavailableError,
    complaints,
    problem,
    problem_of,
)
from serve.gate import ARRIVED, Gate, ProblemError, deadline_of
from serve.inference_protocol import protocol_routes
from serve.messages import BatchRequest, BatchResponse, ErrorMessage, RankRequest, RankResponse, Readiness
from serve.metrics import CONTENT_TYPE, Metrics, package_version
from serve.page import page_routes
from serve.rerank import PATHS, RerankRequest, RerankResponse, as_rank_request, as_rerank_response
from serve.settings import ServeSettings
from serve.source import ServedRun
from serve.users import Users

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorMessage} for code in (401, 408, 413, 422, 500, 503, 504)
}


BEARER = HTTPBearer(auto_error=False, description="The service's token, where it has one.")
"""What /openapi.json says of the token; the gate is what checks it."""


class Service(Protocol):
    """What the routes need; the router replica, or a fake in a test."""

    settings: ServeSettings
    token: str | None
    run: ServedRun
    metrics: Metrics
    users: Users | None

    async def rank(self, request: RankRequest, deadline: float) -> RankResponse: ...

    async def readiness(self) -> Readiness: ...


def make_api(service: Callable[[], Service]) -> FastAPI:
    """The routes over ``service()``, which is looked up at each request."""
    about = "Orders candidates with a tuned language model."
    api = FastAPI(
        title="recranker",
        description=about,
        version=package_version(),
        responses=ERRORS,
        docs_url=None,  # these load their scripts from elsewhere; serve/page.py has a page of its own
        redoc_url=None,
    )
    api.add_middleware(Gate, service=service)
    for routes in (
        _ranking_routes(service),
        _rerank_routes(service),
        _health_routes(service),
        protocol_routes(service),
        page_routes(service),
    ):
        api.include_router(routes, dependencies=[Depends(BEARER)])
    api.include_router(_alive_routes())
    _add_error_handlers(api, service)
    return api


def _ranking_routes(service: Callable[[], Service]) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/rank")
    async def rank(request: RankRequest, http: Request) -> RankResponse:
        """Order the candidates of one user."""
        return await service().rank(request, deadline_of(http, service().settings, request.deadline_ms))

    @routes.post("/v1/rank:batch")
    async def batch(request: BatchRequest, http: Request) -> BatchResponse:
        """Order the candidates of several users; one that is refused or fails does not touch the others."""
        deadline = deadline_of(http, service().settings, request.deadline_ms)
        return await rank_batch(request, service(), http.scope[ARRIVED], deadline)

    return routes


def _rerank_routes(service: Callable[[], Service]) -> APIRouter:
    routes = APIRouter(tags=["rerank: Cohere and Jina"])

    async def rerank(request: RerankRequest, http: Request) -> RerankResponse:
        """Order documents; the query is what the user liked, one title per line."""
        found, deadline = service(), deadline_of(http, service().settings, None)
        answer = await found.rank(as_rank_request(request, found.settings), deadline)
        request_id, version = http.headers.get("x-request-id"), PATHS[http.scope["route"].path]
        return as_rerank_response(answer, request, found.run, request_id=request_id, version=version)

    for path in PATHS:
        name = path.strip("/").replace("/", "_")
        routes.post(path, operation_id=name, response_model_exclude_none=True)(rerank)
    return routes


def _alive_routes() -> APIRouter:
    """What everybody may ask."""
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the router runs."""
        return {"status": "ok"}

    return routes


def _health_routes(service: Callable[[], Service]) -> APIRouter:
    routes = APIRouter()

    @routes.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz() -> JSONResponse:
        """Whether every task can answer."""
        readiness = await service().readiness()
        return JSONResponse(readiness.model_dump(), status_code=200 if readiness.ready else 503)

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """What this router has counted, for Prometheus."""
        return Response(service().metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return routes


def _add_error_handlers(api: FastAPI, service: Callable[[], Service]) -> None:
    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return problem(422, _body_complaint(error.errors())).response()

    @api.exception_handler(StarletteHTTPException)
    async def other(_: Request, error: StarletteHTTPException) -> JSONResponse:
        if isinstance(error, ProblemError):
            return error.found.response()
        if error.status_code == 400:  # FastAPI's answer to a body it cannot even parse
            return problem(422, "the body is not valid JSON").response()
        return problem(error.status_code, error.detail, headers=error.headers).response()

    async def ours(_: Request, error: Exception) -> JSONResponse:
        return problem_of(error, service().settings.retry_after_s).response()

    for kind in (RefusedError, BusyError, UnavailableError, LateError):  # all else fails into the gate, which logs it
        api.add_exception_handler(kind, ours)


def _body_complaint(errors: Sequence[dict[str, Any]]) -> str:
    """What is wrong, without the value sent."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return "the body is not valid JSON"
    if tuple(first["loc"]) == ("body",) and first["type"] not in ("value_error", "extra_forbidden"):
        return "the body must be a JSON object, sent with Content-Type: application/json"
    return complaints([{**one, "loc": one["loc"][1:]} for one in errors[:MAX_COMPLAINTS]])
