"""A fitted recommender, free of the training that made it: whom it is asked for, and what it answers.

Shapes: ``U`` users, ``I`` items, ``Q`` queries, ``D`` factors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recranker.backbones.topk import ItemSets

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Queries:
    """Whom to score all items for, and what each had liked by then."""

    users: Indices
    """``(Q,)`` user indices."""
    histories: ItemSets
    """Per query the liked items, the oldest first."""

    def part(self, start: int, end: int) -> "Queries":
        """Queries ``start`` up to ``end``."""
        return Queries(self.users[start:end], self.histories.rows(start, end))


class Fit(Protocol):
    """What every fitted backbone promises."""

    @property
    def user_factors(self) -> Floats:
        """``(U, D)`` embeddings of the users by their training likes, for clustering."""
        ...

    @property
    def item_factors(self) -> Floats:
        """``(I, D)`` embeddings of the items, for similarity."""
        ...

    @property
    def epochs(self) -> int:
        """Passes over the training events behind this fit; 0 where none were needed."""
        ...

    @property
    def validation_ndcg_at_10(self) -> float:
        """Mean NDCG@10 over the validation users; NaN where validation was not looked at."""
        ...

    def scores(self, queries: Queries) -> Floats:
        """``(Q, I)`` score of every item, higher is better."""
        ...


@dataclass(frozen=True)
class FactorFit:
    """Factors whose inner product is the score; histories after the fit are not looked at."""

    user_factors: Floats
    """``(U, D)``."""
    item_factors: Floats
    """``(I, D)``."""
    epochs: int = 0
    validation_ndcg_at_10: float = float("nan")

    def scores(self, queries: Queries) -> Floats:
        """``(Q, I)``; float64 inside, so that block sizes do not move the last bits."""
        exact = self.user_factors[queries.users].astype(np.float64) @ self.item_factors.astype(np.float64).T
        return exact.astype(np.float32)

    def pair_scores(self, users: Indices, items: Indices) -> Floats:
        """``(pairs,)`` score of each user for one item."""
        left, right = self.user_factors[users].astype(np.float64), self.item_factors[items].astype(np.float64)
        scores: Floats = np.einsum("pd,pd->p", left, right).astype(np.float32)
        return scores

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All of it by name, for ``from_arrays``."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "FactorFit":
        """What ``arrays`` gave."""
        return cls(
            arrays["user_factors"].astype(np.float32),
            arrays["item_factors"].astype(np.float32),
            int(arrays["epochs"]),
            float(arrays["validation_ndcg_at_10"]),
        )
