import numpy as np
import pyarrow as pa
import pytest

from recranker.evaluation.rows import METRICS
from recranker.evaluation.seeds import SeedRun, seed_runs, summarise
from recranker.schema import RESULTS, USER_RESULTS
from tests.tables import interactions


def one_seed(**values: float) -> SeedRun:
    """A seed whose users have the same value for every metric."""
    return SeedRun(np.array(list(values)), np.tile(np.array(list(values.values()))[:, None], (1, len(METRICS))))


def drawn(seed: int, users: int = 300, chance: float = 0.1) -> SeedRun:
    values = (np.random.default_rng(seed).random((users, len(METRICS))) < chance).astype(float)
    return SeedRun(np.array([f"u{number}" for number in range(users)]), values)


def row(table: pa.Table, label: str) -> dict[str, float]:
    return {one["row"]: one for one in table.to_pylist()}[label]


def test_mean_and_spread_over_seeds_worked_by_hand() -> None:
    runs = {"a": [one_seed(u=1.0, v=0.0, w=0.0, x=0.0), one_seed(u=1.0, v=1.0, w=0.0, x=0.0)]}
    made = row(summarise(runs, baseline=None, samples=200, seed=0), "a")
    assert [made[metric] for metric in METRICS] == pytest.approx([0.375] * 4)
    assert made["ndcg_at_3_std"] == pytest.approx(0.25 / np.sqrt(2))  # 0.25 and 0.5
    assert (made["seeds"], made["users"], made["hr_at_3_difference"]) == (2, 4, None)


def test_a_single_seed_has_no_spread() -> None:
    made = row(summarise({"a": [one_seed(u=1.0, v=0.0)]}, baseline=None, samples=100, seed=0), "a")
    assert made["ndcg_at_3_std"] is None
    assert made["ndcg_at_3"] == 0.5


def test_the_mean_is_that_of_the_seeds_where_their_users_differ() -> None:
    runs = {"a": [one_seed(u=1.0, v=0.0), one_seed(u=1.0, w=1.0, x=0.0, y=0.0, z=0.0)]}
    made = row(summarise(runs, baseline=None, samples=300, seed=0), "a")
    assert made["ndcg_at_3"] == pytest.approx((1 / 2 + 2 / 5) / 2)
    assert made["ndcg_at_3_low"] <= made["ndcg_at_3"] <= made["ndcg_at_3_high"]
    assert made["users"] == 6


def test_more_seeds_of_the_same_users_do_not_pretend_to_be_more_users() -> None:
    same = drawn(0)
    once, thrice = (summarise({"a": [same] * count}, baseline=None, samples=2000, seed=0) for count in (1, 3))
    for bound in ("ndcg_at_3_low", "ndcg_at_3_high"):
        assert row(once, "a")[bound] == pytest.approx(row(thrice, "a")[bound], abs=1e-9)


def test_the_interval_is_as_wide_as_the_spread_between_users() -> None:
    seeds = [drawn(number) for number in range(4)]
    made = row(summarise({"a": seeds}, baseline=None, samples=4000, seed=0), "a")
    per_user = np.mean([one.values for one in seeds], axis=0)[:, METRICS.index("ndcg_at_3")]
    width = 2 * 1.96 * per_user.std() / np.sqrt(len(per_user))
    assert made["ndcg_at_3_high"] - made["ndcg_at_3_low"] == pytest.approx(width, rel=0.08)


def test_seeds_with_few_users_in_common_have_the_width_of_a_direct_bootstrap() -> None:
    random = np.random.default_rng(5)
    everyone = np.array([f"u{number}" for number in range(400)])
    seeds = []
    for _ in range(2):
        chosen = random.choice(400, 250, replace=False)
        seeds.append(SeedRun(everyone[chosen], (random.random((250, 4)) < 0.5).astype(float)))
    made = row(summarise({"a": seeds}, baseline=None, samples=4000, seed=0), "a")
    direct = []
    for _ in range(4000):
        counts = dict(zip(everyone, random.multinomial(400, [1 / 400] * 400), strict=True))
        weights = [np.array([counts[user] for user in one.user_ids]) for one in seeds]
        direct.append(
            np.mean([weight @ one.values[:, 0] / weight.sum() for weight, one in zip(weights, seeds, strict=True)])
        )
    assert [made["hr_at_3_low"], made["hr_at_3_high"]] == pytest.approx(np.percentile(direct, [2.5, 97.5]), abs=0.006)


def test_differences_are_paired_over_users_not_over_rows_of_the_table() -> None:
    base = drawn(0)
    order = np.random.default_rng(9).permutation(len(base.user_ids))
    better = SeedRun(base.user_ids[order], base.values[order] + 0.01)  # the same users in another order
    table = summarise({"base": [base], "better": [better]}, baseline="base", samples=500, seed=0)
    made = row(table, "better")
    found = [made[f"ndcg_at_3_difference{end}"] for end in ("", "_low", "_high")]
    assert found == pytest.approx([0.01, 0.01, 0.01])  # no width: every user gains the same
    assert [row(table, "base")[f"hr_at_3_difference{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]


def test_another_set_is_compared_row_by_row() -> None:
    first, second = one_seed(u=1.0, v=0.0), one_seed(u=0.0, v=0.0)
    runs = {"hybrid": [first], "new": [first]}
    table = summarise(runs, baseline={"hybrid": [second], "old": [second]}, samples=100, seed=0)
    assert row(table, "hybrid")["hr_at_3_difference"] == 0.5
    assert row(table, "new")["hr_at_3_difference"] is None
    assert table["row"].to_pylist() == ["hybrid", "new"]


def test_runs_are_read_from_the_published_tables_with_misses_as_zeros() -> None:
    events = interactions(
        ("u1", "a", 0, "like", "train"), ("u1", "b", 1, "like", "test"), ("u2", "c", 1, "like", "test")
    )
    of_rows = pa.Table.from_pylist(
        [
            {name: 0.0 for name in RESULTS.schema.names} | {"row": name, "users": 2, "users_with_hit": 1}
            for name in "ab"
        ],
        schema=RESULTS.schema,
    )
    of_users = pa.Table.from_pylist(
        [{"row": "a", "user_id": "u2", "hr_at_3": 1, "ndcg_at_3": 0.5, "hr_at_5": 1, "ndcg_at_5": 0.5}],
        schema=USER_RESULTS.schema,
    )
    found = seed_runs(events, of_rows, of_users)
    assert list(found) == ["a", "b"]
    assert found["a"].user_ids.tolist() == ["u1", "u2"]
    assert found["a"].values.tolist() == [[0, 0, 0, 0], [1, 0.5, 1, 0.5]]
    assert found["b"].values.sum() == 0  # a row without a single hit is there, with zeros


@pytest.mark.parametrize(
    ("runs", "baseline", "message"),
    [
        ({"a": []}, None, r"at least one seed, got none for \['a'\]"),
        ({}, None, "got none for all"),
        ({"a": [one_seed(u=1.0)]}, "b", r"baseline 'b' is not among the rows \['a'\]"),
    ],
)
def test_missing_rows_are_refused(runs: dict[str, list[SeedRun]], baseline: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarise(runs, baseline=baseline, samples=100, seed=0)


def test_a_user_named_twice_and_values_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="each of its 2 test users once"):
        SeedRun(np.array(["u", "u"]), np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"must be \(users, 4\)"):
        SeedRun(np.array(["u", "v"]), np.zeros((3, 4)))
