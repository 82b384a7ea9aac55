"""A thousand requests that end in every way there is: nothing of what was sent comes out of logs, metrics, answers."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from serve.histories import LookupFailedError
from serve.planner import Planned
from serve.wanted import ModelKey
from tests.serve.attack import CANARY, Attack, under_attack

TOKEN = "right"
TWO = [{"title": f"A {CANARY}"}, {"title": f"{CANARY} B"}]
HISTORY = [{"title": f"{CANARY} {number}", "liked": bool(number % 3)} for number in range(4)]
ENTRY = {"title": CANARY + "{n}", "liked": True}
Send = Callable[[Attack, str], Any]


def sends(path: str = "/v1/rank", **options: Any) -> Send:
    """A request with the right token, in which ``{n}`` is the number of the round."""

    def send(attack: Attack, number: str) -> Any:
        given = dict(options)
        if "body" in given:
            given["content"] = json.dumps(given.pop("body")).replace("{n}", number)
        headers = {"Authorization": f"Bearer {TOKEN}", **given.pop("headers", {})}
        return attack.send(path.replace("{n}", number), headers=headers, **given)

    return send


async def slow_pieces() -> AsyncIterator[bytes]:
    yield f'{{"user_id":"{CANARY}'.encode()
    await asyncio.sleep(60)


def _late(attack: Attack, number: str) -> Any:
    """A store that is slower than the request's deadline."""
    body = {"user_id": f"{CANARY}{number}", "deadline_ms": 1}
    return sends(body=body, own_deadline=True)(attack, number)


def _with_store_that(raises: Exception) -> Send:
    def send(attack: Attack, number: str) -> Any:
        users: Any = attack.service.users

        def find(user_id: str) -> None:
            raise type(raises)(f"{raises} {user_id}") if not isinstance(raises, LookupFailedError) else raises

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(users.store, "find", find)
            answer = sends(body={"user_id": f"{CANARY}{number}"})(attack, number)
        users._asleep_until = 0.0
        return answer

    return send


def _failing(attack: Attack, number: str) -> Any:
    """A fault of the router itself, whose message quotes a title."""

    async def heard(planned: Planned, deadline: float, model: ModelKey) -> None:
        raise KeyError(str(planned.prompts))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attack.service, "_heard", heard)
        batch = sends("/v1/rank:batch", body={"requests": [{"candidates": TWO}]})(attack, number)
        assert batch.json()["answers"][0]["status"] == 500
        with pytest.raises(AssertionError, match="internal_error") as told:
            sends(body={"candidates": TWO, "history": HISTORY})(attack, number)
        assert CANARY not in str(told.value)
    return batch


