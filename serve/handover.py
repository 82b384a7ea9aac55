"""Hand a run to a service that is up: Ray Serve gets its own configuration back, with another ``user_config``.

Nothing else differs, so Serve restarts nothing; routers and task replicas are told the run's name, and what follows is
``serve/swap.py``'s.
"""

import copy
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from recranker.errors import ServiceError, first_line
from serve.messages import ModelState, Readiness
from serve.settings import ServeSettings
from serve.source import ServedRun
from serve.wanted import Wanted

logger = logging.getLogger("recranker.jobs")

BUILDER = "serve.app:build"
"""``import_path`` of our application."""
ROUTER = "router"
RAY_TOKEN = "~/.ray/auth_token"
"""Where Ray keeps the token that clusters started by this user ask for."""
ASK_S = 0.5
"""Seconds between two looks at /readyz."""


class ServeApi(Protocol):
    """Ray Serve's REST API, as ``ServeSubmissionClient`` gives it."""

    def get_serve_details(self) -> dict[str, Any]: ...

    def deploy_applications(self, config: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Service:
    """One application of ours as it is deployed."""

    details: Mapping[str, Any]
    """Of the whole Serve instance."""
    app: str
    """Name of the application."""

    @property
    def config(self) -> dict[str, Any]:
        """Its entry in the file it was deployed from, with all defaults."""
        config: dict[str, Any] = self.details["applications"][self.app]["deployed_app_config"]
        return config

    @property
    def settings(self) -> ServeSettings:
        """Those it was built with."""
        return ServeSettings.model_validate(self.config["args"])

    @property
    def url(self) -> str:
        """Where it answers, seen from the machine it runs on."""
        http = self.details["http_options"]
        host = "127.0.0.1" if http["host"] in ("0.0.0.0", "::", None) else http["host"]
        path = f"{http.get('root_path') or ''}{self.config['route_prefix'] or ''}"
        return f"http://{host}:{http['port']}{path}".rstrip("/")

    @property
    def deployments(self) -> tuple[str, ...]:
        """Those it has now, the router's and those of its tasks; none while it is being deployed."""
        return tuple(self.details["applications"][self.app].get("deployments") or ())

    @property
    def wanted(self) -> Wanted | None:
        """What it was told to serve last; None where it has never been told."""
        for deployment in self.config.get("deployments", ()):
            if deployment["name"] == ROUTER and deployment.get("user_config"):
                return Wanted.model_validate(deployment["user_config"])
        return None


def serve_api(address: str) -> ServeApi:
    """The API of the cluster whose dashboard is at ``address``.

    Raises:
        ServiceError: If nobody answers there.
    """
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    try:
        api: ServeApi = ServeSubmissionClient(address, headers=ray_token())
    except Exception as error:  # of half a dozen kinds
        raise ServiceError(
            f"no Ray dashboard at {address}: {first_line(error)}; name that of the service: --serve http://HOST:8265"
        ) from None
    return api


def ray_token() -> dict[str, str]:
    """The header by which a Ray cluster knows its user, so that RAY_AUTH_MODE need not be set; none without a token."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", RAY_TOKEN)).expanduser()
    token = os.environ.get("RAY_AUTH_TOKEN") or (path.read_text(encoding="utf-8") if path.is_file() else "")
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def find_service(api: ServeApi) -> Service:
    """The application of ours that runs.

    Raises:
        ServiceError: If there is none, or several, or it was not deployed from a configuration file.
    """
    details = api.get_serve_details()
    configs = {name: one.get("deployed_app_config") for name, one in details["applications"].items()}
    ours = [name for name, config in configs.items() if config and config["import_path"] == BUILDER]
    if len(ours) != 1:
        raise ServiceError(
            f"needed one application of {BUILDER}, deployed by serve run or serve deploy from a file, found "
            f"{len(ours)} among {', '.join(configs) or 'none'}"
        )
    return Service(details, ours[0])


def hand_over(api: ServeApi, service: Service, run: ServedRun, *, otherwise: Wanted | None, handover: str) -> None:
    """Tell the service to serve ``run``; returns before it does.

    Args:
        api: Of the Serve instance.
        service: The application.
        run: To be served.
        otherwise: What serves now, which a replica that starts anew takes where ``run`` is refused.
        handover: Name of this attempt.

    Raises:
        ServiceError: If the application is being deployed just now, or its last deployment failed.
    """
    if not service.deployments:
        raise ServiceError(
            f"application '{service.app}' has no deployments just now: it is being deployed, or that failed; see "
            "serve status, and try again once it runs"
        )
    wanted = run.wanted.model_copy(update={"otherwise": otherwise, "handover": handover})
    api.deploy_applications(told(service, wanted))


def told(service: Service, wanted: Wanted) -> dict[str, Any]:
    """The configuration of the whole Serve instance as it is, but for the run that the application shall serve.

    Only deployments that are there are named: Serve gives up an application whose configuration names another one.
    """
    details = copy.deepcopy(dict(service.details))
    apps = [one["deployed_app_config"] for one in details["applications"].values() if one.get("deployed_app_config")]
    deployments = next(one for one in apps if one["name"] == service.app).setdefault("deployments", [])
    by_name = {one["name"]: one for one in deployments}
    for name in service.deployments:
        if name not in by_name:
            deployments.append({"name": name})
            by_name[name] = deployments[-1]
        by_name[name]["user_config"] = wanted.model_dump(mode="json")
    kept = {name: details[name] for name in ("proxy_location", "http_options", "grpc_options") if details.get(name)}
    return {**kept, "applications": apps}


def serves_now(service: Service, state: ModelState | None) -> Wanted | None:
    """How the run that answers is named; None where it is the one that the application was built with."""
    told_last = service.wanted
    while told_last is not None:
        if state is not None and told_last.tuning == state.adapter:
            return Wanted(run=told_last.run, tuning=told_last.tuning)
        told_last = told_last.otherwise
    return None


def look(url: str, token: str | None) -> Readiness:
    """What ``/readyz`` says.

    Raises:
        ServiceError: If nobody answers, or not as this version does.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(f"{url}/readyz", headers=headers, timeout=10.0)
        if answer.status_code not in (200, 503):
            raise ServiceError(f"{url}/readyz answers {answer.status_code}; set RECRANKER_SERVE_TOKEN where it is 401")
        return Readiness.model_validate_json(answer.content)
    except (httpx.HTTPError, ValueError) as error:
        raise ServiceError(f"{url}/readyz: no answer of this version's service: {first_line(error)}") from None


def wait_until_served(
    run: ServedRun,
    handover: str,
    readyz: Callable[[], Readiness],
    *,
    routers: int,
    timeout_s: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return once every router answers with ``run``, as far as looking three times per router can tell.

    Args:
        run: Handed over.
        handover: Name of the attempt.
        readyz: Asks one of the routers; an answer that does not come is asked for again.
        routers: How many there are.
        timeout_s: Seconds until that is given up.
        now: Clock, seconds.
        sleep: Waits that many seconds.

    Raises:
        ServiceError: If it is refused, or not served in time.
    """
    ends, seen = now() + timeout_s, 0
    while now() < ends:
        state = _state(readyz)
        if state and state.refused and state.refused.handover == handover:
            code = state.refused.code
            raise ServiceError(
                f"the service refused run '{run.name}' ({code}), its log says why; run '{state.run}' goes on"
            )
        seen = seen + 1 if state and (state.run, state.adapter) == (run.name, run.tuning) else 0
        if seen >= (1 if routers == 1 else 3 * routers):
            return
        sleep(ASK_S)
    raise ServiceError(
        f"the service does not serve run '{run.name}' after {timeout_s:g} s; /readyz and the log of its router say more"
    )


def _state(readyz: Callable[[], Readiness]) -> ModelState | None:
    try:
        return readyz().model
    except ServiceError as error:
        logger.warning("%s", first_line(error))
        return None
