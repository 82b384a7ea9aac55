"""Several seeds of the same comparison as one table: means, spread over seeds, intervals over users."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.evaluation.intervals import paired_bootstrap
from recranker.evaluation.rows import METRICS

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SeedRun:
    """What one row reached under one seed, user by user."""

    user_ids: NDArray[np.str_]
    """``(users,)`` all test users of this seed, each once: the denominator."""
    values: Floats
    """``(users, 4)`` METRICS of each; zeros where the target was not retrieved."""

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.user_ids), len(METRICS)) or not len(self.user_ids):
            raise ValueError(
                f"a seed's values must be (users, {len(METRICS)}) for at least one user, "
                f"got {self.values.shape} for {len(self.user_ids)} users"
            )
        if len(np.unique(self.user_ids)) != len(self.user_ids):
            raise ValueError(f"a seed must name each of its {len(self.user_ids)} test users once")


Runs = Mapping[str, Sequence[SeedRun]]
"""The seeds of each row, by the row's label."""


def seed_runs(interactions: pa.Table, results: pa.Table, user_results: pa.Table) -> dict[str, SeedRun]:
    """Every row of one evaluated run, to be collected over seeds.

    Args:
        interactions: INTERACTIONS; the users of split 'test' are the denominator.
        results: RESULTS; its rows are those returned, in its order.
        user_results: USER_RESULTS; a user it does not name is a miss.
    """
    users = interactions.filter(pc.equal(interactions["split"], "test"))["user_id"].combine_chunks()
    user_ids = np.asarray(users.to_pylist(), dtype=np.str_)
    return {row: SeedRun(user_ids, _values(user_results, row, users)) for row in results["row"].to_pylist()}


def summarise(runs: Runs, *, baseline: str | Runs | None, samples: int, seed: int) -> pa.Table:
    """One line per row: the mean over seeds of every metric, and how sure it is.

    Columns: ``row``, then for every metric of METRICS its mean over seeds, ``METRIC_std`` (sample
    standard deviation over seeds, null for one seed), ``METRIC_low`` and ``METRIC_high`` (95 %
    over users), ``METRIC_difference`` with ``METRIC_difference_low`` and ``_high`` (null without a
    baseline), last ``seeds`` and ``users`` (different test users over all seeds).

    Users are resampled jointly over rows and seeds, so the intervals answer for the choice of users
    and differences are paired; the spread over seeds is ``_std`` and not in them. Where all seeds
    have the same test users, a user counts with his mean over seeds. Otherwise each seed keeps its own
    denominator (the ratio is linearised), so that the mean is always that of the seeds' own figures.

    Args:
        runs: The seeds of each row. Rows may come from different runs (other backbones, settings).
        baseline: Row that differences are taken against; or a second set, whose row of the same label is.
        samples: Bootstrap resamples.
        seed: Keys them.

    Raises:
        ValueError: If a row has no seed, or the baseline is not among the rows.
    """
    others = _baselines(runs, baseline)
    empty = [label for label, seeds in {**runs, **others}.items() if not seeds]
    if empty or not runs:
        raise ValueError(f"every row needs at least one seed, got none for {empty or 'all'}")
    users = np.unique(np.concatenate([one.user_ids for row in (*runs.values(), *others.values()) for one in row]))
    levels = np.stack([_contributions(seeds, users) for seeds in runs.values()], axis=1)  # (users, rows, metrics)
    against = {label: _contributions(seeds, users) for label, seeds in others.items()}
    gains = np.stack([levels[:, at] - against.get(label, np.nan) for at, label in enumerate(runs)], axis=1)
    return _table(runs, np.stack([levels, gains]), samples, seed)


def _values(user_results: pa.Table, row: str, users: pa.Array) -> Floats:
    found = user_results.filter(pc.equal(user_results["row"], row))
    where = pc.index_in(users, value_set=found["user_id"].combine_chunks())
    columns = [pc.fill_null(found[metric].take(where), 0.0).to_numpy() for metric in METRICS]
    return np.stack(columns, axis=1).astype(np.float64)


def _baselines(runs: Runs, baseline: str | Runs | None) -> Runs:
    """The seeds each row is compared with, by the row's label."""
    if baseline is None:
        return {}
    if isinstance(baseline, str):
        if baseline not in runs:
            raise ValueError(f"baseline {baseline!r} is not among the rows {list(runs)}")
        return dict.fromkeys(runs, runs[baseline])
    return {label: seeds for label, seeds in baseline.items() if label in runs}


def _contributions(seeds: Sequence[SeedRun], users: NDArray[np.str_]) -> Floats:
    """``(users, metrics)`` whose mean is the mean over seeds of each seed's own mean.

    A user who is a test user of every seed contributes his mean over seeds. One who is not moves a
    seed's figure by his distance from its mean, and not at all where he is absent: the ratio of sums,
    linearised. Exactly 0 for a user who is always there and always a miss.
    """
    total = np.zeros((len(users), len(METRICS)))
    for one in seeds:
        share = len(users) / len(one.user_ids)
        part = np.tile(one.values.mean(axis=0), (len(users), 1))
        at = np.searchsorted(users, one.user_ids)
        part[at] = one.values * share + part[at] * (1.0 - share)
        total += part
    return total / len(seeds)


def _table(runs: Runs, contributions: Floats, samples: int, seed: int) -> pa.Table:
    """The summary of ``(2, users, rows, metrics)``: levels and differences (NaN where there is none)."""
    num_users = contributions.shape[1]
    flat = np.moveaxis(contributions, 1, 0).reshape(num_users, -1)
    present = ~np.isnan(flat[0])
    moving = (flat[:, present] != 0).any(axis=1)
    bounds = np.full((flat.shape[1], 2), np.nan)
    bounds[present] = paired_bootstrap(
        flat[moving][:, present], samples=samples, seed=seed, num_unchanged=int((~moving).sum())
    )
    shape = (2, len(runs), len(METRICS))
    means, low, high = (one.reshape(shape) for one in (flat.mean(axis=0), bounds[:, 0], bounds[:, 1]))
    spread = np.stack([_spread(seeds) for seeds in runs.values()])
    columns: dict[str, object] = {"row": list(runs)}
    for at, metric in enumerate(METRICS):
        columns[metric] = means[0, :, at]
        columns |= {f"{metric}_std": spread[:, at], f"{metric}_low": low[0, :, at], f"{metric}_high": high[0, :, at]}
        columns[f"{metric}_difference"] = means[1, :, at]
        columns |= {f"{metric}_difference_low": low[1, :, at], f"{metric}_difference_high": high[1, :, at]}
    columns |= {"seeds": [len(seeds) for seeds in runs.values()]}
    columns |= {"users": [len({*np.concatenate([one.user_ids for one in seeds])}) for seeds in runs.values()]}
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})


def _spread(seeds: Sequence[SeedRun]) -> Floats:
    """``(metrics,)`` standard deviation over seeds; NaN for a single one."""
    if len(seeds) == 1:
        return np.full(len(METRICS), np.nan)
    return np.asarray(np.std([one.values.mean(axis=0) for one in seeds], axis=0, ddof=1), dtype=np.float64)
