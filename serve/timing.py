"""The header ``Server-Timing``: what the engine, waiting for it and the whole request took; numbers alone.

Standard: https://www.w3.org/TR/server-timing/
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic

from starlette.types import Message

from serve.scored import Scored

HEADER = b"server-timing"


@dataclass
class Timing:
    """One HTTP request's times."""

    arrived: float
    """In seconds of ``time.monotonic``."""
    ranks: bool = False
    """Whether something is ranked for it."""
    slowest: Scored | None = None
    """The answer that the engine took longest for."""

    def answered(self, scored: Scored) -> None:
        """Count a task's answer."""
        if self.slowest is None or scored.seconds > self.slowest.seconds:
            self.slowest = scored

    def header(self) -> bytes | None:
        """Value of the header in milliseconds; None where nothing was ranked.

        ``engine`` is the longest share of an engine's time over the tasks, ``queue`` what the same question waited in
        its replica, ``total`` the time since the request arrived at the router.
        """
        if not self.ranks:
            return None
        found = {"total": monotonic() - self.arrived}
        if self.slowest is not None:
            found = {"engine": self.slowest.seconds, "queue": self.slowest.waited, **found}
        return ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in found.items()).encode()


def with_times(message: Message, timing: Timing) -> Message:
    """The ASGI ``message`` with the header, where an answer that has one begins."""
    header = timing.header() if message["type"] == "http.response.start" else None
    return message if header is None else {**message, "headers": [*message.get("headers", ()), (HEADER, header)]}


_CURRENT: ContextVar[Timing | None] = ContextVar("timing", default=None)


@contextmanager
def timed(arrived: float) -> Iterator[Timing]:
    """Within this block, and in tasks begun in it, ``current`` is a new timing."""
    timing = Timing(arrived)
    token = _CURRENT.set(timing)
    try:
        yield timing
    finally:
        _CURRENT.reset(token)


def current() -> Timing | None:
    """That of the request this code runs for; None outside of one."""
    return _CURRENT.get()
