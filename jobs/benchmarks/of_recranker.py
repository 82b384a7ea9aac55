"""Worker: recranker's own LightGCN and MF."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.benchmarks.task import TOP_K_FILE, Factors, Task, Watch, time_top_k, work
from recranker.backbones.fit import FactorFit, Fit, Queries
from recranker.backbones.fits import fit_retriever
from recranker.backbones.folds import FoldData
from recranker.backbones.retrieval import retrieve
from recranker.backbones.settings import LightGCNSettings, MFSettings
from recranker.backbones.topk import ItemSets
from recranker.backbones.training import Alone

FOLD_FILE = "fold.pickle"
"""Beside the split: the fold as the backbone stage would see it."""
SETTINGS: dict[str, type[LightGCNSettings] | type[MFSettings]] = {"lightgcn": LightGCNSettings, "mf": MFSettings}


def train(task: Task) -> Watch:
    """The library's own loop, watched after every epoch."""
    fold: FoldData = pickle.loads((Path(task.inputs) / FOLD_FILE).read_bytes())
    settings = SETTINGS[task.model].model_validate(task.settings)
    watch = Watch(task)

    def look(_: int, fit: Callable[[], Fit]) -> None:
        watch.epoch_done(lambda: _factors(fit()))

    device = torch.device("cpu")
    fit_retriever(fold, settings, task.seed, Alone(), device, epochs=task.epochs, watch=look)
    return watch


def top_k(task: Task) -> None:
    """The exact search of the backbone stage."""
    arrays = np.load(Path(task.inputs) / TOP_K_FILE)
    fit = FactorFit(arrays["users"], arrays["items"])
    num_users, num_items = len(fit.user_factors), len(fit.item_factors)
    masked = ItemSets.of(arrays["masked_users"], arrays["masked_items"], num_users)
    queries = Queries(np.arange(num_users), masked)
    everything = np.ones(num_items, dtype=np.bool_)

    def search() -> NDArray[np.int64]:
        return retrieve(fit, queries, task.k, masked=masked, eligible=everything)[1].reshape(num_users, task.k)

    time_top_k(task, search)


def _factors(fit: Fit) -> Factors:
    return fit.user_factors, fit.item_factors


if __name__ == "__main__":
    work(train, top_k)
