import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from recranker.errors import DataError
from recranker.evaluation import results
from recranker.evaluation.comparison import Comparison, compare, hit_rate_curves, mean_reciprocal_ranks
from recranker.evaluation.results import (
    among_hits,
    backbone_text,
    bar_bounds,
    bar_text,
    build_user_results,
    format_table,
    metrics_of,
    ordered,
    results_json,
    with_bar,
)
from recranker.schema import RANKINGS, RESULTS, SIGNALS, USER_RESULTS
from tests.tables import candidate_list, candidates, interactions

SECOND, THIRD = 1 / np.log2(3), 1 / np.log2(4)
ITEMS = ["a", "b", "c", "d", "e", "f"]
TARGETS = {"u1": "b", "u2": "d", "u3": "x", "u4": "a"}  # u3's target was not retrieved
HITS = ("u1", "u2", "u4")


def events(**targets: str) -> pa.Table:
    return interactions(*[(user, item, 5, "like", "test") for user, item in (targets or TARGETS).items()])


def lists(**changes: Any) -> pa.Table:
    rows = [candidate_list(user, "test", target, ITEMS, **changes) for user, target in TARGETS.items()]
    return candidates(*rows, candidate_list("u1", "validation", "c", ITEMS))


def rankings(row: str, **orders: str) -> pa.Table:
    """RANKINGS of one ranker from an order per user, each item a letter."""
    rows = [
        {"list_id": f"test/{user}/{TARGETS[user]}", "user_id": user, "split": "test", "row": row}
        | {"item_ids": list(order), "scores": [-float(place) for place in range(len(order))]}
        for user, order in orders.items()
    ]
    return pa.Table.from_pylist(rows, schema=RANKINGS.schema)


def same_for_all(row: str, order: str) -> pa.Table:
    return rankings(row, **dict.fromkeys(HITS, order))


def signals(name: str, scores: list[float]) -> pa.Table:
    """SIGNALS of one re-ranker that scores the candidates of every test list alike."""
    rows = [{"list_id": f"test/{user}/{TARGETS[user]}", "signal": name, "scores": scores} for user in TARGETS]
    return pa.Table.from_pylist(rows, schema=SIGNALS.schema)


NONE = pa.Table.from_pylist([], schema=RANKINGS.schema)


def compared(*tables: pa.Table, **parts: pa.Table) -> Comparison:
    ranked = pa.concat_tables([NONE, *tables])
    signal = parts.get("signals", SIGNALS.schema.empty_table())
    return compare(parts.get("events", events()), parts.get("lists", lists()), signal, ranked)


def build_results(events: pa.Table, lists: pa.Table, ranked: pa.Table, *, samples: int, seed: int) -> pa.Table:
    return results.build_results(compared(ranked, events=events, lists=lists), samples=samples, seed=seed)


def built(*tables: pa.Table, **parts: pa.Table) -> dict[str, dict[str, Any]]:
    """The results by row."""
    made = results.build_results(compared(*tables, **parts), samples=200, seed=0)
    return {row["row"]: row for row in RESULTS.conform(made, where="test").to_pylist()}


def test_baselines_worked_by_hand_over_all_test_users() -> None:
    rows = built()
    backbone = rows["backbone"]  # targets in places 2, 4, 1 and nowhere
    assert backbone["hr_at_3"] == 2 / 4
    assert backbone["ndcg_at_3"] == pytest.approx((SECOND + 1) / 4)
    assert backbone["hr_at_5"] == 3 / 4
    assert backbone["ndcg_at_5"] == pytest.approx((SECOND + 1 / np.log2(5) + 1) / 4)
    assert (backbone["users"], backbone["users_with_hit"]) == (4, 3)
    assert [rows["oracle"][name] for name in ("hr_at_3", "ndcg_at_5")] == [0.75, 0.75]
    assert rows["random"]["hr_at_3"] == pytest.approx(0.75 * 3 / 6)
    assert rows["random"]["ndcg_at_3"] == pytest.approx(0.75 * (1 + SECOND + THIRD) / 6)
    assert list(rows) == ["backbone", "random", "oracle", "popularity", "conventional"]


def test_popularity_reorders_and_keeps_the_retrievers_order_among_equals() -> None:
    rows = built(lists=lists(popularity=[3.0, 3.0, 9.0, 1.0, 3.0, 0.0]))  # c, a, b, e, d, f
    assert rows["popularity"]["ndcg_at_5"] == pytest.approx((THIRD + 1 / np.log2(6) + SECOND) / 4)


