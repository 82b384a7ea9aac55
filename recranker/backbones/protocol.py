"""What every conventional recommender promises: factors whose inner product is the score.

Shapes: ``U`` users, ``I`` items, ``B`` events of a batch, ``D`` factors.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn


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
