import signal
from typing import Any

import pytest

from jobs.drills.gate import lose_one
from recranker.errors import RecrankerError

WELL = {"readiness": {"ready": True, "replicas": {"pairwise": 1}}, "serve": {"running": {"pairwise": 1}}}
NOT_READY: dict[str, Any] = {"readiness": {}, "serve": {}}


class FakeService:
    """Loses process 7: noticed at second ``dead``; process 8 is there at ``started`` and serves at ``well``."""

    def __init__(self, *, dead: float = 1.0, started: float = 4.0, well: float = 9.0) -> None:
        self.seconds = 0.0
        self.times = (dead, started, well)
        self.signals: list[tuple[int, int]] = []

    @property
    def lost(self) -> bool:
        return bool(self.signals)

    def pids(self, component: str) -> set[int]:
        assert component == "pairwise"
        killed = (7, signal.SIGKILL) in self.signals
        started = {8} if self.lost and self.seconds >= self.times[1] else set()
        return (set() if killed else {7}) | started

    def signal(self, pid: int, number: int) -> None:
        self.signals.append((pid, number))

    def state(self) -> dict[str, Any]:
        dead, _, well = self.times
        return NOT_READY if self.lost and dead <= self.seconds < well else WELL

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def lose(service: FakeService, **changes: Any) -> Any:
    return lose_one("pairwise", service, WELL, now=service.now, sleep=service.sleep, **{"timeout_s": 60.0, **changes})


def test_a_kill_is_made_good_when_another_process_serves() -> None:
    service = FakeService()
    kill = lose(service)
    assert kill.at_s == 0.0
    assert kill.recovery_s == pytest.approx(9.0, abs=0.21)
    assert service.signals == [(7, signal.SIGKILL)]


def test_a_controller_that_has_not_noticed_yet_does_not_open_the_gate() -> None:
    # all is said to be well until second 2, and a process with its title is there already
    assert lose(FakeService(dead=2.0, started=3.0, well=6.0)).recovery_s >= 6.0
    assert lose(FakeService(dead=0.0, started=5.0, well=1.0)).recovery_s >= 5.0  # nor does a state without a process


def test_a_stopped_process_counts_as_lost_and_is_ended_when_it_is_replaced() -> None:
    service = FakeService()
    kill = lose(service, number=signal.SIGSTOP)
    assert kill.recovery_s >= 9.0
    assert service.signals == [(7, signal.SIGSTOP), (7, signal.SIGKILL)]


def test_a_process_that_is_not_replaced_ends_the_drill() -> None:
    with pytest.raises(RecrankerError, match=r"pairwise: .* not replaced within 5 s; raise replaced_s"):
        lose(FakeService(), timeout_s=5.0)


def test_nothing_to_kill_is_said() -> None:
    service = FakeService()
    service.pids = lambda component: set()  # type: ignore[method-assign]
    with pytest.raises(RecrankerError, match="no process of pairwise found below the service"):
        lose(service)
