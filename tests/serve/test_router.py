"""The router's patience and persistence, over handles that behave as Serve's do."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from recranker.errors import SettingsError
from recranker.tasks.protocol import Prompt
from serve.http import BusyError
from serve.messages import RankRequest, RankResponse
from serve.router import TOKEN_VARIABLE, Router, read_token
from serve.settings import ServeSettings
from tests.serve.fakes import Evenly
from tests.serve.test_ranking import request, served


class Handle:
    """A deployment handle whose calls go through ``faults`` before they are answered."""

    def __init__(self, *faults: Exception | float) -> None:
        self.faults = list(faults)
        self.calls = 0
        self.score = self

    async def remote(self, prompt: Prompt) -> Any:
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
