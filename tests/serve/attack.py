"""A router in process under attack: tasks that fail as replicas do, every log record heard, every answer judged."""

import asyncio
import json
import logging
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from recranker.randomness import generator
from recranker.tasks.protocol import Prompt
from serve import router
from serve.http import make_api
from serve.router import Router
from serve.scored import Scored
from serve.settings import ServeSettings
from tests.serve.opinions import Opinions
from tests.serve.published import published

TASKS = ("pointwise", "pairwise", "listwise")
CANARY = "kanarienvogel7f3a"
"""Planted in what is sent; must come out nowhere."""
HANG_S = 30.0
"""Seconds after which a request counts as hung, on a machine that has other things to do."""
DOCUMENTED = {200, 401, 404, 405, 408, 413, 422, 503, 504}
"""Every status but 500 that routes may answer with."""
CLIENTS = ("httpx", "httpcore", "hypothesis", "schemathesis")
"""Loggers of the attacker, not of the service; nobody listens to them."""


class Moody(Opinions):
    """Answers, or fails as Serve's handles do, by what it is asked; its errors quote the prompt, as tracebacks do."""

    async def _said(self, prompt: Prompt) -> Scored:
        quoted = prompt.prefix + "".join(question.text for question in prompt.questions)
        if generator("all full", prompt.prefix).random() < 0.05:
            raise BackPressureError(1, 1)
        mood = generator("mood", self.task, quoted).random()
        if mood < 0.05:
            raise RayTaskError("score", quoted, RuntimeError(quoted))
        if mood < 0.1:
            raise RayActorError()
        if mood < 0.13:
            await asyncio.sleep(0.02)
        return await super()._said(prompt)


class Ear(logging.Handler):
    """Hears what every logger says at any level: text, arguments, attached values and tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in CLIENTS:
            return
        raised = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        self.heard.append(f"{record.getMessage()} {record.__dict__} {raised}")


@contextmanager
def listening() -> Iterator[Ear]:
    """An ear at every logger, those that keep their records to themselves included, at any level."""
    ear, root = Ear(), logging.getLogger()
    named = (one for one in root.manager.loggerDict.values() if isinstance(one, logging.Logger))
    loggers = [root, *(one for one in named if one.name.partition(".")[0] not in CLIENTS)]
    for name in CLIENTS:
        logging.getLogger(name).setLevel(logging.WARNING)  # a line per request would be kept by pytest
    before = [(one, one.level, one.disabled) for one in loggers]
    deaf = [one for one in loggers if one is root or not one.propagate]
    for one in loggers:
        one.setLevel(logging.DEBUG if one is root else logging.NOTSET)
        one.disabled = False
    for one in deaf:
        one.addHandler(ear)
    try:
        yield ear
    finally:
        for one in deaf:
            one.removeHandler(ear)
        for one, level, disabled in before:
            one.setLevel(level)
            one.disabled = disabled


class Attack:
    """Sends requests to ``service``, one after the other in one event loop, and judges what comes back."""

    def __init__(self, service: Any, runner: asyncio.Runner, ear: Ear) -> None:
        self.service = service
        self.runner = runner
        self.ear = ear
        self.statuses: Counter[int] = Counter()
        self.costliest_s = 0.0
        transport = httpx.ASGITransport(make_api(lambda: service), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def send(
        self,
        path: str = "/v1/rank",
        body: Any = None,
        *,
        method: str = "POST",
        own_deadline: bool = False,
        echoes: bool = False,
        **options: Any,
    ) -> httpx.Response:
        """The answer to ``body`` as JSON, or to ``content`` as it stands; see ``check`` for the rest.

        Raises:
            AssertionError: If the contract has no such answer, or the canary is in it.
            TimeoutError: If none comes.
        """
        if body is not None:
            options["content"] = json.dumps(body)  # ASCII: halves of surrogate pairs can be spelt too
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        started = time.process_time()
        with at_most(HANG_S):
            response = self.runner.run(self.client.request(method, path, headers=headers, **options))
        self.costliest_s = max(self.costliest_s, time.process_time() - started)
        self.statuses[response.status_code] += 1
        check(response, own_deadline=own_deadline, echoes=echoes)
        return response

    def leaks(self) -> list[str]:
        """Where the canary came out, answers aside."""
        heard = [line for line in self.ear.heard if CANARY in line.lower()]
        metrics = [line for line in self.service.metrics.text().decode().splitlines() if CANARY in line.lower()]
        return heard + metrics


@contextmanager
def under_attack(folder: Path, token: str | None = None, **settings: Any) -> Iterator[Attack]:
    """A router over published users, whose tasks are moody, and everything around it."""
    values = {"run": "toy", "body_timeout_s": 1.0, "max_attempts": 2, **settings}
    handles: Any = {task: Moody(task) for task in TASKS}
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        patch.setattr(router, "running_replicas", lambda: dict.fromkeys(TASKS, 1))
        service = Router(ServeSettings(**values), published(folder), handles)
        service.token = token
        with listening() as ear:
            attack = Attack(service, runner, ear)
            yield attack
            runner.run(attack.client.aclose())


def check(response: httpx.Response, *, own_deadline: bool = False, echoes: bool = False) -> None:
    """Fails unless the contract has such an answer and the canary is not in it.

    Args:
        response: What came back.
        own_deadline: Whether the request set a deadline, so that it may be too late.
        echoes: Whether the contract says that a text of the request comes back: a rerank's documents and id.
    """
    status = response.status_code
    assert status in DOCUMENTED, f"{status}: {response.text[:300]}"
    assert status != 503 or "Retry-After" in response.headers, "503 without Retry-After"
    assert status != 504 or own_deadline, "504 without a deadline of the request's own"
    assert CANARY not in str(response.headers).lower(), "the canary is in a header"
    if status >= 400:
        assert set(response.json()) - {"limit"} == {"code", "message"}, response.text[:300]
    if status >= 400 or not echoes:
        assert CANARY not in response.text.lower(), f"{status}: the canary is in the body"


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Ends the block with TimeoutError after ``seconds``, also where it never waits."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"no answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
