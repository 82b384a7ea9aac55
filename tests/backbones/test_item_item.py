"""EASE and item neighbourhoods against the textbook, scikit-learn and hand-worked values."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from recranker.backbones import item_item
from recranker.backbones.folds import FoldData
from recranker.backbones.item_item import fit_ease, fit_item_knn, like_factors, like_matrix, profiles_of
from recranker.backbones.settings import EASESettings, ItemKNNSettings
from recranker.errors import SettingsError
from tests.backbones.made_up import asked_with, fold_of, histories_of, random_pairs

KEY = (0, "item_item")


def random_fold(num_users: int = 30, num_items: int = 12) -> FoldData:
    return fold_of(random_pairs(num_users, num_items - 1, 150), num_users=num_users, num_items=num_items)


def test_ease_of_two_items_by_hand() -> None:
    # users like {0, 1}, {0, 1}, {0}: Gram matrix [[3, 2], [2, 2]], plus 1 on the diagonal [[4, 2], [2, 3]];
    # its inverse is [[3, -2], [-2, 4]] / 8, so the weight from 0 to 1 is 2 / 4 and from 1 to 0 it is 2 / 3
    fold = fold_of([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)], num_users=3, num_items=2)
    fit = fit_ease(fold, EASESettings(l2=1.0), KEY)
    np.testing.assert_allclose(fit.weights, [[0, 1 / 2], [2 / 3, 0]], rtol=1e-5)


def test_ease_agrees_with_the_textbook() -> None:
    fold = random_fold()
    likes = like_matrix(fold).toarray().astype(np.float64)
    inverse = np.linalg.inv(likes.T @ likes + 7.0 * np.eye(12))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0.0)
    fit = fit_ease(fold, EASESettings(l2=7.0, decay=1.0), KEY)
    np.testing.assert_allclose(fit.weights, expected, atol=1e-5)
    assert not np.diag(fit.weights).any()
    histories = [[1, 4], [0, 2, 3]]
    profiles = np.zeros((2, 12))
    profiles[0, [1, 4]] = profiles[1, [0, 2, 3]] = 1.0
    np.testing.assert_allclose(fit.scores(asked_with(*histories)), profiles @ expected, atol=1e-5)


def test_ease_says_what_to_do_about_too_many_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_item, "MAX_DENSE_ITEMS", 5)
    with pytest.raises(SettingsError, match=r"at most 5, found 11; use kind='item_knn'"):
        fit_ease(random_fold(), EASESettings(), KEY)


def test_profiles_weigh_newer_likes_more() -> None:
    found = profiles_of(histories_of([3, 0, 2], [], [1]), 4, 0.5).toarray()
    assert found.tolist() == [[0.5, 0.0, 1.0, 0.25], [0.0] * 4, [0.0, 1.0, 0.0, 0.0]]


def test_decay_moves_scores_to_what_follows_from_the_latest_like() -> None:
    # 0 and 1 go together, 2 and 3 go together
    fold = fold_of([(u, i) for u in range(4) for i in ((0, 1) if u < 2 else (2, 3))], num_users=4, num_items=4)
    fit = fit_ease(fold, EASESettings(l2=1.0, decay=0.5), KEY)
    older, newer = fit.scores(asked_with([0, 2]))[0, [1, 3]]
    assert older == pytest.approx(0.5 * newer)


def test_cosine_of_items_by_hand() -> None:
    # item 0 has users a, b, c; item 1 has a, b; item 2 has c: two common users of 0 and 1, one of 0 and 2, none of 1, 2
    fold = fold_of([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 2)], num_users=3, num_items=3)
    weights = fit_item_knn(fold, ItemKNNSettings(shrinkage=4.0), KEY).weights.toarray()
    near, far = 2 / (np.sqrt(6) + 4), 1 / (np.sqrt(3) + 4)
    np.testing.assert_allclose(weights, [[0, near, far], [near, 0, 0], [far, 0, 0]], rtol=1e-6)


def test_neighbours_agree_with_scikit_learn() -> None:
    fold = random_fold()
    expected = cosine_similarity(like_matrix(fold).T.toarray())
    np.fill_diagonal(expected, 0.0)
    found = fit_item_knn(fold, ItemKNNSettings(shrinkage=0.0), KEY).weights.toarray()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_each_item_keeps_its_nearest_neighbours() -> None:
    fold = random_fold()
    whole = fit_item_knn(fold, ItemKNNSettings(shrinkage=1.0), KEY).weights.toarray()
    few = fit_item_knn(fold, ItemKNNSettings(shrinkage=1.0, neighbours=3), KEY).weights.toarray()
    for scored in range(11):
        kept = np.flatnonzero(few[:, scored])
        nearest = sorted(range(12), key=lambda item, scored=scored: (-whole[item, scored], item))[:3]
        assert kept.tolist() == sorted(nearest)
        np.testing.assert_array_equal(few[kept, scored], whole[kept, scored])


def test_like_factors_are_the_best_approximation_of_their_width() -> None:
    fold = fold_of(random_pairs(20, 9, 90), num_users=20, num_items=9)
    likes = like_matrix(fold).toarray()
    users, items = like_factors(fold, KEY)
    strengths = np.linalg.svd(likes, compute_uv=False)
    assert users.shape == (20, 8)  # one less than there are items
    np.testing.assert_allclose(np.linalg.norm(likes - users @ items.T), strengths[-1], rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(users, axis=0), strengths[:8], rtol=1e-4)


def test_an_item_nobody_likes_scores_nothing() -> None:
    for fit in (fit_ease(random_fold(), EASESettings(), KEY), fit_item_knn(random_fold(), ItemKNNSettings(), KEY)):
        scores = fit.scores(asked_with([0, 1, 2], [11]))
        assert not scores[:, 11].any()
        assert not scores[1].any()
