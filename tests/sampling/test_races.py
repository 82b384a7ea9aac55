from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray
from scipy import stats

from recranker.data.lookup import places
from recranker.sampling.races import (
    ARRIVALS,
    Field,
    arrivals_until,
    draw,
    earliest,
    earliest_of_all,
    horizons,
)

USERS = ["a", "b", "c", "d"]
RATES = np.array([1.0, 2.0, 3.0, 4.0])


def field(users: list[str], rates: NDArray[np.float64], groups: list[int] | None = None) -> Field:
    return Field(pa.array(users), rates, np.array(groups or [0] * len(users)))


def drawn(users: list[str], rates: NDArray[np.float64], num_draws: int, *key: str | int) -> list[str]:
    ids: list[str] = draw(field(users, rates), np.array([num_draws]), *key)["user_id"].to_pylist()
    return ids


def counts_of(ids: list[str], users: list[str] = USERS) -> list[int]:
    return [ids.count(user) for user in users]


def test_draws_follow_the_weights() -> None:
    counts = counts_of(drawn(USERS, RATES, 20_000, 0, "frequencies"))
    assert stats.chisquare(counts, 20_000 * RATES / RATES.sum()).pvalue > 0.001


def test_a_planted_bias_would_be_seen_by_the_same_test() -> None:
    counts = counts_of(drawn(USERS, np.array([1.0, 2.0, 3.0, 4.4]), 20_000, 0, "frequencies"))
    assert stats.chisquare(counts, 20_000 * RATES / RATES.sum()).pvalue < 0.001


def test_first_arrivals_over_many_seeds_follow_the_weights() -> None:
    first = [drawn(USERS, RATES, 1, seed, "first")[0] for seed in range(4000)]
    assert stats.chisquare(counts_of(first), 4000 * RATES / RATES.sum()).pvalue > 0.001


def test_a_draw_does_not_depend_on_the_one_before() -> None:
    pairs = [tuple(drawn(USERS, RATES, 2, seed, "pairs")) for seed in range(4000)]
    expected = [4000 * one * other / RATES.sum() ** 2 for one in RATES for other in RATES]
    counts = [pairs.count((one, other)) for one in USERS for other in USERS]
    assert stats.chisquare(counts, expected).pvalue > 0.001


@pytest.mark.parametrize("blocks", [1, 2, 7, 64])
def test_shards_raced_apart_in_any_order_merge_to_the_same_bytes(blocks: int) -> None:
    order = np.random.default_rng(blocks).permutation(300)
    names, rates = np.array([f"user {n}" for n in range(300)]), np.log(np.arange(2.0, 302.0))
    groups = np.arange(300) % 3
    quotas = np.array([500, 0, 40])
    whole = draw(Field(pa.array(names), rates, groups), quotas, 3, "merge")
    shards = [Field(pa.array(names[some]), rates[some], groups[some]) for some in np.array_split(order, blocks)]

    def arrivals_by(until: NDArray[np.float64]) -> pa.Table:
        return pa.concat_tables([earliest(arrivals_until(one, until, 3, "merge"), quotas) for one in shards])

    assert earliest_of_all(arrivals_by, quotas, sum(one.totals(3) for one in shards)).equals(whole)
    assert np.bincount(whole["group"].to_numpy(), minlength=3).tolist() == [500, 0, 40]


def test_users_beyond_the_cache_are_raced_like_few() -> None:
    names = [f"u{n}" for n in range(40_000)]
    until = np.array([0.5])
    whole = arrivals_until(field(names, np.ones(40_000)), until, 0)
    parts = [
        arrivals_until(field(names[at : at + 999], np.ones(len(names[at : at + 999]))), until, 0)
        for at in range(0, 40_000, 999)
    ]
    quotas = np.array([40_000])
    assert earliest(whole, quotas).equals(earliest(pa.concat_tables(parts), quotas))


def test_a_race_that_was_too_short_is_run_again() -> None:
    asked = []

    def arrivals_by(until: NDArray[np.float64]) -> pa.Table:
        asked.append(until.copy())
        return arrivals_until(Field(pa.array(["a", "b"]), np.ones(2), np.array([0, 1])), until, 0)

    quotas = np.array([30, 2])
    found = earliest_of_all(arrivals_by, quotas, np.array([100.0, 1.0]))  # the first total promises too much
    assert len(asked) > 1
    assert all(later[0] == 2 * before[0] and later[1] == before[1] for before, later in pairwise(asked))
    assert found.equals(draw(Field(pa.array(["a", "b"]), np.ones(2), np.array([0, 1])), quotas, 0))


def test_arrivals_of_one_user_are_a_poisson_process() -> None:
    found = arrivals_until(field(["u"], np.array([5.0])), np.array([2000.0]), 1, "gaps")
    gaps = np.diff(np.sort(found["time"].to_numpy()), prepend=0.0)
    assert abs(len(gaps) - 10_000) < 4 * 100
    assert stats.kstest(gaps, "expon", args=(0, 1 / 5.0)).pvalue > 0.001


def test_many_laps_in_one_go_round_like_one_after_the_other() -> None:
    alone = arrivals_until(field(["u"], np.array([0.3])), np.array([400.0]), 1)  # its laps go by thousands
    among = arrivals_until(field([*(f"n{n}" for n in range(5000)), "u"], np.full(5001, 0.3)), np.array([400.0]), 1)
    assert among.filter(pc.field("user_id") == "u")["time"].to_pylist() == alone["time"].to_pylist()


def test_a_user_without_weight_is_never_drawn() -> None:
    assert set(drawn(["never", "always"], np.array([0.0, 1.0]), 50, 0)) == {"always"}


@pytest.mark.parametrize("rates", [[-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_what_is_no_weight_is_refused(rates: list[float]) -> None:
    with pytest.raises(ValueError, match="finite and at least 0"):
        drawn(["a", "b"], np.array(rates), 1, 0)


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="positive weight, the weights of group 1 sum to 0"):
        draw(field(["a", "b"], np.array([1.0, 0.0]), [0, 1]), np.array([1, 1]), 0)


def test_a_group_without_draws_needs_no_weight_and_no_time() -> None:
    assert horizons(np.array([0, 4]), np.array([0.0, 2.0])).tolist() == [0.0, (4 + 6 * 2 + 36) / 2]


def test_earliest_orders_by_group_and_time_and_breaks_ties_by_the_bytes_of_ids() -> None:
    rows = [(1, 0.2, "b"), (0, 0.3, "z"), (0, 0.1, "é"), (0, 0.1, "z"), (1, 0.1, "c"), (0, 0.1, "a")]
    arrivals = pa.table([pa.array(column) for column in zip(*rows, strict=True)], names=ARRIVALS.names).cast(ARRIVALS)
    assert earliest(arrivals, np.array([3, 1]))["user_id"].to_pylist() == ["a", "z", "é", "c"]
    assert earliest(arrivals, np.array([0, 5]))["user_id"].to_pylist() == ["c", "b"]


def test_places_start_anew_in_every_group() -> None:
    assert places(np.array([0, 0, 2, 2, 2])).tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string()])
def test_ids_of_any_string_type_and_chunks_give_the_same_arrivals(kind: pa.DataType) -> None:
    chunked = pa.chunked_array([pa.array(USERS[:1], kind), pa.array(USERS[1:], kind)])
    found = draw(Field(chunked, RATES, np.zeros(4, dtype=np.int64)), np.array([20]), 0)
    assert found.schema == ARRIVALS
    assert found["user_id"].to_pylist() == drawn(USERS, RATES, 20, 0)
