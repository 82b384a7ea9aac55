"""User sampling over shards: which users the training prompts are about."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.distributed.datasets import draw, from_table
from recranker.errors import DataError
from recranker.sampling.adaptive import cluster_of_users, cluster_quotas, importance, penalised_mass
from recranker.sampling.races import Arrivals
from recranker.sampling.settings import AdaptiveSampling, UniformSampling
from recranker.schema import DRAWS


def draw_users(
    interactions: pa.Table,
    lists: pa.Table,
    factors: pa.Table,
    settings: AdaptiveSampling | UniformSampling,
    seed: int,
    blocks: int,
) -> tuple[pa.Table, dict[str, int]]:
    """The DRAWS table and its counts; the same for any number of blocks.

    Eligible is a user with at least one training list that holds its target: without one a draw
    could not become an instruction.

    Args:
        interactions: INTERACTIONS.
        lists: CANDIDATES.
        factors: USER_FACTORS.
        settings: Adaptive or uniform.
        seed: Keys every draw.
        blocks: Blocks of Ray Data.

    Raises:
        DataError: If no user is eligible.
    """
    users = eligible_users(interactions, lists)
    if not users.num_rows:
        raise DataError(
            "no training list holds its target, so there is nobody to learn from; "
            "raise backbone.num_candidates or backbone.rolled_back_share"
        )
    if isinstance(settings, UniformSampling):
        drawn = _race(users, np.ones(users.num_rows), settings.num_draws, blocks, seed, "uniform")
    else:
        drawn = _adaptive(users, factors, settings, seed, blocks)
    table = to_draws(drawn)
    distinct = len(pc.unique(table.column("user_id")))
    return table, {"eligible_users": users.num_rows, "draws": table.num_rows, "distinct_users": distinct}


def eligible_users(interactions: pa.Table, lists: pa.Table) -> pa.Table:
    """``user_id`` and ``num_likes`` (training likes) of every eligible user, by user id."""
    usable = lists.filter((pc.field("split") == "train") & pc.field("hit"))
    likes = interactions.filter((pc.field("split") == "train") & (pc.field("feedback") == "like"))
    likes = likes.filter(pc.is_in(likes.column("user_id"), pc.unique(usable.column("user_id"))))
    counted = likes.group_by("user_id").aggregate([("item_id", "count")])
    return counted.rename_columns({"item_id_count": "num_likes"}).sort_by("user_id")


def to_draws(drawn: Arrivals) -> pa.Table:
    """Draws in order of arrival, each with how often its user had come before."""
    seen: Counter[str] = Counter()
    repeats = []
    for user_id in drawn.user_ids:
        repeats.append(seen[user_id])
        seen[user_id] += 1
    columns = {"draw_id": np.arange(len(drawn)), "user_id": drawn.user_ids, "repeat": np.array(repeats, np.int32)}
    return pa.table(columns, schema=DRAWS.schema)


def _adaptive(users: pa.Table, factors: pa.Table, settings: AdaptiveSampling, seed: int, blocks: int) -> Arrivals:
    pool_size = round(settings.pool_share * settings.num_draws)
    weights = importance(users.column("num_likes").to_numpy())
    if not weights.any():
        raise DataError("importance sampling needs a user with two training likes or more; use sampling.kind=uniform")
    by_importance = _race(users, weights, pool_size, blocks, seed, "importance")
    by_cluster = _by_cluster(users, factors, settings, pool_size, seed, blocks)
    pool, occurrences = np.unique(
        np.concatenate([by_importance.user_ids, by_cluster.user_ids]).astype(str), return_counts=True
    )
    mass = penalised_mass(occurrences, settings.repetition_penalty)
    return _race(pa.table({"user_id": pool}), mass, settings.num_draws, blocks, seed, "penalty")


def _by_cluster(
    users: pa.Table, factors: pa.Table, settings: AdaptiveSampling, pool_size: int, seed: int, blocks: int
) -> Arrivals:
    known = factors.filter(pc.is_in(factors.column("user_id"), users.column("user_id"))).sort_by("user_id")
    if known.num_rows != users.num_rows:
        raise DataError(
            f"user_factors holds {known.num_rows} of {users.num_rows} eligible users; run jobs.backbone again"
        )
    clusters = cluster_of_users(np.stack(known.column("factors").to_numpy()), settings.num_clusters, seed)
    sizes = np.bincount(clusters, minlength=settings.num_clusters)
    quotas = {cluster: int(quota) for cluster, quota in enumerate(cluster_quotas(sizes, pool_size)) if quota}
    raced = users.select(["user_id"]).append_column("rate", pa.array(np.ones(users.num_rows)))
    return draw(from_table(raced.append_column("group", pa.array(clusters)), blocks), quotas, seed, "sample", "cluster")


def _race(users: pa.Table, rates: NDArray[np.float64], num_draws: int, blocks: int, seed: int, step: str) -> Arrivals:
    raced = pa.table({"user_id": users.column("user_id"), "rate": rates, "group": np.zeros(len(rates), np.int32)})
    return draw(from_table(raced, blocks), {0: num_draws}, seed, "sample", step)
