"""What prompts show of each user: the latest likes and dislikes, and the retriever's candidates with their signals.

Tables are read batch by batch: memory holds the catalogue and some hundred thousand rows, however many users there are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recranker.data.lookup import column, index_in, opened
from recranker.parquet import not_readable
from recranker.randomness import keys_of
from recranker.schema import CANDIDATES, INTERACTIONS, TableSchema
from recranker.store import Store
from recranker.tasks.histories import group_events

Ints = NDArray[np.int64]

EVENT_COLUMNS = ["user_id", "item_id", "feedback", "sequence", "split"]
LIST_COLUMNS = [
    *("list_id", "user_id", "split", "target_rating", "before", "candidate_ids"),
    *("backbone_scores", "predicted_ratings", "reranker_scores"),
]
EVENTS_AT_A_TIME = 1 << 18
"""Events read at a time; those of users that end among them are worked on together."""
LISTS_AT_A_TIME = 1 << 13
"""Candidate lists read at a time."""
NO_LIST = 1 << 31
"""Ends no history: above every sequence number."""
DEMO_ENTRIES = 10
"""Entries of history from which on a user is as good a demo user as any."""


class UserList(NamedTuple):
    """A user's candidates, best first by the retriever."""

    list_id: str
    user_id: str
    before: int
    """The history ends before this sequence number."""
    item_ids: list[str]
    backbone_scores: list[float]
    hint_scores: list[float] | None
    """The conventional re-ranker's score of each, where prompts quote its order; None: they quote the retriever's."""
    predicted_ratings: list[float] | None
    """On the data's scale; None where there are no ratings."""


class UserHistory(NamedTuple):
    """A user's latest likes and dislikes."""

    user_id: str
    entries: list[tuple[str, bool]]
    """Item and whether it was liked, oldest first."""


@dataclass(frozen=True)
class Shown:
    """What prompts show."""

    item_ids: pa.Array
    """``(items,)`` those with a title; no prompt can name others."""
    max_liked: int
    max_disliked: int
    quotes_reranker: bool
    """Whether hints are the conventional re-ranker's order."""


@dataclass
class Tally:
    """What is counted over all users on the way."""

    likes: Ints
    """``(items,)`` training likes of each item."""
    demo_users: int
    """Demo users wanted."""
    best: list[tuple[int, int, str]] = field(default_factory=list)
    """Demo users so far: entries of history, up to ``DEMO_ENTRIES``, negative; a keyed random number; the id."""

    def popular(self, item_ids: pa.Array, most: int) -> list[tuple[str, int]]:
        """The items with the most training likes, and how many; of equals the first in the catalogue."""
        order = np.argsort(-self.likes, kind="stable")[:most]
        order = order[self.likes[order] > 0]
        return list(zip(item_ids.take(pa.array(order)).to_pylist(), self.likes[order].tolist(), strict=True))

    def offer(self, user_ids: pa.Array, entries: Ints) -> None:
        """Consider users with so many entries of history as demo users; 0 takes a user out."""
        filled, keys = np.minimum(entries, DEMO_ENTRIES), keys_of(user_ids, "demo users")
        rows = np.lexsort((keys, -filled))[: self.demo_users]
        rows = rows[filled[rows] > 0]
        names = user_ids.take(pa.array(rows, pa.int64())).to_pylist()
        found = zip((-filled[rows]).tolist(), keys[rows].tolist(), names, strict=True)
        self.best = sorted([*self.best, *found])[: self.demo_users]


def lists_to_rank(store: Store, shown: Shown) -> Iterator[tuple[int, list[UserList]]]:
    """The test lists of stage 'backbone', some at a time, with the rows read for them; a user may have several.

    Raises:
        DataError: If the table is missing or broken.
    """
    known = set(shown.item_ids.to_pylist())
    for batch in _batches(store, "backbone", CANDIDATES, LIST_COLUMNS, LISTS_AT_A_TIME):
        rows = batch.filter(pc.equal(batch["split"], "test")).to_pylist()
        yield batch.num_rows, [_user_list(row, known, shown) for row in rows]