def test_a_ranker_is_scored_by_its_own_order() -> None:
    rows = built(rankings("pointwise", u1="bacdef", u2="fedcba", u4="bacdef"))
    assert rows["pointwise"]["ndcg_at_3"] == pytest.approx((1 + THIRD + SECOND) / 4)
    assert rows["pointwise"]["hr_at_3"] == 0.75


def test_interval_covers_the_difference_and_is_empty_for_the_backbones_own_order() -> None:
    rows = built(same_for_all("copy", "abcdef"), rankings("oracle_like", u1="bacdef", u2="dabcef", u4="abcdef"))
    assert (rows["copy"]["difference_low"], rows["copy"]["difference_high"]) == (0, 0)
    assert (rows["backbone"]["difference_low"], rows["backbone"]["difference_high"]) == (0, 0)
    best = rows["oracle_like"]
    gain = best["ndcg_at_3"] - rows["backbone"]["ndcg_at_3"]
    assert 0 <= best["difference_low"] <= gain <= best["difference_high"]
    same = ("difference_low", "difference_high", "ndcg_at_3")
    assert [best[name] for name in same] == [rows["oracle"][name] for name in same]


def test_rows_stand_in_reading_order_and_survive_sorting() -> None:
    names = ("zebra", "hybrid", "pointwise", "untuned_hybrid", "ant", "hybrid_paper")
    rows = list(built(*(same_for_all(name, "abcdef") for name in names)))
    assert rows[5:] == ["untuned_hybrid", "pointwise", "hybrid_paper", "hybrid", "ant", "zebra"]
    made = build_results(events(), lists(), same_for_all("hybrid", "abcdef"), samples=100, seed=0)
    assert ordered(made.sort_by("row"))["row"].to_pylist() == made["row"].to_pylist()


def test_results_do_not_depend_on_row_order() -> None:
    ranked = rankings("pointwise", u1="bacdef", u2="fedcba", u4="bacdef")
    once = build_results(events(), lists(), ranked, samples=300, seed=0)
    shuffled = ranked.take([2, 0, 1]), lists().take([3, 1, 4, 0, 2]), events().take([2, 3, 0, 1])
    assert build_results(shuffled[2], shuffled[1], shuffled[0], samples=300, seed=0).equals(once)


def test_lists_of_different_length_are_scored_alike() -> None:
    short = [candidate_list("u1", "test", "b", ["b", "a"]), candidate_list("u2", "test", "d", ITEMS)]
    ranked = rankings("listwise", u1="ab", u2="dabcef")
    rows = built(ranked, events=events(u1="b", u2="d"), lists=candidates(*short))
    assert rows["listwise"]["ndcg_at_3"] == pytest.approx((SECOND + 1) / 2)
    assert rows["random"]["hr_at_3"] == pytest.approx((1 + 3 / 6) / 2)


@pytest.mark.parametrize("order", ["bacde", "bacdee", "bacdex", "bacdefx"])
def test_a_ranking_that_is_no_permutation_is_refused(order: str) -> None:
    with pytest.raises(DataError, match=r"user 'u2', list 'test/u2/d': row 'pairwise' .* not a permutation"):
        built(rankings("pairwise", u1="bacdef", u2=order, u4="abcdef"))


def test_two_rankings_with_their_items_exchanged_are_refused() -> None:
    other = candidate_list("u2", "test", "d", ["d", "p", "q", "r", "s", "t"])
    both = candidates(candidate_list("u1", "test", "b", ITEMS), other)
    with pytest.raises(DataError, match=r"user 'u1'.*permutation.*and 1 other"):
        built(rankings("pairwise", u1="dpqrst", u2="bacdef"), events=events(u1="b", u2="d"), lists=both)


def test_a_ranker_that_leaves_out_a_hit_is_refused() -> None:
    with pytest.raises(DataError, match=r"user 'u4'.*row 'pairwise'.*leaves out"):
        built(rankings("pairwise", u1="bacdef", u2="abcdef"))


def test_a_list_ranked_twice_is_refused() -> None:
    twice = pa.concat_tables([same_for_all("hybrid", "abcdef"), rankings("hybrid", u1="bacdef")])
    with pytest.raises(DataError, match=r"'hybrid' .* ranks list 'test/u1/b' 2 times"):
        built(twice)


