"""The process behind a service under load: starts Ray and Serve, says how they are, ends when its stdin does.

It is a driver of its own, so that whoever started it, killed or not, leaves nothing behind.
"""

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ray import serve

from jobs.stage import users_error
from recranker.distributed import cluster
from recranker.errors import first_line


@dataclass(frozen=True)
class Hosted:
    """What is started; travels as the first line of stdin."""

    import_path: str
    """Of the function that makes the application, ``package.module:function``, as in serve/config.yaml."""
    args: dict[str, Any]
    """Its settings."""
    name: str
    """Of the application."""
    start: dict[str, Any]
    """Arguments of ``ray.serve.start``."""
    cpus: int | None
    object_store_mb: int

    def line(self) -> str:
        """As it travels."""
        return json.dumps(asdict(self)) + "\n"


def main() -> int:
    """Serve until stdin ends; each line before that is a number under which the status is told."""
    say = _own_stdout()
    hosted = Hosted(**json.loads(sys.stdin.readline()))
    try:
        cluster.connect(hosted.cpus, hosted.object_store_mb)
        serve.start(**hosted.start)
        serve.run(application(hosted), name=hosted.name, route_prefix="/")
    except Exception as error:
        say({"error": str(users_error(error) or first_line(error))})
        return 2
    say({"running": True})
    for line in sys.stdin:
        say({"number": int(line), **status(hosted.name)})
    cluster.disconnect()
    return 0


def _own_stdout() -> Callable[[dict[str, Any]], None]:
    """Writes JSON lines to what was stdout; whatever else is printed from now on goes to stderr."""
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda values: print(json.dumps(values), file=lines, flush=True)


def application(hosted: Hosted) -> serve.Application:
    """What Serve makes of an import path and its arguments in a configuration file."""
    module, _, name = hosted.import_path.partition(":")
    build = getattr(importlib.import_module(module), name)
    (parameter,) = inspect.signature(build, eval_str=True).parameters.values()
    made: serve.Application = build(parameter.annotation.model_validate(hosted.args))
    return made


def status(name: str) -> dict[str, Any]:
    """How Serve's controller says the application is; without word from it, an ``error``."""
    try:
        found = serve.status()
        application = found.applications[name]
        replicas = {one: deployment.replica_states for one, deployment in application.deployments.items()}
        running = {one: int(states.get("RUNNING", 0)) for one, states in replicas.items()}
        return {
            "application": str(application.status.value),
            "running": running,
            "proxies": sorted(str(one.value) for one in found.proxies.values()),
        }
    except Exception as error:  # whatever a lost controller makes of a question, it is lost
        return {"error": type(error).__name__}


if __name__ == "__main__":
    sys.exit(main())
