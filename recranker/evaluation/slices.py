"""Whom a ranker helps: the same comparison within groups of users and of targets."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recranker.evaluation.comparison import Comparison
from recranker.evaluation.intervals import paired_bootstrap
from recranker.evaluation.lists import Bools, Ints
from recranker.evaluation.rows import INTERVAL_OF

FEW_HITS = 30
"""Users with a hit below which a slice is marked: its interval is wide and its bootstrap rough."""
COLD = (5, 10)
"""Training events below which a user or an item counts as cold."""


@dataclass(frozen=True)
class Slice:
    """A group of test users."""

    group: str
    name: str
    members: Bools
    """``(users,)`` in the order of ``OfferedLists.events``."""


def make_slices(comparison: Comparison, interactions: pa.Table) -> list[Slice]:
    """Thirds of the test users by training likes and by their target's training likes; cold users, cold targets.

    Thirds are cut between different counts, so they are not of equal size, and one that holds nobody is left out.
    """
    events = comparison.lists.events
    train = interactions.filter(pc.equal(interactions["split"], "train"))
    likes = train.filter(pc.equal(train["feedback"], "like"))
    found = [
        *_thirds("user activity", "training likes", _counts(events["user_id"], likes["user_id"])),
        *_thirds("target popularity", "training likes", _counts(events["item_id"], likes["item_id"])),
        *_cold("cold users", _counts(events["user_id"], train["user_id"])),
        *_cold("cold targets", _counts(events["item_id"], train["item_id"])),
    ]
    return [one for one in found if one.members.any()]


def slice_table(comparison: Comparison, slices: list[Slice], *, samples: int, seed: int) -> pa.Table:
    """A line per slice and row: group, slice, row, ndcg_at_3, its difference to the backbone's with
    ``difference_low`` and ``difference_high`` (95 %, users of the slice resampled), users, users_with_hit,
    and ``few`` where fewer than FEW_HITS users have a hit.
    """
    lines = [line for one in slices for line in _lines(comparison, one, samples, seed)]
    return pa.Table.from_pylist(lines, schema=_SCHEMA)


_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("group", "slice", "row")),
        *((name, pa.float64()) for name in ("ndcg_at_3", "difference", "difference_low", "difference_high")),
        *((name, pa.int64()) for name in ("users", "users_with_hit")),
        ("few", pa.bool_()),
    ]
)


def _lines(comparison: Comparison, one: Slice, samples: int, seed: int) -> Iterator[dict[str, object]]:
    rows = one.members[comparison.lists.event_of[comparison.lists.hit]]
    users, hits = int(one.members.sum()), int(rows.sum())
    gains = comparison.gains("backbone", rows)
    bounds = paired_bootstrap(gains, samples=samples, seed=seed, num_unchanged=users - hits)
    shared = {"group": one.group, "slice": one.name, "users": users, "users_with_hit": hits, "few": hits < FEW_HITS}
    for at, (row, values) in enumerate(comparison.values.items()):
        yield shared | {
            "row": row,
            "ndcg_at_3": values[rows, INTERVAL_OF].sum() / users,
            "difference": gains[:, at].sum() / users,
            "difference_low": bounds[at, 0],
            "difference_high": bounds[at, 1],
        }


def _counts(keys: pa.ChunkedArray, column: pa.ChunkedArray) -> Ints:
    """``(keys,)`` how often each key stands in ``column``."""
    counted = pc.value_counts(column)
    where = pc.index_in(keys, value_set=counted.field("values"))
    return np.asarray(pc.fill_null(counted.field("counts").take(where), 0).to_numpy(), dtype=np.int64)


def _thirds(group: str, unit: str, counts: Ints) -> list[Slice]:
    """Up to three slices by rising count."""
    first, second = np.quantile(counts, [1 / 3, 2 / 3], method="lower")
    cuts = (counts <= first, (counts > first) & (counts <= second), counts > second)
    return [Slice(group, f"{_range(counts[members])} {unit}", members) for members in cuts if members.any()]


def _range(counts: Ints) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _cold(group: str, counts: Ints) -> list[Slice]:
    return [Slice(group, f"fewer than {limit} training events", counts < limit) for limit in COLD]
