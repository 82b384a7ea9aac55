from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from recranker.errors import DataError
from recranker.sampling.draws import Blocks, draw_from_pool, draw_in_one_place, draw_users, to_draws
from recranker.sampling.settings import AdaptiveSampling, PaperSampling, UniformSampling
from recranker.sampling.users import USERS
from recranker.schema import DRAWS
from recranker.store import logical_hash
from tests.tables import candidate_list, candidates, factors, interactions

SEEDS = 1000
MANY = pa.table(
    [[f"u{n}" for n in range(500)], np.arange(500) % 90 + 1, (np.arange(500) % 7).astype(np.int32)], schema=USERS
)
EIGHT = pa.table([list("abcdefgh"), [1, 2, 4, 16, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 2]], schema=USERS)
"""Log-likes 0, 1, 2, 4, 0, 0, 0, 0 times ln 2; clusters of 3, 4 and 1."""


def drawn(users: pa.Table, seed: int = 0, **values: Any) -> list[str]:
    settings = UniformSampling(**values) if values.pop("uniform", False) else AdaptiveSampling(**values)
    ids: list[str] = draw_users(Blocks(users), settings, seed)[0]["user_id"].to_pylist()
    return ids


def first_draws(**values: Any) -> list[int]:
    """How often each of EIGHT comes first, over many seeds."""
    first = Counter(drawn(EIGHT, seed, **values)[0] for seed in range(SEEDS))
    return [first[user] for user in "abcdefgh"]


def p_value(found: list[int], chances: list[float]) -> float:
    """Of counts this far from their chances, or further; 0 where the impossible has come."""
    expected = np.array(chances)
    possible = expected > 0
    if np.array(found)[~possible].any():
        return 0.0
    return float(stats.chisquare(np.array(found)[possible], sum(found) * expected[possible]).pvalue)


def test_uniform_draws_every_user_alike() -> None:
    assert p_value(first_draws(uniform=True, num_draws=2), [1 / 8] * 8) > 0.001


def test_importance_draws_by_the_logarithm_of_likes() -> None:
    only = {"num_draws": 2, "importance_share": 2, "cluster_share": 0, "repetition_penalty": 1}
    found = first_draws(**only)
    assert p_value(found, [0, 1 / 7, 2 / 7, 4 / 7, 0, 0, 0, 0]) > 0.001
    assert p_value(found, [0, 1 / 5, 2 / 5, 2 / 5, 0, 0, 0, 0]) < 0.001  # another law would be seen


def test_clusters_are_drawn_by_their_size_and_users_alike_inside() -> None:
    # A pool of 16 over clusters of 3, 4 and 1 of 8 users: 6, 8 and 2 draws.
    only = {"num_draws": 8, "importance_share": 0, "cluster_share": 2, "num_clusters": 3, "repetition_penalty": 1}
    assert p_value(first_draws(**only), [1 / 8] * 8) > 0.001
    # A pool of 4: exact shares 1.5, 2, 0.5; the largest remainder, by order the first cluster's, makes it 2, 2, 0.
    few = first_draws(**only | {"num_draws": 2})
    assert p_value(few, [1 / 6] * 3 + [1 / 8] * 4 + [0]) > 0.001


def test_the_pool_is_a_mixture_of_both() -> None:
    # 7 draws by importance and 8 by cluster (3, 4, 1): chances (7 p_u + 8 / 8) / 15.
    both = {"num_draws": 100, "importance_share": 0.07, "cluster_share": 0.08, "repetition_penalty": 1}
    expected = [(7 * p + 1) / 15 for p in (0, 1 / 7, 2 / 7, 4 / 7, 0, 0, 0, 0)]
    assert p_value(first_draws(num_clusters=3, **both), expected) > 0.001


def test_every_cluster_fills_its_quota_in_every_sample() -> None:
    # Four hundred draws from a pool of 8 show everyone in it.
    for seed in range(20):
        ids = drawn(EIGHT, seed, num_draws=400, importance_share=0, cluster_share=0.02, num_clusters=3)
        assert "h" in ids, seed  # the lone member of the third cluster: 1 of 8 draws, always
        assert set(ids) & set("abc")
        assert set(ids) & set("defg")


def test_repetition_is_penalised_as_worked_by_hand() -> None:
    # Masses 3 * 0.95^2 = 2.7075, 2 * 0.95 = 1.9 and 1, of 5.6075 in all.
    pool = pa.chunked_array([["b", "a", "c"], ["a", "b", "a"]])
    counts = Counter(draw_from_pool(pool, 50_000, 0.95, 0).to_pylist())
    found = [counts[user] for user in "abc"]
    assert stats.chisquare(found, 50_000 * np.array([2.7075, 1.9, 1]) / 5.6075).pvalue > 0.001
    assert stats.chisquare(found, 50_000 * np.array([3, 2, 1]) / 6).pvalue < 0.001  # without a penalty


