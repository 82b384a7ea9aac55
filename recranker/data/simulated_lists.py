"""The tables of stages 'prepare' and 'backbone' for a simulated service, without a backbone being fitted.

Histories are split as stage 'prepare' splits them. **Candidates are simulated too:** ten items per target, drawn by
popularity and by the user's latest taste, scored by both and by chance, with the target among those drawn in half of
the lists. No model has been fitted, and nothing learned from these lists says anything about a method. They have the
shape, the size and the honesty of real ones (the leakage gate passes), which is what a test of scale needs.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.lookup import places
from recranker.data.simulated_service import (
    NUM_GENRES,
    SCALE,
    STEPS,
    THRESHOLDS,
    Histories,
    ServiceSettings,
    catalogue_of,
    events_table,
    genres_at,
    histories_of,
    item_ids,
    rating_level,
    repeats,
    user_ids,
)
from recranker.data.splits import SPLITS, TEST, TRAIN, UNUSED, VALIDATION, Events, leave_one_out
from recranker.randomness import Keys, mix, uniforms
from recranker.schema import CANDIDATES, INTERACTIONS, USER_FACTORS

NUM_CANDIDATES = 10
MIN_TRAINING_LIKES = 5
"""A user with fewer has no training list, as in stage 'backbone'."""
FOLDS = ("full", "rolled_back")
"""Of validation and test lists; of training lists, whose targets it has not seen."""

_DRAWN = 32
"""Items drawn by taste and popularity for a list."""
_ANY = (16, 500)
"""Items drawn from all for a list; where ten new ones are not found, it is made again with the second number."""
_TARGET_SHARE = 0.5
"""Of lists that have the target among the items drawn."""
_SPLIT_OF = {"train": TRAIN, "validation": VALIDATION, "test": TEST}

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """Feedback and split of every event of a shard, before what is known of other shards. ``N`` events."""

    likes: Bools
    """``(N,)``."""
    splits: Ints
    """``(N,)`` TRAIN, VALIDATION, TEST or UNUSED."""
    training_targets: Ints
    """Rows of the likes that training lists ask for: the last training like of users drawn for it."""


@dataclass(frozen=True)
class Popularity:
    """Training likes of every item, all shards together."""

    full: NDArray[np.int32]
    """``(items,)``."""
    rolled_back: NDArray[np.int32]
    """``(items,)`` without the targets of training lists."""

    def of(self, fold: str) -> NDArray[np.int32]:
        """``(items,)`` in the fold."""
        return self.full if fold == "full" else self.rolled_back


@dataclass(frozen=True)
class Lists:
    """The targets of one split, with what their users know. ``L`` lists."""

    split: str
    rows: Ints
    """``(L,)`` event of the target."""
    users: Ints
    """``(L,)`` place of the user in the shard."""
    targets: Ints
    """``(L,)`` item number."""

    @property
    def fold(self) -> str:
        """The fit that scores them, if there were one."""
        return FOLDS[self.split == "train"]

    def only(self, chosen: Ints) -> "Lists":
        """Some of them."""
        return Lists(self.split, self.rows[chosen], self.users[chosen], self.targets[chosen])


@dataclass(frozen=True)
class Shard:
    """Some users, and what their lists are made from."""

    service: ServiceSettings
    histories: Histories
    split: Split
    """With its targets known."""
    popularity: Popularity

    def likes_of(self, lists: Lists) -> NDArray[np.int32]:
        """``(items,)`` training likes in the fold of some lists."""
        return self.popularity.of(lists.fold)

    def keys_of(self, lists: Lists) -> Keys:
        """``(L,)``."""
        return self.service.keys(f"{lists.split} list", self.histories.people.numbers[lists.users])


def split_of(service: ServiceSettings, histories: Histories) -> Split:
    """Leave-one-out, and who has a training list."""
    likes = histories.ratings >= THRESHOLDS[0]
    splits = leave_one_out(Events(histories.users, histories.items, likes))
    rows = np.flatnonzero(likes & (splits == TRAIN))
    users = histories.users[rows]
    last = np.append(users[1:] != users[:-1], True)[: len(users)]
    enough = np.bincount(users, minlength=len(histories.people.numbers)) >= MIN_TRAINING_LIKES
    drawn = uniforms(service.keys("train share", histories.people.numbers), 0) < service.train_share
    return Split(likes, splits, rows[last & (enough & drawn)[users]])


def training_likes(histories: Histories, split: Split, num_items: int) -> Popularity:
    """What this shard adds to the popularity of items."""
    full = np.bincount(histories.items[split.likes & (split.splits == TRAIN)], minlength=num_items)
    held_back = np.bincount(histories.items[split.training_targets], minlength=num_items)
    return Popularity(full.astype(np.int32), (full - held_back).astype(np.int32))


def shard_of(service: ServiceSettings, numbers: range, popularity: Popularity) -> Shard:
    """The users of these numbers, with targets whose item no training like holds as unused, as in stage 'prepare'."""
    histories = histories_of(service, numbers)
    split = split_of(service, histories)
    held_out = (split.splits == VALIDATION) | (split.splits == TEST)
    unseen = held_out & (popularity.full[histories.items] == 0)
    known = replace(split, splits=np.where(unseen, UNUSED, split.splits))
    return Shard(service, histories, known, popularity)


def interactions_table(histories: Histories, split: Split) -> pa.Table:
    """INTERACTIONS of one shard."""
    events = events_table(histories)
    below = np.where(histories.ratings < THRESHOLDS[1], 2, 1)
    feedback = pa.array(["like", "neutral", "dislike"]).take(pa.array(np.where(split.likes, 0, below)))
    columns = {
        **{name: events[name] for name in ("user_id", "item_id", "rating", "timestamp")},
        "sequence": pa.array(places(histories.users).astype(np.int32)),
        "feedback": feedback,
        "split": pa.array(SPLITS).take(pa.array(split.splits)),
    }
    return pa.table(columns, schema=INTERACTIONS.schema)


def factors_table(histories: Histories) -> pa.Table:
    """USER_FACTORS of one shard: each user's latest taste."""
    latest = histories.people.tastes[:, -1].astype(np.float32)
    ends = pa.array(np.arange(len(latest) + 1) * NUM_GENRES, pa.int32())
    factors = pa.ListArray.from_arrays(ends, pa.array(latest.reshape(-1)))
    return pa.table([user_ids(histories.people.numbers), factors], schema=USER_FACTORS.schema)