WAYS: dict[str, tuple[int, Send]] = {
    "ranked": (200, sends(body={"candidates": TWO, "history": [ENTRY]})),
    "explained": (200, sends(body={"candidates": TWO, "history": [*HISTORY, ENTRY], "explain": True})),
    "reranked": (200, sends("/v2/rerank", body={"query": CANARY + "{n}", "documents": [CANARY, "B"], "model": CANARY})),
    "unknown user": (200, sends(body={"user_id": CANARY + "{n}"})),
    "known user": (200, sends(body={"user_id": "u", "candidates": TWO})),
    "a broken task": (200, sends(body={"candidates": [{"title": f"{CANARY}{{n}} {k}"} for k in range(3)]})),
    "several": (200, sends("/v1/rank:batch", body={"requests": [{"user_id": CANARY}, {CANARY: 1}, [CANARY], CANARY]})),
    "no token": (401, sends(headers={"Authorization": ""}, body={"candidates": TWO})),
    "wrong token": (401, sends(headers={"Authorization": f"Bearer {CANARY}{{n}}"}, body={"candidates": TWO})),
    "token of another kind": (401, sends(headers={"Authorization": f"Basic {CANARY}"}, content=CANARY)),
    "no such path": (404, sends(f"/v1/{CANARY}{{n}}?{CANARY}={CANARY}", method="GET")),
    "no such model": (404, sends(f"/v2/models/{CANARY}{{n}}", method="GET")),
    "another method": (405, sends(f"/v1/rank?{CANARY}", method="DELETE", content=CANARY)),
    "too large": (413, sends(content=f'{{"user_id": "{CANARY}{"x" * 2_000_000}"}}')),
    "no JSON": (422, sends(content=f'{{"user_id": {CANARY}')),
    "no UTF-8": (422, sends(content=f'{{"user_id": "{CANARY}\xff"}}'.encode("latin-1"))),
    "no object": (422, sends(body=[CANARY])),
    "another type": (422, sends(headers={"Content-Type": f"text/{CANARY}"}, content=CANARY)),
    "an unknown key": (422, sends(body={"candidates": TWO, CANARY: CANARY})),
    "wrong values": (422, sends(body={"candidates": CANARY, "tasks": [CANARY], "weights": CANARY, "explain": CANARY})),
    "wrong values of values": (422, sends(body={"candidates": [{"title": CANARY, "id": [CANARY], "rank": CANARY}]})),
    "a rule broken": (422, sends(body={"user_id": CANARY, "history": HISTORY})),
    "the same id twice": (
        422,
        sends(body={"candidates": [{"title": "A", "id": CANARY}] * 2}),
    ),
    "a title too long": (422, sends(body={"candidates": [{"title": CANARY * 100}]})),
    "nothing printable": (422, sends(body={"candidates": [{"title": "\u200b", "id": CANARY}]})),
    "half a pair": (422, sends(content=f'{{"user_id": "\\ud800{CANARY}"}}')),
    "an unknown item": (422, sends(body={"user_id": CANARY, "candidates": [{"id": CANARY + "{n}"}]})),
    "too many": (422, sends(body={"candidates": [{"title": f"{CANARY} {k}"} for k in range(99)]})),
    "off the scale": (422, sends(body={"candidates": TWO, "history": [{"title": CANARY, "rating": 99}]})),
    "no rerank": (422, sends("/rerank", body={"query": CANARY, "documents": [{CANARY: CANARY}], "top_n": CANARY})),
    "no batch": (422, sends("/v1/rank:batch", body={"requests": CANARY})),
    "the store away": (200, _with_store_that(LookupFailedError("TimeoutError of the store"))),
    "cookies and the rest": (
        200,
        sends("/metrics", method="GET", headers={"Cookie": f"a={CANARY}", "User-Agent": CANARY, "Referer": CANARY}),
    ),
}
"""How a request ends: the status, and what is sent."""
SELDOM: dict[str, tuple[int, Send]] = {
    "too slow": (408, sends(content=slow_pieces())),
    "a fault of the router": (200, _failing),
}
"""Likewise, a few times, as they take long or alter the router."""
ROUNDS = 31


def test_a_thousand_requests_leave_nothing_of_what_was_sent(tmp_path: Path) -> None:
    ends: Counter[str] = Counter()
    with under_attack(tmp_path, token=TOKEN, body_timeout_s=0.2) as attack:
        for number in range(ROUNDS):
            for name, (status, send) in WAYS.items():
                found = send(attack, str(number)).status_code
                # a full queue is as good an end
                assert found == status or (found == 503 and status == 200), f"{name}: {found}"
                ends[name if found == status else "full"] += 1
            _late(attack, str(number))
        for name, (status, send) in SELDOM.items():
            assert send(attack, "0").status_code == status, name
        assert attack.leaks() == []
        heard = "\n".join(attack.ear.heard)
        counted = attack.service.metrics.text().decode()
    assert attack.statuses.total() >= 1000
    assert {"full", *WAYS} == set(ends)
    for words in (
        "no answer, failed: RayTaskError",
        "replica lost",
        "not looked up",
        "KeyError at test_private_data.py",
    ):
        assert words in heard, "a failure was not even told"
    assert 'recranker_degraded_total{missing="pairwise"}' in counted


def test_a_leak_into_metrics_or_any_log_would_be_found(tmp_path: Path) -> None:
    with under_attack(tmp_path) as attack:
        assert attack.leaks() == []
        logging.getLogger("asyncio").debug("a title: %s", CANARY.upper())
        attack.service.metrics.retries.labels("pointwise", CANARY).inc()
        assert len(attack.leaks()) == 2
