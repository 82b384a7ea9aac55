"""Every operation that ``/openapi.json`` describes, fuzzed by schemathesis: valid and invalid, in process."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http import make_api
from tests.serve.attack import HANG_S, under_attack
from tests.serve.fake_service import FakeService

PHASES = ("examples", "coverage", "fuzzing")
TOKEN = "right"
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}


def rules(per_operation: int) -> dict[str, Any]:
    """What schemathesis sends and what it checks."""
    return {
        "seed": 1,
        "cache": {"enabled": False},
        "continue-on-failure": True,
        "request-timeout": HANG_S,
        "headers": AUTHORIZATION,  # it is left away too, to see that it is asked for
        "generation": {
            "mode": "all",
            "max-examples": per_operation,
            "deterministic": True,
            "database": "none",
            "no-shrink": True,
        },
        "phases": {"stateful": {"enabled": False}, "examples": {"fill-missing": True}},
        "checks": {
            # rules over several fields, the limits and what is published are beyond a schema
            "positive_data_acceptance": {"enabled": False},
            "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503, 504]},
        },
        "operations": [  # one wrong request of several is refused by itself, under status 200
            {
                "include-name": "POST /v1/rank:batch",
                "checks": {"negative_data_rejection": {"enabled": False}},
            }
        ],
    }


@dataclass
class Fuzzed:
    """What was sent and what went wrong."""

    reached: Counter[int] = field(default_factory=Counter)
    """Requests that reached the application, by the status they got."""
    modes: Counter[str] = field(default_factory=Counter)
    """Cases by whether their data are valid."""
    cases: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Cases by phase and operation."""
    faults: list[str] = field(default_factory=list)
    """Where an answer is not what the contract says."""


def fuzz(app: ASGIApp, per_operation: int) -> Fuzzed:
    """Up to ``per_operation`` random cases of each operation, beside those that the schema's own bounds give."""
    found = Fuzzed()

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["path"] != "/openapi.json":
                found.reached[message["status"]] += 1
            await send(message)

        await app(scope, receive, watched)

    config = schemathesis.Config.from_dict(rules(per_operation))
    schema = schemathesis.openapi.from_asgi("/openapi.json", counted, config=config, headers=AUTHORIZATION)
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            found.cases[event.phase.value, str(event.label)] += len(event.recorder.interactions)
            _judge(event.recorder, found)
        elif isinstance(event, events.NonFatalError):
            found.faults.append(f"{event.label}: {event.info.title}: {event.info.message}")
        elif isinstance(event, events.FatalError):
            found.faults.append(repr(event.exception))
    return found


def _judge(recorder: ScenarioRecorder, found: Fuzzed) -> None:
    for case_id, checks in recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                body = str(recorder.cases[case_id].value.body)[:300]
                found.faults.append(
                    f"{recorder.label}: {check.name}: {check.failure_info.failure.message[:300]}: {body}"
                )
    for case_id, one in recorder.interactions.items():
        case = recorder.cases[case_id].value
        found.modes[case.meta.generation.mode.value if case.meta else "unknown"] += 1
        if one.response is None:
            found.faults.append(f"{recorder.label}: no answer: {str(case.body)[:300]}")
        elif one.response.status_code == 503 and "retry-after" not in one.response.headers:
            found.faults.append(f"{recorder.label}: 503 without Retry-After")
        elif one.response.status_code == 504 and "deadline_ms" not in str(case.body):
            found.faults.append(f"{recorder.label}: 504 without a deadline of its own")


def _fuzz_router(folder: Path, per_operation: int) -> Fuzzed:
    """Fuzz a router over published users and moody tasks; every operation must have had its share."""
    with under_attack(folder, token=TOKEN) as attack:
        api = make_api(lambda: attack.service)
        found = fuzz(api, per_operation)
    operations = {f"{method.upper()} {path}" for path, one in api.openapi()["paths"].items() for method in one}
    for phase in PHASES:
        assert {name for (where, name), number in found.cases.items() if where == phase and number} == operations
    assert sum(found.reached.values()) >= found.cases.total()
    assert min(found.modes["positive"], found.modes["negative"]) > found.cases.total() / 5
    assert min(found.reached[200], found.reached[422]) > found.cases.total() / 10
    return found


def test_every_operation_answers_as_it_is_described(tmp_path: Path) -> None:
    found = _fuzz_router(tmp_path, 8)
    assert found.faults == []
    assert found.reached.total() >= 400


@pytest.mark.slow
def test_ten_thousand_cases_are_answered_as_described(tmp_path: Path) -> None:
    found = _fuzz_router(tmp_path, 1500)
    assert found.faults == []
    assert found.reached.total() >= 10_000
    assert found.reached[503] > 0


PLANTED: dict[str, tuple[int, str, bytes, str]] = {
    "/v2/rerank": (500, "application/json", b"{}", "POST /v2/rerank: not_a_server_error"),
    "/healthz": (418, "application/json", b"{}", "GET /healthz: status_code_conformance"),
    "/v2": (200, "text/plain", b"{}", "GET /v2: content_type_conformance"),
    "/readyz": (200, "application/json", b"{}", "GET /readyz: response_schema_conformance"),
    "/v1/rank": (503, "application/json", b"{}", "POST /v1/rank: 503 without Retry-After"),
    "/v1/rerank": (504, "application/json", b"{}", "POST /v1/rerank: 504 without a deadline"),
    "/rerank": (200, "application/json", b"{}", "POST /rerank: negative_data_rejection"),
    "/v2/health/live": (200, "application/json", b"{}", "GET /v2/health/live: ignored_auth"),
}
"""By path: what it answers, and what that is found to be."""


def test_planted_faults_are_found() -> None:
    api = make_api(lambda: FakeService(token=TOKEN))

    async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in PLANTED:
            await api(scope, receive, send)
            return
        status, kind, body, _ = PLANTED[scope["path"]]
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]})
        await send({"type": "http.response.body", "body": body})

    faults = fuzz(faulty, 1).faults
    assert [words for *_, words in PLANTED.values() if not any(words in one for one in faults)] == []


def test_what_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hung(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/v2":
            await asyncio.sleep(60)
        await api(scope, receive, send)

    api = make_api(lambda: FakeService())
    monkeypatch.setattr("tests.serve.test_openapi_fuzz.HANG_S", 0.05)
    faults = fuzz(hung, 1).faults
    assert any("/v2" in one and "timed out" in one.lower() for one in faults), faults