def candidates_table(shard: Shard) -> pa.Table:
    """CANDIDATES of one shard."""
    parts = []
    for name, number in _SPLIT_OF.items():
        split, events = shard.split, shard.histories
        rows = split.training_targets if name == "train" else _ranked(shard, number)
        lists = Lists(name, rows, events.users[rows], events.items[rows])
        parts.append(_described(shard, lists, *_offers(shard, lists)))
    return pa.concat_tables(parts)


def _ranked(shard: Shard, number: int) -> Ints:
    """Events of one held-out split whose users have lists."""
    rows = np.flatnonzero(shard.split.splits == number)
    keys = shard.service.keys("ranked share", shard.histories.people.numbers)
    drawn = uniforms(keys, 0) < shard.service.ranked_share
    return rows[drawn[shard.histories.users[rows]]]


def _offers(shard: Shard, lists: Lists) -> tuple[Ints, Floats]:
    """``(L, 10)`` items of each list, best first, -1 where there is none; and their scores."""
    items, scores = _best(shard, lists, _ANY[0])
    short = np.flatnonzero(items[:, -1] < 0)
    if len(short):  # who has met nearly everything, in a small catalogue
        items[short], scores[short] = _best(shard, lists.only(short), _ANY[1])
    return items, scores


def _best(shard: Shard, lists: Lists, anything: int) -> tuple[Ints, Floats]:
    """The best of what is drawn for each list, ``anything`` of it from all items."""
    items = _drawn(shard, lists, anything)
    scores = (
        0.4 * np.log1p(shard.likes_of(lists)[items]) + _liking(shard, lists, items) + _noise(shard, lists, items, 0)
    )
    scores = np.where(_may_be_offered(shard, lists, items), scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :NUM_CANDIDATES]
    best = np.take_along_axis(scores, order, axis=1)
    return np.where(np.isfinite(best), np.take_along_axis(items, order, axis=1), -1), best


