"""The rolled-back fold stands earlier in time and never holds a target."""

import numpy as np
import pyarrow as pa
import pytest

from recranker.backbones.events import index_interactions
from recranker.backbones.folds import data_of, make_folds, roll_back
from recranker.backbones.settings import BackboneSettings
from tests.backbones.made_up import many_interactions
from tests.tables import interactions


def user_with(*feedback: str) -> pa.Table:
    events = [("u", f"i{place}", place, kind, "train") for place, kind in enumerate(feedback)]
    held_out = [("u", "v", len(events), "like", "validation"), ("u", "t", len(events) + 1, "like", "test")]
    return interactions(*events, *held_out)


def sequences(table: pa.Table, share: float, most: int) -> tuple[list[int], list[int]]:
    indexed = index_interactions(table)
    fold = roll_back(indexed, share, most)
    return indexed.sequences[fold.rows].tolist(), indexed.sequences[fold.targets].tolist()


def test_latest_share_is_held_back_with_all_that_followed() -> None:
    table = user_with("like", "like", "dislike", "like", "like", "neutral", "dislike", "like", "neutral")
    kept, targets = sequences(table, 0.4, 10)  # 40 % of five likes: two
    assert targets == [4, 7]
    assert kept == [0, 1, 2, 3]  # the neutral and disliked items after the fourth like are gone as well


@pytest.mark.parametrize(("likes", "share", "most", "targets"), [(4, 0.5, 10, 0), (5, 0.01, 10, 1), (20, 0.5, 3, 3)])
def test_number_of_targets(likes: int, share: float, most: int, targets: int) -> None:
    assert len(sequences(user_with(*["like"] * likes), share, most)[1]) == targets


def test_full_fold_is_all_training_events_and_nothing_else() -> None:
    indexed = index_interactions(many_interactions())
    full, _ = make_folds(indexed, BackboneSettings())
    assert set(indexed.splits[full.rows]) == {"train"}
    assert len(full.rows) == (indexed.splits == "train").sum()


def test_no_rolled_back_fit_holds_a_target_or_anything_later() -> None:
    indexed = index_interactions(many_interactions(seed=3))
    _, fold = make_folds(indexed, BackboneSettings(rolled_back_share=0.4))
    data = data_of(indexed, fold)
    seen = set(zip(data.like_users, data.like_items, strict=True)) | set(
        zip(data.rated_users, data.rated_items, strict=True)
    )
    targets = set(zip(indexed.users[fold.targets], indexed.items[fold.targets], strict=True))
    assert targets
    assert not targets & seen
    for user in np.unique(indexed.users[fold.targets]):
        first = indexed.sequences[fold.targets][indexed.users[fold.targets] == user].min()
        assert (indexed.sequences[fold.rows][indexed.users[fold.rows] == user] < first).all()


def test_validation_reaches_the_full_fold_only_as_a_target() -> None:
    indexed = index_interactions(many_interactions())
    full, rolled_back = (data_of(indexed, fold) for fold in make_folds(indexed, BackboneSettings()))
    held_out = set(zip(full.validation_users, full.validation_items, strict=True))
    assert len(held_out) == 12
    assert not held_out & set(zip(full.like_users, full.like_items, strict=True))
    assert not held_out & set(zip(full.rated_users, full.rated_items, strict=True))
    assert len(rolled_back.validation_users) == 0


def test_order_of_rows_changes_nothing() -> None:
    table = many_interactions()
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    one, other = (index_interactions(rows) for rows in (table, shuffled))
    for fold, same in zip(make_folds(one, BackboneSettings()), make_folds(other, BackboneSettings()), strict=True):
        for value, twin in zip(vars(data_of(one, fold)).values(), vars(data_of(other, same)).values(), strict=True):
            np.testing.assert_array_equal(value, twin)
