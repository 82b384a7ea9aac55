"""What a worker of a benchmark is told, and what it leaves behind.

A worker is a program with one system in it; some run where recranker is not installed, so this file needs numpy alone.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

TASK_FILE = "task.json"
LAPS_FILE = "laps.npz"
SPLIT_FILE = "split.npz"
TOP_K_FILE = "top_k.npz"
FOUND_FILE = "found.npz"
EPOCH_LINE = "epoch"
"""A worker prints it after each epoch, for whoever shows the progress."""

Factors = tuple[NDArray[np.float32], NDArray[np.float32]]
"""``(users, dim)`` and ``(items, dim)`` by the split's own indices; the score is their inner product."""


@dataclass(frozen=True)
class Task:
    """One measurement of one system."""

    kind: Literal["train", "top_k"]
    inputs: str
    """Folder of the split, or of the factors whose top items are wanted."""
    model: str = ""
    """'lightgcn' or 'mf'."""
    settings: dict[str, Any] | None = None
    """Of the model, by recranker's names; None: the system's own defaults."""
    epochs: int = 0
    check_every: int = 1
    """Epochs between two sets of factors to keep."""
    seed: int = 0
    repeats: int = 1
    """How often the top items are searched."""
    k: int = 10
    """How many top items."""

    def write(self, folder: Path) -> None:
        """Into the worker's folder."""
        (folder / TASK_FILE).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls) -> "Task":
        """From the folder the worker was started in."""
        return cls(**json.loads(Path(TASK_FILE).read_text()))


class Clock:
    """Wall and CPU seconds of this process, all threads together, between ``start`` and ``lap``."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.start()

    def start(self) -> None:
        """Begin a lap; what came before it is not counted."""
        self._cpu, self._wall = cpu_seconds(), time.perf_counter()

    def lap(self) -> None:
        """End a lap."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        self.seconds.append(wall - self._wall)
        self.cpu_seconds.append(cpu - self._cpu)

    def save(self) -> None:
        """Into the worker's folder."""
        np.savez(LAPS_FILE, seconds=self.seconds, cpu_seconds=self.cpu_seconds)


class Watch:
    """Times every epoch and keeps the factors of every ``check_every``-th; keeping them is not timed."""

    def __init__(self, task: Task) -> None:
        self.task, self.clock = task, Clock()

    def epoch_done(self, factors: Callable[[], Factors]) -> None:
        """End of an epoch."""
        self.clock.lap()
        done = len(self.clock.seconds)
        if done % self.task.check_every == 0 or done == self.task.epochs:
            users, items = factors()
            np.savez(factors_file(done), users=users, items=items)
        sys.stdout.write(f"{EPOCH_LINE}\n")
        sys.stdout.flush()
        self.clock.start()


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def factors_file(epoch: int | str) -> str:
    """Name of the file with the factors after ``epoch``; '*' matches all of them."""
    return f"factors-{epoch}.npz"


def epoch_of(file: Path) -> int:
    """The epoch in the name of such a file."""
    return int(file.stem.removeprefix("factors-"))


def time_top_k(task: Task, search: Callable[[], NDArray[np.int64]]) -> None:
    """Leave the times of ``search`` and what it found, ``(users, k)`` items, best first."""
    clock = Clock()
    for _ in range(task.repeats):
        clock.start()
        found = search()
        clock.lap()
    clock.save()
    np.savez(FOUND_FILE, items=found)


def work(train: Callable[[Task], Watch], top_k: Callable[[Task], None]) -> None:
    """Do the task of the folder this process was started in."""
    task = Task.read()
    if task.kind == "train":
        train(task).clock.save()
    else:
        top_k(task)
