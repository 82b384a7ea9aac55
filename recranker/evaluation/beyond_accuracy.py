"""What the top of a list is like apart from being right: how wide, how new, how varied, how popular."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from recranker.errors import DataError
from recranker.evaluation.comparison import Comparison
from recranker.evaluation.lists import PADDING, Bools, Floats, Ints, OfferedLists
from recranker.randomness import generator

CUTOFFS = (3, 5)


@dataclass(frozen=True)
class Catalogue:
    """What is known of every item; all arrays follow the order of ITEMS."""

    item_ids: pa.Array
    likes: Ints
    """``(items,)`` training likes."""
    num_users: int
    """Users with a training like."""
    profile_popularity: float
    """Mean over these users of the mean training likes of what each likes."""
    features: Any
    """``(items, words)`` sparse 0/1: genres, or words of the title."""
    features_are: str
    """'genres' or 'title words'."""

    def codes(self, lists: OfferedLists) -> Ints:
        """``(lists, width)`` the item at each of the retriever's places, padding behind the last.

        Raises:
            DataError: If a candidate is not in the catalogue.
        """
        flat = pc.index_in(lists.table["candidate_ids"].combine_chunks().flatten(), value_set=self.item_ids)
        if flat.null_count:
            raise DataError(f"{flat.null_count} candidates of test lists are not in table 'items'")
        codes = np.full(lists.places.shape, PADDING, dtype=np.int64)
        codes[lists.places != PADDING] = flat.to_numpy(zero_copy_only=False)
        return codes


def catalogue_of(interactions: pa.Table, items: pa.Table) -> Catalogue:
    """The catalogue with popularity counted over training likes.

    Raises:
        DataError: If a liked item is not in table 'items'.
    """
    kept = pc.and_(pc.equal(interactions["split"], "train"), pc.equal(interactions["feedback"], "like"))
    liked = interactions.filter(kept)
    ids = items["item_id"].combine_chunks()
    where = pc.index_in(liked["item_id"], value_set=ids)
    if where.null_count:
        raise DataError(f"{where.null_count} training likes name an item that is not in table 'items'")
    codes = np.asarray(where.to_numpy(), dtype=np.int64)
    likes = np.bincount(codes, minlength=items.num_rows).astype(np.int64)
    users = liked["user_id"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    profiles = np.bincount(users, likes[codes]) / np.maximum(np.bincount(users), 1)
    return Catalogue(ids, likes, len(profiles), float(profiles.mean()) if len(profiles) else 0.0, *_features(items))


def beyond_accuracy(comparison: Comparison, catalogue: Catalogue, *, seed: int) -> pa.Table:
    """A line per row and cutoff: coverage, novelty, diversity, popularity_lift, and the lists they are taken over.

    All rows are looked at over the same lists: those that every row has ranked, which are the lists
    with a hit where the model was spent on those only. 'random' is one keyed shuffle.
    """
    orders = dict(comparison.orders)
    shared = np.all([order[:, 0] != PADDING for order in orders.values()], axis=0)
    orders["random"] = _shuffled(comparison.lists, seed)
    codes = catalogue.codes(comparison.lists)
    lines = [
        {"row": row, "k": k, "lists": int(shared.sum())} | _measures(_top(codes, orders[row], shared, k), catalogue)
        for row in comparison.values
        for k in CUTOFFS
    ]
    return pa.Table.from_pylist(lines)


def catalogue_coverage(top: Ints, num_items: int) -> float:
    """Share of the catalogue that is in at least one top list; grows with the number of lists.

    Source: Ge, Delgado-Battenfeld & Jannach 2010, doi:10.1145/1864708.1864761.
    """
    return len(np.unique(top[top != PADDING])) / num_items


def novelty(top: Ints, likes: Ints, num_users: int) -> float:
    """Mean self-information of the items shown, bits: -log2 of the share of users who like the item.

    An item without a training like counts as having one, so that it is as new as can be told.

    Source: Zhou et al. 2010, doi:10.1073/pnas.1000488107; Vargas & Castells 2011, doi:10.1145/2043932.2043955.
    """
    shares = np.maximum(likes[top[top != PADDING]], 1) / max(num_users, 1)
    return float(-np.log2(shares).mean()) if len(shares) else float("nan")


def intra_list_diversity(top: Ints, features: Any) -> float:
    """Mean over lists of the mean Jaccard distance of two items of one list.

    Pairs of which neither item has a feature say nothing and are left out.

    Source: Smyth & McClave 2001, doi:10.1007/3-540-44593-5_25; Ziegler et al. 2005, doi:10.1145/1060745.1060754.
    """
    sums, counts = np.zeros(len(top)), np.zeros(len(top))
    for distances, known, rows in _pair_distances(top, features):
        sums[rows] += np.where(known, distances, 0.0)
        counts[rows] += known
    return float((sums[counts > 0] / counts[counts > 0]).mean()) if (counts > 0).any() else float("nan")


def popularity_lift(top: Ints, likes: Ints, profile_popularity: float) -> float:
    """How much more popular the items shown are than those users like: 0 = equally, 1 = twice.

    Mean training likes of the items of a list, averaged over lists, against the same of users' profiles.

    Source: Abdollahpouri et al. 2019, arXiv 1907.13286 (group average popularity).
    """
    shown = top != PADDING
    per_list = np.where(shown, likes[top], 0).sum(axis=1) / np.maximum(shown.sum(axis=1), 1)
    return float(per_list.mean()) / profile_popularity - 1.0 if len(top) and profile_popularity else float("nan")


def _measures(top: Ints, catalogue: Catalogue) -> dict[str, float]:
    return {
        "coverage": catalogue_coverage(top, len(catalogue.item_ids)),
        "novelty": novelty(top, catalogue.likes, catalogue.num_users),
        "diversity": intra_list_diversity(top, catalogue.features),
        "popularity_lift": popularity_lift(top, catalogue.likes, catalogue.profile_popularity),
    }


def _top(codes: Ints, order: Ints, lists: Bools, k: int) -> Ints:
    """``(lists, k)`` items at the top of each order."""
    places = order[lists, :k]
    return np.where(places == PADDING, PADDING, np.take_along_axis(codes[lists], np.maximum(places, 0), axis=1))


def _shuffled(lists: OfferedLists, seed: int) -> Ints:
    keys = generator(seed, "random order").random(lists.places.shape)
    order = np.argsort(np.where(lists.places == PADDING, 2.0, keys), axis=1)
    return np.where(lists.places == PADDING, PADDING, order)


def _pair_distances(top: Ints, features: Any) -> Iterator[tuple[Floats, Bools, Ints]]:
    """For each two places: the Jaccard distance, whether it is known, and the lists that have both places."""
    sizes = np.asarray(features.sum(axis=1)).ravel()
    for left in range(top.shape[1]):
        for right in range(left + 1, top.shape[1]):
            rows = np.flatnonzero(top[:, right] != PADDING)
            first, second = top[rows, left], top[rows, right]
            common = np.asarray(features[first].multiply(features[second]).sum(axis=1)).ravel()
            union = sizes[first] + sizes[second] - common
            yield 1.0 - common / np.maximum(union, 1), union > 0, rows


def _features(items: pa.Table) -> tuple[Any, str]:
    """Genres where the catalogue has any, words of the title otherwise."""
    genres = items["genres"].to_pylist()
    if any(genres):
        return _matrix(genres), "genres"
    return _matrix([title.lower().split() for title in items["title"].to_pylist()]), "title words"


def _matrix(words: list[list[str]]) -> Any:
    known = {word: at for at, word in enumerate(sorted({word for one in words for word in one}))}
    pairs = [(row, known[word]) for row, one in enumerate(words) for word in sorted(set(one))]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return csr_array((np.ones(len(pairs)), (rows, columns)), shape=(len(words), max(len(known), 1)))
