"""Rolled-back folds stand earlier in time and never hold a target."""

import numpy as np
import pyarrow as pa
import pytest

from recranker.backbones.events import Interactions, index_interactions
from recranker.backbones.folds import Fold, data_of, make_folds, roll_back
from recranker.backbones.settings import BackboneSettings
from tests.backbones.made_up import many_interactions
from tests.tables import interactions

several_rolls = pytest.mark.parametrize("rolls", [1, 2, 3, 5])


def user_with(*feedback: str) -> pa.Table:
    events = [("u", f"i{place}", place, kind, "train") for place, kind in enumerate(feedback)]
    held_out = [("u", "v", len(events), "like", "validation"), ("u", "t", len(events) + 1, "like", "test")]
    return interactions(*events, *held_out)


def sequences(table: pa.Table, share: float, most: int, rolls: int = 1) -> list[tuple[list[int], list[int]]]:
    """Per fold what is seen and what is held back."""
    indexed = index_interactions(table)
    folds = roll_back(indexed, rolls, share, most)
    return [(indexed.sequences[fold.rows].tolist(), indexed.sequences[fold.targets].tolist()) for fold in folds]


def many_folds(rolls: int, seed: int = 3) -> tuple[Interactions, tuple[Fold, ...]]:
    indexed = index_interactions(many_interactions(num_users=16, num_items=40, seed=seed))
    return indexed, roll_back(indexed, rolls, 0.5, 10)


def test_latest_share_is_held_back_with_all_that_followed() -> None:
    table = user_with("like", "like", "dislike", "like", "like", "neutral", "dislike", "like", "neutral")
    [(kept, targets)] = sequences(table, 0.4, 10)  # 40 % of five likes: two
    assert targets == [4, 7]
    assert kept == [0, 1, 2, 3]  # the neutral and disliked items after the fourth like are gone as well


def test_two_rolls_deal_the_targets_in_stretches() -> None:
    table = user_with(*["like"] * 6, "neutral", "like", "dislike", "like")
    earlier, later = sequences(table, 0.5, 10, rolls=2)  # four of eight likes: 4 and 5, then 7 and 9
    assert earlier == ([0, 1, 2, 3], [4, 5])
    assert later == ([0, 1, 2, 3, 4, 5, 6], [7, 9])


def test_a_user_with_fewer_targets_than_folds_has_them_in_the_last_ones() -> None:
    folds = sequences(user_with(*["like"] * 6), 0.4, 10, rolls=3)  # 40 % of six likes: two
    assert folds == [([0, 1, 2, 3], []), ([0, 1, 2, 3], [4]), ([0, 1, 2, 3, 4], [5])]


@pytest.mark.parametrize(("likes", "share", "most", "targets"), [(4, 0.5, 10, 0), (5, 0.01, 10, 1), (20, 0.5, 3, 3)])
def test_number_of_targets(likes: int, share: float, most: int, targets: int) -> None:
    [(_, found)] = sequences(user_with(*["like"] * likes), share, most)
    assert len(found) == targets


def test_full_fold_is_all_training_events_and_nothing_else() -> None:
    indexed = index_interactions(many_interactions())
    full, _ = make_folds(indexed, BackboneSettings())
    assert set(indexed.splits[full.rows]) == {"train"}
    assert len(full.rows) == (indexed.splits == "train").sum()
    assert len(full.targets) == 0


def test_without_rolls_there_is_only_the_full_fold() -> None:
    folds = make_folds(index_interactions(many_interactions()), BackboneSettings(rolls=0))
    assert [fold.name for fold in folds] == ["full"]


def test_folds_are_named_from_the_earliest() -> None:
    indexed = index_interactions(many_interactions())
    names = [fold.name for fold in make_folds(indexed, BackboneSettings(rolls=3))]
    assert names == ["full", "rolled_back_1", "rolled_back_2", "rolled_back_3"]
    assert [fold.name for fold in make_folds(indexed, BackboneSettings(rolls=1))] == ["full", "rolled_back"]


@several_rolls
def test_targets_of_all_rolls_are_those_of_a_single_one(rolls: int) -> None:
    _, [single] = many_folds(1)
    _, folds = many_folds(rolls)
    together = np.concatenate([fold.targets for fold in folds])
    assert len(together) == len(set(together.tolist()))
    assert sorted(together.tolist()) == single.targets.tolist()


@several_rolls
def test_no_rolled_back_fit_holds_a_target_or_anything_later(rolls: int) -> None:
    indexed, folds = many_folds(rolls)
    assert len(folds[-1].targets)
    for fold in folds:
        data = data_of(indexed, fold)
        seen = set(zip(data.like_users, data.like_items, strict=True)) | set(
            zip(data.rated_users, data.rated_items, strict=True)
        )
        targets = set(zip(indexed.users[fold.targets], indexed.items[fold.targets], strict=True))
        assert not targets & seen
        assert set(indexed.splits[fold.rows]) == {"train"}
        for user in np.unique(indexed.users[fold.targets]):
            first = indexed.sequences[fold.targets][indexed.users[fold.targets] == user].min()
            assert (indexed.sequences[fold.rows][indexed.users[fold.rows] == user] < first).all()


@several_rolls
def test_later_folds_see_all_that_earlier_ones_saw_and_their_targets(rolls: int) -> None:
    indexed, folds = many_folds(rolls)
    full = indexed.rows("train")
    for earlier, later in zip(folds, (*folds[1:], Fold("full", full, np.empty(0, np.int64))), strict=True):
        assert set(earlier.rows.tolist()) | set(earlier.targets.tolist()) <= set(later.rows.tolist())


def test_validation_reaches_the_full_fold_only_as_a_target() -> None:
    indexed = index_interactions(many_interactions())
    full, *earlier = (data_of(indexed, fold) for fold in make_folds(indexed, BackboneSettings(rolls=2)))
    held_out = set(zip(full.validation_users, full.validation_items, strict=True))
    assert len(held_out) == 12
    assert not held_out & set(zip(full.like_users, full.like_items, strict=True))
    assert not held_out & set(zip(full.rated_users, full.rated_items, strict=True))
    assert [len(fold.validation_users) for fold in earlier] == [0, 0]


def test_order_of_rows_changes_nothing() -> None:
    table = many_interactions()
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    one, other = (index_interactions(rows) for rows in (table, shuffled))
    settings = BackboneSettings(rolls=2)
    for fold, same in zip(make_folds(one, settings), make_folds(other, settings), strict=True):
        for value, twin in zip(vars(data_of(one, fold)).values(), vars(data_of(other, same)).values(), strict=True):
            np.testing.assert_array_equal(value, twin)
