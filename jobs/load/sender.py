"""The process that sends requests: a ``Load`` on its first line of stdin, a line of ``Sent`` per request on stdout.

It says first that it is there, so that whoever measures a time does not count its start.

Where its stdin ends it sends nothing more, waits for the answers it is owed, and ends.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import count
from typing import Any

import httpx

from jobs.load.plan import Load, Sent, arrivals, known
from recranker.client import AsyncClient, Candidate, HistoryEntry
from recranker.errors import ServiceError

READY = "ready"
"""First line on stdout: it is at work, nothing is sent before."""
SOON_S = 0.05
"""Until the first request of an open loop: the loop is at work by then."""
CONNECTIONS = httpx.Limits(max_connections=None, max_keepalive_connections=100)
"""A sender with a bound of its own would hide overload."""

Send = Callable[[int, float], Awaitable[Sent]]
"""Sends request ``number``, scheduled for a moment."""


async def run(load: Load, stop: asyncio.Event, tell: Callable[[Sent], None]) -> None:
    """Send ``load`` until it is over or ``stop`` is set, and tell what became of each request."""
    async with (
        httpx.AsyncClient(limits=CONNECTIONS, timeout=load.timeout_s) as http,
        AsyncClient(load.url, timeout_s=load.timeout_s) as client,
    ):
        send = _plain(load, http) if load.way == "plain" else _persistent(load, client)

        async def told(number: int, scheduled_s: float) -> None:
            tell(await send(number, scheduled_s))

        if load.rate is None:
            await closed_loop(load, told, stop)
        else:
            await open_loop(load, told, stop)


def send_one(load: Load) -> Sent:
    """The first request of ``load``, sent from this process."""
    found: list[Sent] = []
    asyncio.run(run(replace(load, rate=None, clients=1, requests=1), asyncio.Event(), found.append))
    return found[0]


async def open_loop(load: Load, send: Callable[[int, float], Awaitable[None]], stop: asyncio.Event) -> None:
    """Every request at its moment, whatever became of those before it."""
    assert load.rate is not None, "an open loop has a rate"
    start, under_way = time.monotonic() + SOON_S, set()
    for number, at in enumerate(arrivals(load.rate, load.seed)):
        over = (load.seconds is not None and at >= load.seconds) or number == load.requests
        if over or await _stopped_before(start + at, stop):
            break
        task = asyncio.ensure_future(send(number, start + at))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    while under_way:
        await asyncio.gather(*under_way)


async def closed_loop(load: Load, send: Callable[[int, float], Awaitable[None]], stop: asyncio.Event) -> None:
    """``load.clients`` that each send a request when the one before is answered."""
    numbers = count()
    ends = None if load.seconds is None else time.monotonic() + load.seconds

    async def one_client() -> None:
        while not stop.is_set() and (ends is None or time.monotonic() < ends):
            number = next(numbers)
            if load.requests is not None and number >= load.requests:
                return
            await send(number, time.monotonic())

    await asyncio.gather(*(one_client() for _ in range(load.clients)))


async def _stopped_before(moment: float, stop: asyncio.Event) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, moment - time.monotonic())):
            await stop.wait()
    return stop.is_set()


def _plain(load: Load, http: httpx.AsyncClient) -> Send:
    """A POST, once."""
    headers = {"Content-Type": "application/json"}
    deadline = {} if load.deadline_ms is None else {"deadline_ms": load.deadline_ms}
    contents = [json.dumps({**body, **deadline}).encode() for body in load.bodies]

    async def send(number: int, scheduled_s: float) -> Sent:
        sent_s, content = time.monotonic(), contents[number % len(contents)]
        try:
            answer = await http.post(f"{load.url}/v1/rank", content=content, headers=headers)
        except httpx.TransportError:
            return Sent(number, scheduled_s, sent_s, time.monotonic(), None)
        return _heard(Sent(number, scheduled_s, sent_s, time.monotonic(), answer.status_code), answer)

    return send


def _heard(sent: Sent, answer: httpx.Response) -> Sent:
    degraded = answer.is_success and bool(answer.json().get("degraded"))
    engine_ms = server_timing(answer.headers.get("server-timing", "")).get("engine")
    return replace(sent, degraded=degraded, retry_after="retry-after" in answer.headers, engine_ms=engine_ms)


def server_timing(header: str) -> dict[str, float]:
    """Milliseconds by name in a ``Server-Timing`` header; what says no duration is left out."""
    found: dict[str, float] = {}
    for metric in header.split(","):
        name, *parameters = (part.strip() for part in metric.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            with suppress(ValueError):
                found |= {name: float(value.strip('" '))} if key.strip().lower() == "dur" else {}
    return found


def _persistent(load: Load, client: AsyncClient) -> Send:
    """A call of ``recranker.client``, which tries again by itself."""
    asked = [_arguments(body) for body in load.bodies]

    async def send(number: int, scheduled_s: float) -> Sent:
        sent_s, arguments = time.monotonic(), asked[number % len(asked)]
        try:
            ranking = await client.rank(**arguments, deadline_ms=load.deadline_ms)
        except ServiceError as error:
            return Sent(number, scheduled_s, sent_s, time.monotonic(), error.status)
        return Sent(number, scheduled_s, sent_s, time.monotonic(), 200, degraded=bool(ranking.degraded))

    return send


def _arguments(body: dict[str, Any]) -> dict[str, Any]:
    history = [HistoryEntry(**entry) for entry in body["history"]]
    return {"history": history, "candidates": [Candidate(**one) for one in body["candidates"]]}


async def _main() -> None:
    load = known(Load, sys.stdin.readline())
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def listen() -> None:
        while os.read(0, 4096):  # past Python's own lock on stdin, which it could not leave behind at its end
            pass
        with suppress(RuntimeError):  # all is sent, and the loop closed
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=listen, daemon=True).start()
    print(READY, flush=True)
    await run(load, stop, lambda sent: print(json.dumps(asdict(sent)), flush=True))


if __name__ == "__main__":
    asyncio.run(_main())
