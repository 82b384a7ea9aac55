"""What every conventional recommender promises: factors whose inner product is the score.

Shapes: ``U`` users, ``I`` items, ``B`` events of a batch, ``D`` factors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn


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


class Backbone(Protocol):
    """A model the shared training loop can fit (``training.train``)."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What Adam moves."""
        ...

    def loss(self, users_B: Tensor, items_B: Tensor, third_B: Tensor) -> Tensor:
        """Loss *summed* over the events: ``third`` is a negative item or a rating."""
        ...

    def factors(self) -> tuple[Tensor, Tensor]:
        """``(U, D)`` and ``(I, D)``; the score is their inner product."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All parameters by name."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take parameters of ``state_dict``."""
        ...
