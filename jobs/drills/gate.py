"""One process of the service lost, and the wait until another one does its work."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

from jobs.load.hosting import Service
from jobs.load.usage import tree_of
from recranker.errors import RecrankerError

POLL_S = 0.2
"""Between two looks whether all is well again."""
TITLES = {"controller": "ServeController", "proxy": "ProxyActor"}
"""By component, a part of the title that Ray gives its process; other components are deployments."""


class Watched(Protocol):
    """What a drill knows of a service and can do to it."""

    def pids(self, component: str) -> set[int]:
        """Of the component's processes that are there now."""
        ...

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to one of them."""
        ...

    def state(self) -> dict[str, Any]:
        """What /readyz and Serve's controller say, whole; compared with what they said when all was well."""
        ...


class WatchedService:
    """A service of our own; no process is touched that is not below its host."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def pids(self, component: str) -> set[int]:
        """By title."""
        title = TITLES.get(component, f"ServeReplica:recranker:{component}")
        return {one.pid for one in tree_of(self.service.pid) if _titled(one, title)}

    def signal(self, pid: int, number: int) -> None:
        """To a process below the host, if it is still there."""
        if any(one.pid == pid for one in tree_of(self.service.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def state(self) -> dict[str, Any]:
        """Serve is asked only where /readyz answers, so that no question waits for a lost process."""
        readiness = self.service.readiness()
        return {"readiness": readiness, "serve": self.service.status() if readiness else {}}


def _titled(process: psutil.Process, title: str) -> bool:
    with suppress(psutil.Error):
        command = process.cmdline()
        return bool(command) and title in command[0]
    return False


@dataclass(frozen=True)
class Kill:
    """A process that was lost."""

    component: str
    at_s: float
    """When, in seconds of ``time.monotonic``."""
    good_s: float
    """When it was seen to be replaced, likewise."""

    @property
    def recovery_s(self) -> float:
        """Seconds between the two."""
        return self.good_s - self.at_s


def lose_one(
    component: str,
    watched: Watched,
    well: dict[str, Any],
    *,
    number: int = signal.SIGKILL,
    timeout_s: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Kill:
    """Send ``number`` to a process of a component, and wait until all is well without it.

    Args:
        component: 'controller', 'proxy', or a deployment.
        watched: The service.
        well: ``watched.state()`` as it must be again.
        number: SIGKILL, or SIGSTOP: the process that was stopped ends when it has been replaced.
        timeout_s: Seconds within which that must come to pass.
        now: Clock.
        sleep: Waits.

    Raises:
        RecrankerError: If the component has no process, or it is not replaced in time.
    """
    before = watched.pids(component)
    if not before:
        raise RecrankerError(f"no process of {component} found below the service; nothing to kill")
    victim, at_s = min(before), now()
    watched.signal(victim, number)
    while not (len(watched.pids(component) - {victim}) >= len(before) and watched.state() == well):
        if now() - at_s > timeout_s:
            raise RecrankerError(
                f"{component}: a process was lost and not replaced within {timeout_s:g} s; raise replaced_s where "
                "models take longer to load"
            )
        sleep(POLL_S)
    good_s = now()
    if number != signal.SIGKILL:
        watched.signal(victim, signal.SIGKILL)
    return Kill(component, at_s, good_s)
