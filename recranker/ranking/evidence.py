"""What a conventional re-ranker looks at: numbers about each candidate, its list, and the user's history.

Every number of a list comes from the fold the list belongs to and from the user's events before the list's target.
Computed for all lists at once. Shapes: ``L`` lists, ``C`` candidates of all lists one list after another, ``H`` latest
likes, ``I`` items, ``F`` features. A number that is not known is NaN; one that the data cannot give has no column.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from recranker.backbones.events import Interactions
from recranker.backbones.folds import FoldData
from recranker.backbones.popularity import like_counts
from recranker.backbones.topk import ItemSets
from recranker.data.facts import Order, order_of
from recranker.errors import DataError
from recranker.ranking.choice import lists_of, reduced, standardised_lists, starts_of
from recranker.ranking.settings import FeatureGroup

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SignalScores = NDArray[np.floating[Any]]
"""Another backbone's, in the format it computes in."""
Columns = dict[str, Floats]
"""``(C,)`` each."""

REACH = 5
"""How many likes later an item still counts as following another."""
FADE = 0.8
"""Weight of one like further back, in transitions and in the history they start from."""
LATEST = 10
"""Likes of a history that are looked at one by one."""
FEW = 10
"""An item or a user with fewer likes is cold."""
WINDOW = 0.1
"""Share of the fold's time that counts as recent."""
BLOCK = 16_384
"""Candidates whose similarities are computed at once."""
DAY = 86_400.0


@dataclass(frozen=True)
class FoldView:
    """What one fold knows: its events, and the item vectors of models fitted on them."""

    data: FoldData
    item_vectors: Mapping[str, NDArray[np.float32]]
    """``(I, D)`` by the backbone's name; may be empty."""


@dataclass(frozen=True)
class Lists:
    """Candidate lists as flat arrays of indices."""

    users: Ints
    """``(L,)``."""
    before: Ints
    """``(L,)`` the history ends before this sequence number."""
    starts: Ints
    """``(L,)`` where each list begins."""
    items: Ints
    """``(C,)``."""

    @property
    def of(self) -> Ints:
        """``(C,)`` the list of each candidate."""
        return lists_of(self.starts, len(self.items))

    @property
    def places(self) -> Ints:
        """``(C,)`` place within the list, 0 = first."""
        return np.arange(len(self.items)) - self.starts[self.of]

    def part(self, chosen: NDArray[np.bool_]) -> "Lists":
        """The chosen lists alone."""
        lengths = np.diff(np.append(self.starts, len(self.items)))[chosen]
        return Lists(self.users[chosen], self.before[chosen], starts_of(lengths), self.items[chosen[self.of]])


@dataclass(frozen=True)
class Histories:
    """The likes of each list's user before its target."""

    counts: Ints
    """``(L,)`` likes."""
    latest: Ints
    """``(L, H)`` items, the latest first; -1 where there are fewer."""
    until: Floats
    """``(L,)`` time of the latest like; NaN where unknown."""
    likes: csr_matrix
    """``(L, I)`` 1 for every like."""
    dislikes: csr_matrix
    """``(L, I)`` 1 for every dislike."""


@dataclass(frozen=True)
class Evidence:
    """The features of all lists."""

    names: tuple[str, ...]
    """``(F,)``."""
    groups: tuple[FeatureGroup, ...]
    """``(F,)``."""
    raw: Floats
    """``(C, F)``; NaN where unknown."""
    starts: Ints
    """``(L,)`` where each list begins."""

    def only(self, groups: Collection[FeatureGroup]) -> "Evidence":
        """The features of some groups."""
        kept = [index for index, group in enumerate(self.groups) if group in groups]
        names, left = tuple(self.names[index] for index in kept), tuple(self.groups[index] for index in kept)
        return Evidence(names, left, self.raw[:, kept], self.starts)

    def of_lists(self, chosen: NDArray[np.bool_]) -> "Evidence":
        """The chosen lists alone."""
        lengths = np.diff(np.append(self.starts, len(self.raw)))[chosen]
        return replace(self, raw=self.raw[chosen[lists_of(self.starts, len(self.raw))]], starts=starts_of(lengths))

    def standardised(self) -> Floats:
        """``(C, F)`` z-scores within each list; 0 where unknown."""
        return standardised_lists(self.raw, self.starts)


