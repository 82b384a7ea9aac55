"""What a conventional re-ranker looks at: per candidate, numbers about it and the user's latest likes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recranker.backbones.choice import standardised
from recranker.backbones.events import Interactions
from recranker.backbones.fit import Fit
from recranker.backbones.folds import FoldData

Floats = NDArray[np.float64]

FEATURES = (
    "backbone_score",
    "backbone_place",
    "popularity",
    "predicted_rating",
    "similarity_to_last_5",
    "similarity_to_last_10",
    "follows_last_10",
)
"""Columns of ``features_of``, each a z-score within its list."""

REACH = 5
"""How many likes later an item still counts as following another."""
FADE = 0.8
"""Weight of one like further back, in transitions and in the history they start from."""


@dataclass(frozen=True)
class Evidence:
    """What one fold knows of items and of the order in which users liked them."""

    vectors: Floats
    """``(items, dim)`` of unit length: the retriever's item embeddings."""
    transitions: csr_matrix
    """``(items, items)``: how often the column was liked within REACH likes after the row, faded."""
    liked: tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]
    """Users, sequence numbers and items of the likes a history may hold, sorted."""

    @classmethod
    def of(cls, interactions: Interactions, data: FoldData, retriever: Fit) -> "Evidence":
        """Of the fold ``data`` with its own retriever: nothing that the fold's fits have not seen."""
        vectors = np.asarray(retriever.item_factors, dtype=np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = np.flatnonzero(interactions.likes & np.isin(interactions.splits, ("train", "validation")))
        liked = interactions.users[rows], interactions.sequences[rows], interactions.items[rows]
        return cls(vectors / np.maximum(lengths, 1e-12), transitions(data), liked)

    def features_of(self, row: dict[str, Any], user: int, items: NDArray[np.int64]) -> Floats:
        """``(candidates, FEATURES)`` of one list; ``row`` is its CANDIDATES row.

        Args:
            row: Scores, ratings, popularity and where the history ends.
            user: Index of the user.
            items: ``(candidates,)`` indices of the candidates.
        """
        recent = self._history(user, row["before"])[-10:][::-1]  # the latest first
        columns = [
            np.asarray(row["backbone_scores"], np.float64),
            -np.log(np.arange(1, len(items) + 1)),
            np.log1p(np.asarray(row["popularity"], np.float64)),
            np.asarray(row["predicted_ratings"], np.float64),
            self._similarity(items, recent[:5]),
            self._similarity(items, recent),
            self._follows(items, recent),
        ]
        return np.stack([standardised(column) for column in columns], axis=1)

    def _history(self, user: int, before: int) -> NDArray[np.int64]:
        users, sequences, items = self.liked
        start, end = np.searchsorted(users, [user, user + 1])
        return items[start : start + np.searchsorted(sequences[start:end], before)]

    def _similarity(self, items: NDArray[np.int64], recent: NDArray[np.int64]) -> Floats:
        if not len(recent):
            return np.zeros(len(items))
        return np.asarray(self.vectors[items] @ self.vectors[recent].mean(axis=0))

    def _follows(self, items: NDArray[np.int64], recent: NDArray[np.int64]) -> Floats:
        if not len(recent):
            return np.zeros(len(items))
        fading = FADE ** np.arange(len(recent))
        return np.asarray(np.log1p(fading @ self.transitions[recent][:, items].toarray()))


def transitions(data: FoldData) -> csr_matrix:
    """``(items, items)`` faded counts of the column following the row within REACH likes of one user."""
    counted = csr_matrix((data.num_items, data.num_items), dtype=np.float64)
    for distance in range(1, REACH + 1):
        same = data.like_users[:-distance] == data.like_users[distance:]
        first, later = data.like_items[:-distance][same], data.like_items[distance:][same]
        weights = np.full(len(first), FADE ** (distance - 1))
        counted = counted + csr_matrix((weights, (first, later)), shape=counted.shape)
    return counted


def indices_of(interactions: Interactions, lists: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """User index of every list, and item index of every candidate of all lists, one list after another."""
    users = pa.compute.index_in(lists["user_id"].combine_chunks(), value_set=interactions.user_ids)
    offered = lists["candidate_ids"].combine_chunks().flatten()
    items = pa.compute.index_in(offered, value_set=interactions.item_ids)
    return users.to_numpy().astype(np.int64), items.to_numpy().astype(np.int64)
