"""How far a long step is: a bar with the time left on a terminal, a plain log line now and then otherwise."""

import logging
import sys
import time
from contextlib import ExitStack
from functools import cache
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger(__name__)

LINE_EVERY_S = 10.0


class Bar:
    """Progress of one step, as a context manager: ``with Bar("tune", 480) as bar: bar.advance()``.

    Where stderr is a terminal it is a bar; otherwise log lines, at most one every ``every_s``
    seconds and one at the end. A bar that never advances says nothing until it ends.

    Args:
        title: What is counted, in a word or two.
        total: How many steps there will be; None where that is not known.
        every_s: Least time between two plain lines, seconds.
    """

    def __init__(self, title: str, total: int | None, *, every_s: float = LINE_EVERY_S) -> None:
        self.title = title
        self.total = total
        self.done = 0
        self._text = ""
        self._every_s = every_s
        self._stack = ExitStack()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "Bar":
        self._started = self._last_line = time.monotonic()
        if sys.stderr.isatty():
            self._bar = self._stack.enter_context(_terminal_bar())
            self._task = self._bar.add_task(self.title, total=self.total, text=self._text)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._bar is None:
            outcome = "done" if kind is None else "stopped"
            logger.info("%s %s, %s after %s", self.title, self._count(), outcome, duration(self._elapsed()))

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more steps as done."""
        self.done += n
        if self._bar is not None:
            self._bar.advance(self._task, n)
        else:
            self._maybe_log()

    def set_text(self, text: str) -> None:
        """Show ``text`` behind the count, for instance the latest loss; it is part of the next plain line."""
        self._text = text
        if self._bar is not None:
            self._bar.update(self._task, text=text)

    def seconds_left(self) -> float | None:
        """Time left at the mean speed so far, seconds; None before the first step or without a total."""
        if self.total is None or self.done <= 0:
            return None
        return max(self.total - self.done, 0) * self._elapsed() / self.done

    def _maybe_log(self) -> None:
        now = time.monotonic()
        if now - self._last_line < self._every_s:
            return
        self._last_line = now
        left = self.seconds_left()
        parts = [f"{self.title} {self._count()}", "" if left is None else f"{duration(left)} left", self._text]
        logger.info("%s", ", ".join(part for part in parts if part))

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _count(self) -> str:
        return str(self.done) if self.total is None else f"{self.done}/{self.total}"


def duration(seconds: float) -> str:
    """Seconds in words: ``34 s``, ``12 min 5 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _terminal_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=_console(),
    )


@cache
def _console() -> Console:
    """One console for all bars, so that a bar inside a bar is drawn below it."""
    return Console(stderr=True)