def evidence_of(
    interactions: Interactions,
    folds: Mapping[str, FoldView],
    lists: pa.Table,
    signals: Mapping[str, SignalScores],
    items: pa.Table,
    facts: Mapping[str, Any],
) -> Evidence:
    """All features that the data can give; see ``FeatureGroup`` for what they are.

    Args:
        interactions: By index.
        folds: What each fold named in ``lists`` knows; the features of a list come from its own.
        lists: CANDIDATES but for the re-ranker's scores.
        signals: ``(C,)`` scores by the name of another backbone.
        items: ITEMS.
        facts: Of the prepared data: order, has_ratings and, with ratings, dislike_below.

    Raises:
        DataError: If a list's fold is not given, or a signal does not fit the lists.
    """
    flat = flat_lists(interactions, lists)
    _check(flat, lists, folds, signals)
    groups: dict[FeatureGroup, Columns] = {"backbone": _backbone(flat, lists), "signals": _signals(flat, signals)}
    if facts["has_ratings"]:
        groups["ratings"] = {"predicted_rating": _floats(lists["predicted_ratings"])}
    known = histories(interactions, flat, facts)
    groups["text"] = _content(flat, known, interactions, items, rated=facts["has_ratings"])
    names = np.asarray(lists["fold"].to_pylist())
    for name in np.unique(names).tolist():
        mine = names == name
        one, view = flat.part(mine), folds[name]
        found = _of_fold(one, histories(interactions, one, facts), view, interactions, order_of(facts))
        for group, columns in found.items():
            for column, values in columns.items():
                whole = groups.setdefault(group, {}).setdefault(column, np.full(len(flat.items), np.nan))
                whole[mine[flat.of]] = values
    named = [(column, group, values) for group, columns in groups.items() for column, values in columns.items()]
    raw = np.stack([values for _, _, values in named], axis=1)
    return Evidence(tuple(one[0] for one in named), tuple(one[1] for one in named), raw, flat.starts)


def flat_lists(interactions: Interactions, lists: pa.Table) -> Lists:
    """The candidate lists as arrays of indices.

    Raises:
        DataError: If a list names a user or an item that the interactions do not hold.
    """
    offered = lists["candidate_ids"].combine_chunks()
    users = _indices(lists["user_id"].combine_chunks(), interactions.user_ids, "user")
    items = _indices(offered.flatten(), interactions.item_ids, "item")
    lengths = pc.list_value_length(offered).to_numpy(zero_copy_only=False).astype(np.int64)
    return Lists(users, lists["before"].to_numpy().astype(np.int64), starts_of(lengths), items)


def histories(interactions: Interactions, lists: Lists, facts: Mapping[str, Any]) -> Histories:
    """What may be known of each list's user: events of training and validation before the list's target."""
    liked, disliked = interactions.known_likes, np.empty(0, np.int64)
    if facts["has_ratings"]:
        known = np.isin(interactions.splits, ("train", "validation"))
        disliked = np.flatnonzero(known & (interactions.ratings < facts["dislike_below"]))
    begin, end = interactions.spans(liked, lists.users, lists.before)
    places = end[:, None] - 1 - np.arange(LATEST)
    rows = liked[np.maximum(places, 0)] if len(liked) else places
    latest = np.where(places >= begin[:, None], interactions.items[rows], -1)
    until = np.where(end > begin, interactions.times[rows[:, 0]], np.nan)
    likes = _members(interactions, liked, begin, end)
    dislikes = _members(interactions, disliked, *interactions.spans(disliked, lists.users, lists.before))
    return Histories(end - begin, latest, until, likes, dislikes)


def transitions(data: FoldData) -> csr_matrix:
    """``(I, I)`` faded counts of the column following the row within REACH likes of one user."""
    counted = csr_matrix((data.num_items, data.num_items), dtype=np.float64)
    for distance in range(1, REACH + 1):
        same = data.like_users[:-distance] == data.like_users[distance:]
        first, later = data.like_items[:-distance][same], data.like_items[distance:][same]
        weights = np.full(len(first), FADE ** (distance - 1))
        counted = counted + csr_matrix((weights, (first, later)), shape=counted.shape)
    return counted


def _of_fold(
    lists: Lists, known: Histories, view: FoldView, interactions: Interactions, order: Order
) -> dict[FeatureGroup, Columns]:
    popularity = like_counts(view.data).astype(np.float64)
    groups: dict[FeatureGroup, Columns] = {
        "similarity": _similarities(lists, known, view.item_vectors),
        "popularity": {
            "popularity": np.log1p(popularity[lists.items]),
            "item_is_cold": (popularity[lists.items] < FEW).astype(np.float64),
            "user_is_cold": (known.counts < FEW).astype(np.float64)[lists.of],
            "user_activity": np.log1p(known.counts.astype(np.float64))[lists.of],
        },
    }
    if order != "none":
        groups["transitions"] = _following(lists, known, transitions(view.data))
    if order == "time":
        groups["time"] = _times(lists, known, view.data, interactions)
    return groups


