"""The service's own timers, whatever a client's headers say."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from serve import gate
from serve.errors import LateError, RefusedError, problem_of, where
from tests.serve.fake_service import FakeService, send

TWO = {"candidates": [{"title": "A"}, {"title": "B"}]}
JSON = {"Content-Type": "application/json"}
STEERING = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1"}


@pytest.mark.parametrize("headers", [{}, STEERING, {"x-request-timeout-seconds": "0.001"}])
def test_headers_of_clients_change_no_deadline(headers: dict[str, str]) -> None:
    service, now = FakeService(request_timeout_s=60.0), time.monotonic()
    assert send(service, json=TWO, headers=headers).status_code == 200
    assert 60.0 <= service.deadlines[0] - now < 65.0


@pytest.mark.parametrize(("sent_ms", "seconds"), [(None, 60.0), (1500, 1.5), (600_000, 60.0)])
def test_the_earlier_of_the_requests_deadline_and_the_services_counts(sent_ms: int | None, seconds: float) -> None:
    service, now = FakeService(request_timeout_s=60.0), time.monotonic()
    send(service, json={**TWO, "deadline_ms": sent_ms})
    assert seconds <= service.deadlines[0] - now < seconds + 5.0


@pytest.mark.parametrize("headers", [{}, STEERING])
def test_a_body_that_does_not_come_is_refused_in_time(headers: dict[str, str]) -> None:
    async def drops() -> AsyncIterator[bytes]:
        yield b'{"candidates"'
        await asyncio.sleep(30)

    started = time.monotonic()
    response = send(FakeService(body_timeout_s=0.2), content=drops(), headers=JSON | headers)
    assert time.monotonic() - started < 5.0
    assert response.status_code == 408
    assert response.json()["code"] == "too_slow"
    assert response.json()["limit"] == {"name": "body_timeout_s", "value": 0.2}


def test_a_body_in_time_leaves_all_the_time_for_the_answer() -> None:
    assert send(FakeService(body_timeout_s=0.1, wait_s=0.5), json=TWO).status_code == 200


@pytest.mark.parametrize("headers", [{}, STEERING])
def test_a_request_that_nothing_else_ends_is_ended(headers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "GRACE_S", 0.1)
    started = time.monotonic()
    response = send(FakeService(request_timeout_s=0.1, wait_s=30), json=TWO, headers=headers)
    assert time.monotonic() - started < 5.0
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


def test_an_unannounced_length_that_is_no_number_is_counted_as_it_comes() -> None:
    assert send(FakeService(), json=TWO, headers={"Content-Length": "9" * 30}).status_code in (200, 413)


def test_errors_have_their_status_and_no_error_of_ours_its_message() -> None:
    assert problem_of(RefusedError("no"), 1.0).status == 422
    assert problem_of(LateError(), 1.0).status == problem_of(TimeoutError("secret"), 1.0).status == 504
    found = problem_of(ValueError("secret"), 1.0)
    assert (found.status, found.body.code) == (500, "internal_error")
    assert "secret" not in found.body.message


def test_the_log_says_where_an_error_comes_from_and_not_what_it_holds() -> None:
    try:
        raise ValueError("secret")
    except ValueError as error:
        said = where(error)
    assert said.startswith("ValueError at test_gate.py:")
    assert "secret" not in said
