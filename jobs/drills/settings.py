"""Settings of the drills."""

from pydantic import Field

from jobs.load.settings import HostSettings


class ServingDrill(HostSettings):
    """Processes of the service are killed while it is used, the next one when the one before is replaced."""

    kills: int = Field(default=30, ge=0)
    """Kills of task replicas, the tasks in turn; each takes about as long as a replica needs to load its model."""
    router_kills: int = Field(default=3, ge=0)
    """Kills of a router's replica."""
    controller_kills: int = Field(default=3, ge=0)
    """Kills of Serve's controller."""
    proxy_kills: int = Field(default=2, ge=0)
    """Kills of Serve's HTTP proxy."""
    stalls: int = Field(default=1, ge=0)
    """Task replicas that are stopped (SIGSTOP) rather than killed, so that Serve must find out."""
    rate: float | None = Field(default=None, gt=0)
    """Requests a second that arrive by themselves during the drills; None: a share of what the service can answer.
    While a task is down its requests wait, so rate times deadline must fit into the queues."""
    load_share: float = Field(default=0.5, gt=0, lt=1)
    """That share."""
    clients: int = Field(default=8, ge=1)
    """Who each wait for an answer before they ask again, to find out how much that is."""
    probe_s: float = Field(default=40.0, gt=0)
    """Seconds of that."""
    calm_s: float = Field(default=20.0, ge=0)
    """Seconds of load before the first kill and after the last one has been made good, of each kind."""
    pause_s: float = Field(default=2.0, ge=0)
    """Most seconds from one kill made good to the next one; drawn for each."""
    replaced_s: float = Field(default=180.0, gt=0)
    """Seconds within which a process must be replaced, otherwise the drill ends."""
    deadline_ms: int | None = Field(default=20_000, ge=1)
    """Deadline of a request: what has come by then is the answer; None: the service's own limit."""