def _drawn(shard: Shard, lists: Lists, anything: int) -> Ints:
    """``(L, D)`` items, some more than once: by taste and popularity, from all with a like, and maybe the target."""
    keys, service = shard.keys_of(lists), shard.service
    users = np.repeat(lists.users, _DRAWN)
    genre, share = (uniforms(keys[:, None], start + np.arange(_DRAWN)).reshape(-1) for start in (0, _DRAWN))
    genres = genres_at(shard.histories.people, users, np.full(len(users), STEPS - 1), genre)
    by_taste = catalogue_of(service).item_at(genres, share).reshape(-1, _DRAWN)
    known = np.flatnonzero(shard.likes_of(lists))
    at = (uniforms(keys[:, None], 2 * _DRAWN + np.arange(anything)) * len(known)).astype(np.int64)
    target = np.where(uniforms(keys, 10_000) < _TARGET_SHARE, lists.targets, by_taste[:, 0])
    return np.concatenate([target[:, None], by_taste, known[at]], axis=1)


def _noise(shard: Shard, lists: Lists, items: Ints, number: int) -> Floats:
    """``(L, D)`` logistic, keyed by list and item."""
    chances = uniforms(mix(shard.keys_of(lists)[:, None], items), number)
    return np.asarray(np.log(chances / (1 - chances)), dtype=np.float64)


def _liking(shard: Shard, lists: Lists, items: Ints) -> Floats:
    """``(L, D)`` how much the user's latest taste likes each item."""
    latest = np.repeat(lists.users * STEPS + STEPS - 1, items.shape[1])
    tastes = shard.histories.people.tastes.reshape(-1, NUM_GENRES)
    return catalogue_of(shard.service).liking(tastes, items.reshape(-1), latest).reshape(items.shape)


def _may_be_offered(shard: Shard, lists: Lists, items: Ints) -> Bools:
    """``(L, D)`` the first time in its list, liked by somebody in training, and no other like of the user's own."""
    count, width = items.shape
    flat, num_items, events = items.reshape(-1), shard.service.items, shard.histories
    allowed = shard.likes_of(lists)[flat] > 0
    place, starts = np.tile(np.arange(width), count), np.arange(count) * width
    allowed[repeats(np.repeat(np.arange(count), width), flat, place, starts, num_items)] = False
    liked = np.sort(events.users[shard.split.likes] * num_items + events.items[shard.split.likes])
    pairs = np.repeat(lists.users, width) * num_items + flat
    own = liked[np.minimum(np.searchsorted(liked, pairs), len(liked) - 1)] == pairs if len(liked) else allowed & False
    return np.asarray((allowed & (~own | (flat == np.repeat(lists.targets, width)))).reshape(items.shape))


def _described(shard: Shard, lists: Lists, items: Ints, scores: Floats) -> pa.Table:
    there, likes = items >= 0, shard.likes_of(lists)[items]
    liking, quality = _liking(shard, lists, items), catalogue_of(shard.service).quality[items]
    reranked = 0.2 * np.log1p(likes) + 1.2 * liking + 0.5 * quality + 0.5 * _noise(shard, lists, items, 1)
    user = user_ids(shard.histories.people.numbers).take(pa.array(lists.users))
    target, split = item_ids(lists.targets), pa.repeat(lists.split, len(items))
    columns: dict[str, Any] = {
        "list_id": pc.binary_join_element_wise(split, user, target, "/"),
        "user_id": user,
        "split": split,
        "target_id": target,
        "target_rating": shard.histories.ratings[lists.rows],
        "hit": (items == lists.targets[:, None]).any(axis=1),
        "before": places(shard.histories.users)[lists.rows].astype(np.int32),
        "fold": pa.repeat(lists.fold, len(items)),
        "candidate_ids": _listed(there, item_ids(items[there])),
    }
    numbers: dict[str, NDArray[Any]] = {
        "backbone_scores": scores,
        "predicted_ratings": np.clip(rating_level(liking, quality, 0.0), *SCALE),
        "popularity": likes,
        "reranker_scores": reranked,
    }
    columns |= {name: _listed(there, pa.array(one[there].astype(np.float32))) for name, one in numbers.items()}
    return pa.table(columns, schema=CANDIDATES.schema)


def _listed(there: Bools, values: pa.Array) -> pa.Array:
    """``values``, one for each True of ``there`` ``(L, D)``, as a list per row."""
    ends = np.append(0, np.cumsum(there.sum(axis=1)))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)
