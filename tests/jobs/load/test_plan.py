from itertools import islice

import numpy as np
import pytest

from jobs.load.plan import Load, Sent, arrivals, known
from jobs.load.sender import server_timing
from tests.jobs.load.published import sent


def test_arrivals_are_keyed_by_their_seed() -> None:
    first, again, other = (list(islice(arrivals(2.0, seed), 600)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first == sorted(first)


def test_arrivals_are_those_of_a_poisson_process() -> None:
    moments = np.fromiter(islice(arrivals(4.0, 7), 8000), dtype=float)
    gaps = np.diff(moments, prepend=0.0)
    assert gaps.mean() == pytest.approx(0.25, rel=0.04)
    assert gaps.std() == pytest.approx(0.25, rel=0.06)  # exponential: deviation and mean are the same
    counts = np.bincount(moments[moments < 1000].astype(int), minlength=1000)
    assert counts.var() == pytest.approx(counts.mean(), rel=0.15)  # bursts as they come by themselves


def test_twice_the_rate_is_the_same_schedule_in_half_the_time() -> None:
    slow, fast = (list(islice(arrivals(rate, 3), 50)) for rate in (1.0, 2.0))
    assert fast == pytest.approx([moment / 2 for moment in slow])


def test_plans_and_reports_travel() -> None:
    load = Load("http://x", [{"history": [], "candidates": []}], rate=0.5, way="client", deadline_ms=7)
    assert known(Load, load.line()) == load
    assert known(Sent, '{"number": 1, "scheduled_s": 1, "sent_s": 1, "done_s": 2, "status": null, "new": 3}') == sent(
        1, status=None
    )


def test_the_engines_time_is_read_from_the_header() -> None:
    assert server_timing("engine;dur=12.3, total;dur=14.5") == {"engine": 12.3, "total": 14.5}
    assert server_timing('cache;desc="hit", engine;desc="a";dur="3"') == {"engine": 3.0}
    assert server_timing("") == server_timing("engine;dur=soon") == {}
