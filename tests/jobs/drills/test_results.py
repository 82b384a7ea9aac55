import pytest

from jobs.drills.gate import Kill
from jobs.drills.results import Drilled, row, totals
from tests.jobs.load.published import sent

KILLS = (Kill("pointwise", 10.0, 14.0), Kill("pairwise", 20.0, 30.0))
SENT = (
    sent(0, 0.1, at=5.0),
    sent(1, 0.3, at=9.0),
    sent(2, 3.0, at=9.5),  # under way at the first kill
    sent(3, 4.0, at=11.0, degraded=True),
    sent(4, 0.1, 503, at=12.0, retry_after=True),
    sent(5, 0.2, at=16.0),  # between the kills: nobody is lost then
    sent(6, 2.0, at=21.0),
    sent(7, 0.4, None, at=29.0),
    sent(8, 0.6, at=30.0),
)


def test_a_row_by_hand() -> None:
    found = row(Drilled("task replica", "plain", True, KILLS, SENT))
    assert (found["kills"], found["requests"], found["under_way"]) == (2, 9, 1)
    assert (found["failed"], found["degraded"]) == (2, 1)  # a refusal fails too
    assert (found["recovery_p50_s"], found["recovery_max_s"]) == (7.0, 10.0)
    assert found["before_p50_ms"] == pytest.approx(300.0)  # of 100, 300 and 3000
    assert found["during_p50_ms"] == pytest.approx(3000.0)  # of 4000 and 2000
    assert found["after_p50_ms"] == pytest.approx(600.0)
    assert found["slowest_ms"] == pytest.approx(4000.0)


def test_totals_are_of_the_drills_that_must_hold() -> None:
    router = Drilled("router", "client", True, KILLS[:1], SENT[:4])
    proxy = Drilled("HTTP proxy", "client", False, KILLS, SENT)
    assert totals([router, proxy]) == {"kills": 1, "requests": 4, "failed": 0, "degraded": 1}
