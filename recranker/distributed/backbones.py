"""The backbone fits on a cluster: one Ray Train run does all of them, so that workers start once.

After every fit, and within a long one now and then, the first worker saves how far it is; a restarted run goes on
from there.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.config import LoggingConfig
from torch import Tensor

from recranker.backbones.fits import FitJob, Fits, Progress, check_fits, load_progress, run_fits, save_progress
from recranker.distributed.background import BackgroundFit
from recranker.distributed.cluster import beside_driver, check_workers

logger = logging.getLogger(__name__)

POLL_S = 0.5
COLLECTIVE_TIMEOUT_S = 300
"""A worker that hears nothing from the others for so long gives up."""
MAX_FAILURES = 2
"""Restarts after a lost worker before the run is given up."""


class EpochCounter:
    """Counts epochs; runs as an actor."""

    def __init__(self) -> None:
        self._epochs = 0

    def restart(self) -> None:
        """Count from 0: an attempt that goes on from a checkpoint counts what is behind it too."""
        self._epochs = 0

    def add(self, epochs: int) -> None:
        """Count more."""
        self._epochs += epochs

    def total(self) -> int:
        """Epochs counted."""
        return self._epochs


class TorchCollective:
    """The workers of this Ray Train run."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()

    def all_reduce(self, values: Tensor) -> None:
        """Sum over workers, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(values)


def fit_backbones(job: FitJob, *, work: Path, on_epochs: Callable[[int], None]) -> Fits:
    """Do all fits of ``job`` with ``job.settings.workers`` workers, on GPUs where each can have one.

    Args:
        work: Scratch folder for checkpoints, seen by all nodes; removed at the end.
        on_epochs: Told of epochs done as they come, ``job.epochs`` in all; called in this thread.

    Raises:
        DataError: If there is nothing to learn from.
        SettingsError: If the cluster cannot hold the workers.
        ModelError: If a fit has diverged.
    """
    job.check()
    if not job.trained:
        return {}
    use_gpu = check_workers("backbone.workers", job.settings.workers)
    counter = ray.remote(EpochCounter).options(**beside_driver()).remote()
    run = BackgroundFit(_trainer(ray.put(job), counter, work, workers=job.settings.workers, use_gpu=use_gpu))
    told, running = 0, True
    try:
        while running:
            running = run.wait(POLL_S)
            done = max(told, min(ray.get(counter.total.remote()), job.epochs))  # a restarted run starts further back
            on_epochs(done - told)
            told = done
        with run.result().checkpoint.as_directory() as folder:
            fits = dict(load_progress(Path(folder)).fits)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    check_fits(fits)
    return fits


def _trainer(job: Any, counter: Any, work: Path, *, workers: int, use_gpu: bool) -> TorchTrainer:
    return TorchTrainer(
        _worker,
        train_loop_config={"job": job, "counter": counter},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=RunConfig(
            name="backbones",
            storage_path=str(work.resolve()),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    """One worker from its first fit to its last."""
    job: FitJob = ray.get(config["job"])
    collective = TorchCollective()
    if collective.rank == 0:
        ray.get(config["counter"].restart.remote())

    def count(epochs: int) -> None:
        if collective.rank == 0:
            config["counter"].add.remote(epochs)

    run_fits(
        job,
        collective=collective,
        device=get_device(),
        start=_reached(),
        save=lambda progress: _report(progress, collective.rank),
        on_epochs=count,
    )


def _reached() -> Progress | None:
    """How far an earlier attempt of this run got."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return load_progress(Path(folder))


def _report(progress: Progress, rank: int) -> None:
    """All workers report; the first brings the checkpoint."""
    if rank != 0:
        ray.train.report({}, checkpoint=None)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_progress(progress, Path(folder))
        ray.train.report({}, checkpoint=Checkpoint.from_directory(folder))
