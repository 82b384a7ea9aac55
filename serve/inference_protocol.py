"""Health and metadata of the Open Inference Protocol v2, by which serving platforms look at any server.

A model of the protocol is a task here, and 'recranker' is all of them together. Ranking itself is ``POST /v1/rank``:
the protocol's tensors would say less. Where something is not ready the status is 503, as in KServe's own server.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from collections.abc import Callable
from typing import Protocol

from fastapi import APIRouter, HTTPException
from fastapi.responses import JSONResponse

from serve.messages import ErrorMessage, Message, Readiness
from serve.metrics import package_version
from serve.source import ServedRun

TOGETHER = "recranker"
"""Name of the model that stands for all tasks together."""


class Described(Protocol):
    """What the protocol needs of the service."""

    run: ServedRun

    async def readiness(self) -> Readiness: ...


class ServerMetadata(Message):
    """Answer of ``GET /v2``."""

    name: str
    """Of the server."""
    version: str
    """Of the server."""
    extensions: tuple[str, ...] = ()
    """Of the protocol that it understands."""


class ModelMetadata(Message):
    """Answer of ``GET /v2/models/{name}``."""

    name: str
    """Of the model."""
    versions: tuple[str, ...]
    """The one served: the fingerprint of its tuning."""
    platform: str = "recranker"
    """What runs it."""
    inputs: tuple[str, ...] = ()
    """None: it is not asked in tensors, but by POST /v1/rank."""
    outputs: tuple[str, ...] = ()
    """Likewise."""


def protocol_routes(service: Callable[[], Described]) -> APIRouter:
    """The routes over ``service()``, which is looked up at each request."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    @routes.get("/health/ready", responses={503: {}})
    async def ready() -> JSONResponse:
        """Whether every task can answer."""
        found = await service().readiness()
        return _answer({"ready": found.ready}, found.ready)

    @routes.get("")
    async def server() -> ServerMetadata:
        """What this server is."""
        return ServerMetadata(name=TOGETHER, version=package_version())

    @routes.get("/models/{name}", responses={404: {"model": ErrorMessage}})
    async def model(name: str) -> ModelMetadata:
        """What a model is."""
        return ModelMetadata(name=_known(name, service().run), versions=(service().run.tuning,))

    @routes.get("/models/{name}/ready", responses={404: {"model": ErrorMessage}, 503: {}})
    async def model_ready(name: str) -> JSONResponse:
        """Whether a model can answer."""
        known = _known(name, service().run)
        found = await service().readiness()
        there = found.ready if known == TOGETHER else known not in found.missing
        return _answer({"name": known, "ready": there}, there)

    return routes


def _known(name: str, run: ServedRun) -> str:
    names = (TOGETHER, *run.tasks)
    if name not in names:
        raise HTTPException(404, f"no such model; there are {', '.join(names)}")
    return name


def _answer(body: dict[str, str | bool], ready: bool) -> JSONResponse:
    return JSONResponse(body, status_code=200 if ready else 503)
