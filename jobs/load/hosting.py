"""Starting a service for a measurement, asking how it is, and ending every process of it."""

import json
import logging
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any

import httpx
import psutil
import yaml

from jobs.load.host import Hosted
from jobs.load.settings import HostSettings
from jobs.load.usage import tree_of
from jobs.sources import ROOT
from recranker.errors import RecrankerError
from serve.router import TOKEN_VARIABLE
from serve.settings import ServeSettings

logger = logging.getLogger("recranker.jobs")

CONFIG = ROOT / "serve" / "config.yaml"
ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy:middlewares",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
}
"""What ``make serve`` sets; what the caller's environment says goes before it."""
HIDDEN = {"RAY_ADDRESS", TOKEN_VARIABLE}
"""What it does not inherit: the cluster is its own, and no token is asked for."""
STATUS_S = 5.0
"""Seconds within which Serve's controller must say how it is."""
END_S = 30.0
"""Seconds the service may take to end by itself."""
POLL_S = 0.1
LAST_WORD_S = 2.0
"""Seconds until what a process said before it ended has arrived."""


@dataclass
class Service:
    """One that runs."""

    url: str
    process: "subprocess.Popen[str]"
    said: "queue.Queue[dict[str, Any]]"
    """Lines of the host that nobody has read yet."""
    log: IO[str]
    """What it complained about."""
    _asked: int = field(default=0, init=False)

    @property
    def pid(self) -> int:
        """Of the host, below which all processes of the service are."""
        return self.process.pid

    def status(self) -> dict[str, Any]:
        """See ``host.status``; an ``error`` too where no word comes in time."""
        self._asked += 1
        assert self.process.stdin is not None
        try:
            print(self._asked, file=self.process.stdin, flush=True)
            return self._answer(time.monotonic() + STATUS_S)
        except queue.Empty:
            return {"error": "no answer"}
        except OSError:
            raise self.failed() from None

    def readiness(self) -> dict[str, Any]:
        """The JSON of /readyz where it is 200; nothing otherwise."""
        with suppress(httpx.TransportError, ValueError):
            found = httpx.get(f"{self.url}/readyz", timeout=STATUS_S)
            if found.status_code == 200:
                return dict(found.json())
        return {}

    def failed(self) -> RecrankerError:
        """Why the host is no more."""
        self.log.seek(0)
        last = [line.strip() for line in self.log if line.strip()][-1:]
        return RecrankerError(f"the service ended with code {self.process.poll()}: {' '.join(last) or 'no message'}")

    def _answer(self, until: float) -> dict[str, Any]:
        """The answer to the latest question; those to earlier ones came too late."""
        while True:
            found = self.said.get(timeout=max(0.0, until - time.monotonic()))
            if found.pop("number", None) == self._asked:
                return found


def ranking_service(settings: HostSettings) -> tuple[Hosted, int]:
    """recranker's own service as serve/config.yaml describes it, with the settings' own arguments and a free port."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    application = config["applications"][0]
    return hosted_app(settings, application["import_path"], args_of(settings.service), config)


def hosted_app(
    settings: HostSettings, import_path: str, args: dict[str, Any], config: dict[str, Any] | None = None
) -> tuple[Hosted, int]:
    """An application on a free port of loopback, and that port; ``config`` as in serve/config.yaml."""
    port, config = free_port(), config or {}
    http = {**config.get("http_options", {}), "host": "127.0.0.1", "port": port}
    start = {
        "proxy_location": config.get("proxy_location", "HeadOnly"),
        "http_options": http,
        "logging_config": config.get("logging_config", {"enable_access_log": False}),
    }
    return Hosted(import_path, args, "recranker", start, settings.cpus, settings.object_store_mb), port


def args_of(service: ServeSettings) -> dict[str, Any]:
    """``service`` as JSON; without a token, as only this machine reaches it, and only while it is measured."""
    return {**service.model_dump(mode="json"), "token_file": None}


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def hosted(app: tuple[Hosted, int], *, ready: str, timeout_s: float) -> Iterator[Service]:
    """A service that answers ``ready`` with 200; all its processes end with the block.

    Raises:
        RecrankerError: If it does not start within ``timeout_s``, with what it complained about.
    """
    what, port = app
    started = time.monotonic()
    logger.info("starting %s on port %d", what.import_path, port)
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.load.host"],
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            service = Service(f"http://127.0.0.1:{port}", process, _lines(process), log)
            _wait(service, what, ready, started + timeout_s)
            logger.info("ready after %.0f s", time.monotonic() - started)
            yield service
        finally:
            _end(process)


def _environment() -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    path = os.pathsep.join(part for part in (str(ROOT), known.get("PYTHONPATH", "")) if part)
    return {**ENVIRONMENT, **known, "PYTHONPATH": path}


def _lines(process: "subprocess.Popen[str]") -> "queue.Queue[dict[str, Any]]":
    found: queue.Queue[dict[str, Any]] = queue.Queue()
    assert process.stdout is not None
    lines = process.stdout

    def read() -> None:
        for line in lines:
            found.put(json.loads(line))

    threading.Thread(target=read, daemon=True).start()
    return found


def _wait(service: Service, what: Hosted, ready: str, until: float) -> None:
    assert service.process.stdin is not None
    with suppress(OSError):  # what went wrong is said below
        print(what.line(), end="", file=service.process.stdin, flush=True)
    running = False
    while not (running and _answers(f"{service.url}{ready}")):
        ended = service.process.poll() is not None  # before what it said is read, so that its last word is not missed
        with suppress(queue.Empty):
            said = service.said.get(timeout=LAST_WORD_S if ended else POLL_S)
            if "error" in said:
                raise RecrankerError(said["error"])
            running = True
        if ended:
            raise service.failed()
        if time.monotonic() > until:
            raise RecrankerError(f"{what.import_path} is not ready in time; raise start_timeout_s")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=STATUS_S).status_code == 200
    except httpx.TransportError:
        return False


def _end(process: "subprocess.Popen[str]") -> None:
    """Let it end by itself, then end what is left of it; nothing is touched that it did not start."""
    started = tree_of(process.pid)
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    started += tree_of(process.pid)
    for one in started:  # psutil knows a process by its start too: a number that was given anew is another one
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(started, END_S)
    process.wait()
