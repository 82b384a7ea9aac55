from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from recranker.tasks.protocol import Prompt, Question
from serve.cost import Cost, Measured, bytes_of, cost_of, measure, worthwhile_tokens

COST = Cost(fixed_s=0.2, per_token_s=0.002, tokens_per_byte=0.5)


def test_the_cost_is_the_line_through_two_prompts() -> None:
    found = cost_of(Measured(200, 100, 0.4), Measured(800, 400, 1.0))
    assert (found.per_token_s, found.fixed_s) == pytest.approx((0.002, 0.2))  # 0.6 s for 300 tokens more
    assert found.tokens_per_byte == 0.5
    assert found.seconds(400) == pytest.approx(1.0)
    assert found.seconds(400, batches=2) == pytest.approx(1.2)


def test_noise_makes_no_part_of_the_cost_negative() -> None:
    slower = cost_of(Measured(200, 100, 0.5), Measured(800, 400, 0.4))
    assert (slower.fixed_s, slower.per_token_s) == (0.4, 0.0)
    steeper = cost_of(Measured(200, 100, 0.1), Measured(800, 400, 1.0))
    assert (steeper.fixed_s, steeper.per_token_s) == pytest.approx((0.0, 0.0025))
    alike = cost_of(Measured(200, 100, 0.4), Measured(800, 100, 0.5))
    assert (alike.fixed_s, alike.per_token_s) == pytest.approx((0.0, 0.005))


def test_bytes_within_a_time_are_those_that_take_it() -> None:
    assert COST.bytes_within(1.2) == pytest.approx(1000)  # 1 s = 500 tokens
    assert COST.seconds(COST.tokens(1000)) == pytest.approx(1.2)
    assert COST.bytes_within(0.1) < 0
    free = replace(COST, per_token_s=0.0)
    assert (free.bytes_within(0.3), free.bytes_within(0.1)) == (float("inf"), -1.0)


def test_a_batch_moves_the_cost_by_a_fifth_and_a_stall_no_further_than_twice_the_time() -> None:
    slower = COST.learned(1000, 400, 1.5)  # 1.0 s were expected, 0.4 tokens per byte
    assert (slower.fixed_s, slower.per_token_s) == pytest.approx((0.2 * 1.1, 0.002 * 1.1))
    assert slower.tokens_per_byte == pytest.approx(0.48)
    assert COST.learned(800, 400, 60.0).fixed_s == pytest.approx(0.2 * 1.2)
    assert COST.learned(800, 400, 0.001).fixed_s == pytest.approx(0.2 * 0.9)


def test_prompts_wait_for_each_other_only_where_the_fixed_cost_counts() -> None:
    assert worthwhile_tokens(COST) == pytest.approx(900)  # 0.2 s of 2.0 s
    assert worthwhile_tokens(Cost(0.0, 0.002, 0.5)) == 0.0
    assert worthwhile_tokens(Cost(0.2, 0.0, 0.5)) == float("inf")


@pytest.mark.parametrize(
    ("batch_tokens", "prompts", "batches"), [(0.0, 3, 3), (900.0, 3, 2), (5000.0, 3, 1), (10.0, 3, 3)]
)
def test_prompts_become_as_many_batches_as_their_tokens_need(batch_tokens: float, prompts: int, batches: int) -> None:
    assert replace(COST, batch_tokens=batch_tokens).batches(1200, prompts) == batches


@dataclass(frozen=True)
class Answered:
    tokens: int
    log_probabilities: Sequence[float] = ()
    cut_lines: int = 0


def test_what_is_measured_is_bounded_by_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("serve.cost.perf_counter", lambda: clock[0])
    stalls = [9.0, 0.0, 0.0, 0.0, 0.0, 0.0]

    def compute(prompts: Sequence[Prompt]) -> list[Answered]:
        tokens = len(prompts[0].prefix)
        clock[0] += 0.2 + 0.002 * tokens + stalls.pop()
        stalls.insert(0, 0.0)
        return [Answered(tokens)]

    small, large = (Prompt("cost", "é" * number, ()) for number in (100, 400))
    assert bytes_of(replace(small, questions=(Question("pointwise", "abc", ("No", "Yes"), ("a",)),))) == 203
    for wanted, batch in ((None, 900), (64, 64), (5000, 2000)):
        found = measure(compute, small, large, batch_tokens=wanted, token_budget=2000)
        assert (found.fixed_s, found.per_token_s, found.tokens_per_byte) == pytest.approx((0.2, 0.002, 0.5))
        assert found.batch_tokens == pytest.approx(batch)
