"""One split of one data set, written down for every system; and one judge of what they made of it."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.benchmarks.of_recranker import FOLD_FILE
from jobs.benchmarks.task import SPLIT_FILE
from recranker.backbones.events import index_interactions
from recranker.backbones.fit import FactorFit, Queries
from recranker.backbones.folds import Fold, FoldData, data_of
from recranker.backbones.retrieval import target_ranks
from recranker.backbones.topk import ItemSets
from recranker.evaluation.metrics import hits_at_positions, hr_at_k, ndcg_at_k

Metric = Callable[[NDArray[np.int64]], float]


@dataclass(frozen=True)
class Split:
    """Training likes, and one held-out like per user for validation and for test."""

    fold: FoldData
    test_users: NDArray[np.int64]
    test_items: NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table) -> "Split":
        """Of the prepared interactions."""
        interactions = index_interactions(table)
        full = Fold("full", interactions.rows("train"), np.empty(0, np.int64))
        test = interactions.rows("test")
        return cls(data_of(interactions, full), interactions.users[test], interactions.items[test])

    def write(self, folder: Path) -> None:
        """For our worker as it is, for the others as plain arrays."""
        folder.mkdir(parents=True)
        (folder / FOLD_FILE).write_bytes(pickle.dumps(self.fold))
        np.savez(
            folder / SPLIT_FILE,
            num_users=self.fold.num_users,
            num_items=self.fold.num_items,
            train_users=self.fold.like_users,
            train_items=self.fold.like_items,
            validation_users=self.fold.validation_users,
            validation_items=self.fold.validation_items,
            test_users=self.test_users,
            test_items=self.test_items,
        )

    def validation_ndcg_at_10(self, fit: FactorFit) -> float:
        """Mean over the validation users, all items ranked but those liked in training."""
        return ndcg_at(10)(self._ranks(fit, self.fold.validation_users, self.fold.validation_items))

    def test_metrics(self, fit: FactorFit) -> dict[str, float]:
        """The paper's metrics over all test users, only training likes masked."""
        ranks = self._ranks(fit, self.test_users, self.test_items)
        return {f"{name}_at_{k}": metric(k)(ranks) for k in (3, 5) for name, metric in METRICS.items()}

    def _ranks(self, fit: FactorFit, users: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
        likes = ItemSets.of(self.fold.like_users, self.fold.like_items, self.fold.num_users)
        known = ItemSets.of(*likes.pairs(users), len(users))
        liked = np.bincount(self.fold.like_items, minlength=self.fold.num_items) > 0
        return target_ranks(fit, Queries(users, known), targets, masked=known, eligible=liked)


def hr_at(k: int) -> Metric:
    """From ``(users,)`` ranks, 1 = best, to the mean HR@k."""
    return lambda ranks: float(hr_at_k(hits_at_positions(ranks - 1, width=k), k=k).mean())


def ndcg_at(k: int) -> Metric:
    """From ``(users,)`` ranks, 1 = best, to the mean NDCG@k."""
    return lambda ranks: float(ndcg_at_k(hits_at_positions(ranks - 1, width=k), np.ones_like(ranks), k=k).mean())


METRICS: dict[str, Callable[[int], Metric]] = {"hr": hr_at, "ndcg": ndcg_at}
