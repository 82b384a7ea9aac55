"""Work in a process of its own, so that its peak of memory and its threads are its own too."""

import multiprocessing
import os
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from jobs.benchmarks.workers import THREAD_VARIABLES


def in_own_process(threads: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` returns, or raises, in a fresh process with so many threads."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))  # read when a library is loaded
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


_all_ready: Any = None
"""Barrier of the processes that ``in_own_processes`` started, in each of them."""


def in_own_processes(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``work`` returns in each of so many fresh processes of one thread; each is given its number first."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, initializer=_join, initargs=(context.Barrier(count),)) as pool:
        return list(pool.map(partial(_numbered, work, arguments), range(count)))


def wait_for_all(timeout_s: float = 600.0) -> None:
    """Go on when all processes of ``in_own_processes`` have come so far.

    Raises:
        BrokenBarrierError: If one of them does not.
    """
    _all_ready.wait(timeout_s)


def _join(barrier: Any) -> None:
    global _all_ready
    _all_ready = barrier


def _numbered(work: Callable[..., Any], arguments: tuple[Any, ...], number: int) -> Any:
    try:
        return work(number, *arguments)
    except BaseException:
        _all_ready.abort()  # the others need not wait
        raise


def peak_rss_gb() -> float:
    """Most memory of the machine that this process has held so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
