"""What the shared training loop asks of a model (``training.train``).

Shapes: ``U`` users, ``I`` items, ``B`` events of a batch, ``D`` factors.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from recranker.backbones.fit import Fit


class Backbone(Protocol):
    """A model that learns from batches of events."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What Adam moves."""
        ...

    def begin_epoch(self, epoch: int) -> None:
        """Draw what changes from epoch to epoch, the same on every worker."""
        ...

    def loss(self, *columns: Tensor) -> Tensor:
        """Loss *summed* over the events whose columns are given, so that workers may share a batch."""
        ...

    def fit(self) -> Fit:
        """The recommender as it is now."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All parameters by name."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take parameters of ``state_dict``."""
        ...