def _backbone(lists: Lists, table: pa.Table) -> Columns:
    scores = _floats(table["backbone_scores"])
    top = reduced(np.maximum, scores, lists.starts)[lists.of]
    return {"backbone_score": scores, "backbone_place": -np.log1p(lists.places), "backbone_odds": np.exp(scores - top)}


def _signals(lists: Lists, signals: Mapping[str, SignalScores]) -> Columns:
    columns: Columns = {}
    for name, scores in signals.items():
        order = np.lexsort((lists.places, -scores, lists.of))
        places = np.empty(len(scores), np.int64)
        places[order] = lists.places  # the first of a list in this order is its best
        columns |= {f"{name}_score": np.asarray(scores, np.float64), f"{name}_place": -np.log1p(places)}
    return columns


def _similarities(lists: Lists, known: Histories, item_vectors: Mapping[str, NDArray[np.float32]]) -> Columns:
    """Cosines of the candidate with the last likes under each backbone's item vectors."""
    columns: Columns = {}
    for name, vectors in item_vectors.items():
        unit = normalize(np.asarray(vectors, np.float32))
        cosines = np.full((len(lists.items), LATEST), np.nan)
        for start in range(0, len(lists.items), BLOCK):
            block = slice(start, start + BLOCK)
            recent = known.latest[lists.of[block]]
            found = np.einsum("cd,chd->ch", unit[lists.items[block]], unit[recent])
            cosines[block] = np.where(recent >= 0, found, np.nan)
        columns[f"{name}_similarity_to_last"] = cosines[:, 0]
        profile = normalize(known.likes, "l1") @ unit
        columns[f"{name}_similarity_to_likes"] = np.einsum("cd,cd->c", unit[lists.items], profile[lists.of])
        for count in (5, 10):
            columns[f"{name}_similarity_to_last_{count}"] = _mean(cosines[:, :count])
            columns[f"{name}_nearest_of_last_{count}"] = _largest(cosines[:, :count])
    return columns


def _following(lists: Lists, known: Histories, counted: csr_matrix) -> Columns:
    """How often the candidate followed the last likes, and stood near them, of other users and of this one."""
    recent = known.latest[lists.of]
    here = recent >= 0
    fading = FADE ** np.arange(LATEST)
    after = np.where(here, _entries(counted, np.maximum(recent, 0), lists.items[:, None]), 0.0)
    around = after + np.where(here, _entries(counted, lists.items[:, None], np.maximum(recent, 0)), 0.0)
    leaving = np.asarray(counted.sum(axis=1)).ravel()[np.maximum(recent, 0)]
    return {
        "follows_last": np.log1p(after[:, 0]),
        "follows_last_10": np.log1p(after @ fading),
        "near_last_10": np.log1p(around @ fading),
        "chance_after_last_10": np.log1p(100 * (after / np.maximum(leaving, 1.0)) @ fading),
    }


def _times(lists: Lists, known: Histories, data: FoldData, interactions: Interactions) -> Columns:
    """Likes of the candidate by anybody before the history's end: how many lately, how long ago, since when."""
    times = like_times(data, interactions)
    order = np.lexsort((times, data.like_items))
    items, times = data.like_items[order], times[order]
    now = known.until[lists.of]
    begin = np.searchsorted(items, lists.items)
    end = _until(items, times, lists.items, now)
    since = _until(items, times, lists.items, now - WINDOW * (times.max() - times.min()))
    some = (end > begin) & ~np.isnan(now)
    last, first = (times[np.where(some, row, 0)] for row in (end - 1, begin))
    return {
        "recent_popularity": np.where(np.isnan(now), np.nan, np.log1p(end - since)),
        "days_since_last_like": np.where(some, np.log1p(np.maximum(now - last, 0.0) / DAY), np.nan),
        "days_since_first_like": np.where(some, np.log1p(np.maximum(now - first, 0.0) / DAY), np.nan),
    }


def like_times(data: FoldData, interactions: Interactions) -> Floats:
    """``(likes,)`` when each like of the fold happened."""
    pairs = interactions.users * interactions.num_items + interactions.items
    order = np.argsort(pairs)
    found = np.searchsorted(pairs[order], data.like_users * interactions.num_items + data.like_items)
    return np.asarray(interactions.times[order[found]])


def _content(lists: Lists, known: Histories, interactions: Interactions, items: pa.Table, *, rated: bool) -> Columns:
    rows = pc.index_in(interactions.item_ids, value_set=items["item_id"].combine_chunks())
    catalogue = items.take(rows)
    columns = _titles(lists, known, catalogue["title"].to_pylist())
    genres = genre_weights(catalogue["genres"].to_pylist())
    if genres.shape[1]:
        recent, all_likes = _profile(known.latest, genres), normalize(known.likes, "l1") @ genres
        shares = normalize(genres, "l1")
        columns["genres_of_last_10"] = _dots(recent, lists.of, shares, lists.items)
        columns["genres_of_likes"] = _dots(csr_matrix(all_likes), lists.of, shares, lists.items)
        if rated:
            disliked = csr_matrix(normalize(known.dislikes, "l1") @ genres)
            columns["genres_of_dislikes"] = _dots(disliked, lists.of, shares, lists.items)
    return columns


