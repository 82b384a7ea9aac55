"""The retriever's top items for every target, with the signals that ranking may use.

Validation and test lists come from the full fold. Training lists come from the rolled-back fold,
whose fits have not seen the target, so their scores and hints are as honest as at test.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.backbones.evaluation import BLOCK
from recranker.backbones.events import Interactions
from recranker.backbones.fit import Fit
from recranker.backbones.fits import Fits
from recranker.backbones.folds import Fold, FoldData, data_of
from recranker.backbones.popularity import fit_popularity, like_counts
from recranker.backbones.rating_predictor import constant_ratings, predict_ratings
from recranker.backbones.settings import BackboneSettings
from recranker.backbones.topk import ItemSets, top_k
from recranker.schema import FIT_EVENTS, USER_FACTORS


@dataclass(frozen=True)
class FoldFits:
    """One fold and what was fitted on it."""

    fold: Fold
    data: FoldData
    retriever: Fit
    rating_predictor: Fit


@dataclass(frozen=True)
class Scale:
    """What the data's manifest says of ratings."""

    lowest: float
    highest: float
    like: float
    """The lowest rating that is a like."""


@dataclass(frozen=True)
class Targets:
    """The held-out likes of one split, and what is out of the race in each of their lists."""

    split: str
    rows: NDArray[np.int64]
    """``(lists,)`` rows of the interactions."""
    before: NDArray[np.int32]
    """``(lists,)`` sequence number at which the history ends."""
    masked: ItemSets
    """Per list."""


def fold_fits(interactions: Interactions, fold: Fold, fits: Fits, scale: Scale) -> FoldFits:
    """What was fitted on ``fold``.

    Where no feedback is a rating, every guess is the lowest rating that counts as a like: each event there is one,
    nothing more is known, and a constant cannot tell candidates apart.
    """
    guess = constant_ratings(interactions.num_users, interactions.num_items, scale.like)
    predictor = fits.get(f"rating_predictor/{fold.name}", guess)
    return FoldFits(fold, data_of(interactions, fold), fits[f"retriever/{fold.name}"], predictor)


def candidate_lists(
    interactions: Interactions, full: FoldFits, rolled_back: FoldFits, settings: BackboneSettings, scale: Scale
) -> pa.Table:
    """All CANDIDATES rows but for the re-ranker's scores: a list per training, validation and test target."""
    known = settings.validation_in_history
    jobs = [(training_targets(interactions, rolled_back.fold), rolled_back)]
    for split in ("validation", "test"):
        jobs.append((held_out_targets(interactions, split, validation_in_history=known), full))
    tables = [
        make_candidates(interactions, targets, fits, num_candidates=settings.num_candidates, scale=scale)
        for targets, fits in jobs
    ]
    return pa.concat_tables(tables)


def count_lists(candidates: pa.Table) -> dict[str, int]:
    """Lists and lists with their target, per split."""
    counts: dict[str, int] = {}
    for split in ("train", "validation", "test"):
        hits = candidates.filter(pc.equal(candidates["split"], split))["hit"]
        counts |= {f"{split}_lists": len(hits), f"{split}_hits": pc.sum(hits).as_py() or 0}
    return counts


def popularity_hits(interactions: Interactions, full: FoldFits, settings: BackboneSettings, scale: Scale) -> int:
    """Test lists that hold their target when popularity alone proposes the candidates."""
    targets = held_out_targets(interactions, "test", validation_in_history=settings.validation_in_history)
    popular = replace(full, retriever=fit_popularity(full.data))
    table = make_candidates(interactions, targets, popular, num_candidates=settings.num_candidates, scale=scale)
    return int(pc.sum(table["hit"]).as_py() or 0)


def training_targets(interactions: Interactions, rolled_back: Fold) -> Targets:
    """Every target held back from the rolled-back fold.

    All other likes of the user are masked, later ones and the validation and test targets too: a training list
    shows its other items as wrong answers, and these would be false ones.
    """
    rows = rolled_back.targets
    held_out = [interactions.rows(split) for split in ("validation", "test")]
    likes = np.concatenate([interactions.rows("train", likes_only=True), *held_out])
    masked = _likes_per_list(interactions, rows, likes)
    return Targets("train", rows, interactions.sequences[rows], masked)


def held_out_targets(interactions: Interactions, split: str, *, validation_in_history: bool) -> Targets:
    """The targets of 'validation' or 'test'; the user's training likes are masked.

    In a test list the validation like is masked and part of the history when ``validation_in_history``;
    otherwise the history ends before it and it may be a candidate, as in the paper.
    """
    rows = interactions.rows(split)
    likes = interactions.rows("train", likes_only=True)
    before = interactions.sequences[rows]
    validation = interactions.rows("validation")
    if split == "test" and validation_in_history:
        likes = np.concatenate([likes, validation])
    elif split == "test":
        until = np.full(interactions.num_users, np.iinfo(np.int32).max, dtype=np.int32)
        until[interactions.users[validation]] = interactions.sequences[validation]
        before = np.minimum(before, until[interactions.users[rows]])
    return Targets(split, rows, before, _likes_per_list(interactions, rows, likes))


