"""What a training loop is fed: the events of a fold, and keyed negatives for likes."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recranker.backbones.folds import FoldData
from recranker.randomness import key_of, mix, uniforms

MAX_TRIES = 20
"""Draws for one negative before a known like is accepted: a user who likes nearly everything has few others."""

Columns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | NDArray[np.float32]]


class Examples(Protocol):
    """Numbered training events."""

    def __len__(self) -> int: ...

    def columns(self, epoch: int, events: NDArray[np.int64]) -> Columns:
        """Users, items, and a third column of the numbered ``events``, the same whoever asks and in whatever slices."""
        ...


class LikeExamples:
    """A user, an item the user likes, and an item drawn among those not known to be liked."""

    def __init__(self, fold: FoldData, key: tuple[str | int, ...]) -> None:
        self.users, self.items, self.key = fold.like_users, fold.like_items, key
        self.catalogue = np.unique(fold.like_items)
        self.num_items = fold.num_items
        self.known = np.unique(self.users * self.num_items + self.items)

    def __len__(self) -> int:
        return len(self.users)

    def columns(self, epoch: int, events: NDArray[np.int64]) -> Columns:
        return self.users[events], self.items[events], self.negatives(epoch, events)

    def negatives(self, epoch: int, events: NDArray[np.int64]) -> NDArray[np.int64]:
        """``(events,)`` uniform over the items somebody likes, keyed by (key, epoch, event number)."""
        base = np.full(len(events), key_of(*self.key, "negatives", epoch), dtype=np.uint64)
        keys = mix(base, events.astype(np.uint64))
        drawn = np.zeros(len(events), dtype=np.int64)
        open_ = np.arange(len(events))
        for attempt in range(MAX_TRIES):
            places = (uniforms(keys[open_], attempt) * len(self.catalogue)).astype(np.int64)
            drawn[open_] = self.catalogue[places]
            open_ = open_[self._is_liked(self.users[events[open_]], drawn[open_])]
            if not len(open_):
                break
        return drawn

    def _is_liked(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.bool_]:
        pairs = users * self.num_items + items
        places = np.searchsorted(self.known, pairs)
        found: NDArray[np.bool_] = self.known[np.minimum(places, len(self.known) - 1)] == pairs
        return found


class RatingExamples:
    """A user, an item, and the rating given."""

    def __init__(self, fold: FoldData) -> None:
        self.users, self.items, self.ratings = fold.rated_users, fold.rated_items, fold.ratings

    def __len__(self) -> int:
        return len(self.users)

    def columns(self, epoch: int, events: NDArray[np.int64]) -> Columns:
        return self.users[events], self.items[events], self.ratings[events]
