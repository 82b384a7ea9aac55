"""The fits of a run: the retriever, the rating predictor and further signals, on every fold.

Trained models share one loop and can be split over workers; closed forms are made by one process in seconds.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from recranker.backbones.examples import Examples, LikeExamples, MixedExamples, RatingExamples, SequenceExamples
from recranker.backbones.fit import FactorFit, Fit, Queries
from recranker.backbones.folds import FoldData
from recranker.backbones.item_item import fit_ease, fit_item_knn
from recranker.backbones.lightgcn import Graph, LightGCN
from recranker.backbones.mf import MF
from recranker.backbones.mixgcf import MixGCF
from recranker.backbones.popularity import fit_popularity, like_counts
from recranker.backbones.protocol import Backbone
from recranker.backbones.rating_predictor import RatingPredictor
from recranker.backbones.retrieval import target_ranks
from recranker.backbones.sasrec import Architecture, SASRec, SequenceFit
from recranker.backbones.settings import (
    BackboneSettings,
    ClosedForm,
    EASESettings,
    ItemKNNSettings,
    LightGCNSettings,
    MFSettings,
    MixGCFSettings,
    RatingPredictorSettings,
    SASRecSettings,
    SGLSettings,
    Trained,
)
from recranker.backbones.sgl import SGL
from recranker.backbones.topk import ItemSets
from recranker.backbones.training import (
    Checkpointing,
    Collective,
    EarlyStopping,
    Outcome,
    TrainingState,
    train,
)
from recranker.errors import DataError, ModelError

CUTOFF = 10
"""k of the NDCG@k that early stopping watches (RecRanker's number of candidates)."""

Key = tuple[str | int, ...]
TrainedFit = FactorFit | SequenceFit
"""A fit that workers make, and that travels from them."""
Fits = dict[str, TrainedFit]
"""By name: 'retriever' and 'rating_predictor', each with '/' and the name of a fold."""


@dataclass(frozen=True)
class FitJob:
    """All that a worker needs, the same on every worker."""

    folds: tuple[FoldData, ...]
    """The full fold first."""
    settings: BackboneSettings
    seed: int

    def check(self) -> None:
        """There is something to learn from.

        Raises:
            DataError: If a fold holds no like.
        """
        for data in self.folds:
            if not len(data.like_users):
                raise DataError(f"the retriever needs training likes, fold {data.name!r} holds none; take more data")

    @property
    def trained(self) -> list[str]:
        """Names of the fits that workers train, in order."""
        models = ["retriever"] if isinstance(self.settings.retriever, Trained) else []
        models += ["rating_predictor"] if len(self.folds[0].ratings) and self.settings.rolls else []
        return [f"{model}/{fold.name}" for model in models for fold in self.folds]

    @property
    def epochs(self) -> int:
        """Epochs of all trained fits together at the most."""
        return sum(self.epochs_of(name.partition("/")[0]) for name in self.trained)

    def epochs_of(self, model: str) -> int:
        """Epochs of one fit of 'retriever' or 'rating_predictor' at the most."""
        return int(getattr(self.settings, model).epochs)


@dataclass(frozen=True)
class Progress:
    """How far the fits of a job are: all a restarted run needs."""

    fits: Mapping[str, TrainedFit] = field(default_factory=dict)
    """The finished ones."""
    state: TrainingState | None = None
    """Of the fit that was under way."""


def run_fits(
    job: FitJob,
    *,
    collective: Collective,
    device: torch.device,
    start: Progress | None = None,
    save: Callable[[Progress], None] = lambda progress: None,
    on_epochs: Callable[[int], None] = lambda count: None,
) -> Fits:
    """Train every fit of ``job`` that ``start`` has not finished.

    Args:
        save: Given the progress now and then and after each fit; called on every worker at the same time.
        on_epochs: Told how many more of ``job.epochs`` are behind; what early stopping saves and ``start`` has done
            counts too.
    """
    fits = dict(start.fits) if start else {}
    state = start.state if start else None
    folds = {fold.name: fold for fold in job.folds}
    for name in job.trained:
        model, _, fold = name.partition("/")
        if name in fits:
            on_epochs(job.epochs_of(model))
            continue
        checkpointing = Checkpointing(
            lambda now: save(Progress(dict(fits), now)), job.settings.checkpoint_every_s, state
        )
        common = _Common(job.seed, collective, device, checkpointing, on_epochs)
        if model == "retriever":
            whole = fits.get(f"retriever/{job.folds[0].name}")  # a rolled-back fold has no validation of its own
            settings, epochs = cast(Trained, job.settings.retriever), whole.epochs if whole else None
            fits[name] = _fit_retriever(folds[fold], settings, common, epochs)
        else:
            fits[name] = _train_rating_predictor(folds[fold], job.settings.rating_predictor, common)
        state = None
        save(Progress(dict(fits)))
    return fits


def fit_retriever(
    data: FoldData,
    settings: Trained,
    seed: int,
    collective: Collective,
    device: torch.device,
    *,
    epochs: int | None = None,
    on_epochs: Callable[[int], None] = lambda count: None,
    watch: Callable[[int, Callable[[], Fit]], None] | None = None,
) -> TrainedFit:
    """Fit on the fold's likes.

    Args:
        epochs: Train exactly so long and look at no validation; None stops early by validation NDCG@10
            (or goes through all of ``settings.epochs`` where the fold has no validation users).
        watch: Called after every epoch with its number and a function that gives the fit as it is then.
    """
    common = _Common(seed, collective, device, None, on_epochs)
    return _fit_retriever(data, settings, common, epochs, watch)


def fit_rating_predictor(
    data: FoldData, settings: RatingPredictorSettings, seed: int, collective: Collective, device: torch.device
) -> FactorFit:
    """Fit on the fold's ratings."""
    return _train_rating_predictor(data, settings, _Common(seed, collective, device, None, lambda count: None))


def fit_closed_form(data: FoldData, settings: ClosedForm, seed: int) -> Fit:
    """Fit what needs no training loop on the fold's likes."""
    key = (seed, "backbone", settings.kind, data.name)
    if isinstance(settings, EASESettings):
        return fit_ease(data, settings, key)
    if isinstance(settings, ItemKNNSettings):
        return fit_item_knn(data, settings, key)
    return fit_popularity(data)


def validation_ndcg(fit: Fit, data: FoldData, part: slice = slice(None)) -> float:
    """Sum of NDCG@10 over the fold's validation users in ``part``; their training likes are out of the race."""
    users, targets = data.validation_users[part], data.validation_items[part]
    histories = ItemSets.of(*data.histories.pairs(users), len(users))
    eligible = like_counts(data) > 0
    ranks = target_ranks(fit, Queries(users, histories), targets, masked=histories, eligible=eligible)
    return float((1.0 / np.log2(ranks[ranks <= CUTOFF] + 1.0)).sum())


def check_fits(fits: Mapping[str, Fit]) -> None:
    """All factors are numbers.

    Raises:
        ModelError: If a fit has diverged.
    """
    for name, fit in fits.items():
        if not (np.isfinite(fit.user_factors).all() and np.isfinite(fit.item_factors).all()):
            section = f"backbone.{name.partition('/')[0]}"
            raise ModelError(f"fit {name!r} ended in factors that are no numbers; lower {section}.learning_rate")


def save_progress(progress: Progress, folder: Path) -> None:
    """Write the finished fits as .npz and the state of the one under way beside them."""
    arrays = {
        f"{name}/{type(fit).__name__}/{field}": value
        for name, fit in progress.fits.items()
        for field, value in fit.arrays().items()
    }
    np.savez(folder / FITS_FILE, **arrays)  # type: ignore[arg-type]
    (folder / STATE_FILE).unlink(missing_ok=True)
    if progress.state:
        buffer = io.BytesIO()
        torch.save({**vars(progress.state), "outcome": vars(progress.state.outcome)}, buffer)
        (folder / STATE_FILE).write_bytes(buffer.getvalue())


def load_progress(folder: Path) -> Progress:
    """Read what ``save_progress`` wrote."""
    found: dict[tuple[str, str], dict[str, NDArray[np.generic]]] = {}
    with np.load(folder / FITS_FILE) as arrays:
        for entry in arrays.files:
            name, kind, part = entry.rsplit("/", 2)
            found.setdefault((name, kind), {})[part] = arrays[entry]
    fits = {name: _FIT_CLASSES[kind].from_arrays(parts) for (name, kind), parts in found.items()}
    path = folder / STATE_FILE
    if not path.exists():
        return Progress(fits)
    values = torch.load(path, weights_only=True, map_location="cpu")
    return Progress(fits, TrainingState(**{**values, "outcome": Outcome(**values["outcome"])}))


FITS_FILE = "fits.npz"
STATE_FILE = "state.pt"
_FIT_CLASSES: dict[str, type[TrainedFit]] = {"FactorFit": FactorFit, "SequenceFit": SequenceFit}


@dataclass(frozen=True)
class _Common:
    """What all trained fits of a job share."""

    seed: int
    collective: Collective
    device: torch.device
    checkpointing: Checkpointing | None
    on_epochs: Callable[[int], None]


def _fit_retriever(
    data: FoldData,
    settings: Trained,
    common: _Common,
    epochs: int | None,
    watch: Callable[[int, Callable[[], Fit]], None] | None = None,
) -> TrainedFit:
    key = (common.seed, "backbone", settings.kind, data.name)
    model, examples = _model(data, settings, key)
    stopping = None
    if epochs is None and len(data.validation_users):
        stopping = EarlyStopping(_Validation(model, data, common), settings.check_every, settings.patience)
    return _trained(model, examples, settings, key, common, epochs, stopping, watch)


def _train_rating_predictor(data: FoldData, settings: RatingPredictorSettings, common: _Common) -> FactorFit:
    """On all the fold's ratings for a set number of epochs.

    No early stopping: the validation targets are all likes, so their error favours a model that rates everything high.
    """
    key = (common.seed, "backbone", "rating_predictor", data.name)
    shape = data.rated_users, data.rated_items, data.num_users, data.num_items
    mean = float(data.ratings.mean(dtype=np.float64))
    model = RatingPredictor(*shape, mean=mean, dim=settings.dim, l2=settings.l2, key=key)
    fit = _trained(model, RatingExamples(data), settings, key, common, settings.epochs, None, None)
    return cast(FactorFit, fit)


def _trained(
    model: Backbone,
    examples: Examples,
    settings: Trained | RatingPredictorSettings,
    key: Key,
    common: _Common,
    epochs: int | None,
    stopping: EarlyStopping | None,
    watch: Callable[[int, Callable[[], Fit]], None] | None,
) -> TrainedFit:
    cast(torch.nn.Module, model).to(common.device)
    counted = _Counted(common.on_epochs, settings.epochs)

    def on_epochs(count: int) -> None:
        counted.add(count)
        if watch:
            watch(counted.done, model.fit)

    outcome = train(
        model,
        examples,
        epochs=epochs or settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        key=key,
        collective=common.collective,
        device=common.device,
        stopping=stopping,
        checkpointing=common.checkpointing,
        on_epochs=on_epochs,
    )
    counted.rest()
    return replace(cast(TrainedFit, model.fit()), epochs=outcome.epochs, validation_ndcg_at_10=outcome.best)


class _Validation:
    """Mean NDCG@10 of the model as it is now; the workers share the users."""

    def __init__(self, model: Backbone, data: FoldData, common: _Common) -> None:
        self.model, self.data, self.collective, self.device = model, data, common.collective, common.device

    def __call__(self) -> float:
        mine = slice(self.collective.rank, None, self.collective.world)
        total = torch.tensor([validation_ndcg(self.model.fit(), self.data, mine)], device=self.device)
        self.collective.all_reduce(total)
        return float(total.item()) / len(self.data.validation_users)


class _Counted:
    """Turns epochs done, and at the end those saved by stopping early, into progress."""

    def __init__(self, on_epochs: Callable[[int], None], total: int) -> None:
        self.on_epochs, self.total, self.done = on_epochs, total, 0

    def add(self, count: int) -> None:
        self.done += count
        self.on_epochs(count)

    def rest(self) -> None:
        self.on_epochs(self.total - self.done)


def _model(data: FoldData, settings: Trained, key: Key) -> tuple[Backbone, Examples]:
    likes = LikeExamples(data, key)
    match settings:
        case MFSettings():
            return MF(data.num_users, data.num_items, dim=settings.dim, l2=settings.l2, key=key), likes
        case LightGCNSettings():
            return LightGCN(Graph.of(data), settings.dim, settings.layers, settings.l2, key), likes
        case SGLSettings():
            return SGL(Graph.of(data), settings, key), likes
        case MixGCFSettings():
            mixed = MixedExamples(data, key, negatives=settings.negatives, layers=settings.layers)
            return MixGCF(Graph.of(data), settings.dim, settings.layers, settings.l2, key), mixed
        case SASRecSettings():
            return _sasrec(data, settings, key)


def _sasrec(data: FoldData, settings: SASRecSettings, key: Key) -> tuple[SASRec, SequenceExamples]:
    shape = Architecture(data.num_items, settings.dim, settings.layers, settings.heads, settings.max_length)
    examples = SequenceExamples(data, key, max_length=settings.max_length, negatives=settings.negatives)
    return SASRec(data.histories, shape, dropout=settings.dropout, l2=settings.l2, key=key), examples
