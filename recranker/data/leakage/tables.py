"""The tables the gate looks at, and what several checks work out of them, worked out once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.lookup import Pairs, codes, column, index_in, opened, places

TRAIN, VALIDATION, TEST, UNUSED = range(4)
_SPLITS = pa.array(["train", "validation", "test", "unused"])

Ints = NDArray[np.int64]


def splits_of(table: pa.Table) -> Ints:
    """``(rows,)`` TRAIN, VALIDATION, TEST or UNUSED; -1 for anything else."""
    return index_in(table["split"], _SPLITS)


def taken(values: pa.ChunkedArray | pa.Array, rows: Ints) -> pa.Array:
    """The values of some rows, in one piece."""
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return whole.take(pa.array(rows))


@dataclass(frozen=True)
class Offers:
    """Every candidate of every list, one list after another."""

    lists: Ints
    """``(offers,)`` row of the list."""
    items: pa.Array
    """``(offers,)`` item id."""
    places: Ints
    """``(offers,)`` place in its list, from 0."""


@dataclass(frozen=True)
class GateTables:
    """Tables of one run as far as there are any; None: not there (yet)."""

    interactions: pa.Table
    """Rows of ``schema.INTERACTIONS``."""
    facts: Mapping[str, Any]
    """Of stage 'prepare'."""
    items: pa.Table | None = None
    """Rows of ``schema.ITEMS``."""
    candidates: pa.Table | None = None
    """Rows of ``schema.CANDIDATES``."""
    fit_events: pa.Table | None = None
    """Rows of ``schema.FIT_EVENTS``."""
    signals: pa.Table | None = None
    """Rows of ``schema.SIGNALS``."""
    prompts: pa.Table | None = None
    """Rows of ``schema.PROMPTS``."""
    hints: str | None = None
    """What questions quote: 'reranker', 'backbone', the name of a signal, or 'none'; None: not stated."""
    template_hashes: Mapping[str, str] = field(default_factory=dict)
    """Split -> digest of the template its prompts were made with, where somebody states one."""

    @cached_property
    def history(self) -> pa.Table:
        """The interactions by user and sequence."""
        return self.interactions.sort_by([("user_id", "ascending"), ("sequence", "ascending")]).combine_chunks()

    @cached_property
    def events(self) -> Pairs:
        """Rows of ``history`` by user and item."""
        return Pairs.of(self.history["user_id"], self.history["item_id"])

    @cached_property
    def users(self) -> Ints:
        """``(interactions,)`` a number per user of ``history``."""
        return codes(self.history["user_id"])

    @cached_property
    def splits(self) -> Ints:
        """``(interactions,)`` of ``history``."""
        return splits_of(self.history)

    @cached_property
    def likes(self) -> NDArray[np.bool_]:
        """``(interactions,)`` of ``history``."""
        return column(pc.equal(self.history["feedback"], "like")).astype(np.bool_)

    @cached_property
    def sequences(self) -> Ints:
        """``(interactions,)`` of ``history``."""
        return column(self.history["sequence"]).astype(np.int64)

    @cached_property
    def lists(self) -> pa.Table:
        """The candidates, each column in one piece."""
        assert self.candidates is not None, "a check says what it needs"
        return self.candidates.combine_chunks()

    @cached_property
    def offers(self) -> Offers:
        """Every candidate of every list."""
        rows, items = opened(self.lists["candidate_ids"])
        return Offers(rows, items, places(rows))

    @cached_property
    def befores(self) -> Ints:
        """``(lists,)`` the sequence number at which the history of each list ends."""
        return column(self.lists["before"]).astype(np.int64)
