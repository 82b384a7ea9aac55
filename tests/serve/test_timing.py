import re
import time
from typing import Any

from serve.errors import BusyError
from serve.router import Router
from serve.scored import Scored
from serve.settings import ServeSettings
from serve.timing import Timing, current, timed
from tests.serve.fake_service import FakeService, send
from tests.serve.opinions import opinionated
from tests.serve.test_ranking import served

TWO = {"candidates": [{"title": "A"}, {"title": "B"}]}


def test_the_engine_is_that_of_the_slowest_task() -> None:
    timing = Timing(time.monotonic() - 2.0, ranks=True)
    for seconds, waited in ((0.25, 9.0), (0.5, 0.125), (0.25, 9.0)):
        timing.answered(Scored([], 1, seconds, waited))
    found = timing.header()
    assert found is not None
    assert re.fullmatch(rb"engine;dur=500\.000, queue;dur=125\.000, total;dur=200\d\.\d{3}", found)
    assert Timing(0.0).header() is None


def test_every_request_has_its_own() -> None:
    assert current() is None
    with timed(1.0) as outer:
        with timed(2.0):
            assert current() is not outer
        assert current() is outer
    assert current() is None


def test_ranking_routes_say_what_took_how_long_and_others_do_not() -> None:
    router: Any = Router(ServeSettings(run="toy"), served(), opinionated())
    for path, body in (("/v1/rank", TWO), ("/v2/rerank", {"query": "A", "documents": ["B", "C"]})):
        answer = send(router, path=path, json=body)
        assert answer.status_code == 200
        times = re.fullmatch(
            r"engine;dur=0\.000, queue;dur=0\.000, total;dur=([\d.]+)", answer.headers["Server-Timing"]
        )
        assert times is not None
        assert 0.0 < float(times[1]) < 10_000
    assert "Server-Timing" not in send(router, "GET", "/healthz").headers
    assert "Server-Timing" not in send(router, json={}).headers


def test_retry_after_is_the_time_until_there_is_room_within_bounds() -> None:
    for drain_s, said in ((0.0, "2"), (1.2, "2"), (7.2, "8"), (500.0, "30")):
        assert send(FakeService(error=BusyError(drain_s)), json=TWO).headers["Retry-After"] == said
    patient = FakeService(error=BusyError(500.0), retry_after_s=45)
    assert send(patient, json=TWO).headers["Retry-After"] == "45"
