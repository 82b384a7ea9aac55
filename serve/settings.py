"""Settings of the ranking service; ``config.yaml`` fills them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, model_validator

from recranker.settings import Settings
from recranker.tasks.settings import MAX_CANDIDATES, TaskName

MAX_DEMO_USERS = 24
"""Demo users that are published."""


class TaskSettings(Settings):
    """What differs for one task; None takes what holds for all."""

    replicas: int | None = Field(default=None, ge=1)
    """Replicas of the task; the fewest, where max_replicas is set."""
    max_replicas: int | None = Field(default=None, ge=1)
    """The most replicas of the task."""
    target_ongoing_requests: float | None = Field(default=None, gt=0)
    """Requests per replica that their number follows."""
    cpus_per_replica: float | None = Field(default=None, gt=0)
    """CPUs set aside per replica."""
    gpus_per_replica: float | None = Field(default=None, ge=0)
    """GPUs set aside per replica."""


@dataclass(frozen=True)
class Replicas:
    """One task's replicas: fixed in number where fewest and most are the same."""

    fewest: int
    most: int
    target_ongoing_requests: float
    cpus: float
    gpus: float


class ShadowSettings(Settings):
    """A challenger that ranks some requests after they were answered, to be compared with the answer."""

    run: str
    """As ServeSettings.run; its tasks must be among those served."""
    share: float = Field(gt=0, le=1)
    """Of requests; which ones is decided by a hash of what they ask, so that the same are chosen again."""


