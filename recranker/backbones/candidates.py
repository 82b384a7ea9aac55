"""The candidates of every target, with the signals that ranking may use.

Validation and test lists are scored by the fits of the full fold. Training lists are scored by those of a rolled-back
fold, which have not seen the target or anything later, so their scores and hints are as honest as at test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.backbones.events import Interactions
from recranker.backbones.fit import FactorFit, Fit, Queries
from recranker.backbones.folds import Fold, FoldData, data_of
from recranker.backbones.popularity import fit_popularity, like_counts
from recranker.backbones.rating_predictor import predict_ratings
from recranker.backbones.retrieval import retrieve, scores_of
from recranker.backbones.settings import BackboneSettings
from recranker.backbones.topk import ItemSets
from recranker.schema import FIT_EVENTS, USER_FACTORS

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class FoldFits:
    """One fold and what was fitted on it."""

    fold: Fold
    data: FoldData
    retriever: Fit
    rating_predictor: FactorFit
    signals: Mapping[str, Fit]
    """Further recommenders, by the name their scores go under."""


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
    fold: str
    """The fold whose fits score these lists."""
    rows: Indices
    """``(lists,)`` rows of the interactions."""
    before: NDArray[np.int32]
    """``(lists,)`` sequence number at which the history ends."""
    masked: ItemSets
    """Per list."""


@dataclass(frozen=True)
class Offers:
    """What is offered to the user of each list, in order of list and rank."""

    lists: Indices
    """``(candidates,)`` which of the targets."""
    items: Indices
    """``(candidates,)``."""
    scores: NDArray[np.float32]
    """``(candidates,)`` the retriever's."""


@dataclass(frozen=True)
class Lists:
    """Lists of one fold with all that is known about their candidates."""

    table: pa.Table
    """CANDIDATES but for the re-ranker's scores."""
    signals: Mapping[str, NDArray[np.float32]]
    """Per further recommender, its score of every candidate of the table, one list after another."""


def all_targets(interactions: Interactions, folds: Sequence[Fold], settings: BackboneSettings) -> list[Targets]:
    """Training targets of every rolled-back fold, then those of validation and test."""
    known = settings.validation_in_history
    found = [training_targets(interactions, fold) for fold in folds[1:]]
    return found + [
        held_out_targets(interactions, split, validation_in_history=known) for split in ("validation", "test")
    ]


def candidate_lists(
    interactions: Interactions,
    targets: Sequence[Targets],
    folds: Sequence[FoldFits],
    offers: Sequence[Offers],
    scale: Scale,
) -> Lists:
    """A list per target, with the signals of the target's own fold."""
    by_name = {one.fold.name: one for one in folds}
    parts = [
        describe(interactions, asked, by_name[asked.fold], offered, scale)
        for asked, offered in zip(targets, offers, strict=True)
    ]
    names = list(folds[0].signals)
    signals = {name: np.concatenate([part.signals[name] for part in parts]) for name in names}
    return Lists(pa.concat_tables([part.table for part in parts]), signals)


def count_lists(candidates: pa.Table) -> dict[str, int]:
    """Lists and lists with their target, per split."""
    counts: dict[str, int] = {}
    for split in ("train", "validation", "test"):
        hits = candidates.filter(pc.equal(candidates["split"], split))["hit"]
        counts |= {f"{split}_lists": len(hits), f"{split}_hits": pc.sum(hits).as_py() or 0}
    return counts


def popularity_hits(interactions: Interactions, full: FoldFits, settings: BackboneSettings) -> int:
    """Test lists that hold their target when popularity alone proposes the candidates."""
    targets = held_out_targets(interactions, "test", validation_in_history=settings.validation_in_history)
    popular = replace(full, retriever=fit_popularity(full.data))
    offers = make_offers(interactions, targets, popular, num_candidates=settings.num_candidates)
    return int((offers.items == interactions.items[targets.rows][offers.lists]).sum())


def training_targets(interactions: Interactions, rolled_back: Fold) -> Targets:
    """Every target held back from the rolled-back fold.

    All other likes of the user are masked, later ones and the validation and test targets too: a training list
    shows its other items as wrong answers, and these would be false ones.
    """
    rows = rolled_back.targets
    held_out = [interactions.rows(split) for split in ("validation", "test")]
    likes = np.concatenate([interactions.rows("train", likes_only=True), *held_out])
    masked = _likes_per_list(interactions, rows, likes)
    return Targets("train", rolled_back.name, rows, interactions.sequences[rows], masked)


