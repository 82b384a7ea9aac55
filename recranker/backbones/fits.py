"""The four fits of a run: retriever and rating predictor, each on the full and the rolled-back fold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from recranker.backbones.evaluation import target_ranks
from recranker.backbones.examples import LikeExamples, RatingExamples
from recranker.backbones.fit import Fit
from recranker.backbones.folds import FoldData
from recranker.backbones.lightgcn import LightGCN
from recranker.backbones.mf import MF
from recranker.backbones.protocol import Backbone
from recranker.backbones.rating_predictor import RatingPredictor
from recranker.backbones.settings import BackboneSettings, LightGCNSettings, RatingPredictorSettings, Retriever
from recranker.backbones.topk import ItemSets
from recranker.backbones.training import Collective, EarlyStopping, train
from recranker.errors import DataError, ModelError

HIT_CUTOFF = 10
"""k of the HR@k that early stopping watches (RecRanker's number of candidates)."""


@dataclass(frozen=True)
class FitJob:
    """All that a worker needs, the same on every worker."""

    full: FoldData
    rolled_back: FoldData
    settings: BackboneSettings
    seed: int

    def check(self) -> None:
        """There is something to learn from.

        Raises:
            DataError: If a fold holds no like.
        """
        for data in (self.full, self.rolled_back):
            if not len(data.like_users):
                raise DataError(f"the retriever needs training likes, fold {data.name!r} holds none; take more data")

    @property
    def epochs(self) -> int:
        """Epochs of all fits together at the most."""
        predictor = self.settings.rating_predictor.epochs if len(self.full.ratings) else 0
        return 2 * (self.settings.retriever.epochs + predictor)


Fits = dict[str, Fit]
"""By name: 'retriever' and 'rating_predictor', each with '/full' and '/rolled_back'.

Without any rating there are no rating predictors.
"""


def run_fits(
    job: FitJob,
    *,
    collective: Collective,
    device: torch.device,
    finished: Fits | None = None,
    on_epochs: Callable[[int], None] = lambda count: None,
) -> Iterator[Fits]:
    """Do every fit that is not in ``finished``; yields all finished ones after each.

    Args:
        on_epochs: Told how many of ``job.epochs`` are behind; what early stopping saves counts too.
    """
    fits = dict(finished or {})
    for name in _names(job):
        if name not in fits:
            model, _, fold = name.partition("/")
            data = job.full if fold == "full" else job.rolled_back
            if model == "retriever":
                epochs = fits["retriever/full"].epochs if fold == "rolled_back" else None
                fits[name] = fit_retriever(
                    data, job.settings.retriever, job.seed, collective, device, epochs=epochs, on_epochs=on_epochs
                )
            else:
                fits[name] = fit_rating_predictor(
                    data, job.settings.rating_predictor, job.seed, collective, device, on_epochs=on_epochs
                )
        yield fits


def fit_retriever(
    data: FoldData,
    settings: Retriever,
    seed: int,
    collective: Collective,
    device: torch.device,
    *,
    epochs: int | None = None,
    on_epochs: Callable[[int], None] = lambda count: None,
) -> Fit:
    """Fit on the fold's likes.

    Args:
        epochs: Train exactly so long and look at no validation; None stops early by validation HR@10
            (or goes through all of ``settings.epochs`` where the fold has no validation users).
    """
    key = (seed, "backbone", settings.kind, data.name)
    model = _retriever(data, settings, key)
    model.to(device)
    stopping = None
    if epochs is None and len(data.validation_users):
        watch = _ValidationHits(model, data, collective)
        stopping = EarlyStopping(watch, settings.check_every, settings.patience)
    counted = _Counted(on_epochs, settings.epochs)
    outcome = train(
        model,
        LikeExamples(data, key),
        epochs=epochs or settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        key=key,
        collective=collective,
        device=device,
        stopping=stopping,
        on_epoch=counted.one,
    )
    counted.rest()
    return _fit_of(model, outcome.epochs, outcome.best)


def fit_rating_predictor(
    data: FoldData,
    settings: RatingPredictorSettings,
    seed: int,
    collective: Collective,
    device: torch.device,
    *,
    on_epochs: Callable[[int], None] = lambda count: None,
) -> Fit:
    """Fit on all the fold's ratings for a set number of epochs.

    No early stopping: the validation targets are all likes, so their error favours a model that rates everything high.
    """
    key = (seed, "backbone", "rating_predictor", data.name)
    shape = data.rated_users, data.rated_items, data.num_users, data.num_items
    mean = float(data.ratings.mean(dtype=np.float64))
    model = RatingPredictor(*shape, mean=mean, dim=settings.dim, l2=settings.l2, key=key)
    model.to(device)
    outcome = train(
        model,
        RatingExamples(data),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        key=key,
        collective=collective,
        device=device,
        on_epoch=lambda: on_epochs(1),
    )
    return _fit_of(model, outcome.epochs)


def check_fits(fits: Fits) -> None:
    """All factors are numbers.

    Raises:
        ModelError: If a fit has diverged.
    """
    for name, fit in fits.items():
        if not (np.isfinite(fit.user_factors).all() and np.isfinite(fit.item_factors).all()):
            section = f"backbone.{name.partition('/')[0]}"
            raise ModelError(f"fit {name!r} ended in factors that are no numbers; lower {section}.learning_rate")


def save_fits(fits: Fits, path: Path) -> None:
    """Write as .npz."""
    arrays = {f"{name}/{field}": np.asarray(value) for name, fit in fits.items() for field, value in vars(fit).items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_fits(path: Path) -> Fits:
    """Read what ``save_fits`` wrote."""
    fields: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for entry in arrays.files:
            name, _, field = entry.rpartition("/")
            fields.setdefault(name, {})[field] = arrays[entry]
    return {
        name: Fit(
            found["user_factors"],
            found["item_factors"],
            int(found["epochs"]),
            float(found["validation_hr_at_10"]),
        )
        for name, found in fields.items()
    }


class _ValidationHits:
    """HR@10 of the model as it is now; the workers share the users."""

    def __init__(self, model: Backbone, data: FoldData, collective: Collective) -> None:
        self.model, self.collective = model, collective
        self.total = len(data.validation_users)
        mine = slice(collective.rank, None, collective.world)
        self.users, self.targets = data.validation_users[mine], data.validation_items[mine]
        self.known = ItemSets.of(data.like_users, data.like_items, data.num_users)
        self.eligible = np.bincount(data.like_items, minlength=data.num_items) > 0

    def __call__(self) -> float:
        fit = _fit_of(self.model, 0)
        ranks = target_ranks(fit, self.users, self.targets, masked=self.known, eligible=self.eligible)
        hits = torch.tensor([float((ranks <= HIT_CUTOFF).sum())], device=next(self.model.parameters()).device)
        self.collective.all_reduce(hits)
        return float(hits.item()) / self.total


class _Counted:
    """Turns epochs done, and at the end those saved by stopping early, into progress."""

    def __init__(self, on_epochs: Callable[[int], None], total: int) -> None:
        self.on_epochs, self.left = on_epochs, total

    def one(self) -> None:
        self.left -= 1
        self.on_epochs(1)

    def rest(self) -> None:
        self.on_epochs(self.left)


def _names(job: FitJob) -> list[str]:
    names = ["retriever/full", "retriever/rolled_back"]
    return [*names, "rating_predictor/full", "rating_predictor/rolled_back"] if len(job.full.ratings) else names


def _retriever(data: FoldData, settings: Retriever, key: tuple[str | int, ...]) -> MF | LightGCN:
    if isinstance(settings, LightGCNSettings):
        likes = data.like_users, data.like_items, data.num_users, data.num_items
        return LightGCN(*likes, dim=settings.dim, layers=settings.layers, l2=settings.l2, key=key)
    return MF(data.num_users, data.num_items, dim=settings.dim, l2=settings.l2, key=key)


def _fit_of(model: Backbone, epochs: int, hr_at_10: float = float("nan")) -> Fit:
    with torch.no_grad():
        users, items = model.factors()
    return Fit(users.detach().cpu().numpy().copy(), items.detach().cpu().numpy().copy(), epochs, hr_at_10)
