"""A team's own candidates in place of ours: read from Parquet, checked at the door, matched to targets by id."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.backbones.candidates import Offers, Targets
from recranker.backbones.events import Interactions
from recranker.backbones.topk import ItemSets
from recranker.data.lookup import index_in
from recranker.errors import DataError
from recranker.parquet import ParquetLimits, read_admitted

logger = logging.getLogger(__name__)

COLUMNS = {
    "split": pa.string(),
    "user_id": pa.string(),
    "target_id": pa.string(),
    "item_id": pa.string(),
    "score": pa.float64(),
}
"""What the file must hold; ``target_id`` may be null where the split is 'validation' or 'test'."""
SPLITS = ("train", "validation", "test")
SUSPICIOUS = 2.0
"""Training lists that hold their target so many times as often as test lists look like in-sample retrieval."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class OwnLists:
    """The rows of a team's file by index, sorted by (list, falling score, item)."""

    keys: NDArray[np.int64]
    """``(lists,)`` rising; the list of a user and target, by ``key_of``."""
    starts: NDArray[np.int64]
    """``(lists + 1,)``."""
    items: Indices
    scores: NDArray[np.float32]


def wanted_targets(interactions: Interactions, targets: Sequence[Targets]) -> pa.Table:
    """Which lists a team's retriever is asked for: split, user, target, and where the history ends."""
    parts = []
    for one in targets:
        columns = {
            "split": pa.array([one.split] * len(one.rows), pa.string()),
            "user_id": interactions.user_ids.take(pa.array(interactions.users[one.rows])),
            "target_id": interactions.item_ids.take(pa.array(interactions.items[one.rows])),
            "before": pa.array(one.before, pa.int32()),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def own_offers(
    path: str,
    interactions: Interactions,
    targets: Sequence[Targets],
    num_candidates: int,
    limits: ParquetLimits,
) -> tuple[list[Targets], list[Offers], dict[str, int]]:
    """The targets a list was brought for, what it offers, and counts of what was left out.

    Args:
        path: Parquet file or folder with ``COLUMNS``.
        interactions: By index.
        targets: All targets; those without a list of their own are left out and counted.
        num_candidates: The best so many of each list are kept.
        limits: What the file may hold.

    Raises:
        DataError: If the file breaks ``COLUMNS``, names an unknown user, item or split, gives a score that is no
            number, an item twice in one list, or no list at all for a split.
    """
    table = _checked(read_admitted(path, list(COLUMNS), limits, "backbone.retriever"), path)
    _check_ids(table, interactions, path)
    found_targets, offers = [], []
    counts = {"own_rows": table.num_rows, "own_lists_kept": 0, "targets_without_own_list": 0}
    for split in SPLITS:
        lists = _of_split(table.filter(pc.equal(table["split"], split)), split, interactions, path)
        for asked in (one for one in targets if one.split == split):
            kept, offered = _matched(lists, asked, interactions, num_candidates)
            counts["own_lists_kept"] += len(kept.rows)
            counts["targets_without_own_list"] += len(asked.rows) - len(kept.rows)
            found_targets.append(kept)
            offers.append(offered)
    _check_present(found_targets, path)
    _warn_if_in_sample(interactions, found_targets, offers)
    return found_targets, offers, counts


def _checked(table: pa.Table, path: str) -> pa.Table:
    table = pa.table({name: _cast(table[name], name, kind, path) for name, kind in COLUMNS.items()})
    if not table.num_rows:
        raise DataError(f"'{path}': needed a row per list and candidate, found none; check the path")
    finite = pc.fill_null(pc.is_finite(table["score"].cast(pa.float32(), safe=False)), False)
    _refuse(table, pc.invert(finite), path, "score", "must be a number in every row", "drop or fill these rows")
    known = pc.is_in(table["split"], value_set=pa.array(SPLITS))
    _refuse(
        table, pc.invert(known), path, "split", f"must be one of {', '.join(SPLITS)}", "name the split of the target"
    )
    without = pc.and_(pc.equal(table["split"], "train"), pc.is_null(table["target_id"]))
    _refuse(table, without, path, "target_id", "must name the target of a training list", "see jobs.backbone --targets")
    return table


def _cast(column: pa.ChunkedArray, name: str, kind: pa.DataType, path: str) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        first = str(error).splitlines()[0]
        raise DataError(f"'{path}': column {name!r} must be {kind}, got {column.type} ({first}); write it so") from None


def _check_ids(table: pa.Table, interactions: Interactions, path: str) -> None:
    """Users and items are those of the interactions; the targets of training lists too."""
    asked = pc.equal(table["split"], "train")
    for name, what, ids in (
        ("user_id", "a user", interactions.user_ids),
        ("item_id", "an item", interactions.item_ids),
        ("target_id", "an item", interactions.item_ids),
    ):
        unknown = pc.invert(pc.is_in(table[name], value_set=ids))
        bad = pc.and_(asked, unknown) if name == "target_id" else unknown
        _refuse(table, bad, path, name, f"must be {what} of the interactions", "use the same keys as the interactions")


def _of_split(table: pa.Table, split: str, interactions: Interactions, path: str) -> OwnLists:
    users = index_in(table["user_id"], interactions.user_ids)
    items = index_in(table["item_id"], interactions.item_ids)
    targets = _targets_of(table, split, users, interactions)
    asked = targets >= 0
    users, items, targets = users[asked], items[asked], targets[asked]
    keys = users * interactions.num_items + targets
    scores = table["score"].to_numpy().astype(np.float32)[asked]
    order = np.lexsort((items, -scores, keys))
    keys, items, scores = keys[order], items[order], scores[order]
    order = np.lexsort((items, keys))
    if ((keys[order][1:] == keys[order][:-1]) & (items[order][1:] == items[order][:-1])).any():
        raise DataError(f"'{path}': a list of split {split!r} offers an item twice; offer distinct items")
    lists, starts = np.unique(keys, return_index=True)
    return OwnLists(lists, np.append(starts, len(keys)), items, scores)


def _targets_of(table: pa.Table, split: str, users: Indices, interactions: Interactions) -> Indices:
    """``(rows,)`` item index of each row's target, -1 where nothing is held out.

    Validation and test users have one target each, whatever the file says.
    """
    if split == "train":
        return index_in(table["target_id"], interactions.item_ids)
    rows = interactions.rows(split)
    of_user = np.full(interactions.num_users, -1, dtype=np.int64)
    of_user[interactions.users[rows]] = interactions.items[rows]
    return of_user[users]


def _matched(
    lists: OwnLists, asked: Targets, interactions: Interactions, num_candidates: int
) -> tuple[Targets, Offers]:
    """The targets that have a list, with its best candidates."""
    keys = interactions.users[asked.rows] * interactions.num_items + interactions.items[asked.rows]
    place = np.minimum(np.searchsorted(lists.keys, keys), max(len(lists.keys) - 1, 0))
    has = lists.keys[place] == keys if len(lists.keys) else np.zeros(len(keys), dtype=np.bool_)
    place = place[has]
    starts = lists.starts[place] if len(place) else np.empty(0, np.int64)
    ends = np.minimum(lists.starts[place + 1], starts + num_candidates) if len(place) else starts
    rows = np.flatnonzero(has)
    of_list, masked = asked.masked.pairs(rows)
    kept = replace(
        asked, rows=asked.rows[has], before=asked.before[has], masked=ItemSets.of(of_list, masked, len(rows))
    )
    offered = np.repeat(np.arange(len(rows)), ends - starts)
    items = ItemSets.slices(lists.items, starts, ends).items
    scores = lists.scores[ItemSets.slices(np.arange(len(lists.items)), starts, ends).items]
    return kept, Offers(offered, items, scores)


def _check_present(targets: Sequence[Targets], path: str) -> None:
    for split in {one.split for one in targets}:
        if not sum(len(one.rows) for one in targets if one.split == split):
            raise DataError(
                f"'{path}': needed lists for the targets of split {split!r}, found none that match; "
                "python -m jobs.backbone CONFIG --targets FILE writes the targets to make lists for"
            )


def _warn_if_in_sample(interactions: Interactions, targets: Sequence[Targets], offers: Sequence[Offers]) -> None:
    """A retriever that has seen the training targets finds them far more often than those of the test."""
    rates = {}
    for split in ("train", "test"):
        found = total = 0
        for one, offered in zip(targets, offers, strict=True):
            if one.split == split:
                found += int((offered.items == interactions.items[one.rows][offered.lists]).sum())
                total += len(one.rows)
        rates[split] = found / max(total, 1)
    if rates["train"] > SUSPICIOUS * rates["test"] > 0:
        logger.warning(
            "own candidates hold %.1f %% of the training targets, %.1f %% of the test targets: if the retriever has "
            "seen the training targets, its training lists are in-sample and hints from them are not honest",
            100 * rates["train"],
            100 * rates["test"],
        )


def _refuse(table: pa.Table, bad: pa.ChunkedArray, path: str, name: str, needed: str, way_out: str) -> None:
    count = pc.sum(bad).as_py() or 0
    if count:
        row = pc.index(bad, True).as_py()
        raise DataError(
            f"'{path}': column {name!r} {needed}, {count} rows do not (row {row + 1}: {table[name][row].as_py()!r}); "
            f"{way_out}"
        )
