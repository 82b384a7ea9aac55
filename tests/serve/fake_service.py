"""A service without tasks behind it, and ways to ask it: in process, and over a real port of this machine."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from serve.http import make_api
from serve.messages import ModelInfo, RankedItem, RankRequest, RankResponse, Readiness
from serve.metrics import Metrics
from serve.settings import ServeSettings
from tests.serve.test_ranking import served


class FakeService:
    """Ranks every list in the reverse of its order, or raises or waits as it was told."""

    def __init__(
        self,
        token: str | None = None,
        error: Exception | None = None,
        replicas: int = 1,
        wait_s: float = 0.0,
        **settings: Any,
    ) -> None:
        self.settings = ServeSettings(**{"run": "toy", "max_body_bytes": 2000, "retry_after_s": 1.5, **settings})
        self.token = token
        self.run = served()
        self.metrics = Metrics(self.run)
        self.users = None
        self.error = error
        self.replicas = replicas
        self.wait_s = wait_s
        self.asked: list[RankRequest] = []
        self.deadlines: list[float] = []

    async def rank(self, request: RankRequest, deadline: float) -> RankResponse:
        self.asked.append(request)
        self.deadlines.append(deadline)
        await asyncio.sleep(self.wait_s)
        if self.error:
            raise self.error
        return RankResponse(ranking=reversed_ranking(request), model=MODEL)

    async def readiness(self) -> Readiness:
        replicas = {task: self.replicas if task == "pairwise" else 1 for task in self.run.tasks}
        missing = tuple(task for task, number in replicas.items() if not number)
        return Readiness(ready=not missing, replicas=replicas, missing=missing)


MODEL = ModelInfo(run="toy", model="m", adapter="0", preset="recranker", weights={})


def reversed_ranking(request: RankRequest) -> tuple[RankedItem, ...]:
    """The last candidate first, with probabilities 0.9, 0.8, ... down to 0."""
    number = len(request.candidates)
    ids = [one.id or str(place) for place, one in enumerate(request.candidates)]
    return tuple(
        RankedItem(
            id=ids[number - rank],
            rank=rank,
            score=-rank,
            probability=max(0.0, 1 - rank / 10),
            backbone_rank=number + 1 - rank,
        )
        for rank in range(1, number + 1)
    )


def send(service: Any, method: str = "POST", path: str = "/v1/rank", **arguments: Any) -> httpx.Response:
    """One request to ``service``, in process."""

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(make_api(lambda: service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **arguments)

    return asyncio.run(call())


@contextmanager
def served_on_loopback(service: Any) -> Iterator[str]:
    """The address of ``service`` behind a real HTTP server, which ends with the block."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_api(lambda: service), log_level="error", lifespan="off"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[door])))
        thread.start()
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
