"""Work in a process of its own, so that its peak of memory and its threads are its own too."""

import multiprocessing
import os
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from jobs.benchmarks.workers import THREAD_VARIABLES


def in_own_process(threads: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` returns, or raises, in a fresh process with so many threads."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))  # read when a library is loaded
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def peak_rss_gb() -> float:
    """Most memory of the machine that this process has held so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
