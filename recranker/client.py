"""A client of the ranking service that does not lose a request to a fault that passes.

    with Client("http://127.0.0.1:8000") as client:
        ranking = client.rank(["Alien (1979)"], ["Sabrina (1954)", "Aliens (1986)"])
        ranking.items[0].id

What travels is described in ``serve/messages.py``. The dataclasses here repeat it rather than share it: the library
does not import what is run on top of it, and a client must read the answer of a newer service, so it passes over what
it does not know, where a service refuses it. A test holds the two together.

``AsyncClient`` is the same with ``await``. Both say how a call goes on in one place, ``_attempts``, which knows neither
sockets nor clocks that wait.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx

from recranker.errors import ServiceError

TaskName = Literal["pointwise", "pairwise", "listwise"]

AGAIN = frozenset({429, 502, 503, 504})
"""Statuses of faults that pass."""
FIRST_S, LONGEST_S = 0.1, 5.0
"""Seconds of the first wait at most, and of any; it doubles between."""
SHARE = 0.9
"""Of the time left, what the service is given, so that its answer, with what has come, is back before it ends."""


@dataclass(frozen=True)
class HistoryEntry:
    """One thing the user rated, liked or disliked."""

    title: str
    rating: float | None = None
    """On the scale of the data the model was tuned on."""
    liked: bool | None = None
    """Where there is no rating."""


@dataclass(frozen=True)
class Candidate:
    """One item to be ranked."""

    title: str | None = None
    """May be left out beside the id of an item whose title is published."""
    id: str | None = None
    """Key the answer names it by; its place among the candidates, from 0, where it is missing."""
    backbone_score: float | None = None
    """The retriever's score, higher is better; for all candidates or for none."""
    predicted_rating: float | None = None
    """A rating predictor's guess; for all candidates or for none."""
    hint_score: float | None = None
    """Another ranker's score, whose order prompts quote in place of the retriever's; for all candidates or for none."""


@dataclass(frozen=True)
class RankRequest:
    """One user's history and candidates; plain titles are things liked, and candidates without further facts."""

    history: Sequence[HistoryEntry | str] = ()
    """Oldest first."""
    candidates: Sequence[Candidate | str] = ()
    """Best first by the retriever, unless backbone scores say what its order is; none beside a ``user_id``: those that
    are published for the user."""
    user_id: str | None = None
    """A user whose history is published, in place of a history."""
    tasks: Sequence[TaskName] | None = None
    """The tasks to ask; all that are served where it is missing."""
    weights: Mapping[str, float] | None = None
    """Replaces the weights learned in the run; by task, and 'backbone'."""
    deadline_ms: int | None = None
    """Milliseconds for the service, at the most; what the client's own time leaves where that is less."""
    explain: bool = False
    """Whether to ask again without each of the latest entries of the history, to see what they change."""


@dataclass(frozen=True)
class RankedItem:
    """One candidate's place and what it rests on."""

    id: str
    rank: int
    """1 is best."""
    score: float
    """Higher is better; comparable within one answer only."""
    probability: float | None = None
    """How likely this is what the user likes next; None in the retriever's order."""
    pointwise: float | None = None
    """The task's own score, None where it was not asked or did not answer."""
    pairwise: float | None = None
    """Likewise."""
    listwise: float | None = None
    """Likewise."""
    signals: Mapping[str, float] = field(default_factory=dict)
    """What decided, per task and for the retriever, on one scale; weighted by ``Ranking.model['weights']`` they add up
    to the score."""
    backbone_rank: int = 0
    """Place in the retriever's order, 1 is best."""
    hint: int | None = None
    """Place that the prompts quoted; None where they quote none."""


@dataclass(frozen=True)
class Influence:
    """What one entry of the history changes."""

    history: int
    """Place of the entry in the history, 0 = oldest."""
    lifts: Mapping[str, float]
    """Per candidate its score minus that without the entry."""


