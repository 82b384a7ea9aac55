"""The fits inside a real Ray Train run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from recranker.backbones.fits import FitJob, run_fits
from recranker.backbones.settings import BackboneSettings, EASESettings, MFSettings, RatingPredictorSettings
from recranker.backbones.training import Alone
from recranker.distributed.backbones import fit_backbones
from recranker.errors import DataError
from tests.backbones.made_up import fold_of, two_tastes
from tests.backbones.workers import on_workers

pytestmark = pytest.mark.ray


def small_job(workers: int, epochs: int = 20, *, checkpoint_every_s: float = 60.0) -> FitJob:
    tastes = two_tastes()
    likes = list(zip(tastes.like_users, tastes.like_items, strict=True))
    ratings = [(user, item, 3.0 + user % 2) for user in range(40) for item in range(5)]
    validation = list(zip(tastes.validation_users, tastes.validation_items, strict=True))
    shape = {"num_users": 40, "num_items": 40}
    full = fold_of(likes, ratings=ratings, validation=validation, **shape)
    earlier = replace(fold_of(likes[::2], ratings=ratings[::2], **shape), name="rolled_back")
    settings = BackboneSettings(
        retriever=MFSettings(batch_size=64, epochs=epochs, learning_rate=1e-2),
        rating_predictor=RatingPredictorSettings(epochs=3),
        workers=workers,
        checkpoint_every_s=checkpoint_every_s,
    )
    return FitJob((full, earlier), settings, 0)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("ray_cluster")
def test_ray_workers_give_what_the_plain_function_gives(tmp_path: Path, workers: int) -> None:
    told: list[int] = []
    job = small_job(workers)
    found = fit_backbones(job, work=tmp_path / "work", on_epochs=told.append)
    expected = run_fits(job, collective=Alone(), device=torch.device("cpu"))
    assert list(found) == list(expected)
    for name, fit in expected.items():
        np.testing.assert_allclose(found[name].user_factors, fit.user_factors, atol=1e-4)
        np.testing.assert_allclose(found[name].item_factors, fit.item_factors, atol=1e-4)
        assert found[name].epochs == fit.epochs
    assert sum(told) == job.epochs
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_killed_in_the_middle_of_a_fit_changes_nothing(tmp_path: Path) -> None:
    """The first fit leaves checkpoints while it goes, and one worker dies after the first of them."""
    job = small_job(2, epochs=1000, checkpoint_every_s=2.0)
    nobody = np.empty(0, np.int64)  # no early stopping: noise cannot move the epoch that is best
    job = replace(job, folds=tuple(replace(one, validation_users=nobody, validation_items=nobody) for one in job.folds))
    work, told, killed = tmp_path / "work", list[int](), list[Path]()

    def kill_once(epochs: int) -> None:
        told.append(epochs)
        workers = [one for one in psutil.Process().children(recursive=True) if "RayTrainWorker" in one.name()]
        states = list(work.glob("**/state.pt"))  # each waits for the two-second rounds of Ray Train
        if states and not killed and workers:
            killed.append(states[0])
            workers[0].kill()

    found = fit_backbones(job, work=work, on_epochs=kill_once)
    assert killed
    assert sum(told) == job.epochs  # each counts once, before the loss and after
    assert min(told) >= 0
    expected, _ = on_workers(2, lambda collective: run_fits(job, collective=collective, device=torch.device("cpu")))
    for name, fit in expected.items():
        assert found[name].epochs == fit.epochs
        np.testing.assert_allclose(found[name].user_factors, fit.user_factors, atol=1e-4)


def test_closed_forms_need_no_cluster(tmp_path: Path) -> None:
    folds = (replace(two_tastes(), name="full"),)
    job = FitJob(folds, BackboneSettings(retriever=EASESettings()), 0)
    assert fit_backbones(job, work=tmp_path, on_epochs=lambda count: None) == {}


def test_no_likes_are_refused_before_workers_start(tmp_path: Path) -> None:
    empty = fold_of([], num_users=2, num_items=2)
    with pytest.raises(DataError, match="holds none"):
        fit_backbones(FitJob((empty,), BackboneSettings(), 0), work=tmp_path, on_epochs=lambda count: None)