def make_candidates(
    interactions: Interactions, targets: Targets, fits: FoldFits, *, num_candidates: int, scale: Scale
) -> pa.Table:
    """One list per target; a list is shorter only where fewer items are left to offer.

    Items without a like in the fold are never offered; a target without one gives a list without hit.
    """
    popularity = like_counts(fits.data)
    lists, items, scores = _top_items(interactions, targets, fits.retriever, popularity > 0, num_candidates)
    users = interactions.users[targets.rows]
    guesses = predict_ratings(fits.rating_predictor, users[lists], items, lowest=scale.lowest, highest=scale.highest)
    hit = np.zeros(len(targets.rows), dtype=np.bool_)
    hit[lists[items == interactions.items[targets.rows][lists]]] = True
    starts = np.searchsorted(lists, np.arange(len(targets.rows) + 1))
    columns = {
        **_identity(interactions, targets, fits.fold.name),
        "hit": pa.array(hit),
        "candidate_ids": _lists(starts, interactions.item_ids.take(pa.array(items))),
        "backbone_scores": _lists(starts, pa.array(scores)),
        "predicted_ratings": _lists(starts, pa.array(guesses)),
        "popularity": _lists(starts, pa.array(popularity[items].astype(np.float32))),
    }
    return pa.table(columns)


def fit_events(interactions: Interactions, folds: tuple[Fold, ...]) -> pa.Table:
    """FIT_EVENTS rows: every event some fit of each fold saw."""
    tables = []
    for fold in folds:
        data = data_of(interactions, fold)
        users = np.concatenate([data.like_users, data.rated_users])
        items = np.concatenate([data.like_items, data.rated_items])
        pairs = np.unique(users * interactions.num_items + items)
        columns = {
            "fold": pa.array([fold.name] * len(pairs), pa.string()),
            "user_id": interactions.user_ids.take(pa.array(pairs // interactions.num_items)),
            "item_id": interactions.item_ids.take(pa.array(pairs % interactions.num_items)),
        }
        tables.append(pa.table(columns))
    return FIT_EVENTS.conform(pa.concat_tables(tables), where="fit_events")


def user_factors(interactions: Interactions, retriever: Fit) -> pa.Table:
    """USER_FACTORS rows of the retriever fitted on all training likes."""
    num_users, dim = retriever.user_factors.shape
    starts = np.arange(num_users + 1) * dim
    factors = _lists(starts, pa.array(retriever.user_factors.reshape(-1)))
    table = pa.table({"user_id": interactions.user_ids, "factors": factors})
    return USER_FACTORS.conform(table, where="user_factors")


def _likes_per_list(interactions: Interactions, rows: NDArray[np.int64], likes: NDArray[np.int64]) -> ItemSets:
    """Items of ``likes`` by the user of each list, without the list's own target."""
    by_user = ItemSets.of(interactions.users[likes], interactions.items[likes], interactions.num_users)
    lists, items = by_user.pairs(interactions.users[rows])
    others = items != interactions.items[rows][lists]
    return ItemSets.of(lists[others], items[others], len(rows))


def _top_items(
    interactions: Interactions, targets: Targets, retriever: Fit, eligible: NDArray[np.bool_], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """List, item and score of every candidate, in order of list and rank."""
    found = []
    for start in range(0, max(len(targets.rows), 1), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(targets.rows)))
        scores = retriever.scores(interactions.users[targets.rows[block]])
        scores[:, ~eligible] = -np.inf
        scores[targets.masked.pairs(block)] = -np.inf
        rows, items = top_k(scores, k)
        found.append((rows + start, items, scores[rows, items]))
    lists, items, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return lists, items, scores


def _identity(interactions: Interactions, targets: Targets, fold: str) -> dict[str, pa.Array]:
    user_ids = interactions.user_ids.take(pa.array(interactions.users[targets.rows]))
    target_ids = interactions.item_ids.take(pa.array(interactions.items[targets.rows]))
    split = pa.array([targets.split] * len(targets.rows), pa.string())
    return {
        "list_id": pc.binary_join_element_wise(split, user_ids, target_ids, "/"),
        "user_id": user_ids,
        "split": split,
        "target_id": target_ids,
        "target_rating": pa.array(interactions.ratings[targets.rows], from_pandas=True),  # NaN becomes null
        "before": pa.array(targets.before, pa.int32()),
        "fold": pa.array([fold] * len(targets.rows), pa.string()),
    }


def _lists(starts: NDArray[np.int64], values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values)