class ServeSettings(Settings):
    """What is served, by how many replicas, and what a request may ask."""

    run: str
    """A finished run of jobs.pipeline: its name under home/runs, its folder, its URI, or models:/NAME@champion or
    models:/NAME/3 of jobs.promote, looked up once when the service starts; no default."""
    registry: str | None = None
    """MLflow server or database that knows models:/...; None is mlflow.db in home."""
    home: str = Field(default_factory=lambda: os.environ.get("RECRANKER_HOME", "~/.recranker"))
    """Folder of runs/ and cache/ (downloaded and converted models); RECRANKER_HOME moves the default."""
    token_file: str | None = None
    """File with the bearer token clients must send; else RECRANKER_SERVE_TOKEN holds it; with neither, all may ask."""

    replica_sets: Literal["per_task", "shared"] = "per_task"
    """'per_task': each task has replicas of its own, with an adapter and numbers of its own. 'shared': one set of
    replicas answers all tasks and reads a user's history once for them, which takes about half of the CPU time and
    one model in memory instead of three; all tasks must have one adapter (tune.adapters=joint)."""
    replicas: int = Field(default=1, ge=1)
    """Replicas of each of the three tasks, every one with a model of its own; the fewest, where max_replicas is set."""
    max_replicas: int | None = Field(default=None, ge=1)
    """The most replicas of each task, started and ended with the load; None keeps their number as it is."""
    target_ongoing_requests: float = Field(default=2.0, gt=0)
    """Requests per replica, waiting ones included, that the number of replicas follows where max_replicas is set."""
    routers: int = Field(default=1, ge=1)
    """Replicas of the router."""
    cpus_per_replica: float = Field(default=0.5, gt=0)
    """CPUs of the cluster set aside per task replica; a share for scheduling, not a limit."""
    gpus_per_replica: float = Field(default=0.0, ge=0)
    """GPUs set aside per task replica; 0.33 lets the three tasks share one, 0 scores on the CPU."""

    per_task: dict[TaskName, TaskSettings] = Field(default={})
    """What differs for single tasks."""

    max_ongoing_requests: int = Field(default=8, ge=1)
    """Requests a task replica holds at once; those that wait in it are scored together where that pays."""
    max_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens of requests scored together, at the most, within llm.token_budget of the run. None: as many as pay, which
    is measured at the start: on a GPU most of the budget, on a CPU one request at a time."""
    max_queued_requests: int = Field(default=32, ge=0)
    """Requests that wait for a task or for the router; more are answered 503 with Retry-After."""
    request_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds until a request is answered with what has come; no header of a client changes it. Tasks that cannot be
    done by then, or by a request's own deadline, are not asked."""
    max_attempts: int = Field(default=3, ge=1)
    """Times a task is asked before it counts as missing, where its replica dies while it answers."""
    retry_after_s: float = Field(default=2.0, gt=0)
    """Seconds a client is told to wait when the service is full, at the least; longer, up to 30, where queues are."""

    swap_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds until all tasks must have loaded a run that is to take the place of the one that is served."""

    max_candidates: int = Field(default=26, ge=2, le=MAX_CANDIDATES)
    """Candidates of one request; above 26 a list is asked about in several windows, so that a request costs more."""
    max_history: int = Field(default=500, ge=0)
    """Entries of a request's history; the prompt takes the most recent of them."""
    max_title_characters: int = Field(default=1000, ge=1)
    """Longer titles are refused before they are cleaned; what is left is cut as it was in training."""
    max_body_bytes: int = Field(default=1_000_000, ge=1000)
    """Larger request bodies are refused."""
    body_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds until a request's body must be there; a client that sends more slowly is refused."""
    max_batch_requests: int = Field(default=32, ge=1)
    """Requests of one ``POST /v1/rank:batch``."""

    users: str | None = None
    """Where histories and candidates of users are: a redis://, rediss:// or unix:// URL, or a file of jobs.publish.
    None takes the run's own file where there is one."""
    users_timeout_s: float = Field(default=0.25, gt=0)
    """Seconds until Redis must have answered; a user that is not found in time is ranked for as if unknown."""
    popular_candidates: int = Field(default=10, ge=1)
    """Candidates of a user for whom the retriever made no list: the most popular items."""
    demo_users: int = Field(default=6, ge=0, le=MAX_DEMO_USERS)
    """Users whose history and candidates the page at / shows, to everybody who has the token; 0 shows none."""
    max_explained: int = Field(default=5, ge=0)
    """Latest entries of a history that a request with 'explain' is asked again without, each as much work as the
    request itself."""

    shadow: ShadowSettings | None = None
    """A challenger beside the run; task replicas then hold a second model, and rank with it when they are idle."""

    @property
    def folder(self) -> Path:
        """``home`` as a path."""
        return Path(self.home).expanduser().resolve()

    @property
    def cache(self) -> Path:
        """Where downloaded and converted models are kept."""
        return self.folder / "cache"

    def replicas_of(self, task: TaskName) -> Replicas:
        """Number and resources of a task's replicas."""
        own = self.per_task.get(task, TaskSettings()).model_dump(exclude_none=True)
        fewest = own.get("replicas", self.replicas)
        # a fixed number of its own is not undone by a most that holds for the others
        most = own.get("max_replicas", fewest if "replicas" in own else self.max_replicas or fewest)
        return Replicas(
            fewest,
            most,
            own.get("target_ongoing_requests", self.target_ongoing_requests),
            own.get("cpus_per_replica", self.cpus_per_replica),
            own.get("gpus_per_replica", self.gpus_per_replica),
        )

    @model_validator(mode="after")
    def _replicas_are_in_order(self) -> "ServeSettings":
        if self.per_task and self.replica_sets == "shared":
            raise ValueError("per_task gives tasks replicas of their own, so replica_sets must be 'per_task'")
        names: tuple[TaskName, ...] = get_args(TaskName)
        for task, found in ((task, self.replicas_of(task)) for task in names):
            if found.most < found.fewest:
                raise ValueError(f"{task}: max_replicas {found.most} must be at least replicas {found.fewest}")
            if found.most > found.fewest and found.target_ongoing_requests > self.max_ongoing_requests:
                raise ValueError(
                    f"{task}: target_ongoing_requests {found.target_ongoing_requests:g} must be at most "
                    f"max_ongoing_requests {self.max_ongoing_requests}, or no load would start a replica"
                )
        return self