def histories(
    store: Store, shown: Shown, tally: Tally, befores: Callable[[list[str]], list[int | None]]
) -> Iterator[tuple[int, list[UserHistory]]]:
    """Every user's history, some users at a time, with the rows read for them.

    Args:
        store: With the run's stages.
        shown: How much of each.
        tally: Counts along.
        befores: Of some user ids: the sequence number before which each history ends; None where there is no list,
            so that all but test events are history.

    Raises:
        DataError: If the table is missing or broken.
    """
    for events in _whole_users(_batches(store, "prepare", INTERACTIONS, EVENT_COLUMNS, EVENTS_AT_A_TIME)):
        user_ids = pc.unique(events["user_id"])
        user_ids = user_ids.take(pc.sort_indices(user_ids))
        found = befores(user_ids.to_pylist())
        ends = np.array([NO_LIST if before is None else before for before in found], dtype=np.int64)
        made = _histories(events, user_ids, ends, shown)
        tally.offer(user_ids, (ends < NO_LIST) * np.array([len(one.entries) for one in made]))
        training = pc.and_(pc.equal(events["split"], "train"), pc.equal(events["feedback"], "like"))
        items = index_in(events["item_id"].filter(training), shown.item_ids)
        tally.likes += np.bincount(items[items >= 0], minlength=len(tally.likes))
        yield events.num_rows, made


def _histories(events: pa.Table, user_ids: pa.Array, ends: Ints, shown: Shown) -> list[UserHistory]:
    """One per user, in the order of ``user_ids``, which is that of ``group_events``."""
    held_out = column(pc.equal(events["split"], "test")) & (ends[index_in(events["user_id"], user_ids)] == NO_LIST)
    past = group_events(events.append_column("kept", pa.array(~held_out)).filter(pc.field("kept")))
    users, met = opened(past["item_ids"])
    users = index_in(past["user_id"], user_ids)[users]
    felt, sequences = (opened(past[name])[1] for name in ("feedback", "sequences"))
    usable = (index_in(met, shown.item_ids) >= 0) & (column(sequences) < ends[users])
    rows = np.sort(
        np.concatenate(
            [
                _latest(np.flatnonzero(usable & column(pc.equal(felt, feedback))), users, most)
                for feedback, most in (("like", shown.max_liked), ("dislike", shown.max_disliked))
            ]
        )
    )
    taken = pa.array(rows)
    entries = list(zip(met.take(taken).to_pylist(), pc.equal(felt.take(taken), "like").to_pylist(), strict=True))
    bounds = np.searchsorted(users[rows], np.arange(len(user_ids) + 1)).tolist()
    return [
        UserHistory(user_id, entries[begin:end])
        for user_id, begin, end in zip(user_ids.to_pylist(), bounds[:-1], bounds[1:], strict=True)
    ]


def _latest(rows: Ints, users: Ints, most: int) -> Ints:
    """Those of ``rows``, which stand in order, that are among the last ``most`` of their user."""
    mine = users[rows]
    still_to_come = np.searchsorted(mine, mine, side="right") - np.arange(len(rows))
    return rows[still_to_come <= most]


def _user_list(row: dict[str, Any], known: set[str], shown: Shown) -> UserList:
    """A CANDIDATES row without candidates that have no title."""
    kept = [place for place, item_id in enumerate(row["candidate_ids"]) if item_id in known]

    def of_kept(name: str) -> list[Any]:
        return [row[name][place] for place in kept]

    return UserList(
        row["list_id"],
        row["user_id"],
        row["before"],
        of_kept("candidate_ids"),
        of_kept("backbone_scores"),
        of_kept("reranker_scores") if shown.quotes_reranker else None,
        of_kept("predicted_ratings") if row["target_rating"] is not None else None,
    )


def _batches(store: Store, stage: str, table: TableSchema, columns: list[str], rows: int) -> Iterator[pa.Table]:
    for path in store.files(stage, table):
        try:
            with store.filesystem.open_input_file(path) as file, pq.ParquetFile(file) as found:
                for batch in found.iter_batches(batch_size=rows, columns=columns, use_threads=False):
                    yield pa.Table.from_batches([batch]).select(columns)
        except (pa.ArrowException, OSError) as error:
            raise not_readable(path, error) from None


def _whole_users(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, cut where a user ends."""
    waiting: list[pa.Table] = []
    for batch in batches:
        if not batch.num_rows:
            continue
        if waiting and waiting[0]["user_id"][0].as_py() != batch["user_id"][0].as_py():
            yield pa.concat_tables(waiting)
            waiting = []
        ids = batch["user_id"].combine_chunks()
        changes = np.flatnonzero(column(pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1))))
        if len(changes):
            last = int(changes[-1]) + 1
            yield pa.concat_tables([*waiting, batch.slice(0, last)])
            waiting, batch = [], batch.slice(last)
        waiting.append(batch)
    if waiting:
        yield pa.concat_tables(waiting)