def held_out_targets(interactions: Interactions, split: str, *, validation_in_history: bool) -> Targets:
    """The targets of 'validation' or 'test'; the user's training likes are masked.

    In a test list the validation like is masked and part of the history when ``validation_in_history``;
    otherwise the history ends before it and it may be a candidate, as in the paper. What the user had liked by then
    and is no training event (a split by time leaves such) is no news and masked too.
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
    masked = _likes_per_list(interactions, rows, likes, interactions.rows("unused", likes_only=True), before)
    return Targets(split, "full", rows, before, masked)


def make_offers(interactions: Interactions, targets: Targets, fits: FoldFits, *, num_candidates: int) -> Offers:
    """The retriever's best items for each target; a list is shorter only where fewer items are left to offer.

    Items without a like in the fold are never offered; a target without one gives a list without hit.
    """
    queries = queries_before(interactions, interactions.users[targets.rows], targets.before)
    eligible = like_counts(fits.data) > 0
    return Offers(*retrieve(fits.retriever, queries, num_candidates, masked=targets.masked, eligible=eligible))


def describe(interactions: Interactions, targets: Targets, fits: FoldFits, offers: Offers, scale: Scale) -> Lists:
    """The offers as lists, with what the fold's fits say about each candidate."""
    lists, items = offers.lists, offers.items
    users = interactions.users[targets.rows]
    guesses = predict_ratings(fits.rating_predictor, users[lists], items, lowest=scale.lowest, highest=scale.highest)
    hit = np.zeros(len(targets.rows), dtype=np.bool_)
    hit[lists[items == interactions.items[targets.rows][lists]]] = True
    starts = np.searchsorted(lists, np.arange(len(targets.rows) + 1))
    columns = {
        **_identity(interactions, targets),
        "hit": pa.array(hit),
        "candidate_ids": _lists(starts, interactions.item_ids.take(pa.array(items))),
        "backbone_scores": _lists(starts, pa.array(offers.scores)),
        "predicted_ratings": _lists(starts, pa.array(guesses)),
        "popularity": _lists(starts, pa.array(like_counts(fits.data)[items].astype(np.float32))),
    }
    queries = queries_before(interactions, users, targets.before)
    return Lists(pa.table(columns), {name: scores_of(fit, queries, lists, items) for name, fit in fits.signals.items()})


def queries_before(interactions: Interactions, users: Indices, before: NDArray[np.int32]) -> Queries:
    """Each user with the training and validation likes that stand before the given sequence number."""
    liked = interactions.known_likes
    return Queries(users, ItemSets.slices(interactions.items[liked], *interactions.spans(liked, users, before)))


def fit_events(interactions: Interactions, folds: Sequence[Fold]) -> pa.Table:
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


def _likes_per_list(
    interactions: Interactions,
    rows: Indices,
    likes: Indices,
    early: Indices | None = None,
    before: NDArray[np.int32] | None = None,
) -> ItemSets:
    """Items of ``likes``, and those of ``early`` that stand before the list's end, without the list's own target."""
    lists, found = _rows_per_list(interactions, rows, likes)
    if early is not None and before is not None:
        also, more = _rows_per_list(interactions, rows, early)
        past = interactions.sequences[more] < before[also]
        lists, found = np.concatenate([lists, also[past]]), np.concatenate([found, more[past]])
    items = interactions.items[found]
    others = items != interactions.items[rows][lists]
    return ItemSets.of(lists[others], items[others], len(rows))


def _rows_per_list(interactions: Interactions, rows: Indices, likes: Indices) -> tuple[Indices, Indices]:
    """List and row of every one of ``likes`` by the user of each list."""
    return ItemSets.of(interactions.users[likes], likes, interactions.num_users).pairs(interactions.users[rows])


def _identity(interactions: Interactions, targets: Targets) -> dict[str, pa.Array]:
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
        "fold": pa.array([targets.fold] * len(targets.rows), pa.string()),
    }


def _lists(starts: Indices, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values)
