"""What a training loop is fed: the events of a fold, and keyed negatives for likes."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recranker.backbones.folds import FoldData
from recranker.randomness import key_of, mix, uniforms

MAX_TRIES = 20
"""Draws for one negative before a known like is accepted: a user who likes nearly everything has few others."""

TABLE_CELLS = 1 << 27
"""Up to so many pairs of user and item (128 MB) likes are looked up in a table, beyond by bisection."""

PADDING = -1
"""Stands where a sequence has no item."""

Indices = NDArray[np.int64]
Columns = tuple[NDArray[np.int64] | NDArray[np.float32], ...]


class Examples(Protocol):
    """Numbered training events."""

    def __len__(self) -> int: ...

    def columns(self, epoch: int, events: Indices) -> Columns:
        """One row per numbered event in each column, the same whoever asks and in whatever slices."""
        ...


class Negatives:
    """Items not known to be liked, uniform over those somebody likes."""

    def __init__(self, fold: FoldData, key: tuple[str | int, ...]) -> None:
        self.key = key
        self.catalogue = np.unique(fold.like_items)
        self.num_items = fold.num_items
        self.known = np.unique(fold.like_users * fold.num_items + fold.like_items)
        self.table = np.zeros(0, np.bool_)
        if fold.num_users * fold.num_items <= TABLE_CELLS:
            self.table = np.zeros(fold.num_users * fold.num_items, np.bool_)
            self.table[self.known] = True

    def draw(self, epoch: int, events: Indices, users: Indices, count: int) -> Indices:
        """``(events, count)`` items, keyed by (key, epoch, event number, place)."""
        base = np.full(len(events) * count, key_of(*self.key, "negatives", epoch), dtype=np.uint64)
        places = (events[:, None] * count + np.arange(count)).reshape(-1)
        keys, owners = mix(base, places.astype(np.uint64)), np.repeat(users, count)
        drawn = np.zeros(len(keys), dtype=np.int64)
        open_ = np.arange(len(keys))
        for attempt in range(MAX_TRIES):
            chosen = (uniforms(keys[open_], attempt) * len(self.catalogue)).astype(np.int64)
            drawn[open_] = self.catalogue[chosen]
            open_ = open_[self._is_liked(owners[open_], drawn[open_])]
            if not len(open_):
                break
        return drawn.reshape(len(events), count)

    def _is_liked(self, users: Indices, items: Indices) -> NDArray[np.bool_]:
        pairs = users * self.num_items + items
        if len(self.table):
            return np.asarray(self.table[pairs], dtype=np.bool_)
        places = np.minimum(np.searchsorted(self.known, pairs), len(self.known) - 1)
        return np.asarray(self.known[places] == pairs, dtype=np.bool_)


class LikeExamples:
    """A user, an item the user likes, and an item drawn among those not known to be liked."""

    def __init__(self, fold: FoldData, key: tuple[str | int, ...]) -> None:
        self.users, self.items, self.negatives = fold.like_users, fold.like_items, Negatives(fold, key)

    def __len__(self) -> int:
        return len(self.users)

    def columns(self, epoch: int, events: Indices) -> Columns:
        users = self.users[events]
        return users, self.items[events], self.negatives.draw(epoch, events, users, 1)[:, 0]


class MixedExamples(LikeExamples):
    """As ``LikeExamples`` with many negatives, and the share of the liked item in each of them, layer by layer."""

    def __init__(self, fold: FoldData, key: tuple[str | int, ...], *, negatives: int, layers: int) -> None:
        super().__init__(fold, key)
        self.key, self.count, self.layers = key, negatives, layers

    def columns(self, epoch: int, events: Indices) -> Columns:
        users = self.users[events]
        others = self.negatives.draw(epoch, events, users, self.count)
        return users, self.items[events], others, self._shares(epoch, events)

    def _shares(self, epoch: int, events: Indices) -> NDArray[np.float32]:
        """``(events, count, layers + 1)`` uniform in (0, 1); each 64-bit word of a stream gives four of 16 bits."""
        base = np.full(len(events) * self.count, key_of(*self.key, "shares", epoch), dtype=np.uint64)
        keys = mix(base, (events[:, None] * self.count + np.arange(self.count)).reshape(-1).astype(np.uint64))
        words = [mix(keys, counter).view(np.uint16).reshape(-1, 4) for counter in range(self.layers // 4 + 1)]
        drawn = np.concatenate(words, axis=1)[:, : self.layers + 1].astype(np.float32)
        return ((drawn + 0.5) / 65536.0).reshape(len(events), self.count, self.layers + 1)


class SequenceExamples:
    """Stretches of a user's likes, each with the like that follows at every place.

    A history longer than ``max_length`` is cut into several stretches from its end, so that every like but the
    first is predicted once.
    """

    def __init__(self, fold: FoldData, key: tuple[str | int, ...], *, max_length: int, negatives: int | None) -> None:
        histories = fold.histories
        self.items, self.count = histories.items, negatives
        self.max_length, self.negatives = max_length, Negatives(fold, key)
        per_user = np.maximum(-(-(histories.lengths - 1) // max_length), 0)
        self.users = np.repeat(np.arange(fold.num_users), per_user)
        nth = np.arange(len(self.users)) - np.repeat(np.cumsum(per_user) - per_user, per_user)
        self.ends = histories.starts[self.users + 1] - nth * max_length  # one behind the last like to predict
        self.starts = np.maximum(histories.starts[self.users], self.ends - max_length - 1)

    def __len__(self) -> int:
        return len(self.users)

    def columns(self, epoch: int, events: Indices) -> Columns:
        """Inputs and targets ``(events, max_length)`` from the left, ``PADDING`` behind; then negatives, if any."""
        starts, lengths = self.starts[events], (self.ends - self.starts)[events] - 1
        places = starts[:, None] + np.arange(self.max_length)
        inside = np.arange(self.max_length) < lengths[:, None]
        last = len(self.items) - 1
        inputs, targets = (
            np.where(inside, self.items[np.minimum(places + step, last)], PADDING).astype(np.int64) for step in (0, 1)
        )
        if self.count is None:
            return inputs, targets
        return inputs, targets, self.negatives.draw(epoch, events, self.users[events], self.count)


class RatingExamples:
    """A user, an item, and the rating given."""

    def __init__(self, fold: FoldData) -> None:
        self.users, self.items, self.ratings = fold.rated_users, fold.rated_items, fold.ratings

    def __len__(self) -> int:
        return len(self.users)

    def columns(self, epoch: int, events: Indices) -> Columns:
        return self.users[events], self.items[events], self.ratings[events]