@dataclass(frozen=True)
class Ranking:
    """The candidates in their new order."""

    items: tuple[RankedItem, ...]
    """Best first; always all candidates."""
    degraded: tuple[str, ...] = ()
    """Tasks asked that did not answer in time; the others decided without them."""
    order: str = "fused"
    """'backbone' where nothing that has a weight answered: the retriever's order, unchanged."""
    user: str | None = None
    """'known', 'unknown' or 'unavailable'; None where the request named no user."""
    influences: tuple[Influence, ...] | None = None
    """Of the latest entries of the history; None where no explanation was asked for."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """What answered: run, base model, fingerprint of the tuning, preset, weights used."""
    plan: Mapping[str, Any] | None = None
    """What was left out for the answer to be there in time, and why; None where everything was asked."""


class _Common:
    """What both clients know.

    Args:
        url: Of the service, with the prefix it is mounted under.
        token: Bearer token, where the service asks for one.
        timeout_s: Seconds for one call, all its attempts and waits together. An attempt gets what is left of them, to
            connect and for every wait for bytes.
        max_attempts: Times a request is sent at most.

    Raises:
        ValueError: If ``url`` is none of HTTP.
    """

    def __init__(self, url: str, token: str | None, *, timeout_s: float, max_attempts: int) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, got {url!r}")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.max_attempts = max_attempts
        self._headers = {"Authorization": f"Bearer {token.strip()}"} if token else {}  # of a file: with its newline

    def _batch(self, requests: Sequence[RankRequest], request_id: str | None) -> "_Steps":
        """A call for all of them, and again for those that met a fault that passes; returns what each came to.

        Raises:
            ServiceError: See ``_attempts``.
        """
        ends, request_id = time.monotonic() + self.timeout_s, request_id or uuid.uuid4().hex
        plain = [_plain(one) for one in requests]
        found: dict[int, Any] = {}
        left, attempt = list(range(len(plain))), 1
        while True:
            body = {"requests": [plain[index] for index in left]}
            answers = yield from self._attempts("/v1/rank:batch", body, request_id, ends)
            found |= zip(left, answers["answers"], strict=True)
            left = [index for index in left if found[index]["status"] in AGAIN]
            wait = _jitter_s(attempt)
            if not left or attempt == self.max_attempts or wait >= ends - time.monotonic():
                return [found[index] for index in range(len(plain))]
            yield wait
            attempt += 1

    def _attempts(self, path: str, body: dict[str, Any], request_id: str | None, ends: float | None = None) -> "_Steps":
        """One call: yields what to do next, is sent what came of it, and returns the answer's JSON.

        It ends by ``ends``, in seconds of ``time.monotonic``; ``timeout_s`` from now where nothing is said.

        Raises:
            ServiceError: If the service refuses, or does not answer within the time and the attempts.
        """
        ends, request_id = ends or time.monotonic() + self.timeout_s, request_id or uuid.uuid4().hex
        headers = {**self._headers, "x-request-id": request_id}
        attempt = 0
        while True:
            left = ends - time.monotonic()
            deadline = max(1, int(left * SHARE * 1000))  # after that nobody waits for an answer
            deadline = min(body.get("deadline_ms", deadline), deadline)
            found = yield _Send(f"{self.url}{path}", {**body, "deadline_ms": deadline}, headers, max(left, 0.001))
            attempt += 1
            if isinstance(found, httpx.Response) and found.is_success:
                return _json(found)
            wait = _wait_s(found, attempt)
            if attempt == self.max_attempts or wait is None or wait >= ends - time.monotonic():
                raise _error(found, attempt, request_id)
            yield wait


class Client(_Common):
    """Ranks by HTTP; one may be used by several threads."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = 30.0,
        max_attempts: int = 12,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, token, timeout_s=timeout_s, max_attempts=max_attempts)
        self._http = httpx.Client(transport=transport)

    def rank(
        self,
        history: Sequence[HistoryEntry | str] = (),
        candidates: Sequence[Candidate | str] = (),
        *,
        user_id: str | None = None,
        tasks: Sequence[TaskName] | None = None,
        weights: Mapping[str, float] | None = None,
        deadline_ms: int | None = None,
        explain: bool = False,
        request_id: str | None = None,
    ) -> Ranking:
        """The candidates, best first; see ``RankRequest``.

        Raises:
            ServiceError: If the service refuses the request, or does not answer in time.
        """
        request = RankRequest(history, candidates, user_id, tasks, weights, deadline_ms, explain)
        return _ranking(self._done(self._attempts("/v1/rank", _plain(request), request_id)))

    def rank_batch(
        self, requests: Sequence[RankRequest], *, request_id: str | None = None
    ) -> list[Ranking | ServiceError]:
        """A ranking of each request, or why it has none; one that is refused does not touch the others.

        Those for which the service had no room are sent again, as long as there is time.

        Raises:
            ServiceError: If the service refuses the batch, or does not answer in time.
        """
        return _answers(self._done(self._batch(requests, request_id)))

    def ready(self) -> bool:
        """Whether every task of the service can answer; False where nobody answers at all.

        Raises:
            ServiceError: If the token is refused.
        """
        try:
            return _is_ready(self._http.get(f"{self.url}/readyz", headers=self._headers, timeout=self.timeout_s))
        except httpx.RequestError:
            return False

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _done(self, steps: "_Steps") -> Any:
        try:
            step = next(steps)
            while True:
                step = steps.send(self._do(step))
        except StopIteration as end:
            return end.value

    def _do(self, step: "_Send | float") -> "_Outcome":
        if not isinstance(step, _Send):
            time.sleep(step)
            return None
        try:
            return self._http.post(step.url, json=step.body, headers=step.headers, timeout=step.timeout_s)
        except httpx.RequestError as error:
            return error