def test_a_ranker_must_not_take_a_baselines_name() -> None:
    with pytest.raises(DataError, match=r"baseline rows \['oracle'\]"):
        built(same_for_all("oracle", "abcdef"))


def test_rankings_of_lists_without_a_hit_change_nothing() -> None:
    ranked = same_for_all("hybrid", "bacdef")
    assert built(pa.concat_tables([ranked, rankings("hybrid", u3="fedcba")])) == built(ranked)


def test_a_list_for_another_target_than_the_test_event_is_refused() -> None:
    with pytest.raises(DataError, match=r"user 'u2'.*target is not the user's interaction"):
        built(events=events(**(TARGETS | {"u2": "e"})))


def test_a_hit_flag_that_lies_is_refused() -> None:
    with pytest.raises(DataError, match=r"user 'u3'.*'hit' contradicts"):
        built(lists=lists(hit=True))


def test_a_list_for_a_user_without_test_event_is_refused() -> None:
    with pytest.raises(DataError, match=r"user 'u3'.*no interaction of split 'test'"):
        built(events=events(u1="b", u2="d", u4="a"))


def test_two_lists_for_one_user_are_refused() -> None:
    with pytest.raises(DataError, match=r"one per user .* 'u1' has 2"):
        built(lists=candidates(candidate_list("u1", "test", "b", ITEMS), candidate_list("u1", "test", "c", ITEMS)))


def test_no_test_user_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no row of split 'test'"):
        built(events=events().slice(0, 0), lists=lists().slice(0, 0))


def test_a_test_user_without_list_is_a_miss_and_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = built(events=events(**TARGETS, u5="a"))
    assert rows["backbone"]["hr_at_3"] == 2 / 5
    assert "1 of 5 test users have no candidate list" in caplog.text


def test_without_any_hit_all_is_zero() -> None:
    missed = candidates(*[candidate_list(user, "test", target, ["p", "q"]) for user, target in TARGETS.items()])
    made = build_results(events(), missed, NONE, samples=100, seed=0)
    assert [row["ndcg_at_3"] for row in made.to_pylist()] == [0] * 5
    assert [row["hr_at_3"] for row in among_hits(made).to_pylist()] == [0] * 5
    assert "+0.0000 [0.0000, 0.0000]" in printed(made)


def test_among_hits_divides_by_users_with_a_hit() -> None:
    made = build_results(events(), lists(), same_for_all("hybrid", "bacdef"), samples=100, seed=0)
    row = {row["row"]: row for row in among_hits(made).to_pylist()}
    assert row["backbone"]["hr_at_3"] == pytest.approx(2 / 3)
    assert row["oracle"]["ndcg_at_3"] == pytest.approx(1.0)
    assert row["oracle"]["users"] == 3
    assert row["random"]["hr_at_5"] == pytest.approx(5 / 6)


def test_json_holds_the_rows_and_nothing_else() -> None:
    made = build_results(events(), lists(), same_for_all("hybrid", "abcdef"), samples=100, seed=0)
    out = results_json(made.sort_by("row"))
    assert list(out) == ["rows"]
    assert [row["row"] for row in out["rows"]] == [
        "backbone",
        "random",
        "oracle",
        "popularity",
        "conventional",
        "hybrid",
    ]
    names = ["row", "hr_at_3", "ndcg_at_3", "hr_at_5", "ndcg_at_5", "difference_low", "difference_high"]
    assert list(out["rows"][0]) == [*names, "users", "users_with_hit"]
    assert out["rows"][0]["hr_at_3"] == 0.5


def test_metrics_for_the_record_name_each_row_and_the_one_served() -> None:
    made = build_results(events(), lists(), same_for_all("hybrid", "bacdef"), samples=100, seed=0)
    metrics = metrics_of(made, served="hybrid")
    assert metrics["eval/hybrid/ndcg_at_3"] == metrics["eval/ndcg_at_3"] == pytest.approx((1 + SECOND) / 4)
    assert metrics["eval/backbone/hr_at_5"] == 0.75
    assert (metrics["eval/users"], metrics["eval/users_with_hit"]) == (4, 3)


