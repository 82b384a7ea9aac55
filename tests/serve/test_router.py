"""The router's patience and persistence, over handles that behave as Serve's do."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from recranker.errors import SettingsError
from recranker.tasks.protocol import Prompt
from serve import router
from serve.errors import BusyError, LateError, RefusedError
from serve.messages import ModelState, RankRequest, RankResponse, Readiness
from serve.router import TOKEN_VARIABLE, Router, read_token
from serve.settings import ServeSettings
from serve.wanted import ModelKey
from tests.serve.fakes import Evenly
from tests.serve.test_ranking import request, served


class Handle:
    """A deployment handle whose calls go through ``faults`` before they are answered."""

    def __init__(self, *faults: Exception | float) -> None:
        self.faults = list(faults)
        self.calls = 0
        self.score = self

    async def remote(self, prompt: Prompt, model: ModelKey) -> Any:
        self.calls += 1
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        if fault is not None:
            await asyncio.sleep(fault)
        return await Evenly().score(prompt)


def rank(sent: RankRequest, limits: ServeSettings | None = None, **handles: Handle) -> RankResponse:
    settings = limits or ServeSettings(run="toy", request_timeout_s=20)
    return asyncio.run(Router(settings, served(), {**handles}).rank(sent))  # type: ignore[arg-type]


def counted(asked: Router, name: str, **labels: str) -> float | None:
    return asked.metrics.registry.get_sample_value(f"recranker_{name}", labels)


def lost() -> Exception:
    return RayActorError()


def failed() -> Exception:
    return RayTaskError("score", "traceback", RuntimeError("planted"))


def full() -> Exception:
    return BackPressureError(1, 1)


def test_a_lost_replica_is_asked_for_again_up_to_the_limit() -> None:
    twice, thrice = Handle(lost(), lost()), Handle(lost(), lost(), lost())
    response = rank(request(tasks=["pointwise", "listwise"]), pointwise=twice, listwise=thrice)
    assert response.degraded == ("listwise",)
    assert (twice.calls, thrice.calls) == (3, 3)


@pytest.mark.parametrize("fault", [failed, full])
def test_a_task_that_failed_or_is_full_is_not_asked_again(fault: Callable[[], Exception]) -> None:
    bad = Handle(fault())
    response = rank(request(tasks=["pointwise", "listwise"]), pointwise=Handle(), listwise=bad)
    assert response.degraded == ("listwise",)
    assert bad.calls == 1


def test_a_slow_task_is_left_behind_at_the_deadline() -> None:
    limits = ServeSettings(run="toy", request_timeout_s=0.2)
    response = rank(request(tasks=["pointwise", "listwise"]), limits, pointwise=Handle(), listwise=Handle(30.0))
    assert response.degraded == ("listwise",)
    assert response.order == "fused"


def test_the_deadline_of_a_request_ends_the_waiting_before_it() -> None:
    asked = Router(ServeSettings(run="toy"), served(), {"listwise": Handle(30.0)})  # type: ignore[dict-item]
    started = time.monotonic()
    response = asyncio.run(asked.rank(request(tasks=["listwise"]), started + 0.2))
    assert time.monotonic() - started < 5.0
    assert (response.order, response.degraded) == ("backbone", ("listwise",))
    assert asyncio.run(asked.rank(request(tasks=["listwise"]), started)).order == "backbone"  # already over


def test_a_lookup_that_takes_too_long_leaves_nothing_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "completed", lambda *_: time.sleep(0.5))
    asked = Router(ServeSettings(run="toy"), served(), {"listwise": Handle()})  # type: ignore[dict-item]
    with pytest.raises(LateError):
        asyncio.run(asked.rank(RankRequest(user_id="u"), time.monotonic() + 0.05))
    assert counted(asked, "requests_total", task="all", outcome="late") == 1.0


def test_what_became_of_requests_and_tasks_is_counted() -> None:
    handles = {"pointwise": Handle(lost(), None), "pairwise": Handle(failed()), "listwise": Handle(full())}
    asked = Router(ServeSettings(run="toy", max_attempts=2), served(), handles)  # type: ignore[arg-type]
    asyncio.run(asked.rank(request()))
    outcomes = {"all": "fused", "pointwise": "answered", "pairwise": "failed", "listwise": "busy"}
    for task, outcome in outcomes.items():
        assert counted(asked, "requests_total", task=task, outcome=outcome) == 1.0
        assert counted(asked, "request_duration_seconds_count", task=task) == 1.0
    assert counted(asked, "task_retries_total", task="pointwise", reason="replica_lost") == 1.0
    assert [counted(asked, "degraded_total", missing=one) for one in handles] == [None, 1.0, 1.0]
    assert counted(asked, "candidates_sum") == 4.0
    assert counted(asked, "shed_total") == 0.0


@pytest.mark.parametrize(
    ("sent", "fault", "error", "outcome"),
    [
        (request(tasks=["listwise"]), full(), BusyError, "shed"),
        (request(30, tasks=["listwise"]), None, RefusedError, "refused"),
        (request(tasks=["listwise"]), ZeroDivisionError(), ZeroDivisionError, "failed"),
    ],
)
def test_requests_that_get_no_answer_are_counted_too(
    sent: RankRequest, fault: Exception | None, error: type[Exception], outcome: str
) -> None:
    handles = {"listwise": Handle(fault)}  # type: ignore[arg-type]
    asked = Router(ServeSettings(run="toy"), served(), handles)  # type: ignore[arg-type]
    with pytest.raises(error):
        asyncio.run(asked.rank(sent))
    assert counted(asked, "requests_total", task="all", outcome=outcome) == 1.0
    assert counted(asked, "shed_total") == float(outcome == "shed")


def test_ready_is_when_every_task_has_a_running_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Router(ServeSettings(run="toy"), served(), {"pointwise": Handle(), "listwise": Handle()})  # type: ignore[dict-item]
    counts = {"router": 1, "pointwise": 2}
    monkeypatch.setattr(router, "running_replicas", lambda: counts)
    state = ModelState(run="toy", adapter="0")
    found = Readiness(ready=False, replicas={"pointwise": 2, "listwise": 0}, missing=("listwise",), model=state)
    assert asyncio.run(asked.readiness()) == found
    counts["listwise"] = 1
    found = Readiness(ready=True, replicas={"pointwise": 2, "listwise": 1}, model=state)
    assert asyncio.run(asked.readiness()) == found

    def away() -> dict[str, int]:
        raise lost()

    monkeypatch.setattr(router, "running_replicas", away)
    assert asyncio.run(asked.readiness()) == found


def test_only_when_all_tasks_are_full_the_service_is_busy() -> None:
    sent = request(tasks=["pointwise", "listwise"])
    with pytest.raises(BusyError):
        rank(sent, pointwise=Handle(full()), listwise=Handle(full()))
    assert rank(sent, pointwise=Handle(full()), listwise=Handle(failed())).order == "backbone"


def test_the_token_comes_from_its_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("from the file\n")
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(ServeSettings(run="toy")) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "from the environment")
    assert read_token(ServeSettings(run="toy")) == "from the environment"
    assert read_token(ServeSettings(run="toy", token_file=str(file))) == "from the file"


def test_a_token_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for name, message in (("missing", "cannot be read"), ("empty", "is empty")):
        with pytest.raises(SettingsError, match=message):
            read_token(ServeSettings(run="toy", token_file=str(tmp_path / name)))