class AsyncClient(_Common):
    """``Client`` for code that awaits."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = 30.0,
        max_attempts: int = 12,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, token, timeout_s=timeout_s, max_attempts=max_attempts)
        self._http = httpx.AsyncClient(transport=transport)

    async def rank(
        self,
        history: Sequence[HistoryEntry | str] = (),
        candidates: Sequence[Candidate | str] = (),
        *,
        user_id: str | None = None,
        tasks: Sequence[TaskName] | None = None,
        weights: Mapping[str, float] | None = None,
        deadline_ms: int | None = None,
        explain: bool = False,
        request_id: str | None = None,
    ) -> Ranking:
        """See ``Client.rank``."""
        request = RankRequest(history, candidates, user_id, tasks, weights, deadline_ms, explain)
        return _ranking(await self._done(self._attempts("/v1/rank", _plain(request), request_id)))

    async def rank_batch(
        self, requests: Sequence[RankRequest], *, request_id: str | None = None
    ) -> list[Ranking | ServiceError]:
        """See ``Client.rank_batch``."""
        return _answers(await self._done(self._batch(requests, request_id)))

    async def ready(self) -> bool:
        """See ``Client.ready``."""
        try:
            return _is_ready(await self._http.get(f"{self.url}/readyz", headers=self._headers, timeout=self.timeout_s))
        except httpx.RequestError:
            return False

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _done(self, steps: "_Steps") -> Any:
        try:
            step = next(steps)
            while True:
                step = steps.send(await self._do(step))
        except StopIteration as end:
            return end.value

    async def _do(self, step: "_Send | float") -> "_Outcome":
        if not isinstance(step, _Send):
            await asyncio.sleep(step)
            return None
        try:
            return await self._http.post(step.url, json=step.body, headers=step.headers, timeout=step.timeout_s)
        except httpx.RequestError as error:
            return error


@dataclass(frozen=True)
class _Send:
    """An attempt to make."""

    url: str
    body: dict[str, Any]
    headers: dict[str, str]
    timeout_s: float


_Outcome = httpx.Response | httpx.RequestError | None
_Steps = Generator[_Send | float, _Outcome, Any]
"""Yields an attempt or the seconds to wait before the next one."""
_Kind = TypeVar("_Kind")


def _wait_s(found: _Outcome, attempt: int) -> float | None:
    """Seconds until the next attempt; None where another one would end the same.

    With jitter on top of what the service asks for.
    """
    jitter = _jitter_s(attempt)
    if isinstance(found, (httpx.LocalProtocolError, httpx.UnsupportedProtocol)):
        return None  # it was never sent, and never will be
    if not isinstance(found, httpx.Response):
        return jitter
    # a 500 without a code of the service's own is the proxy's: the replica that had the request is gone
    if found.status_code in AGAIN or (found.status_code == 500 and _body(found).get("code") is None):
        return _retry_after_s(found) + jitter
    return None


def _jitter_s(attempt: int) -> float:
    """Seconds to wait, exponential with full jitter.

    Source: Brooker 2015, Exponential backoff and jitter, AWS architecture blog.
    """
    return random.uniform(0.0, min(LONGEST_S, FIRST_S * 2.0 ** (attempt - 1)))


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds the service asks to be left alone; 0 where it does not say, or not clearly."""
    asked = response.headers.get("retry-after", "")
    if asked.isdecimal():
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return 0.0