def test_the_order_of_the_pool_does_not_matter() -> None:
    pool = [f"u{n % 13}" for n in range(60)]
    one = draw_from_pool(pa.chunked_array([pool]), 100, 0.9, 1)
    other = draw_from_pool(pa.chunked_array([pool[30:], pool[:30]]), 100, 0.9, 1)
    assert one.to_pylist() == other.to_pylist()


@pytest.mark.parametrize("blocks", [1, 2, 7, 64, 600])
@pytest.mark.parametrize(
    "settings",
    [UniformSampling(num_draws=300), AdaptiveSampling(num_draws=300, num_clusters=7), PaperSampling(num_draws=1000)],
    ids=lambda settings: settings.kind,
)
def test_any_blocks_in_any_order_give_the_same_bytes(
    settings: AdaptiveSampling | PaperSampling | UniformSampling, blocks: int
) -> None:
    order = np.random.default_rng(blocks).permutation(MANY.num_rows)
    parts = [MANY.take(pa.array(some)) for some in np.array_split(order, blocks)]
    whole, counts = draw_users(Blocks(MANY), settings, 4)
    cut, same_counts = draw_users(Blocks(*parts), settings, 4)
    assert logical_hash(cut, DRAWS) == logical_hash(whole, DRAWS)
    assert counts == same_counts
    distinct = len(set(whole["user_id"].to_pylist()))
    assert counts == {"eligible_users": 500, "draws": settings.num_draws, "distinct_users": distinct}


@pytest.mark.parametrize("size", [1, 7, 100])
def test_from_tables_on_any_parts_give_the_same_draws(size: int) -> None:
    users = [f"u{n}" for n in range(30)]
    events = interactions(*((user, f"i{k}", k, "like", "train") for n, user in enumerate(users) for k in range(2 + n)))
    lists = candidates(*(candidate_list(user, "train", "i1", ["i1", "i2"]) for user in users[:20]))
    vectors = factors(**{user: [float(n % 5), float(n // 10)] for n, user in enumerate(users)})
    settings = AdaptiveSampling(num_draws=40, num_clusters=3)
    whole, counts = draw_in_one_place([events], [lists], [vectors], settings, 0, num_factors=30)
    cut = (
        [table.slice(start, size) for start in range(0, table.num_rows, size)][::-1]
        for table in (events, lists, vectors)
    )
    assert draw_in_one_place(*cut, settings, 0, num_factors=30) == (whole, counts)  # type: ignore[misc]
    assert counts["eligible_users"] == 20
    with pytest.raises(DataError, match="nobody to learn from"):
        draw_in_one_place([], [], [], UniformSampling(), 0, num_factors=0)
    with pytest.raises(DataError, match="10 clusters need as many users, got 0"):
        draw_in_one_place([events], [lists], [], AdaptiveSampling(), 0, num_factors=0)


def test_the_paper_by_name_is_the_paper_spelled_out() -> None:
    assert (
        drawn(MANY, num_draws=50) == draw_users(Blocks(MANY), PaperSampling(num_draws=50), 0)[0]["user_id"].to_pylist()
    )


def test_another_seed_draws_other_users() -> None:
    assert drawn(MANY, 0, num_draws=50) != drawn(MANY, 1, num_draws=50)


def test_more_draws_go_on_from_fewer() -> None:
    assert drawn(MANY, uniform=True, num_draws=90)[:40] == drawn(MANY, uniform=True, num_draws=40)


def test_a_draw_says_how_often_its_user_had_come_before() -> None:
    table = to_draws(pa.chunked_array([["b", "a"], ["b", "b", "a"]]))
    assert table.schema == DRAWS.schema
    assert table["draw_id"].to_pylist() == [0, 1, 2, 3, 4]
    assert table["user_id"].to_pylist() == ["b", "a", "b", "b", "a"]
    assert table["repeat"].to_pylist() == [0, 0, 1, 2, 1]


def test_repeats_are_counted_in_order_of_arrival_however_many_draws() -> None:
    ids, seen, expected = drawn(EIGHT, num_draws=5000, num_clusters=3), Counter[str](), []
    for user in ids:
        expected.append(seen[user])
        seen[user] += 1
    assert to_draws(pa.chunked_array([ids]))["repeat"].to_pylist() == expected


def test_nobody_to_draw_is_refused() -> None:
    for settings in (UniformSampling(), AdaptiveSampling()):
        with pytest.raises(DataError, match="nobody to learn from"):
            draw_users(Blocks(USERS.empty_table()), settings, 0)


def test_users_with_one_like_each_cannot_be_drawn_by_importance() -> None:
    ones = EIGHT.take(pa.array([0, 4, 5]))
    with pytest.raises(DataError, match="two training likes or more"):
        drawn(ones, num_clusters=2)
    assert set(drawn(ones, num_clusters=2, importance_share=0)) <= set("aef")


def test_a_user_without_a_cluster_is_counted_and_refused_where_clusters_are_needed() -> None:
    lacking = pa.table([list("abc"), [2, 3, 4], [0, None, None]], schema=USERS)
    with pytest.raises(DataError, match="user_factors holds 1 of 3 eligible users"):
        drawn(lacking)
    assert len(drawn(lacking, cluster_share=0, num_draws=10)) == 10
