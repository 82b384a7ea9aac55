"""Clusters of users by their embeddings: fitted to a keyed sample, then every user is put into the nearest.

The sample and the place of a user depend on ids and embeddings alone, never on how the table is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from recranker.errors import DataError
from recranker.randomness import key_of, keys_of
from recranker.sampling.races import SAFETY
from recranker.schema import USER_FACTORS

_USERS_AT_A_TIME = 4096
"""Users put into clusters at a time, so that their scores stay in the cache; clusters do not depend on it."""
_STARTS = 4
"""Fits from different starting points, the best of which is kept."""
_FIT_BATCH = 4096
"""Users per step of mini-batch k-means."""


@dataclass(frozen=True)
class Centres:
    """The middle of each cluster: ``(clusters, dim)``."""

    values: NDArray[np.float64]

    def nearest(self, factors: NDArray[np.float32]) -> NDArray[np.int32]:
        """``(users,)`` the nearest cluster of each embedding ``(users, dim)``.

        Products are summed one dimension after the other, not by a matrix product, whose rounding changes with the
        number of rows and the processor: a user's cluster must not depend on who else is in the block.
        """
        found = np.empty(len(factors), dtype=np.int32)
        for start in range(0, len(factors), _USERS_AT_A_TIME):
            some = slice(start, start + _USERS_AT_A_TIME)
            found[some] = self._closeness(factors[some]).argmax(axis=0)
        return found

    def _closeness(self, factors: NDArray[np.float32]) -> NDArray[np.float64]:
        """``(clusters, users)`` c.x - c.c / 2: the largest is the nearest."""
        closeness = np.zeros((len(self.values), len(factors)))
        own = np.zeros((len(self.values), 1))
        for centre, values in zip(self.values.T, factors.T.astype(np.float64, order="C"), strict=True):
            closeness += centre[:, None] * values
            own += centre[:, None] ** 2
        return closeness - own / 2


def fit_sample(factors: pa.Table, limit: int, num_users: int, seed: int) -> pa.Table:
    """Rows of USER_FACTORS that may be among the ``limit`` users with the lowest keys; hardly any more than those.

    Args:
        factors: USER_FACTORS of one shard.
        limit: Users the clusters are fitted to, at most.
        num_users: Users in all shards.
        seed: Keys the choice.
    """
    share = (limit + SAFETY * np.sqrt(limit) + SAFETY**2) / max(num_users, 1)
    if share >= 1:
        return factors
    return factors.filter(pa.array(_keys(factors, seed) < np.uint64(share * 2**64)))


def fit_centres(samples: Sequence[pa.Table], num_clusters: int, limit: int, seed: int) -> Centres:
    """Mini-batch k-means over the ``limit`` users with the lowest keys.

    One thread, users in the order of their keys: the same for any shards. Processors of another kind may round
    differently.

    Args:
        samples: What ``fit_sample`` left of each shard.
        num_clusters: How many.
        limit: Users it is fitted to, at most.
        seed: Keys the choice and the starting points.

    Raises:
        DataError: If there are fewer users than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    sample = pa.concat_tables([USER_FACTORS.schema.empty_table(), *samples])
    if sample.num_rows < num_clusters:
        raise DataError(
            f"{num_clusters} clusters need as many users, got {sample.num_rows}; lower sampling.num_clusters"
        )
    by_id = sample.sort_by("user_id")
    order = np.argsort(_keys(by_id, seed), kind="stable")[:limit]
    factors = to_matrix(by_id.take(pa.array(order))).astype(np.float64)
    model = MiniBatchKMeans(
        num_clusters,
        batch_size=_FIT_BATCH,
        n_init=_STARTS,
        random_state=key_of(seed, "sample", "centres") % 2**32,
        compute_labels=False,
    )
    with threadpool_limits(1):
        return Centres(np.asarray(model.fit(factors).cluster_centers_, dtype=np.float64))


def to_matrix(factors: pa.Table) -> NDArray[np.float32]:
    """``(users, dim)`` embeddings of USER_FACTORS.

    Raises:
        DataError: If they differ in length.
    """
    column = factors["factors"].combine_chunks()
    values, rows = column.flatten().to_numpy(), len(column)
    dim = len(values) // max(rows, 1)
    if (np.diff(column.offsets.to_numpy()) != dim).any():
        raise DataError(f"all user_factors must have the same length, got {len(values)} numbers for {rows} users")
    return np.asarray(values, dtype=np.float32).reshape(rows, dim)


def _keys(factors: pa.Table, seed: int) -> NDArray[np.uint64]:
    return keys_of(factors["user_id"], seed, "sample", "fit")
