"""Workers that are threads of one process."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recranker.backbones.training import Collective


class Threads:
    """A worker that adds up with the others through a shared list."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, shared: list[Tensor]) -> None:
        self.rank, self.world, self.barrier, self.shared = rank, world, barrier, shared

    def all_reduce(self, values: Tensor) -> None:
        self.shared[self.rank] = values.clone()
        self.barrier.wait(10)
        total = torch.stack(self.shared).sum(dim=0)
        self.barrier.wait(10)
        values.copy_(total)


def on_workers(world: int, work: Callable[[Collective], Any]) -> list[Any]:
    """What ``work`` returns on each of ``world`` workers; the first error of any is raised."""
    barrier, shared = threading.Barrier(world), [torch.empty(0)] * world
    results: list[Any] = [None] * world
    errors: list[Exception] = []

    def one(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, world, barrier, shared))
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    if errors:
        raise errors[0]
    return results
