"""Settings of what is asked of a run, and of a service that is started to be measured."""

from pydantic import Field

from recranker.settings import Settings
from recranker.tasks.settings import MAX_CANDIDATES
from serve.settings import ServeSettings


class RequestSettings(Settings):
    """Requests as published users of a run would send them."""

    service: ServeSettings
    """What is served, as under args in serve/config.yaml."""
    users: int = Field(default=64, ge=1)
    """Published users, each of whom is one of the requests that are sent in turn."""
    candidates: int = Field(default=10, ge=2, le=MAX_CANDIDATES)
    """Candidates of a request (RecRanker: 10); users with a shorter list are left out."""
    seed: int = 0
    """Of the users chosen and whatever else is drawn."""


class HostSettings(RequestSettings):
    """A service on a free port of this machine's loopback, on a Ray cluster of its own, and what is asked of it."""

    cpus: int | None = Field(default=None, ge=1)
    """CPUs of its cluster; None takes all."""
    object_store_mb: int = Field(default=200, ge=80)
    """Memory of the cluster's object store, MB."""
    start_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds within which every task must have a replica that answers."""
    request_timeout_s: float = Field(default=90.0, gt=0)
    """Seconds until a request counts as lost on the client's side."""
