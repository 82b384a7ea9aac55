import asyncio
import time
from typing import Any

import pytest
from pydantic import ValidationError

from serve.batch import rank_batch
from serve.errors import BusyError
from serve.messages import BatchRequest, RankRequest, RankResponse
from tests.serve.fake_service import MODEL, FakeService, reversed_ranking, send

SECRET = "k4nary"
GOOD = {"candidates": [{"title": "A", "id": "a"}, {"title": "B", "id": "b"}]}
ERRORS = {"busy": BusyError(), "broken": RuntimeError(SECRET), "stored": ValidationError.from_exception_data("x", [])}
"""The last one is of what the service itself has read, not of what was sent."""


class FailsFor(FakeService):
    """Answers as a fake does, but for some titles."""

    most = running = 0

    async def rank(self, request: RankRequest, deadline: float) -> RankResponse:
        self.running += 1
        self.most = max(self.most, self.running)
        self.deadlines.append(deadline)
        await asyncio.sleep(0.01)
        self.running -= 1
        if error := ERRORS.get(request.candidates[0].title or ""):
            raise error
        return RankResponse(ranking=reversed_ranking(request), model=MODEL)


def of(title: str) -> dict[str, Any]:
    return {"candidates": [{"title": title}, {"title": "B"}]}


def test_each_request_is_answered_or_refused_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    requests = [GOOD, {"candidates": SECRET}, of("busy"), [SECRET], of("broken"), {**GOOD, SECRET: 1}, GOOD]
    response = send(FailsFor(), path="/v1/rank:batch", json={"requests": requests})
    assert response.status_code == 200
    answers = response.json()["answers"]
    assert [one["status"] for one in answers] == [200, 422, 503, 422, 500, 422, 200]
    assert [one["error"] and one["error"]["code"] for one in answers] == [
        None,
        "invalid_request",
        "busy",
        "invalid_request",
        "internal_error",
        "invalid_request",
        None,
    ]
    assert [one["id"] for one in answers[-1]["response"]["ranking"]] == ["b", "a"]
    assert answers[1]["error"]["message"].startswith("candidates: ")
    assert SECRET not in response.text + caplog.text
    assert "a request of a batch failed: RuntimeError at test_batch.py" in caplog.text


def test_what_is_wrong_with_the_services_own_data_is_not_the_clients_fault() -> None:
    answers = send(FailsFor(), path="/v1/rank:batch", json={"requests": [of("stored"), GOOD]}).json()["answers"]
    assert [one["status"] for one in answers] == [500, 200]
    assert answers[0]["error"]["code"] == "internal_error"


def test_a_batch_has_a_bound_of_its_own() -> None:
    service = FakeService(max_batch_requests=2)
    assert send(service, path="/v1/rank:batch", json={"requests": [GOOD] * 2}).status_code == 200
    refused = send(service, path="/v1/rank:batch", json={"requests": [GOOD] * 3})
    assert refused.status_code == 422
    assert refused.json() == {
        "code": "limit_exceeded",
        "message": "at most 2 requests may be sent at once, got 3",
        "limit": {"name": "max_batch_requests", "value": 2},
    }
    for body in ({"requests": []}, {}, {"requests": GOOD}, [GOOD]):
        assert send(service, path="/v1/rank:batch", json=body).status_code == 422


def test_a_batch_takes_no_more_room_than_a_replica_has() -> None:
    service = FailsFor(max_ongoing_requests=3)
    send(service, path="/v1/rank:batch", json={"requests": [GOOD] * 10})
    assert service.most == 3


def test_the_shorter_deadline_counts() -> None:
    service, now = FakeService(), time.monotonic()
    batch = BatchRequest.model_validate(
        {"requests": [GOOD, {**GOOD, "deadline_ms": 2000}, {**GOOD, "deadline_ms": 90}]}
    )
    asyncio.run(rank_batch(batch, service, now, now + 1.0))
    assert sorted(round(one - now, 3) for one in service.deadlines) == [0.09, 1.0, 1.0]
