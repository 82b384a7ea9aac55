"""Rank over HTTP: a deployment per task and the router before them.

serve run serve/config.yaml
"""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from recranker.tasks.settings import TaskName
from serve.replica_sets import ReplicaSet, check_adapters, replica_sets
from serve.router import Router, read_token, replica_api
from serve.settings import Replicas, ServeSettings
from serve.source import ServedRun, read_run
from serve.tasks import TaskReplica
from serve.users import check_users

SPARE = 64
"""Requests that a router takes beyond those its tasks hold: health checks, and those it refuses, in milliseconds and
saying when there is room again."""


def build(settings: ServeSettings) -> Application:
    """The application Ray Serve runs.

    Raises:
        DataError: If the run is not finished, a file of it is broken, or its users were published from other tables.
        SettingsError: If the run's settings are not those of this version, or its tasks cannot share replicas that they
            are to share.
    """
    run = read_run(settings)
    check_adapters(settings, run)
    check_users(settings, run)
    tasks: dict[TaskName, Application] = {}
    for one in replica_sets(settings, run.tasks):
        tasks |= dict.fromkeys(one.tasks, task_deployment(one, settings, run))
    return router_deployment(settings, run, tasks)


def router_deployment(settings: ServeSettings, run: ServedRun, tasks: dict[TaskName, Application]) -> Application:
    """The router over the tasks' deployments."""
    most = max(settings.replicas_of(task).most for task in tasks)
    router = serve.deployment(
        serve.ingress(replica_api)(Router),
        name="router",
        num_replicas=settings.routers,
        max_ongoing_requests=settings.max_queued_requests + settings.max_ongoing_requests * most + SPARE,
        ray_actor_options={"num_cpus": 0},  # it waits; the tasks compute
        user_config=run.wanted.model_dump(),
        **_queue(settings),
    )
    needs_token = settings.token_file is None and read_token(settings) is not None
    return router.bind(settings, run, tasks, needs_token=needs_token)


def task_deployment(one: ReplicaSet, settings: ServeSettings, run: ServedRun) -> Application:
    """Replicas that each have the base model and the adapter that answers their tasks."""
    replicas = settings.replicas_of(one.first)
    # the engine runs in a thread, for which what torch was told in another does not hold
    threads = {"env_vars": {"OMP_NUM_THREADS": str(run.llm.threads)}}
    deployment = serve.deployment(
        TaskReplica,
        name=one.deployment,
        **_number(replicas),
        max_ongoing_requests=settings.max_ongoing_requests,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus, "runtime_env": threads},
        health_check_period_s=2,
        health_check_timeout_s=10,  # three times in a row
        user_config=run.wanted.model_dump(),
        **_queue(settings),
    )
    return deployment.bind(one.first, run, settings)


def _number(replicas: Replicas) -> dict[str, Any]:
    if replicas.fewest == replicas.most:
        return {"num_replicas": replicas.fewest}
    scaling = AutoscalingConfig(
        min_replicas=replicas.fewest,
        max_replicas=replicas.most,
        target_ongoing_requests=replicas.target_ongoing_requests,
    )
    return {"autoscaling_config": scaling}


def _queue(settings: ServeSettings) -> dict[str, Any]:
    refusal = BackpressureConfig(status_code=503, retry_after_s=settings.retry_after_s)
    return {"max_queued_requests": settings.max_queued_requests, "backpressure_config": refusal}
