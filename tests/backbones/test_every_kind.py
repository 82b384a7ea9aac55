"""What every kind of retriever promises, whatever is behind it."""

from typing import Any

import numpy as np
import pytest

from recranker.backbones.fits import fit_closed_form, validation_ndcg
from recranker.backbones.popularity import like_counts
from recranker.backbones.retrieval import retrieve
from recranker.backbones.settings import ClosedForm, OwnCandidates, PopularitySettings, Retriever, Trained
from tests.backbones.made_up import CLOSED_FORMS, EVERY_KIND, TRAINED, fit_on, queries_of, two_tastes

FOLD = two_tastes()
every_kind = pytest.mark.parametrize("settings", EVERY_KIND, ids=lambda settings: settings.kind)


@pytest.fixture(scope="module")
def fits() -> dict[str, Any]:
    return {settings.kind: fit_on(FOLD, settings) for settings in EVERY_KIND}


def test_every_kind_is_tried_here() -> None:
    kinds = {one.model_fields["kind"].default for one in Retriever.__origin__.__args__}
    assert {one.kind for one in EVERY_KIND} == kinds - {OwnCandidates.model_fields["kind"].default}


@every_kind
def test_scores_are_a_number_for_every_item(settings: Trained | ClosedForm, fits: dict[str, Any]) -> None:
    scores = fits[settings.kind].scores(queries_of(FOLD))
    assert scores.shape == (40, 40)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()


@every_kind
def test_the_same_seed_gives_the_same_fit_and_another_one_does_not(
    settings: Trained | ClosedForm, fits: dict[str, Any]
) -> None:
    short = settings if settings in CLOSED_FORMS else settings.model_copy(update={"epochs": 2})
    first, same, other = (fit_on(FOLD, short, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.user_factors, same.user_factors)
    np.testing.assert_array_equal(first.scores(queries_of(FOLD)), same.scores(queries_of(FOLD)))
    if settings in TRAINED:
        assert not np.allclose(first.item_factors, other.item_factors)


@every_kind
def test_factors_stand_for_users_and_items(settings: Trained | ClosedForm, fits: dict[str, Any]) -> None:
    users, items = fits[settings.kind].user_factors, fits[settings.kind].item_factors
    assert users.shape[1] == items.shape[1]
    assert (len(users), len(items)) == (40, 40)
    assert np.isfinite(users).all()
    assert np.isfinite(items).all()
    if settings.kind == "popularity":
        return
    lengths = np.linalg.norm(users, axis=1, keepdims=True)
    cosines = (users / lengths) @ (users / lengths).T
    alike = np.arange(40)[:, None] % 2 == np.arange(40) % 2
    assert cosines[alike & ~np.eye(40, dtype=bool)].mean() > cosines[~alike].mean() + 0.3


@pytest.mark.parametrize("settings", EVERY_KIND[1:], ids=lambda settings: settings.kind)
def test_learns_two_tastes_better_than_popularity(settings: Trained | ClosedForm, fits: dict[str, Any]) -> None:
    popular = validation_ndcg(fit_closed_form(FOLD, PopularitySettings(), 0), FOLD)
    assert validation_ndcg(fits[settings.kind], FOLD) > 1.3 * popular
    scores = fits[settings.kind].scores(queries_of(FOLD))
    own = np.arange(40)[:, None] % 2 == np.arange(40)[None, :] % 2
    assert scores[own].mean() > scores[~own].mean()


@every_kind
def test_retrieval_gives_the_best_distinct_items_that_are_not_masked(
    settings: Trained | ClosedForm, fits: dict[str, Any]
) -> None:
    fit, queries, eligible = fits[settings.kind], queries_of(FOLD), like_counts(FOLD) > 0
    rows, items, values = retrieve(fit, queries, 10, masked=queries.histories, eligible=eligible)
    scores = fit.scores(queries)
    scores[queries.histories.pairs(np.arange(40))] = -np.inf
    scores[:, ~eligible] = -np.inf
    for user in range(40):
        mine = items[rows == user]
        assert len(set(mine.tolist())) == 10
        assert mine.tolist() == np.lexsort((np.arange(40), -scores[user]))[:10].tolist()
        np.testing.assert_array_equal(values[rows == user], scores[user, mine])