def _error(found: _Outcome, attempts: int, request_id: str) -> ServiceError:
    tried = f"after {attempts} attempt{'s' * (attempts > 1)}, request {request_id}"
    if isinstance(found, httpx.Response):
        body = _body(found)
        return _service_error(found.status_code, body, f"{body.get('message') or found.reason_phrase} ({tried})")
    return _service_error(None, {}, f"no answer from the service: {type(found).__name__} ({tried})")


def _service_error(status: int | None, body: Mapping[str, Any], message: str) -> ServiceError:
    error = ServiceError(message)
    error.status, error.code, error.limit = status, body.get("code"), body.get("limit")
    return error


def _body(response: httpx.Response) -> dict[str, Any]:
    """The error's JSON; empty where something between has answered in its own way."""
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _json(response: httpx.Response) -> Any:
    found = _body(response)
    if not found:
        kind = response.headers.get("content-type")
        raise ServiceError(f"{response.url}: needed a JSON object, got {kind!r}; is this the ranking service?")
    return found


def _is_ready(response: httpx.Response) -> bool:
    if response.status_code == 401:
        raise _error(response, 1, "-")
    return response.is_success


def _plain(request: RankRequest) -> dict[str, Any]:
    """The request as JSON has it, without what was not said."""
    history = [_said(HistoryEntry(one, liked=True) if isinstance(one, str) else one) for one in request.history]
    candidates = [_said(Candidate(one) if isinstance(one, str) else one) for one in request.candidates]
    body = {
        "history": history or None,
        "candidates": candidates or None,
        "user_id": request.user_id,
        "tasks": None if request.tasks is None else list(request.tasks),
        "weights": None if request.weights is None else dict(request.weights),
        "deadline_ms": request.deadline_ms,
        "explain": request.explain or None,
    }
    return {name: value for name, value in body.items() if value is not None}


def _said(one: HistoryEntry | Candidate) -> dict[str, Any]:
    return {name: value for name, value in asdict(one).items() if value is not None}


def _ranking(found: Mapping[str, Any]) -> Ranking:
    try:
        items = tuple(_known(RankedItem, one) for one in found["ranking"])
        why = _influences(found.get("influences"))
        return Ranking(
            items, tuple(found["degraded"]), found["order"], found.get("user"), why, found["model"], found.get("plan")
        )
    except (KeyError, TypeError):
        raise ServiceError(f"needed a ranking, got an object with keys {sorted(found)}") from None


def _influences(found: Sequence[Mapping[str, Any]] | None) -> tuple[Influence, ...] | None:
    return None if found is None else tuple(_known(Influence, one) for one in found)


def _answers(found: Sequence[Mapping[str, Any]]) -> list[Ranking | ServiceError]:
    return [
        _ranking(one["response"])
        if one["status"] == 200
        else _service_error(one["status"], one["error"], one["error"]["message"])
        for one in found
    ]


def _known(kind: type[_Kind], found: Mapping[str, Any]) -> _Kind:
    """A ``kind`` of what it knows of ``found``."""
    names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in found.items() if name in names})
