"""Drawing users from shards of them: two passes over the shards, the rest on arrays as long as the draws.

The result is the same for any shards: a pass sends back sums or earliest arrivals, which merge in any order.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.lookup import places
from recranker.errors import DataError
from recranker.sampling.adaptive import cluster_quotas, importance, penalised_mass
from recranker.sampling.clusters import fit_centres, fit_sample
from recranker.sampling.races import (
    Field,
    Floats,
    Ints,
    arrivals_until,
    draw,
    earliest,
    earliest_of_all,
)
from recranker.sampling.settings import AdaptiveSampling, PaperSampling, UniformSampling
from recranker.sampling.users import USER_PARTS, count_likes, mark_eligible, merge, put_into_clusters
from recranker.schema import DRAWS

Result = TypeVar("Result")


class Shards(Protocol):
    """Blocks of USERS, wherever they are; every user stands in exactly one."""

    def map(self, work: Callable[[pa.Table], Result]) -> Iterable[Result]:
        """``work``, which must be picklable, done on every block where the block is."""
        ...


class Blocks:
    """Shards in this process."""

    def __init__(self, *blocks: pa.Table) -> None:
        self.blocks = blocks

    def map(self, work: Callable[[pa.Table], Result]) -> Iterable[Result]:
        """One block after the other."""
        return map(work, self.blocks)


def draw_users(
    shards: Shards, settings: AdaptiveSampling | PaperSampling | UniformSampling, seed: int
) -> tuple[pa.Table, dict[str, int]]:
    """The DRAWS table and its counts; the same for any shards.

    The first pass over the shards sums weights and cluster sizes, the second races; what travels is as long as the
    draws. The penalty is raced in this process, over the pool.

    Args:
        shards: USERS; with clusters where the settings draw from them.
        settings: Adaptive or uniform.
        seed: Keys every draw.

    Raises:
        DataError: If no user is eligible, none has two likes to be drawn by importance, or a cluster is missing.
    """
    chosen = settings.adaptive if isinstance(settings, PaperSampling) else settings
    steps = _steps(chosen)
    num_groups = 1 + chosen.num_clusters if isinstance(chosen, AdaptiveSampling) else 1
    counted = list(shards.map(partial(_count, steps=steps, num_groups=num_groups)))
    num_users = sum(users for users, _, _ in counted)
    totals = np.sum([np.zeros(num_groups), *(sums for _, _, sums in counted)], axis=0)
    if not num_users:
        raise DataError(
            "no training list holds its target, so there is nobody to learn from; "
            "raise backbone.num_candidates or backbone.rolled_back_share"
        )
    if missing := sum(missing for _, missing, _ in counted):
        raise DataError(
            f"user_factors holds {num_users - missing} of {num_users} eligible users; run jobs.backbone again"
        )
    quotas = _quotas(chosen, totals)

    def arrivals_by(until: Floats) -> pa.Table:
        return pa.concat_tables(shards.map(partial(_arrivals, steps=steps, until=until, quotas=quotas, seed=seed)))

    drawn = earliest_of_all(arrivals_by, quotas, totals)["user_id"]
    if isinstance(chosen, AdaptiveSampling):
        drawn = draw_from_pool(drawn, chosen.num_draws, chosen.repetition_penalty, seed)
    table = to_draws(drawn)
    return table, {"eligible_users": num_users, "draws": table.num_rows, "distinct_users": len(pc.unique(drawn))}


def draw_in_one_place(
    interactions: Iterable[pa.Table],
    lists: Iterable[pa.Table],
    factors: Iterable[pa.Table],
    settings: AdaptiveSampling | PaperSampling | UniformSampling,
    seed: int,
    *,
    num_factors: int,
) -> tuple[pa.Table, dict[str, int]]:
    """The DRAWS table and its counts, in this process: as on a cluster, from the tables on.

    Args:
        interactions: INTERACTIONS in parts, of which LIKE_COLUMNS are needed.
        lists: CANDIDATES in parts, of which LIST_COLUMNS are needed.
        factors: USER_FACTORS in parts, gone through twice, and not at all where the settings need no clusters.
        settings: Adaptive or uniform.
        seed: Keys every draw.
        num_factors: Rows of ``factors``.

    Raises:
        DataError: If no user is eligible, there are fewer users than clusters, or an eligible user has no embedding.
    """
    chosen = settings.adaptive if isinstance(settings, PaperSampling) else settings
    parts = [*map(count_likes, interactions), *map(mark_eligible, lists)]
    if isinstance(chosen, AdaptiveSampling) and chosen.cluster_draws:
        limit = chosen.cluster_fit_users
        samples = [fit_sample(part, limit, num_factors, seed) for part in factors]
        centres = fit_centres(samples, chosen.num_clusters, limit, seed)
        parts += [put_into_clusters(part, centres) for part in factors]
    return draw_users(Blocks(merge(pa.concat_tables([USER_PARTS.empty_table(), *parts]))), chosen, seed)


def draw_from_pool(pool: pa.ChunkedArray, num_draws: int, penalty: float, seed: int) -> pa.ChunkedArray:
    """``(num_draws,)`` users of the pool, in order of arrival; one who stands there n times has mass n * C^(n - 1).

    Args:
        pool: ``(pool draws,)`` user ids, repeated, in any order.
        num_draws: Final draws.
        penalty: C.
        seed: Keys the draws.
    """
    counted = pc.value_counts(pool)
    mass = penalised_mass(counted.field("counts").to_numpy(), penalty)
    field = Field(counted.field("values"), mass, np.zeros(len(mass), dtype=np.int64))
    return draw(field, np.array([num_draws]), seed, "sample", "penalty")["user_id"]


def to_draws(drawn: pa.ChunkedArray) -> pa.Table:
    """The DRAWS table of users in order of arrival, each with how often it had come before."""
    codes = pc.dictionary_encode(drawn.combine_chunks()).indices.to_numpy()
    by_user = np.argsort(codes, kind="stable")
    repeats = np.empty(len(codes), dtype=np.int32)
    repeats[by_user] = places(codes[by_user])
    return pa.table([pa.array(np.arange(len(codes))), drawn, pa.array(repeats)], schema=DRAWS.schema)


def _steps(settings: AdaptiveSampling | UniformSampling) -> tuple[str, ...]:
    """The races over all users."""
    if isinstance(settings, UniformSampling):
        return ("uniform",)
    wanted = {"importance": settings.importance_draws, "cluster": settings.cluster_draws}
    return tuple(step for step, draws in wanted.items() if draws)


def _field(users: pa.Table, step: str) -> Field:
    """Who runs in one race; clusters are groups 1 and up, all else is group 0."""
    rates, groups = np.ones(users.num_rows), np.zeros(users.num_rows, dtype=np.int64)
    if step == "importance":
        rates = importance(users["num_likes"].to_numpy())
    elif step == "cluster":
        groups = 1 + users["cluster"].fill_null(0).to_numpy().astype(np.int64)
    return Field(users["user_id"], rates, groups)


def _count(users: pa.Table, *, steps: tuple[str, ...], num_groups: int) -> tuple[int, int, Floats]:
    """Users of a block, how many of them lack a cluster they need, and the summed rates of each group."""
    missing = users["cluster"].null_count if "cluster" in steps else 0
    sums = [_field(users, step).totals(num_groups) for step in steps]
    return users.num_rows, missing, np.sum(sums, axis=0)


def _quotas(settings: AdaptiveSampling | UniformSampling, totals: Floats) -> NDArray[np.int64]:
    """``(groups,)`` draws of each group."""
    if isinstance(settings, UniformSampling):
        return np.array([settings.num_draws])
    if settings.importance_draws and not totals[0]:
        raise DataError("importance sampling needs a user with two training likes or more; use sampling.kind=uniform")
    quotas = np.zeros(len(totals), dtype=np.int64)
    quotas[0] = settings.importance_draws
    if settings.cluster_draws:
        quotas[1:] = cluster_quotas(totals[1:], settings.cluster_draws)
    return quotas


def _arrivals(users: pa.Table, *, steps: tuple[str, ...], until: Floats, quotas: Ints, seed: int) -> pa.Table:
    """ARRIVALS of a block in all races, no more of a group than its quota."""
    raced = [arrivals_until(_field(users, step), until, seed, "sample", step) for step in steps]
    return earliest(pa.concat_tables(raced), quotas)
