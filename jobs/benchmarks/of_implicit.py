"""Worker: ``implicit``'s BPR. Runs in the benchmark's own environment.

It walks by plain SGD, without batches: only the width of the factors can be the same as elsewhere, the rest is its own.
"""

import os
from pathlib import Path

import numpy as np
from implicit.bpr import BayesianPersonalizedRanking
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from jobs.benchmarks.task import SPLIT_FILE, TOP_K_FILE, Task, Watch, time_top_k, work


def train(task: Task) -> Watch:
    """All epochs in one call; the callback ends each."""
    split = np.load(Path(task.inputs) / SPLIT_FILE)
    shape = int(split["num_users"]), int(split["num_items"])
    likes, model = matrix(split["train_users"], split["train_items"], shape), build(task)
    watch = Watch(task)
    model.fit(
        likes,
        show_progress=False,
        callback=lambda *_: watch.epoch_done(lambda: (model.user_factors, model.item_factors)),
    )
    return watch


def top_k(task: Task) -> None:
    """``recommend`` for all users at once."""
    arrays, model = np.load(Path(task.inputs) / TOP_K_FILE), build(task)
    model.user_factors, model.item_factors = arrays["users"], arrays["items"]
    shape = len(model.user_factors), len(model.item_factors)
    masked, users = matrix(arrays["masked_users"], arrays["masked_items"], shape), np.arange(shape[0])
    time_top_k(task, lambda: _recommend(model, users, masked, task.k))


def build(task: Task) -> BayesianPersonalizedRanking:
    """A model that has seen nothing yet."""
    return BayesianPersonalizedRanking(
        factors=(task.settings or {})["dim"],
        iterations=max(task.epochs, 1),
        num_threads=int(os.environ["OMP_NUM_THREADS"]),
        random_state=task.seed,
        use_gpu=False,
    )


def matrix(users: NDArray[np.int64], items: NDArray[np.int64], shape: tuple[int, int]) -> csr_matrix:
    """``(users, items)`` with 1 at each pair."""
    return csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=shape)


def _recommend(
    model: BayesianPersonalizedRanking, users: NDArray[np.int64], likes: csr_matrix, k: int
) -> NDArray[np.int64]:
    items: NDArray[np.int64] = model.recommend(users, likes, N=k, filter_already_liked_items=True)[0]
    return items


if __name__ == "__main__":
    work(train, top_k)
