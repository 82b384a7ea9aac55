"""Worker: RecBole's LightGCN and BPR (MF), trained by RecBole's own loop. Runs in the benchmark's own environment.

RecBole's L2 term is ``reg_weight * sum of squares / (2 * batch)`` with ``require_pow``; recranker's is
``l2 * sum of squares / batch``: ``reg_weight = 2 * l2`` makes them equal. RecBole's BPR has none.
"""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import dok_matrix

from jobs.benchmarks.task import SPLIT_FILE, TOP_K_FILE, Factors, Task, Watch, time_top_k, work

NAMES_REMOVED_FROM_NUMPY = {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_, "bool8": np.bool_}
for name, kind in NAMES_REMOVED_FROM_NUMPY.items():  # RecBole 1.2.1 was written for numpy 1
    setattr(np, name, kind)
dok_matrix._update = lambda matrix, values: matrix._dict.update(values)  # ... and for scipy before 1.13
warnings.filterwarnings("ignore")

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.model.general_recommender import BPR, LightGCN  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402
from recbole.utils import init_seed  # noqa: E402
from recbole.utils.case_study import full_sort_topk  # noqa: E402

MODELS = {"lightgcn": LightGCN, "mf": BPR}
NAME = "split"
PARTS = ("train", "validation", "test")


def train(task: Task) -> Watch:
    """Epoch by epoch through RecBole's trainer, without its evaluation."""
    config, (train_data, *_), model = build(task)
    trainer = Trainer(config, model)
    places = Places(train_data.dataset, np.load(Path(task.inputs) / SPLIT_FILE))
    watch = Watch(task)
    for epoch in range(task.epochs):
        trainer._train_epoch(train_data, epoch)
        watch.epoch_done(lambda: places.factors(model))
    return watch


def top_k(task: Task) -> None:
    """``full_sort_topk`` over all users at once, RecBole's way outside its trainer."""
    _, (train_data, _, test_data), model = build(task)
    arrays = np.load(Path(task.inputs) / TOP_K_FILE)
    places = Places(train_data.dataset, np.load(Path(task.inputs) / SPLIT_FILE))
    places.set_factors(model, arrays["users"], arrays["items"])
    ours = np.full(train_data.dataset.item_num, -1)
    ours[places.items] = np.arange(len(places.items))
    time_top_k(task, lambda: ours[full_sort_topk(places.users, model, test_data, k=task.k)[1].numpy()])


def build(task: Task) -> tuple[Config, Any, Any]:
    """RecBole's settings, data loaders and model."""
    write_atomic_files(np.load(Path(task.inputs) / SPLIT_FILE))
    sys.argv = sys.argv[:1]  # Config reads it
    config = Config(model=MODELS[task.model].__name__, dataset=NAME, config_dict=config_of(task))
    logging.getLogger().setLevel(logging.ERROR)
    init_seed(task.seed, reproducibility=True)
    loaders = data_preparation(config, create_dataset(config))
    return config, loaders, MODELS[task.model](config, loaders[0].dataset).to(config["device"])


def config_of(task: Task) -> dict[str, Any]:
    """RecBole's names for the task's settings."""
    settings = task.settings or {}
    return {
        "data_path": os.getcwd(),
        "checkpoint_dir": os.getcwd(),
        "benchmark_filename": list(PARTS),
        "load_col": {"inter": ["user_id", "item_id"]},
        "eval_args": {"mode": "full", "order": "RO", "group_by": "user"},
        "seed": task.seed,
        "epochs": max(task.epochs, 1),
        "use_gpu": False,
        "gpu_id": "",
        "show_progress": False,
        "state": "ERROR",
        "embedding_size": settings["dim"],
        "learning_rate": settings["learning_rate"],
        "train_batch_size": settings["batch_size"],
        "n_layers": settings.get("layers", 2),
        "reg_weight": 2 * settings["l2"],
        "require_pow": True,
        "train_neg_sample_args": {
            "distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0,
        },
    }  # fmt: skip


def write_atomic_files(split: Any) -> None:
    """RecBole's input of a data set that is split already."""
    folder = Path(NAME)
    folder.mkdir(exist_ok=True)
    for part in PARTS:
        pairs = {"user_id:token": split[f"{part}_users"], "item_id:token": split[f"{part}_items"]}
        pd.DataFrame(pairs).to_csv(folder / f"{NAME}.{part}.inter", sep="\t", index=False)


class Places:
    """Where RecBole keeps our users and items; 0 is its padding, taken for those it has never seen."""

    def __init__(self, dataset: Any, split: Any) -> None:
        self.users = _places(dataset.field2token_id["user_id"], int(split["num_users"]))
        self.items = _places(dataset.field2token_id["item_id"], int(split["num_items"]))

    def factors(self, model: Any) -> Factors:
        """In our order."""
        if isinstance(model, LightGCN):
            users, items = model.forward()
        else:
            users, items = model.user_embedding.weight, model.item_embedding.weight
        return users.detach().numpy()[self.users], items.detach().numpy()[self.items]

    def set_factors(self, model: Any, users: NDArray[np.float32], items: NDArray[np.float32]) -> None:
        """Take factors in our order."""
        model.user_embedding.weight.data.numpy()[self.users] = users
        model.item_embedding.weight.data.numpy()[self.items] = items


def _places(known: dict[str, int], count: int) -> NDArray[np.int64]:
    return np.array([known.get(str(index), 0) for index in range(count)])


if __name__ == "__main__":
    work(train, top_k)