def test_difference_is_in_percent_of_its_baseline_or_absolute_where_that_is_zero() -> None:
    row = {"row": "hybrid", "ndcg_at_3": 0.05, "difference_low": -0.002, "difference_high": 0.018}
    row |= {"bar_low": -0.01, "bar_high": 0.02}
    rows = [{"row": "backbone", "ndcg_at_3": 0.04}, {"row": "conventional", "ndcg_at_3": 0.05}, row]
    assert backbone_text(row, rows) == "+25.0 % [-5.0, 45.0]"
    assert bar_text(row, rows) == "+0.0 % [-20.0, 40.0]"
    assert backbone_text(rows[0], rows) == bar_text(rows[1], rows) == "-"
    rows[0]["ndcg_at_3"] = 0.0
    assert backbone_text(row, rows) == "+0.0500 [-0.0020, 0.0180]"


def test_the_bar_is_the_conventional_order_and_its_interval_is_paired() -> None:
    made = compared(same_for_all("copy", "abcdef"), rankings("better", u1="bacdef", u2="dabcef", u4="abcdef"))
    bounds = bar_bounds(made, samples=200, seed=0)
    assert bounds["conventional"] == bounds["copy"] == [0, 0]  # reranker_scores keep the retriever's order here
    assert 0 <= bounds["better"][0] < bounds["better"][1]


def test_conventional_rerankers_among_the_signals_become_rows_and_other_signals_do_not() -> None:
    both = pa.concat_tables([signals("trees_text", [0, 9, 0, 8, 0, 0.5]), signals("item_knn", [0.0] * 6)])
    rows = built(signals=both)
    assert list(rows) == ["backbone", "random", "oracle", "popularity", "trees_text", "conventional"]
    assert rows["trees_text"]["ndcg_at_3"] == pytest.approx((1 + SECOND) / 4)  # b, d, then f


@pytest.mark.parametrize("scores", [[1.0] * 5, [1.0] * 5 + [float("nan")]])
def test_a_signal_without_one_finite_score_per_candidate_is_refused(scores: list[float]) -> None:
    with pytest.raises(DataError, match=r"signal 'trees' of table 'signals' is not one finite score per candidate"):
        built(signals=signals("trees", scores))


def test_a_signal_that_leaves_out_a_list_is_refused() -> None:
    with pytest.raises(DataError, match=r"'test/u4/a': signal 'trees' of table 'signals' leaves out this list"):
        built(signals=signals("trees", [1.0] * 6).slice(0, 3))


def test_user_results_hold_every_row_for_users_with_a_hit_and_add_up_to_the_table() -> None:
    made = compared(rankings("hybrid", u1="bacdef", u2="fedcba", u4="bacdef"))
    of_users = USER_RESULTS.conform(build_user_results(made), where="test").to_pandas()
    assert sorted(of_users["user_id"].unique()) == list(HITS)
    sums = of_users.groupby("row")["ndcg_at_5"].sum() / len(TARGETS)
    rows = built(rankings("hybrid", u1="bacdef", u2="fedcba", u4="bacdef"))
    assert sums.to_dict() == pytest.approx({row: one["ndcg_at_5"] for row, one in rows.items()}, abs=1e-6)


def test_mean_reciprocal_rank_and_hit_rates_worked_by_hand() -> None:
    made = compared()  # the backbone has the targets in places 2, 4, 1 and nowhere
    assert mean_reciprocal_ranks(made)["backbone"] == pytest.approx((1 / 2 + 1 / 4 + 1) / 4)
    assert mean_reciprocal_ranks(made)["random"] == pytest.approx(
        3 / 4 * (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5 + 1 / 6) / 6
    )
    curves = hit_rate_curves(made, max_k=6)
    assert curves["backbone"].tolist() == [0.25, 0.5, 0.5, 0.75, 0.75, 0.75]
    assert curves["random"] == pytest.approx(0.75 * np.arange(1, 7) / 6)
    assert curves["oracle"].tolist() == [0.75] * 6


def test_table_for_people_holds_every_row_and_both_denominators() -> None:
    made = build_results(events(), lists(), same_for_all("hybrid", "bacdef"), samples=100, seed=0)
    text = printed(made)
    assert "4 users, 3 with their target among the candidates" in text
    assert all(name in text for name in ("backbone", "random", "oracle", "popularity", "conventional", "hybrid"))
    assert f"{(SECOND + 1) / 4:.4f}" in text


def printed(table: pa.Table) -> str:
    out = io.StringIO()
    bounds = {row: [0.0, 0.0] for row in table["row"].to_pylist()}
    Console(file=out, width=124).print(format_table(with_bar(table, bounds), title="test"))
    return out.getvalue()
