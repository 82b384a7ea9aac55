"""The one training loop of all factor models, alone or shared by several workers.

Every worker walks through the same keyed order of events and takes its slice of each global batch;
gradients are summed over the workers and divided by the global batch. One worker or many give
the same parameters up to the order of float additions.
"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recranker.backbones.examples import Examples
from recranker.backbones.protocol import Backbone
from recranker.randomness import generator

LOOKUP_EVENTS = 131_072
"""Events whose columns are looked up at a time."""


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


@dataclass(frozen=True)
class TrainingState:
    """All that a restarted fit needs to go on as if nothing had happened."""

    epoch: int
    """Epochs behind."""
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    best: dict[str, Tensor]
    """The best parameters seen at a check; empty before the first."""
    outcome: Outcome
    """Of the best parameters."""
    checks_since: int
    """Checks since then."""


@dataclass(frozen=True)
class Checkpointing:
    """When a state is handed over, and the one to go on from."""

    save: Callable[[TrainingState], None]
    """Called on every worker after the same epoch."""
    every_s: float
    """Seconds between two calls, by the first worker's clock."""
    start: TrainingState | None = None


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
    checkpointing: Checkpointing | None = None,
    on_epochs: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """Fit ``model`` in place with Adam; with ``stopping`` its best checked state is what remains.

    Args:
        batch_size: Events per step, all workers together.
        key: Prefix of all random keys; equal on every worker.
        on_epochs: Told of epochs as they are done; those before a restart count too.
    """
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    best = _Best(model, stopping) if stopping else None
    clock = _Clock(checkpointing, collective, device) if checkpointing else None
    first = 1
    if checkpointing and checkpointing.start:
        first = _restore(checkpointing.start, model, optimizer, best)
        on_epochs(first - 1)
    for epoch in range(first, epochs + 1):
        model.begin_epoch(epoch)
        for columns, total in _batches(examples, epoch, batch_size, key, collective, device):
            optimizer.zero_grad()
            (model.loss(*columns) / total).backward()  # type: ignore[no-untyped-call]
            _sum_gradients(parameters, collective)
            optimizer.step()
        on_epochs(1)
        if best and best.enough(epoch, last=epoch == epochs):
            break
        if clock and epoch < epochs and clock.due():
            clock.save(_state(epoch, model, optimizer, best))
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
            self.state = _copy(self.model.state_dict())
        else:
            self.checks_since += 1
        return self.checks_since >= self.stopping.patience

    def restore(self) -> Outcome:
        """Put the best state back into the model."""
        self.model.load_state_dict(self.state)
        return self.outcome


class _Clock:
    """Says after an epoch whether a checkpoint is due: the first worker's clock decides for all."""

    def __init__(self, checkpointing: Checkpointing, collective: Collective, device: torch.device) -> None:
        self.save, self.every_s = checkpointing.save, checkpointing.every_s
        self.collective, self.device = collective, device
        self.last = time.monotonic()

    def due(self) -> bool:
        late = self.collective.rank == 0 and time.monotonic() - self.last >= self.every_s
        votes = torch.tensor([float(late)], device=self.device)
        self.collective.all_reduce(votes)
        if votes.item() > 0:
            self.last = time.monotonic()
        return bool(votes.item() > 0)


def _state(epoch: int, model: Backbone, optimizer: torch.optim.Optimizer, best: _Best | None) -> TrainingState:
    outcome, checks = (best.outcome, best.checks_since) if best else (Outcome(0, float("-inf")), 0)
    kept = best.state if best else {}
    moments = copy.deepcopy(optimizer.state_dict())  # Adam changes its own in place
    return TrainingState(epoch, _copy(model.state_dict()), moments, kept, outcome, checks)


def _restore(state: TrainingState, model: Backbone, optimizer: torch.optim.Optimizer, best: _Best | None) -> int:
    """Take ``state``; returns the first epoch still to do."""
    model.load_state_dict(state.model)
    optimizer.load_state_dict(copy.deepcopy(state.optimizer))
    if best:
        best.state, best.outcome, best.checks_since = state.best, state.outcome, state.checks_since
    return state.epoch + 1


def _copy(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


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
) -> Iterator[tuple[list[Tensor], int]]:
    """This worker's slices of one epoch's batches, each with the size of the whole batch."""
    order = generator(*key, "order", epoch).permutation(len(examples))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    together = max(LOOKUP_EVENTS // batch_size, 1)  # batches per lookup and copy to the device
    for first in range(0, len(batches), together):
        chunk = batches[first : first + together]
        slices = [slice_of(batch, collective) for batch in chunk]
        found = [torch.from_numpy(column).to(device) for column in examples.columns(epoch, np.concatenate(slices))]
        start = 0
        for batch, mine in zip(chunk, slices, strict=True):
            yield [column[start : start + len(mine)] for column in found], len(batch)
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
