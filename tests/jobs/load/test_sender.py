"""The sending process against a small HTTP server of this test."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jobs.load.outcomes import summary
from jobs.load.plan import Load, Sent
from jobs.load.sender import closed_loop, open_loop, send_one
from jobs.load.sending import send_all, sending, wait
from recranker.errors import RecrankerError

BODY = {"history": [{"title": "Alien", "liked": True}], "candidates": [{"title": "A"}, {"title": "B"}]}
ANSWER = b'{"ranking": [], "degraded": ["pairwise"], "order": "fused", "model": {}}'


@contextmanager
def server(answer: Callable[[int], tuple[int, dict[str, str]]]) -> Iterator[str]:
    """Answers request ``n``, counted from 0, as it is told."""
    seen: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(1)
            status, headers = answer(len(seen) - 1)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(ANSWER))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(ANSWER)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()


def test_a_second_process_sends_and_says_what_became_of_each() -> None:
    def answer(number: int) -> tuple[int, dict[str, str]]:
        return [(200, {"Server-Timing": "engine;dur=0.5"}), (503, {"Retry-After": "1"}), (500, {})][number % 3]

    heard: list[Sent] = []
    with server(answer) as url:
        found = send_all(Load(url, [BODY], requests=6), heard.append)
    assert [one.number for one in found] == list(range(6))
    counts = summary(found)
    assert (counts.degraded, counts.busy, counts.other) == (2, 2, 2)
    assert found[0].engine_ms == 0.5
    assert len(heard) == 6
    assert all(one.scheduled_s <= one.sent_s <= one.done_s for one in found)


def test_a_load_without_end_stops_when_it_is_told_and_owes_nothing() -> None:
    with server(lambda number: (200, {})) as url, sending(Load(url, [BODY], rate=50.0)) as under_way:
        while len(under_way.sent) < 5:
            wait(0.05, under_way)
        found = under_way.stop()
    assert [one.number for one in found] == list(range(len(found)))
    assert all(one.status == 200 for one in found)
    with pytest.raises(RecrankerError, match="ended too early"):
        wait(5.0, under_way)


def test_the_client_of_recranker_tries_again_and_a_plain_request_does_not() -> None:
    refused = {0}
    with server(lambda number: (503, {"Retry-After": "0"}) if number in refused else (200, {})) as url:
        persistent = send_one(Load(url, [BODY], way="client"))
    with server(lambda number: (503, {"Retry-After": "0"}) if number in refused else (200, {})) as url:
        plain = send_one(Load(url, [BODY]))
    assert (persistent.status, persistent.degraded, plain.status) == (200, True, 503)


def test_nobody_who_answers_is_no_status() -> None:
    assert send_one(Load("http://127.0.0.1:9", [BODY])).status is None


def test_an_open_loop_does_not_wait_for_answers_and_a_closed_one_does() -> None:
    load = Load("", [BODY], rate=100.0, requests=20, clients=2)
    under_way, most = 0, {"open": 0, "closed": 0}

    def slow(kind: str) -> Callable[[int, float], object]:
        async def send(number: int, scheduled_s: float) -> None:
            nonlocal under_way
            under_way += 1
            most[kind] = max(most[kind], under_way)
            await asyncio.sleep(0.5 if kind == "open" else 0.01)
            under_way -= 1

        return send

    asyncio.run(open_loop(load, slow("open"), asyncio.Event()))  # type: ignore[arg-type]
    asyncio.run(closed_loop(load, slow("closed"), asyncio.Event()))  # type: ignore[arg-type]
    assert most == {"open": 20, "closed": 2}


def test_requests_are_due_at_their_arrivals_even_where_the_sender_is_held_up() -> None:
    due: list[float] = []

    async def stuck(number: int, scheduled_s: float) -> None:
        due.append(scheduled_s)
        time.sleep(0.1 if number == 0 else 0.0)  # the whole loop stands still

    asyncio.run(open_loop(Load("", [BODY], rate=200.0, requests=10, seed=1), stuck, asyncio.Event()))
    assert due == sorted(due)
    assert due[-1] - due[0] < 0.1
