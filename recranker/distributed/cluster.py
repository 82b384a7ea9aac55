"""The Ray cluster a job runs on."""

import logging
import os
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recranker.errors import SettingsError

logger = logging.getLogger(__name__)

_MEGABYTE = 1024 * 1024


def connect(cpus: int | None = None, object_store_mb: int = 512) -> None:
    """Join the cluster this job was submitted to or RAY_ADDRESS names; otherwise start one on this machine.

    Calling it again does nothing. Workers of a started cluster run one thread each: on shared
    cores spinning OpenMP threads cost more than they give.
    """
    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**options)
    else:
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=object_store_mb * _MEGABYTE,
            include_dashboard=False,
            runtime_env={"env_vars": worker_environment()},
            **options,
        )
    _quiet_ray_data()
    resources = ray.cluster_resources()
    logger.info("on a Ray cluster with %g CPUs and %g GPUs", resources.get("CPU", 0), resources.get("GPU", 0))


def beside_driver() -> dict[str, Any]:
    """Options of an actor that this process talks with to the end: it takes no CPU, and is lost with no other node."""
    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


def check_workers(setting: str, workers: int, *, device: str = "auto") -> bool:
    """Whether the workers get a GPU each; otherwise a CPU.

    Args:
        setting: Name of the setting that asks for ``workers``, for the message.
        workers: How many there shall be at once.
        device: 'auto' takes GPUs where the cluster has any.

    Raises:
        SettingsError: If a cluster that cannot grow has too few, so that the job would wait for ever.
    """
    there = ray.cluster_resources()
    use_gpu = device == "cuda" or (device == "auto" and there.get("GPU", 0) > 0)
    kind = "GPU" if use_gpu else "CPU"
    if there.get(kind, 0) < workers:
        found = f"{setting}={workers} need a {kind} each, the cluster has {there.get(kind, 0):g}"
        if not os.environ.get("RAY_ADDRESS"):
            more = "run on a cluster with more GPUs" if use_gpu else "raise ray.cpus where there are more cores"
            raise SettingsError(f"{found}; lower {setting}, or {more}")
        logger.warning("%s; waiting for it to grow", found)
    return use_gpu


def worker_environment() -> dict[str, str]:
    """Environment of worker processes: one thread each, and this checkout importable."""
    root = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH", "")
    path = known if root in known.split(os.pathsep) else os.pathsep.join(part for part in (root, known) if part)
    return {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}


def disconnect() -> None:
    """Leave the cluster; one that ``connect`` started ends."""
    if ray.is_initialized():
        ray.shutdown()


def _quiet_ray_data() -> None:
    """Our own progress is shown instead of Ray Data's bars and per-run banners."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
