"""Candidate lists against a slow, plain reading of the rules."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recranker.backbones.candidates import (
    FoldFits,
    Scale,
    candidate_lists,
    count_lists,
    fit_events,
    fold_fits,
    popularity_hits,
    user_factors,
)
from recranker.backbones.events import Interactions, index_interactions
from recranker.backbones.fit import Fit
from recranker.backbones.folds import make_folds
from recranker.backbones.settings import BackboneSettings
from recranker.data.leakage import check_candidates
from recranker.errors import LeakageError
from tests.backbones.made_up import many_interactions

SCALE = Scale(1.0, 5.0, 4.0)
FACTS = {"rating_min": 1.0, "rating_max": 5.0, "like_at_least": 4.0}


def random_fit(indexed: Interactions, seed: int) -> Fit:
    random = np.random.default_rng(seed)
    shapes = (indexed.num_users, 3), (indexed.num_items, 3)
    return Fit(*(random.integers(-1, 2, shape).astype(np.float32) for shape in shapes))  # whole numbers: many ties


def both_folds(indexed: Interactions, settings: BackboneSettings) -> tuple[FoldFits, FoldFits]:
    names = ("retriever/full", "retriever/rolled_back", "rating_predictor/full", "rating_predictor/rolled_back")
    fits = {name: random_fit(indexed, seed) for seed, name in enumerate(names)}
    full, rolled_back = (fold_fits(indexed, fold, fits, SCALE) for fold in make_folds(indexed, settings))
    return full, rolled_back


def expected_list(
    rows: list[dict[str, Any]], lists: dict[str, Any], fits: FoldFits, indexed: Interactions
) -> list[str]:
    """The candidates of one list, by loops over rows."""
    settings_of = {one: index for index, one in enumerate(indexed.item_ids.to_pylist())}
    user = indexed.user_ids.to_pylist().index(lists["user_id"])
    mine = [row for row in rows if row["user_id"] == lists["user_id"]]
    masked = {row["item_id"] for row in mine if row["split"] == "train" and row["feedback"] == "like"}
    if lists["split"] == "test" and lists["validation_in_history"]:
        masked |= {row["item_id"] for row in mine if row["split"] == "validation"}
    if lists["split"] == "train":  # shown as wrong answers, held-out likes would be false ones
        masked |= {row["item_id"] for row in mine if row["split"] in ("validation", "test")}
    masked -= {lists["target_id"]}
    liked = {indexed.item_ids[int(item)].as_py() for item in fits.data.like_items}
    scores = fits.retriever.user_factors[user] @ fits.retriever.item_factors.T
    possible = [item for item in settings_of if item in liked and item not in masked]
    return sorted(possible, key=lambda item: (-scores[settings_of[item]], settings_of[item]))[:5]


@pytest.mark.parametrize("validation_in_history", [True, False])
def test_lists_agree_with_the_rules_read_slowly(validation_in_history: bool) -> None:
    table = many_interactions(num_users=14, num_items=25, seed=1)
    rows = table.to_pylist()
    indexed = index_interactions(table)
    settings = BackboneSettings(num_candidates=5, validation_in_history=validation_in_history, rolled_back_share=0.3)
    full, rolled_back = both_folds(indexed, settings)
    found = candidate_lists(indexed, full, rolled_back, settings, SCALE).to_pylist()
    assert {one["split"] for one in found} == {"train", "validation", "test"}
    for one in found:
        fits = rolled_back if one["split"] == "train" else full
        asked = {**one, "validation_in_history": validation_in_history}
        assert one["candidate_ids"] == expected_list(rows, asked, fits, indexed), one["list_id"]
        assert one["hit"] == (one["target_id"] in one["candidate_ids"])
        assert one["fold"] == fits.fold.name
        assert one["list_id"] == f"{one['split']}/{one['user_id']}/{one['target_id']}"
        likes = [
            int((fits.data.like_items == indexed.item_ids.index(item).as_py()).sum()) for item in one["candidate_ids"]
        ]
        assert one["popularity"] == likes
        assert all(likes)
        assert all(1.0 <= rating <= 5.0 for rating in one["predicted_ratings"])


@pytest.mark.parametrize(("validation_in_history", "end"), [(True, "test"), (False, "validation")])
def test_history_of_a_test_list_ends_where_the_setting_says(validation_in_history: bool, end: str) -> None:
    table = many_interactions()
    ends = {row["user_id"]: row["sequence"] for row in table.to_pylist() if row["split"] == end}
    indexed = index_interactions(table)
    settings = BackboneSettings(validation_in_history=validation_in_history)
    lists = candidate_lists(indexed, *both_folds(indexed, settings), settings, SCALE).to_pylist()
    assert {one["user_id"]: one["before"] for one in lists if one["split"] == "test"} == ends


def test_leakage_gate_passes_and_catches_a_planted_target() -> None:
    table = many_interactions()
    indexed = index_interactions(table)
    settings = BackboneSettings()
    folds = make_folds(indexed, settings)
    lists = candidate_lists(indexed, *both_folds(indexed, settings), settings, SCALE)
    seen = fit_events(indexed, folds)
    check_candidates(table, lists, seen, FACTS)
    target = lists.filter(pa.compute.equal(lists["split"], "train")).slice(0, 1)
    planted = {
        "fold": ["rolled_back"],
        "user_id": target["user_id"].to_pylist(),
        "item_id": target["target_id"].to_pylist(),
    }
    with pytest.raises(LeakageError):
        check_candidates(table, lists, pa.concat_tables([seen, pa.table(planted, schema=seen.schema)]), FACTS)


def test_implicit_feedback_gets_the_lowest_liked_rating_and_null_target_ratings() -> None:
    indexed = index_interactions(many_interactions(rated=False))
    settings = BackboneSettings()
    fits = {f"retriever/{fold}": random_fit(indexed, 0) for fold in ("full", "rolled_back")}
    full, rolled_back = (fold_fits(indexed, fold, fits, SCALE) for fold in make_folds(indexed, settings))
    lists = candidate_lists(indexed, full, rolled_back, settings, SCALE)
    assert set(np.concatenate(lists["predicted_ratings"].to_pylist())) == {4.0}
    assert lists["target_rating"].null_count == len(lists)


def test_counts_and_popularity() -> None:
    indexed = index_interactions(many_interactions())
    settings = BackboneSettings(num_candidates=26)
    full, rolled_back = both_folds(indexed, settings)
    lists = candidate_lists(indexed, full, rolled_back, settings, SCALE)
    counts = count_lists(lists)
    rows = lists.to_pylist()
    assert counts["test_lists"] == 12
    assert counts["train_hits"] == sum(one["hit"] for one in rows if one["split"] == "train")
    # every item that is left stands in so long a list, in whatever order
    assert popularity_hits(indexed, full, settings, SCALE) == counts["test_hits"]


def test_user_factors_keep_ids_beside_rows() -> None:
    indexed = index_interactions(many_interactions())
    fit = random_fit(indexed, 0)
    for row, user in zip(user_factors(indexed, fit).to_pylist(), range(indexed.num_users), strict=True):
        assert row["user_id"] == indexed.user_ids[user].as_py()
        assert row["factors"] == fit.user_factors[user].tolist()
