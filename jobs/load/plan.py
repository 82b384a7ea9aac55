"""What the sending process is told, and what it says of every request: plain data that travels as JSON."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from recranker.randomness import generator

Body = dict[str, Any]
"""Of a POST /v1/rank; with titles, so that nothing need be looked up."""
Way = Literal["plain", "client"]
"""A bare HTTP request, or ``recranker.client``, which tries again."""
_AT_A_TIME = 256
_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class Load:
    """Requests to send: at moments of their own where there is a ``rate``, otherwise each after the one before it."""

    url: str
    bodies: Sequence[Body]
    """Sent in turn."""
    rate: float | None = None
    """Requests a second on average; they arrive when they arrive, answered or not (open loop)."""
    clients: int = 1
    """Without a rate: how many send a request, wait for its answer, and send the next one (closed loop)."""
    seconds: float | None = None
    """Nothing is sent after that; None: until the sender is told to stop."""
    requests: int | None = None
    """Nothing more is sent after so many; None: no bound."""
    way: Way = "plain"
    deadline_ms: int | None = None
    """Of every request."""
    timeout_s: float = 60.0
    """Until a request is given up."""
    seed: int = 0
    """Of the moments of arrival."""

    def line(self) -> str:
        """As it travels."""
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class Sent:
    """One request and what became of it; moments in seconds of ``time.monotonic``, which processes share."""

    number: int
    scheduled_s: float
    """When it had to be sent; latency counts from here, so that a sender that comes late hides nothing."""
    sent_s: float
    done_s: float
    status: int | None
    """Of HTTP; None where there was no answer."""
    degraded: bool = False
    """Whether a task was missing in the answer."""
    retry_after: bool = False
    """Whether a refusal said when to come again."""
    engine_ms: float | None = None
    """The longest task's own time, where the service reports it."""

    @property
    def latency_s(self) -> float:
        """From the scheduled arrival to the last byte."""
        return self.done_s - self.scheduled_s


def known(kind: type[_Kind], line: str) -> _Kind:
    """A ``Load`` or ``Sent`` from its line."""
    values: dict[str, Any] = json.loads(line)
    names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if name in names})


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Seconds at which requests of a Poisson process arrive, without end; the same for the same seed and rate."""
    random, now = generator(seed, "arrivals"), 0.0
    while True:
        for gap in random.exponential(1.0 / rate, _AT_A_TIME):
            now += float(gap)
            yield now
