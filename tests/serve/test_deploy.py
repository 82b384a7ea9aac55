"""The two configuration files, and the application as ``serve build`` writes it and ``serve deploy`` reads it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.settings import Replicas, ServeSettings
from tests.serve.runs import finished_run

SERVE = Path(__file__).resolve().parent.parent.parent / "serve"
TASKS = ("pointwise", "pairwise", "listwise")


def arguments(file: str) -> dict[str, Any]:
    """The settings in a configuration file."""
    found: dict[str, Any] = yaml.safe_load((SERVE / file).read_text())["applications"][0]["args"]
    return found


@pytest.mark.parametrize(
    ("file", "host", "proxies"), [("config.yaml", "127.0.0.1", "HeadOnly"), ("production.yaml", "0.0.0.0", "EveryNode")]
)
def test_serve_reads_the_files_and_their_settings_are_ours(file: str, host: str, proxies: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    import serve.app

    found = ServeDeploySchema.model_validate(yaml.safe_load((SERVE / file).read_text()))
    assert (found.http_options.host, found.proxy_location.value) == (host, proxies)
    (application,) = found.applications
    assert application.import_path == "serve.app:build"
    assert callable(serve.app.build)
    settings = ServeSettings.model_validate(application.args)
    assert found.http_options.request_timeout_s > settings.request_timeout_s


def test_what_is_open_to_a_network_asks_for_a_token() -> None:
    assert arguments("production.yaml")["token_file"]
    assert arguments("production.yaml")["demo_users"] == 0
    assert "token_file" not in arguments("config.yaml")


@pytest.mark.parametrize("file", ["config.yaml", "production.yaml"])
def test_deployments_and_their_options_survive_build_and_deploy(file: str, tmp_path: Path) -> None:
    from ray.serve._private.build_app import build_app
    from ray.serve.deployment import deployment_to_schema, schema_to_deployment
    from ray.serve.schema import DeploymentSchema

    from serve.app import SPARE, build

    run = finished_run(tmp_path)
    settings = ServeSettings.model_validate({**arguments(file), "run": run.run, "home": run.home, "token_file": None})
    built = build_app(build(settings), name="recranker").deployments
    written = yaml.safe_dump([deployment_to_schema(one).model_dump(mode="json", exclude_unset=True) for one in built])
    read = [schema_to_deployment(DeploymentSchema.model_validate(one)) for one in yaml.safe_load(written)]

    assert {one.name for one in read} == {"router", *TASKS}
    for before, after in zip(built, read, strict=True):
        assert deployment_to_schema(after) == deployment_to_schema(before)
    found = {one.name: one for one in read}
    for task in TASKS:
        wanted, config = settings.replicas_of(task), found[task]._deployment_config  # type: ignore[arg-type]
        scaling = config.autoscaling_config
        if wanted.fewest == wanted.most:
            assert (scaling, config.num_replicas) == (None, wanted.fewest)
        else:
            assert (scaling.min_replicas, scaling.max_replicas) == (wanted.fewest, wanted.most)
            assert scaling.target_ongoing_requests == wanted.target_ongoing_requests
        threads = {"env_vars": {"OMP_NUM_THREADS": "1"}}  # as many as llm.threads of the run
        resources = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus}
        assert found[task].ray_actor_options == {**resources, "runtime_env": threads}
        assert found[task].max_ongoing_requests == settings.max_ongoing_requests
        assert found[task].max_queued_requests == settings.max_queued_requests
    most = max(settings.replicas_of(task).most for task in TASKS)  # type: ignore[arg-type]
    room = settings.max_queued_requests + most * settings.max_ongoing_requests + SPARE
    assert (found["router"].num_replicas, found["router"].max_ongoing_requests) == (settings.routers, room)


def test_a_task_takes_what_holds_for_all_unless_it_says_otherwise() -> None:
    settings = ServeSettings.model_validate(
        {
            "run": "toy",
            "replicas": 2,
            "max_replicas": 4,
            "gpus_per_replica": 0.5,
            "per_task": {"pairwise": {"max_replicas": 8, "gpus_per_replica": 1}, "listwise": {"replicas": 6}},
        }
    )
    assert settings.replicas_of("pointwise") == Replicas(2, 4, 2.0, 0.5, 0.5)
    assert settings.replicas_of("pairwise") == Replicas(2, 8, 2.0, 0.5, 1.0)
    assert settings.replicas_of("listwise") == Replicas(6, 6, 2.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replicas": 3, "max_replicas": 2}, "pointwise: max_replicas 2 must be at least replicas 3"),
        ({"per_task": {"listwise": {"replicas": 3, "max_replicas": 2}}}, "listwise: max_replicas 2"),
        (
            {"max_replicas": 2, "target_ongoing_requests": 9},
            "target_ongoing_requests 9 must be at most max_ongoing_requests 8",
        ),
        ({"replica_sets": "shared", "per_task": {"listwise": {}}}, "replica_sets must be 'per_task'"),
        ({"per_task": {"other": {}}}, "Input should be 'pointwise'"),
        ({"per_task": {"pointwise": {"replica": 2}}}, "Extra inputs are not permitted"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServeSettings.model_validate({"run": "toy", **changes})
