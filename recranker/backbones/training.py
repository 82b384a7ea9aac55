"""The one training loop of all factor models, alone or shared by several workers.

Every worker walks through the same keyed order of events and takes its slice of each global batch;
gradients are summed over the workers and divided by the global batch. One worker or many give
the same parameters up to the order of float additions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recranker.backbones.examples import Examples
from recranker.backbones.protocol import Backbone
from recranker.randomness import generator


class Collective(Protocol):
    """The workers that share a fit."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def all_reduce(self, values: Tensor) -> None:
        """Replace ``values`` by their sum over all workers, in place."""
        ...


class Alone:
    """A single worker."""

    rank = 0
    world = 1

    def all_reduce(self, values: Tensor) -> None:
        pass


@dataclass(frozen=True)
class EarlyStopping:
    """When to look at validation, and when to give up."""

    evaluate: Callable[[], float]
    """Quality of the model as it is now, higher is better; the same number on every worker."""
    check_every: int
    """Epochs between two looks."""
    patience: int
    """Looks without improvement before training stops."""


@dataclass(frozen=True)
class Outcome:
    """What training came to."""

    epochs: int
    """Passes over the events behind the parameters kept."""
    best: float
    """Their validation quality; NaN without early stopping."""


def train(
    model: Backbone,
    examples: Examples,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    key: tuple[str | int, ...],
    collective: Collective,
    device: torch.device,
    stopping: EarlyStopping | None = None,
    on_epoch: Callable[[], None] = lambda: None,
) -> Outcome:
    """Fit ``model`` in place with Adam; with ``stopping`` its best checked state is what remains.

    Args:
        batch_size: Events per step, all workers together.
        key: Prefix of all random keys; equal on every worker.
        on_epoch: Called after every epoch.
    """
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    best = _Best(model, stopping) if stopping else None
    for epoch in range(1, epochs + 1):
        for columns, total in _batches(examples, epoch, batch_size, key, collective, device):
            optimizer.zero_grad()
            (model.loss(*columns) / total).backward()  # type: ignore[no-untyped-call]
            _sum_gradients(parameters, collective)
            optimizer.step()
        on_epoch()
        if best and best.enough(epoch, last=epoch == epochs):
            break
    return best.restore() if best else Outcome(epochs, float("nan"))


class _Best:
    """Keeps the best state seen at a check and knows when to give up."""

    def __init__(self, model: Backbone, stopping: EarlyStopping) -> None:
        self.model, self.stopping = model, stopping
        self.outcome = Outcome(0, float("-inf"))
        self.state: dict[str, Tensor] = {}
        self.checks_since = 0

    def enough(self, epoch: int, *, last: bool) -> bool:
        """Check where one is due; True when patience is at its end."""
        if epoch % self.stopping.check_every and not last:
            return False
        found = self.stopping.evaluate()
        if found > self.outcome.best:
            self.outcome, self.checks_since = Outcome(epoch, found), 0
            self.state = {name: value.clone() for name, value in self.model.state_dict().items()}
        else:
            self.checks_since += 1
        return self.checks_since >= self.stopping.patience

    def restore(self) -> Outcome:
        """Put the best state back into the model."""
        self.model.load_state_dict(self.state)
        return self.outcome


def slice_of(batch: NDArray[np.int64], collective: Collective) -> NDArray[np.int64]:
    """This worker's part of a global batch; empty where there are more workers than events."""
    return batch[collective.rank :: collective.world]


def _batches(
    examples: Examples,
    epoch: int,
    batch_size: int,
    key: tuple[str | int, ...],
    collective: Collective,
    device: torch.device,
) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor], int]]:
    """This worker's slices of one epoch's batches, each with the size of the whole batch."""
    order = generator(*key, "order", epoch).permutation(len(examples))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    slices = [slice_of(batch, collective) for batch in batches]
    # one lookup and one copy to the device per epoch
    users, items, third = (
        torch.from_numpy(column).to(device) for column in examples.columns(epoch, np.concatenate(slices))
    )
    start = 0
    for batch, mine in zip(batches, slices, strict=True):
        part = slice(start, start + len(mine))
        yield (users[part], items[part], third[part]), len(batch)
        start += len(mine)


def _sum_gradients(parameters: list[torch.nn.Parameter], collective: Collective) -> None:
    """Sum all gradients over the workers in one message."""
    if collective.world == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    collective.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