def genre_weights(genres: Sequence[Sequence[str]]) -> csr_matrix:
    """``(items, genres)`` the inverse document frequency of each genre an item has."""
    pairs = [(row, genre) for row, names in enumerate(genres) for genre in sorted(set(names))]
    known = {genre: column for column, genre in enumerate(sorted({genre for _, genre in pairs}))}
    rows, columns = [row for row, _ in pairs], [known[genre] for _, genre in pairs]
    rarity = np.log((1 + len(genres)) / (1 + np.bincount(columns, minlength=len(known)))) if pairs else np.empty(0)
    return csr_matrix((rarity[columns], (rows, columns)), shape=(len(genres), len(known)))


def _titles(lists: Lists, known: Histories, titles: list[str]) -> Columns:
    """TF-IDF cosines with the titles last liked; the vocabulary is the catalogue's, no event is looked at."""
    try:
        words = csr_matrix(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform(titles))
    except ValueError:  # no title holds a word
        return {}
    return {
        f"title_similarity_to_last{suffix}": _dots(
            _profile(known.latest[:, :count], words), lists.of, words, lists.items
        )
        for count, suffix in ((1, ""), (3, "_3"), (LATEST, "_10"))
    }


def _profile(latest: Ints, vectors: csr_matrix) -> csr_matrix:
    """``(L, columns)`` mean vector of each list's latest likes; 0 without any."""
    lists, _ = np.nonzero(latest >= 0)
    shape = len(latest), vectors.shape[0]
    return csr_matrix(normalize(csr_matrix((np.ones(len(lists)), (lists, latest[latest >= 0])), shape), "l1") @ vectors)


def _dots(left: csr_matrix, rows: Ints, right: csr_matrix, columns: Ints) -> Floats:
    """``(C,)`` inner product of a row of each matrix."""
    return np.asarray(left[rows].multiply(right[columns]).sum(axis=1), np.float64).ravel()


def _entries(matrix: csr_matrix, rows: Ints, columns: Ints) -> Floats:
    """The matrix at broadcast rows and columns."""
    rows, columns = np.broadcast_arrays(rows, columns)
    return np.asarray(matrix[rows.ravel(), columns.ravel()], np.float64).reshape(rows.shape)


def _until(items: Ints, times: Floats, wanted: Ints, moments: Floats) -> Ints:
    """``(C,)`` rows of (items, times), sorted, that come before the wanted item's likes after the moment."""
    ranks = np.searchsorted(np.unique(times), times, side="left")
    moment = np.searchsorted(np.unique(times), moments, side="right")
    width = len(times) + 1
    return np.asarray(np.searchsorted(items * width + ranks, wanted * width + moment, side="left"))


def _members(interactions: Interactions, rows: Ints, begin: Ints, end: Ints) -> csr_matrix:
    """``(L, I)`` 1 for the item of each of a list's ``rows``."""
    found = ItemSets.slices(interactions.items[rows], begin, end)
    return csr_matrix(
        (np.ones(len(found.items)), found.items, found.starts), shape=(len(begin), interactions.num_items)
    )


def _mean(values: Floats) -> Floats:
    known = ~np.isnan(values)
    counts = known.sum(axis=1)
    return np.where(counts > 0, np.where(known, values, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)


def _largest(values: Floats) -> Floats:
    found = np.where(np.isnan(values), -np.inf, values).max(axis=1)
    return np.where(np.isfinite(found), found, np.nan)


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False), np.float64)


def _indices(ids: pa.Array, known: pa.Array, kind: str) -> Ints:
    found = pc.index_in(ids, value_set=known)
    if found.null_count:
        unknown = ids.filter(pc.is_null(found))[0].as_py()
        raise DataError(f"candidate lists name {kind} {unknown!r}, which the interactions do not hold")
    return np.asarray(found.to_numpy(), np.int64)


def _check(lists: Lists, table: pa.Table, folds: Mapping[str, FoldView], signals: Mapping[str, SignalScores]) -> None:
    missing = sorted(set(table["fold"].to_pylist()) - set(folds))
    if missing:
        raise DataError(f"candidate lists come from folds {missing}, evidence is given of {sorted(folds)}")
    for name, scores in signals.items():
        if np.shape(scores) != lists.items.shape:
            raise DataError(
                f"signal {name!r} must hold a score for each of the {len(lists.items)} candidates, "
                f"got shape {np.shape(scores)}"
            )
