"""From fits to lists: what the stage 'backbone' does once the trained models are there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recranker.backbones.candidates import (
    FoldFits,
    Lists,
    Offers,
    Scale,
    all_targets,
    candidate_lists,
    make_offers,
)
from recranker.backbones.events import Interactions
from recranker.backbones.fit import FactorFit, Fit
from recranker.backbones.fits import fit_closed_form
from recranker.backbones.folds import Fold, FoldData
from recranker.backbones.item_item import like_factors
from recranker.backbones.own import own_offers
from recranker.backbones.rating_predictor import constant_ratings
from recranker.backbones.settings import BackboneSettings, ClosedForm, OwnCandidates, SASRecSettings
from recranker.data.facts import require_order


def fold_fits(
    folds: Sequence[tuple[Fold, FoldData]],
    trained: Mapping[str, Fit],
    settings: BackboneSettings,
    scale: Scale,
    seed: int,
) -> tuple[FoldFits, ...]:
    """Everything that scores lists, fold by fold: trained fits where there are, closed forms made here."""
    return tuple(
        FoldFits(
            fold,
            data,
            _retriever(data, trained, settings, seed),
            _rating_predictor(data, trained, scale),
            {one.kind: fit_closed_form(data, one, seed) for one in settings.signals},
        )
        for fold, data in folds
    )


def lists_of(
    interactions: Interactions, folds: Sequence[FoldFits], settings: BackboneSettings, scale: Scale
) -> tuple[Lists, dict[str, int]]:
    """All lists with their signals, and counts of what a team's own candidates left out."""
    targets = all_targets(interactions, [one.fold for one in folds], settings)
    by_name = {one.fold.name: one for one in folds}
    counts: dict[str, int] = {}
    offers: Sequence[Offers]
    if isinstance(settings.retriever, OwnCandidates):
        own, most = settings.retriever, settings.num_candidates
        targets, offers, counts = own_offers(own.path, interactions, targets, most, own.parquet)
    else:
        offers = [
            make_offers(interactions, one, by_name[one.fold], num_candidates=settings.num_candidates) for one in targets
        ]
    return candidate_lists(interactions, targets, folds, offers, scale), counts


def require_meaning(settings: BackboneSettings, facts: Mapping[str, Any]) -> None:
    """Refuse a retriever that reads meaning into an order the data has not.

    Raises:
        DataError: If it does.
    """
    if isinstance(settings.retriever, SASRecSettings):
        require_order(facts, "backbone.retriever.kind='sasrec'")


def item_vectors(fits: FoldFits) -> dict[str, NDArray[np.float32]]:
    """``(I, D)`` embeddings of the items by the retriever, for similarity."""
    return {"retriever": fits.retriever.item_factors}


def _retriever(data: FoldData, trained: Mapping[str, Fit], settings: BackboneSettings, seed: int) -> Fit:
    """The retriever; where candidates are a team's own, embeddings of the likes stand in for similarity and groups."""
    if isinstance(settings.retriever, ClosedForm):
        return fit_closed_form(data, settings.retriever, seed)
    if isinstance(settings.retriever, OwnCandidates):
        return FactorFit(*like_factors(data, (seed, "backbone", "own", data.name)))
    return trained[f"retriever/{data.name}"]


def _rating_predictor(data: FoldData, trained: Mapping[str, Fit], scale: Scale) -> FactorFit:
    """Where no feedback is a rating, every guess is the lowest rating that counts as a like.

    Each event there is one, nothing more is known, and a constant cannot tell candidates apart.
    """
    found = trained.get(f"rating_predictor/{data.name}")
    if found is None:
        return constant_ratings(data.num_users, data.num_items, scale.like)
    assert isinstance(found, FactorFit)
    return found
