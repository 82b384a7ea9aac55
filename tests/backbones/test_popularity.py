"""Popularity counts the likes of its own fold."""

from recranker.backbones.popularity import fit_popularity, like_counts
from tests.backbones.made_up import asked_with, fold_of


def test_popularity_is_the_likes_of_the_fold_for_every_user() -> None:
    ratings = [(0, 2, 1.0), (1, 2, 2.0)]  # rated, not liked
    fold = fold_of([(0, 1), (1, 1), (2, 0)], num_users=3, num_items=4, ratings=ratings, validation=[(0, 3)])
    assert like_counts(fold).tolist() == [1, 2, 0, 0]
    scores = fit_popularity(fold).scores(asked_with([1], [], [0, 1]))
    assert scores.tolist() == [[1.0, 2.0, 0.0, 0.0]] * 3
