"""A fitted recommender, free of the model and the library that made it.

Shapes: ``U`` users, ``I`` items, ``D`` factors.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Fit:
    """A fitted recommender, free of the model that made it."""

    user_factors: NDArray[np.float32]
    """``(U, D)``."""
    item_factors: NDArray[np.float32]
    """``(I, D)``."""
    epochs: int = 0
    """Passes over the training events behind these factors."""
    validation_hr_at_10: float = float("nan")
    """Share of validation users with their target in the top 10; NaN where validation was not looked at."""

    def scores(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """``(users, I)`` score of every item; float64 inside, so that block sizes do not move the last bits."""
        exact = self.user_factors[users].astype(np.float64) @ self.item_factors.astype(np.float64).T
        return exact.astype(np.float32)

    def pair_scores(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """``(pairs,)`` score of each user for one item."""
        left, right = self.user_factors[users].astype(np.float64), self.item_factors[items].astype(np.float64)
        scores: NDArray[np.float32] = np.einsum("pd,pd->p", left, right).astype(np.float32)
        return scores
