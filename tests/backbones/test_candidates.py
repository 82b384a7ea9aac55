"""Candidate lists against a slow, plain reading of the rules."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recranker.backbones.assembly import fold_fits, lists_of
from recranker.backbones.candidates import (
    FoldFits,
    Lists,
    Scale,
    count_lists,
    fit_events,
    popularity_hits,
    queries_before,
    user_factors,
)
from recranker.backbones.events import Interactions, index_interactions
from recranker.backbones.fit import FactorFit, Queries
from recranker.backbones.folds import data_of, make_folds
from recranker.backbones.settings import BackboneSettings, EASESettings, ItemKNNSettings, PopularitySettings
from recranker.backbones.signals import signal_rows
from recranker.data.leakage import check_candidates
from recranker.errors import LeakageError
from recranker.schema import CANDIDATES, SIGNALS
from tests.backbones.made_up import histories_of, many_interactions
from tests.tables import interactions

SCALE = Scale(1.0, 5.0, 4.0)
FACTS = {"rating_min": 1.0, "rating_max": 5.0, "like_at_least": 4.0}


def settings_of(**changes: Any) -> BackboneSettings:
    return BackboneSettings(signals=(EASESettings(l2=3.0), PopularitySettings()), **changes)


def random_fit(indexed: Interactions, seed: int) -> FactorFit:
    random = np.random.default_rng(seed)
    shapes = (indexed.num_users, 3), (indexed.num_items, 3)
    return FactorFit(*(random.integers(-1, 2, shape).astype(np.float32) for shape in shapes))  # whole: many ties


def random_folds(indexed: Interactions, settings: BackboneSettings, *, rated: bool = True) -> tuple[FoldFits, ...]:
    """Every fold with trained fits that are drawn."""
    folds = make_folds(indexed, settings)
    names = [f"retriever/{fold.name}" for fold in folds]
    names += [f"rating_predictor/{fold.name}" for fold in folds] if rated else []
    fits = {name: random_fit(indexed, seed) for seed, name in enumerate(names)}
    return fold_fits([(fold, data_of(indexed, fold)) for fold in folds], fits, settings, SCALE, seed=0)


def lists_with(indexed: Interactions, settings: BackboneSettings) -> tuple[Lists, dict[str, FoldFits]]:
    folds = random_folds(indexed, settings)
    lists, counts = lists_of(indexed, folds, settings, SCALE)
    assert counts == {}  # nothing of our own is left out
    return lists, {one.fold.name: one for one in folds}


def expected_list(
    rows: list[dict[str, Any]], asked: dict[str, Any], fits: FoldFits, indexed: Interactions
) -> list[str]:
    """The candidates of one list, by loops over rows."""
    index_of = {one: index for index, one in enumerate(indexed.item_ids.to_pylist())}
    user = indexed.user_ids.to_pylist().index(asked["user_id"])
    mine = [row for row in rows if row["user_id"] == asked["user_id"]]
    masked = {row["item_id"] for row in mine if row["split"] == "train" and row["feedback"] == "like"}
    if asked["split"] == "test" and asked["validation_in_history"]:
        masked |= {row["item_id"] for row in mine if row["split"] == "validation"}
    if asked["split"] == "train":  # shown as wrong answers, held-out likes would be false ones
        masked |= {row["item_id"] for row in mine if row["split"] in ("validation", "test")}
    masked -= {asked["target_id"]}
    liked = {indexed.item_ids[int(item)].as_py() for item in fits.data.like_items}
    scores = fits.retriever.user_factors[user] @ fits.retriever.item_factors.T
    possible = [item for item in index_of if item in liked and item not in masked]
    return sorted(possible, key=lambda item: (-scores[index_of[item]], index_of[item]))[:5]


def expected_history(rows: list[dict[str, Any]], asked: dict[str, Any]) -> list[str]:
    """What the user had liked by then, by loops over rows; test targets are never known."""
    mine = sorted((row for row in rows if row["user_id"] == asked["user_id"]), key=lambda row: row["sequence"])
    return [
        row["item_id"]
        for row in mine
        if row["sequence"] < asked["before"] and row["feedback"] == "like" and row["split"] in ("train", "validation")
    ]


@pytest.mark.parametrize("rolls", [1, 2])
@pytest.mark.parametrize("validation_in_history", [True, False])
def test_lists_agree_with_the_rules_read_slowly(validation_in_history: bool, rolls: int) -> None:
    table = many_interactions(num_users=14, num_items=25, seed=1)
    rows = table.to_pylist()
    indexed = index_interactions(table)
    settings = settings_of(
        num_candidates=5, validation_in_history=validation_in_history, rolled_back_share=0.4, rolls=rolls
    )
    lists, by_name = lists_with(indexed, settings)
    found = lists.table.to_pylist()
    assert {one["fold"] for one in found} == set(by_name)
    for one in found:
        fits = by_name[one["fold"]]
        asked = {**one, "validation_in_history": validation_in_history}
        assert one["candidate_ids"] == expected_list(rows, asked, fits, indexed), one["list_id"]
        assert one["hit"] == (one["target_id"] in one["candidate_ids"])
        assert (one["fold"] == "full") == (one["split"] != "train")
        assert one["list_id"] == f"{one['split']}/{one['user_id']}/{one['target_id']}"
        likes = [
            int((fits.data.like_items == indexed.item_ids.index(item).as_py()).sum()) for item in one["candidate_ids"]
        ]
        assert one["popularity"] == likes
        assert all(likes)
        assert all(1.0 <= rating <= 5.0 for rating in one["predicted_ratings"])


@pytest.mark.parametrize("rolls", [1, 2, 3])
def test_every_rolled_back_target_has_one_list_by_its_own_fold(rolls: int) -> None:
    indexed = index_interactions(many_interactions())
    lists, by_name = lists_with(indexed, settings_of(rolls=rolls, rolled_back_share=0.5))
    train = lists.table.filter(pc.equal(lists.table["split"], "train"))
    found = list(zip(*(train[name].to_pylist() for name in ("fold", "user_id", "target_id")), strict=True))
    expected = [
        (name, indexed.user_ids[int(indexed.users[row])].as_py(), indexed.item_ids[int(indexed.items[row])].as_py())
        for name, fits in by_name.items()
        for row in fits.fold.targets
    ]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(("validation_in_history", "end"), [(True, "test"), (False, "validation")])
def test_history_of_a_test_list_ends_where_the_setting_says(validation_in_history: bool, end: str) -> None:
    table = many_interactions()
    ends = {row["user_id"]: row["sequence"] for row in table.to_pylist() if row["split"] == end}
    settings = settings_of(validation_in_history=validation_in_history)
    lists = lists_with(index_interactions(table), settings)[0].table.to_pylist()
    assert {one["user_id"]: one["before"] for one in lists if one["split"] == "test"} == ends


def test_histories_by_hand() -> None:
    table = interactions(
        ("a", "x", 0, "like", "train"),
        ("a", "y", 1, "dislike", "train"),
        ("a", "z", 2, "like", "train"),
        ("a", "v", 3, "like", "validation"),
        ("a", "w", 4, "like", "unused"),
        ("a", "t", 5, "like", "test"),
        ("b", "z", 0, "like", "train"),
    )
    indexed = index_interactions(table)
    before = np.array([0, 1, 3, 4, 9, 9], dtype=np.int32)
    queries = queries_before(indexed, np.array([0, 0, 0, 0, 0, 1]), before)
    found = [
        [indexed.item_ids[int(item)].as_py() for item in queries.histories.rows(row, row + 1).items] for row in range(6)
    ]
    assert found == [[], ["x"], ["x", "z"], ["x", "z", "v"], ["x", "z", "v"], ["z"]]


@pytest.mark.parametrize("rolls", [1, 2])
@pytest.mark.parametrize("validation_in_history", [True, False])
def test_each_signal_is_its_folds_score_of_that_candidate_given_the_history(
    validation_in_history: bool, rolls: int
) -> None:
    table = many_interactions(num_users=14, num_items=25, seed=1)
    rows, indexed = table.to_pylist(), index_interactions(table)
    settings = settings_of(num_candidates=6, validation_in_history=validation_in_history, rolls=rolls)
    lists, by_name = lists_with(indexed, settings)
    signals = signal_rows(lists.table, lists.signals)
    SIGNALS.conform(signals, where="signals")
    scores_of = {(one["list_id"], one["signal"]): one["scores"] for one in signals.to_pylist()}
    ids = indexed.item_ids.to_pylist()
    asked_for = lists.table.to_pylist()
    assert len(scores_of) == 2 * len(asked_for)
    for one in asked_for:
        history = [ids.index(item) for item in expected_history(rows, one)]
        user = indexed.user_ids.to_pylist().index(one["user_id"])
        queries = Queries(np.array([user]), histories_of(history))
        candidates = [ids.index(item) for item in one["candidate_ids"]]
        for name, fit in by_name[one["fold"]].signals.items():
            expected = fit.scores(queries)[0, candidates]
            np.testing.assert_allclose(scores_of[one["list_id"], name], expected, rtol=1e-6)
        own = by_name[one["fold"]].retriever.scores(queries)[0, candidates]
        assert one["backbone_scores"] == own.tolist()


@pytest.mark.parametrize("rolls", [1, 2])
def test_leakage_gate_passes_and_catches_a_planted_target(rolls: int) -> None:
    table = many_interactions()
    indexed = index_interactions(table)
    settings = settings_of(rolls=rolls, rolled_back_share=0.5)
    lists, by_name = lists_with(indexed, settings)
    seen = fit_events(indexed, [one.fold for one in by_name.values()])
    whole = with_reranker(lists.table)
    check_candidates(table, whole, seen, FACTS)
    target = whole.filter(pc.equal(whole["split"], "train")).slice(0, 1)
    planted = {name: target[name].to_pylist() for name in ("fold", "user_id")} | {"item_id": target["target_id"]}
    with pytest.raises(LeakageError, match="in-sample"):
        check_candidates(table, whole, pa.concat_tables([seen, pa.table(planted, schema=seen.schema)]), FACTS)


def with_reranker(table: pa.Table) -> pa.Table:
    """CANDIDATES, the last column made up."""
    return CANDIDATES.conform(table.append_column("reranker_scores", table["backbone_scores"]), where="lists")


def test_order_of_the_interactions_changes_no_list() -> None:
    table = many_interactions()
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    settings = settings_of(retriever=ItemKNNSettings(), rolls=2)
    found = []
    for rows in (table, shuffled):
        indexed = index_interactions(rows)
        folds = [(fold, data_of(indexed, fold)) for fold in make_folds(indexed, settings)]
        lists, _ = lists_of(indexed, fold_fits(folds, {}, settings, SCALE, seed=0), settings, SCALE)
        found.append((lists.table, signal_rows(lists.table, lists.signals)))
    assert found[0][0].equals(found[1][0])
    assert found[0][1].equals(found[1][1])


def test_implicit_feedback_gets_the_lowest_liked_rating_and_null_target_ratings() -> None:
    indexed = index_interactions(many_interactions(rated=False))
    settings = settings_of()
    lists, _ = lists_of(indexed, random_folds(indexed, settings, rated=False), settings, SCALE)
    assert set(np.concatenate(lists.table["predicted_ratings"].to_pylist())) == {4.0}
    assert lists.table["target_rating"].null_count == len(lists.table)


def test_without_rolls_there_are_no_training_lists() -> None:
    lists, by_name = lists_with(index_interactions(many_interactions()), settings_of(rolls=0))
    assert set(by_name) == {"full"}
    assert set(lists.table["split"].to_pylist()) == {"validation", "test"}


def test_without_signals_there_are_no_signal_rows() -> None:
    indexed = index_interactions(many_interactions())
    settings = BackboneSettings(signals=())
    lists, _ = lists_of(indexed, random_folds(indexed, settings), settings, SCALE)
    assert signal_rows(lists.table, lists.signals).num_rows == 0


def test_counts_and_popularity() -> None:
    indexed = index_interactions(many_interactions())
    settings = settings_of(num_candidates=26)
    lists, by_name = lists_with(indexed, settings)
    counts = count_lists(lists.table)
    rows = lists.table.to_pylist()
    assert counts["test_lists"] == 12
    assert counts["train_hits"] == sum(one["hit"] for one in rows if one["split"] == "train")
    # every item that is left stands in so long a list, in whatever order
    assert popularity_hits(indexed, by_name["full"], settings) == counts["test_hits"]


def test_hits_of_popularity_are_those_of_its_own_lists() -> None:
    indexed = index_interactions(many_interactions(num_users=14))
    settings = settings_of(num_candidates=4)
    folds = random_folds(indexed, settings)
    popular = tuple(replace(one, retriever=one.signals["popularity"]) for one in folds)
    lists, _ = lists_of(indexed, popular, settings, SCALE)
    assert popularity_hits(indexed, folds[0], settings) == count_lists(lists.table)["test_hits"]


def test_user_factors_keep_ids_beside_rows() -> None:
    indexed = index_interactions(many_interactions())
    fit = random_fit(indexed, 0)
    for row, user in zip(user_factors(indexed, fit).to_pylist(), range(indexed.num_users), strict=True):
        assert row["user_id"] == indexed.user_ids[user].as_py()
        assert row["factors"] == fit.user_factors[user].tolist()
