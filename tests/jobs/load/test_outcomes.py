import pytest

from jobs.load.outcomes import latency_ms, outcome_of, rate_within, router_ms, summary
from tests.jobs.load.published import sent


def test_every_request_ends_in_one_of_four_ways() -> None:
    assert outcome_of(sent(0)) == "ok"
    assert outcome_of(sent(0, degraded=True)) == "degraded"
    assert outcome_of(sent(0, status=429, retry_after=True)) == "busy"
    assert outcome_of(sent(0, status=503, retry_after=True)) == "busy"
    assert outcome_of(sent(0, status=503)) == "other"  # nobody says when to come again
    assert outcome_of(sent(0, status=500, retry_after=True)) == "other"
    assert outcome_of(sent(0, status=None)) == "other"


def test_latency_counts_from_the_scheduled_arrival_so_that_a_late_sender_hides_nothing() -> None:
    # due at 0, 1, 2, 3 and 4 s; the service was stuck until 4 s, and the sender with it
    stuck = [sent(number, latency_s=4.5 - number, late_s=4.0 - number) for number in range(5)]
    assert [one.done_s - one.sent_s for one in stuck] == pytest.approx([0.5] * 5)
    assert latency_ms(stuck, 50) == pytest.approx(2500.0)
    assert latency_ms(stuck, 95) == pytest.approx(4300.0)  # 3500 and 4500 ms, at 0.8 of the way between
    assert latency_ms(stuck, 99) == pytest.approx(4460.0)


def test_a_summary_by_hand() -> None:
    answered = [sent(0, 0.1), sent(1, 0.3), sent(2, 0.2, degraded=True)]
    found = summary([*answered, sent(3, 0.01, 503, retry_after=True), sent(4, 9.0, 500), sent(5, 9.0, None)])
    assert (found.requests, found.ok, found.degraded, found.busy, found.other) == (6, 2, 1, 1, 2)
    assert found.p50_ms == pytest.approx(200.0)
    assert found.p95_ms == pytest.approx(290.0)
    assert found.busy_p99_ms == pytest.approx(10.0)
    assert summary([sent(0, status=None)]).p50_ms is None


def test_the_cost_on_top_of_the_engine_needs_its_time() -> None:
    assert router_ms([sent(0, 0.050, engine_ms=42.0), sent(1, 0.060)]) == pytest.approx([8.0])


def test_a_rate_counts_answers_within_the_time_alone() -> None:
    answers = [sent(0, 1.0), sent(0, 2.0), sent(0, 3.5), sent(0, 4.0), sent(0, 3.0, 503), sent(0, 3.0, degraded=True)]
    assert rate_within(answers, 2.0, 4.0) == 1.0  # those done at 2 and 3.5 s
