"""What a process and all that came from it use: CPU seconds, memory."""

from collections.abc import Iterable, Mapping
from contextlib import suppress

import psutil

Key = tuple[int, float]
"""A process: its id and its start."""


def tree_of(pid: int) -> list[psutil.Process]:
    """The process and all below it that are there now; none where it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(processes: Iterable[psutil.Process]) -> dict[Key, float]:
    """CPU seconds of each since its start."""
    found: dict[Key, float] = {}
    for one in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = one.cpu_times()
            found[one.pid, one.create_time()] = times.user + times.system
    return found


def cpu_between(before: Mapping[Key, float], after: Mapping[Key, float]) -> float:
    """CPU seconds spent between two looks, by all that were there at the second one."""
    return sum(seconds - before.get(key, 0.0) for key, seconds in after.items())


def memory_bytes(processes: Iterable[psutil.Process]) -> int:
    """Resident memory of all of them; what several share counts once."""
    total = 0
    for one in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += int(one.memory_full_info().pss)
    return total
