"""Starting the sending process, following it, and stopping it."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from jobs.load.plan import Load, Sent, known
from jobs.sources import ROOT
from recranker.errors import RecrankerError


class Sending:
    """A load under way."""

    def __init__(self, process: "subprocess.Popen[str]", on_sent: Callable[[Sent], None]) -> None:
        self.process = process
        self.sent: list[Sent] = []
        """Answered so far, in the order of their answers."""
        self._on_sent = on_sent
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def finished(self) -> list[Sent]:
        """All requests, once every one is answered or given up.

        Raises:
            RecrankerError: If the sender failed.
        """
        code = self.process.wait()
        self._reader.join()
        if code != 0:
            raise RecrankerError(f"the process that sends requests ended with code {code}")
        return sorted(self.sent, key=lambda one: one.number)

    def stop(self) -> list[Sent]:
        """Send nothing more; what was sent until then, once it is answered."""
        self.hush()
        return self.finished()

    def end(self) -> None:
        """End it, whatever it is at."""
        self.hush()
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def hush(self) -> None:
        """Send nothing more; what was sent is still waited for."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            one = known(Sent, line)
            self.sent.append(one)
            self._on_sent(one)


@contextmanager
def sending(load: Load, on_sent: Callable[[Sent], None] = lambda one: None) -> Iterator[Sending]:
    """``load`` sent by a process of its own, which has begun, and ends with the block at the latest."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.load.sender"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    print(load.line(), end="", file=process.stdin, flush=True)
    process.stdout.readline()  # READY; nothing where it failed, which is said when its requests are asked for
    under_way = Sending(process, on_sent)
    try:
        yield under_way
    finally:
        under_way.end()


def send_all(load: Load, on_sent: Callable[[Sent], None] = lambda one: None) -> list[Sent]:
    """Every request of a load that ends by itself."""
    with sending(load, on_sent) as under_way:
        return under_way.finished()


def wait(seconds: float, under_way: Sending) -> None:
    """Wait while a load goes on.

    Raises:
        RecrankerError: If its sender is no more.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        with suppress(subprocess.TimeoutExpired):
            code = under_way.process.wait(min(left, 1.0))
            raise RecrankerError(f"the process that sends requests ended too early, with code {code}")
