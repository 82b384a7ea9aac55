"""The shared loop: workers agree, early stopping keeps the best, a broken run goes on as if nothing had happened."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recranker.backbones.examples import LikeExamples
from recranker.backbones.fit import FactorFit, Fit
from recranker.backbones.fits import (
    FitJob,
    Fits,
    Progress,
    check_fits,
    fit_retriever,
    load_progress,
    run_fits,
    save_progress,
)
from recranker.backbones.folds import FoldData
from recranker.backbones.mf import MF
from recranker.backbones.settings import (
    BackboneSettings,
    EASESettings,
    MFSettings,
    RatingPredictorSettings,
    SASRecSettings,
    Trained,
)
from recranker.backbones.training import Alone, EarlyStopping, slice_of, train
from recranker.errors import DataError, ModelError
from tests.backbones.made_up import CPU, SMALL, TRAINED, fold_of, two_tastes
from tests.backbones.workers import on_workers

each_trained = pytest.mark.parametrize("settings", TRAINED, ids=lambda settings: settings.kind)


def assert_same(one: Fit, other: Fit) -> None:
    """To the last bit."""
    assert type(one) is type(other)
    for name, value in one.arrays().items():
        np.testing.assert_array_equal(value, other.arrays()[name], err_msg=name)


def _epoch(progress: Progress) -> int | None:
    return progress.state.epoch if progress.state else None


def rated_job(settings: Trained, **changes: object) -> FitJob:
    """A full and a rolled-back fold with ratings."""
    ratings = [(user, item, 3.0 + user % 2) for user in range(40) for item in range(5)]
    tastes = two_tastes()
    likes = list(zip(tastes.like_users, tastes.like_items, strict=True))
    validation = list(zip(tastes.validation_users, tastes.validation_items, strict=True))
    full = fold_of(likes, num_users=40, num_items=40, ratings=ratings, validation=validation)
    earlier = fold_of(likes[::2], num_users=40, num_items=40, ratings=ratings[:50])
    predictor = RatingPredictorSettings(epochs=3, batch_size=64, dim=4)
    backbone = BackboneSettings(retriever=settings, rating_predictor=predictor, checkpoint_every_s=0, **changes)
    return FitJob((full, replace(earlier, name="rolled_back")), backbone, seed=0)


@each_trained
def test_three_workers_give_what_one_gives(settings: Trained) -> None:
    fold, few = two_tastes(), settings.model_copy(update={"epochs": 6, "check_every": 2})
    alone = fit_retriever(fold, few, 0, Alone(), CPU)
    for fit in on_workers(3, lambda collective: fit_retriever(fold, few, 0, collective, CPU)):
        np.testing.assert_allclose(fit.user_factors, alone.user_factors, atol=2e-3)
        np.testing.assert_allclose(fit.item_factors, alone.item_factors, atol=2e-3)
        assert fit.epochs == alone.epochs
        assert fit.validation_ndcg_at_10 == pytest.approx(alone.validation_ndcg_at_10)


@pytest.mark.parametrize(
    "settings", [MFSettings(batch_size=4, epochs=3), SASRecSettings(batch_size=2, dim=4, epochs=3)]
)
def test_a_worker_without_events_in_a_batch_does_no_harm(settings: Trained) -> None:
    likes = [(0, 0), (1, 1), (0, 2), (1, 3), (0, 4), (2, 1), (2, 2)]
    fold = fold_of(sorted(likes), num_users=3, num_items=5)  # seven likes, three sequences: fewer than workers at last
    plain = settings.model_copy(update={"dropout": 0.0}) if isinstance(settings, SASRecSettings) else settings
    alone = fit_retriever(fold, plain, 0, Alone(), CPU)
    for fit in on_workers(3, lambda collective: fit_retriever(fold, plain, 0, collective, CPU)):
        np.testing.assert_allclose(fit.user_factors, alone.user_factors, atol=1e-4)


def test_slices_of_a_batch_are_the_batch() -> None:
    batch = np.arange(10)
    parts = on_workers(3, lambda collective: slice_of(batch, collective))
    assert sorted(np.concatenate(parts).tolist()) == batch.tolist()


def test_early_stopping_keeps_the_best_state_and_gives_up() -> None:
    fold = two_tastes()
    model = MF(40, 40, dim=4, l2=0.0, key=(0,))
    found = iter([0.1, 0.3, 0.2, 0.3, 0.0])
    states: list[Tensor] = []

    def evaluate() -> float:
        states.append(model.users.detach().clone())
        return next(found)

    outcome = train(
        model,
        LikeExamples(fold, (0,)),
        epochs=100,
        batch_size=64,
        learning_rate=1e-2,
        key=(0,),
        collective=Alone(),
        device=CPU,
        stopping=EarlyStopping(evaluate, check_every=2, patience=2),
    )
    assert (outcome.epochs, outcome.best) == (4, 0.3)
    assert len(states) == 4  # the looks after epochs 2, 4, 6, 8
    torch.testing.assert_close(model.users.detach(), states[1], rtol=0, atol=0)


def test_without_validation_users_all_epochs_are_run() -> None:
    fit = fit_retriever(fold_of([(0, 0), (1, 1)], num_users=3, num_items=2), MFSettings(epochs=7), 0, Alone(), CPU)
    assert fit.epochs == 7
    assert np.isnan(fit.validation_ndcg_at_10)


def test_rolled_back_fit_runs_as_long_as_the_best_full_one_and_progress_adds_up() -> None:
    settings = MFSettings(batch_size=64, learning_rate=1e-2, check_every=5, patience=2)
    job, told = rated_job(settings), list[int]()
    fits = run_fits(job, collective=Alone(), device=CPU, on_epochs=told.append)
    assert fits["retriever/rolled_back"].epochs == fits["retriever/full"].epochs < settings.epochs
    assert np.isnan(fits["retriever/rolled_back"].validation_ndcg_at_10)
    assert sum(told) == job.epochs


def test_watching_shows_every_epoch() -> None:
    seen: list[tuple[int, float]] = []
    settings = MFSettings(**SMALL)

    def watch(epoch: int, fit: object) -> None:
        seen.append((epoch, float(fit().user_factors.sum())))  # type: ignore[operator]

    last = fit_retriever(two_tastes(), settings, 0, Alone(), CPU, epochs=4, watch=watch)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4]
    assert seen[-1][1] == float(last.user_factors.sum())


@each_trained
def test_a_fit_broken_off_after_any_epoch_goes_on_as_if_nothing_had_happened(settings: Trained, tmp_path: Path) -> None:
    few = settings.model_copy(update={"epochs": 12, "check_every": 1, "patience": 3, "learning_rate": 0.05})
    if isinstance(few, SASRecSettings):
        few = few.model_copy(update={"dropout": 0.3})  # keyed by the epoch, so it goes on as well
    job, saved = replace(rated_job(few), folds=rated_job(few).folds[:1]), list[Path]()

    def save(progress: Progress) -> None:
        saved.append(tmp_path / str(len(saved)))
        saved[-1].mkdir()
        save_progress(progress, saved[-1])

    whole = run_fits(job, collective=Alone(), device=CPU, save=save)
    states = [load_progress(folder) for folder in saved]
    assert any(one.state and one.state.checks_since for one in states)  # also broken off after a look without a gain
    assert {one.state is None for one in states} == {True, False}
    for place, start in enumerate(states):
        told, seen = list[int](), list[Progress]()
        again = run_fits(job, collective=Alone(), device=CPU, start=start, on_epochs=told.append, save=seen.append)
        assert [_epoch(one) for one in seen] == [_epoch(one) for one in states[place + 1 :]]  # stops at the same epoch
        assert list(again) == list(whole)
        for name, fit in whole.items():
            assert_same(again[name], fit)
        assert sum(told) == job.epochs  # what is behind counts once


def test_a_state_is_a_snapshot_that_can_be_used_twice() -> None:
    job, seen = rated_job(MFSettings(**SMALL)), list[Progress]()
    whole = run_fits(job, collective=Alone(), device=CPU, save=seen.append)
    start = next(one for one in seen if one.state and one.state.epoch == 3)
    for _ in range(2):  # training has gone on since, and goes on from it here
        again = run_fits(job, collective=Alone(), device=CPU, start=start)
        assert_same(again["retriever/full"], whole["retriever/full"])


def test_a_checkpoint_waits_for_its_time() -> None:
    job, seen = rated_job(MFSettings(**SMALL)), list[Progress]()
    patient = replace(job, settings=job.settings.model_copy(update={"checkpoint_every_s": 1000.0}))
    run_fits(patient, collective=Alone(), device=CPU, save=seen.append)
    assert [one.state for one in seen] == [None] * 4  # after each fit


def test_all_workers_save_after_the_same_epochs() -> None:
    job = rated_job(MFSettings(**SMALL | {"epochs": 4}))

    def epochs_saved(collective: object) -> list[int | None]:
        seen: list[int | None] = []
        run_fits(
            job,
            collective=collective,  # type: ignore[arg-type]
            device=CPU,
            save=lambda progress: seen.append(_epoch(progress)),
        )
        return seen

    first, *others = on_workers(3, epochs_saved)
    assert first[:4] == [1, 2, 3, None]
    assert all(one == first for one in others)


@each_trained
def test_saved_progress_is_what_was_done(settings: Trained, tmp_path: Path) -> None:
    fits = run_fits(rated_job(settings.model_copy(update={"epochs": 2})), collective=Alone(), device=CPU)
    save_progress(Progress(fits), tmp_path)
    loaded = load_progress(tmp_path)
    assert loaded.state is None
    assert list(loaded.fits) == list(fits)
    for name, fit in fits.items():
        assert_same(loaded.fits[name], fit)


def test_a_finished_fit_leaves_no_state_in_its_folder(tmp_path: Path) -> None:
    seen: list[Progress] = []
    run_fits(rated_job(MFSettings(**SMALL)), collective=Alone(), device=CPU, save=seen.append)
    finished = next(place for place, one in enumerate(seen) if one.state is None)
    for progress in seen[finished - 1 : finished + 1]:
        save_progress(progress, tmp_path)
    assert load_progress(tmp_path).state is None


def test_finished_fits_are_not_done_again() -> None:
    fold = two_tastes()
    earlier = replace(fold, name="rolled_back")
    done = FactorFit(np.zeros((40, 1), np.float32), np.zeros((40, 1), np.float32), epochs=3)
    job = FitJob((fold, earlier), BackboneSettings(retriever=MFSettings(epochs=2)), seed=0)
    fits: Fits = run_fits(job, collective=Alone(), device=CPU, start=Progress({"retriever/full": done}))
    assert fits["retriever/full"] is done
    assert fits["retriever/rolled_back"].epochs == 3
    assert "rating_predictor/full" not in fits  # these folds have no ratings


def test_closed_forms_leave_nothing_to_train() -> None:
    job = FitJob((two_tastes(),), BackboneSettings(retriever=EASESettings()), seed=0)
    assert job.trained == []
    assert job.epochs == 0


def test_a_fold_without_likes_is_named() -> None:
    empty: FoldData = fold_of([], num_users=2, num_items=2)
    with pytest.raises(DataError, match="'rolled_back' holds none"):
        FitJob((two_tastes(), replace(empty, name="rolled_back")), BackboneSettings(), 0).check()


def test_diverged_fit_is_named() -> None:
    bad = FactorFit(np.array([[np.inf]], np.float32), np.zeros((1, 1), np.float32))
    with pytest.raises(ModelError, match=r"retriever/full.*backbone\.retriever\.learning_rate"):
        check_fits({"retriever/full": bad})
