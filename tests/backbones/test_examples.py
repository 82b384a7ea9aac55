"""What training loops are fed: keyed negatives, and stretches of histories."""

import numpy as np
import pytest

from recranker.backbones.examples import PADDING, Examples, LikeExamples, MixedExamples, SequenceExamples
from recranker.backbones.folds import FoldData
from tests.backbones.made_up import fold_of, two_tastes

KEY = (0, "x")


def negatives(fold: FoldData, key: tuple[str | int, ...], epoch: int) -> np.ndarray:
    examples = LikeExamples(fold, key)
    return examples.columns(epoch, np.arange(len(examples)))[2]


@pytest.mark.parametrize(
    "examples",
    [
        LikeExamples(two_tastes(), KEY),
        MixedExamples(two_tastes(), KEY, negatives=5, layers=2),
        SequenceExamples(two_tastes(), KEY, max_length=4, negatives=3),
    ],
    ids=lambda examples: type(examples).__name__,
)
def test_columns_do_not_depend_on_how_events_are_sliced(examples: Examples) -> None:
    events = np.random.default_rng(0).permutation(len(examples))
    whole = examples.columns(3, events)
    for start in range(3):
        for column, part in zip(whole, examples.columns(3, events[start::3]), strict=True):
            np.testing.assert_array_equal(column[start::3], part)


def test_negatives_change_with_the_epoch_and_the_key() -> None:
    fold = two_tastes()
    first = negatives(fold, (0,), 1)
    assert (first != negatives(fold, (0,), 2)).mean() > 0.5
    assert (first != negatives(fold, (1,), 1)).mean() > 0.5


def test_negatives_are_no_known_likes_and_liked_by_somebody() -> None:
    fold = fold_of([(0, 0), (0, 1), (1, 2), (1, 4)], num_users=2, num_items=6)
    drawn = np.concatenate([negatives(fold, (0,), epoch).reshape(2, 2) for epoch in range(50)], axis=1)
    assert set(drawn[0]) == {2, 4}
    assert set(drawn[1]) == {0, 1}


def test_a_user_who_likes_everything_still_gets_a_negative() -> None:
    assert set(negatives(fold_of([(0, 0), (0, 1)], num_users=1, num_items=2), (0,), 1)) <= {0, 1}


def test_several_negatives_of_one_like_differ_and_are_uniform() -> None:
    examples = MixedExamples(two_tastes(), KEY, negatives=30, layers=1)
    users, _, others, shares = examples.columns(1, np.arange(len(examples)))
    counts = np.bincount(others.reshape(-1), minlength=40)
    assert counts.min() > 0.7 * counts.mean()
    assert np.mean([len(set(row)) for row in others.tolist()]) > 15  # of the 30 items a user does not like
    assert ((shares > 0) & (shares < 1)).all()
    assert shares.shape == (len(users), 30, 2)  # the input and one layer
    assert np.histogram(shares, bins=10, range=(0, 1))[0] == pytest.approx(shares.size / 10, rel=0.1)
    for one, other in ((shares[..., 0], shares[..., 1]), (shares[:, 1:], shares[:, :-1]), (shares[1:], shares[:-1])):
        assert abs(np.corrcoef(one.reshape(-1), other.reshape(-1))[0, 1]) < 0.03  # of layers, negatives and likes


def test_every_like_but_the_first_is_predicted_once_from_those_before() -> None:
    fold = fold_of([(0, item) for item in (5, 3, 8, 1, 4)] + [(1, 7)] + [(2, 2), (2, 6)], num_users=4, num_items=9)
    examples = SequenceExamples(fold, KEY, max_length=3, negatives=None)
    inputs, targets = examples.columns(1, np.arange(len(examples)))
    gap = PADDING
    # users 1 and 3 have nothing to predict; user 0 is cut from the end, its last three targets first
    assert inputs.tolist() == [[3, 8, 1], [5, gap, gap], [2, gap, gap]]
    assert targets.tolist() == [[8, 1, 4], [3, gap, gap], [6, gap, gap]]
