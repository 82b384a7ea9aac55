"""Keyed negatives."""

import numpy as np

from recranker.backbones.examples import LikeExamples
from tests.backbones.made_up import fold_of, two_tastes


def test_negatives_do_not_depend_on_how_events_are_sliced() -> None:
    examples = LikeExamples(two_tastes(), (0, "x"))
    events = np.random.default_rng(0).permutation(len(examples))
    whole = examples.negatives(3, events)
    parts = [examples.negatives(3, events[start::3]) for start in range(3)]
    for start, part in enumerate(parts):
        np.testing.assert_array_equal(whole[start::3], part)


def test_negatives_change_with_the_epoch_and_the_key() -> None:
    fold = two_tastes()
    events = np.arange(100)
    first = LikeExamples(fold, (0,)).negatives(1, events)
    assert (first != LikeExamples(fold, (0,)).negatives(2, events)).mean() > 0.5
    assert (first != LikeExamples(fold, (1,)).negatives(1, events)).mean() > 0.5


def test_negatives_are_no_known_likes_and_liked_by_somebody() -> None:
    fold = fold_of([(0, 0), (0, 1), (1, 2), (1, 4)], num_users=2, num_items=6)
    examples = LikeExamples(fold, (0,))
    drawn = np.concatenate([examples.negatives(epoch, np.arange(4)).reshape(2, 2) for epoch in range(50)], axis=1)
    assert set(drawn[0]) == {2, 4}
    assert set(drawn[1]) == {0, 1}


def test_a_user_who_likes_everything_still_gets_a_negative() -> None:
    examples = LikeExamples(fold_of([(0, 0), (0, 1)], num_users=1, num_items=2), (0,))
    assert set(examples.negatives(1, np.arange(2))) <= {0, 1}
