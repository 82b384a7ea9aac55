"""The shared loop: workers agree, early stopping keeps the best, structure is learned."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recranker.backbones.examples import LikeExamples
from recranker.backbones.fit import Fit
from recranker.backbones.fits import FitJob, check_fits, fit_retriever, load_fits, run_fits, save_fits
from recranker.backbones.mf import MF
from recranker.backbones.settings import BackboneSettings, LightGCNSettings, MFSettings, RatingPredictorSettings
from recranker.backbones.training import Alone, Collective, EarlyStopping, slice_of, train
from recranker.errors import ModelError
from tests.backbones.made_up import fold_of, two_tastes

CPU = torch.device("cpu")


class Threads:
    """Workers that are threads of one process and add up through a shared list."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, shared: list[Tensor]) -> None:
        self.rank, self.world, self.barrier, self.shared = rank, world, barrier, shared

    def all_reduce(self, values: Tensor) -> None:
        self.shared[self.rank] = values.clone()
        self.barrier.wait(10)
        total = torch.stack(self.shared).sum(dim=0)
        self.barrier.wait(10)
        values.copy_(total)


def on_workers(world: int, work: Callable[[Collective], Any]) -> list[Any]:
    """What ``work`` returns on each of ``world`` workers."""
    barrier, shared = threading.Barrier(world), [torch.empty(0)] * world
    results: list[Any] = [None] * world

    def one(rank: int) -> None:
        results[rank] = work(Threads(rank, world, barrier, shared))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize("settings", [MFSettings(batch_size=64, epochs=20), LightGCNSettings(batch_size=64, epochs=20)])
def test_three_workers_give_what_one_gives(settings: MFSettings | LightGCNSettings) -> None:
    fold = two_tastes()
    alone = fit_retriever(fold, settings, 0, Alone(), CPU)
    for fit in on_workers(3, lambda collective: fit_retriever(fold, settings, 0, collective, CPU)):
        np.testing.assert_allclose(fit.user_factors, alone.user_factors, atol=1e-4)
        np.testing.assert_allclose(fit.item_factors, alone.item_factors, atol=1e-4)
        assert (fit.epochs, fit.validation_hr_at_10) == (alone.epochs, alone.validation_hr_at_10)


def test_a_worker_without_events_in_a_batch_does_no_harm() -> None:
    fold = fold_of([(0, 0), (1, 1), (0, 2), (1, 3), (0, 4)], num_users=2, num_items=5)
    settings = MFSettings(batch_size=4, epochs=3)  # the last batch holds one event for three workers
    alone = fit_retriever(fold, settings, 0, Alone(), CPU)
    for fit in on_workers(3, lambda collective: fit_retriever(fold, settings, 0, collective, CPU)):
        np.testing.assert_allclose(fit.user_factors, alone.user_factors, atol=1e-4)


def test_slices_of_a_batch_are_the_batch() -> None:
    batch = np.arange(10)
    parts = on_workers(3, lambda collective: slice_of(batch, collective))
    assert sorted(np.concatenate(parts).tolist()) == batch.tolist()


@pytest.mark.parametrize(
    "settings", [MFSettings(batch_size=64, learning_rate=1e-2), LightGCNSettings(batch_size=64, learning_rate=1e-2)]
)
def test_learns_two_tastes(settings: MFSettings | LightGCNSettings) -> None:
    fit = fit_retriever(two_tastes(), settings, 0, Alone(), CPU)
    scores = fit.scores(np.arange(40))
    own = np.arange(40)[:, None] % 2 == np.arange(40)[None, :] % 2
    assert scores[own].mean() > scores[~own].mean() + 1.0
    assert fit.validation_hr_at_10 > 0.9  # ten items of the own taste are left


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
    assert np.isnan(fit.validation_hr_at_10)


def test_rolled_back_fit_runs_as_long_as_the_best_full_one_and_progress_adds_up(tmp_path: Any) -> None:
    ratings = [(user, item, 3.0 + user % 2) for user in range(40) for item in range(5)]
    tastes = two_tastes()
    full = fold_of(
        list(zip(tastes.like_users, tastes.like_items, strict=True)),
        num_users=40,
        num_items=40,
        ratings=ratings,
        validation=list(zip(tastes.validation_users, tastes.validation_items, strict=True)),
    )
    rolled_back = fold_of([(0, 0), (1, 1)], num_users=40, num_items=40, ratings=ratings[:50])
    retriever = MFSettings(batch_size=64, learning_rate=1e-2, check_every=5, patience=2)
    settings = BackboneSettings(retriever=retriever, rating_predictor=RatingPredictorSettings(epochs=3))
    job, told = FitJob(full, rolled_back, settings, seed=0), []
    *_, fits = run_fits(job, collective=Alone(), device=CPU, on_epochs=told.append)
    assert fits["retriever/rolled_back"].epochs == fits["retriever/full"].epochs < retriever.epochs
    assert np.isnan(fits["retriever/rolled_back"].validation_hr_at_10)
    assert sum(told) == job.epochs

    save_fits(fits, tmp_path / "fits.npz")
    loaded = load_fits(tmp_path / "fits.npz")
    assert list(loaded) == list(fits)
    for name, fit in fits.items():
        for field, value in vars(fit).items():
            np.testing.assert_array_equal(getattr(loaded[name], field), value)


def test_finished_fits_are_not_done_again() -> None:
    fold = two_tastes()
    settings = BackboneSettings(retriever=MFSettings(epochs=2))
    done = Fit(np.zeros((40, 1), np.float32), np.zeros((40, 1), np.float32), epochs=3)
    *_, fits = run_fits(
        FitJob(fold, fold, settings, seed=0), collective=Alone(), device=CPU, finished={"retriever/full": done}
    )
    assert fits["retriever/full"] is done
    assert fits["retriever/rolled_back"].epochs == 3
    assert "rating_predictor/full" not in fits  # this fold has no ratings


def test_diverged_fit_is_named() -> None:
    bad = Fit(np.array([[np.inf]], np.float32), np.zeros((1, 1), np.float32))
    with pytest.raises(ModelError, match=r"retriever/full.*backbone\.retriever\.learning_rate"):
        check_fits({"retriever/full": bad})
