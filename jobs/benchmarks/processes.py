"""What a command costs, all processes it starts included."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.sources import ROOT
from recranker.errors import RecrankerError

EVERY_S = 0.5
"""Seconds between two looks at the processes."""
SHARED_MEMORY = Path("/dev/shm")
"""Where Ray's object stores lie."""


@dataclass(frozen=True)
class Cost:
    """Of one command, from its start to its end."""

    wall_s: float
    cpu_s: float
    """Of all its processes; what one does after the last look at it is lost."""
    peak_memory_gb: float
    """Of all processes together; memory that several share counts once."""
    peak_shared_gb: float
    """Shared memory of the machine on top of what was in use before: Ray's object stores."""


def run_measured(arguments: Sequence[str], environment: dict[str, str]) -> Cost:
    """Run ``python -m`` with ``arguments`` to its end, and watch it.

    Raises:
        RecrankerError: If it does not end with 0, with the last line it wrote.
    """
    started, before = time.perf_counter(), _shared_bytes()
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watch = Watch(process.pid, before)
        thread = threading.Thread(target=watch.run, daemon=True)
        thread.start()
        said, _ = process.communicate()
        watch.ended.set()
        thread.join()
    if process.returncode != 0:
        last = [line.strip() for line in said.splitlines() if line.strip()][-1:]
        raise RecrankerError(f"{' '.join(arguments[:2])} ended with code {process.returncode}: {' '.join(last)}")
    wall_s = time.perf_counter() - started
    return Cost(wall_s, sum(watch.cpu_s.values()), watch.peak_memory / 1e9, watch.peak_shared / 1e9)


class Watch:
    """Looks at a process and all that came from it every now and then."""

    def __init__(self, pid: int, shared_before: int) -> None:
        self.root = psutil.Process(pid)
        self.shared_before = shared_before
        self.ended = threading.Event()
        self.cpu_s: dict[tuple[int, float], float] = {}
        """By process id and start: CPU seconds at the last look."""
        self.peak_memory = 0
        self.peak_shared = 0

    def run(self) -> None:
        """Until ``ended`` is set."""
        while not self.ended.wait(EVERY_S):
            self.look()

    def look(self) -> None:
        """Take note of what there is."""
        try:
            processes = [self.root, *self.root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        self.peak_memory = max(self.peak_memory, sum(map(self._noted, processes)))
        self.peak_shared = max(self.peak_shared, _shared_bytes() - self.shared_before)

    def _noted(self, process: psutil.Process) -> int:
        """Bytes the process has for itself, and its part of those shared."""
        try:
            times = process.cpu_times()
            self.cpu_s[process.pid, process.create_time()] = times.user + times.system
            return int(process.memory_full_info().pss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return 0


def _shared_bytes() -> int:
    return psutil.disk_usage(str(SHARED_MEMORY)).used if SHARED_MEMORY.is_dir() else 0
