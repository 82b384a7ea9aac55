"""What every source hands over, and the checks that hold for all of them."""

import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from recranker.data.titles import clean_title
from recranker.errors import DataError

INTERACTIONS = pa.schema(
    [
        pa.field("user_id", pa.string()),
        pa.field("item_id", pa.string()),
        pa.field("rating", pa.float64()),  # null: implicit
        pa.field("timestamp", pa.int64()),  # null: no time; a place in the history where order is 'sequence'
    ]
)
ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string()),
        pa.field("title", pa.string()),  # null: unknown
        pa.field("genres", pa.list_(pa.string())),
    ]
)
QUARANTINED = pa.schema(
    [
        pa.field("table", pa.string()),  # 'interactions' or 'items'
        pa.field("row", pa.string()),  # file and line (or row, where a line is not a row)
        pa.field("reason", pa.string()),
    ]
)

Order = Literal["time", "sequence", "none"]

MAX_TIMESTAMP = 253_402_300_799
"""UTC seconds of the last second of the year 9999; what lies beyond is most likely milliseconds."""
MAX_ID_CHARACTERS = 1000
"""A longer id is no id but a file read with a wrong separator or quote."""
SHOWN_CHARACTERS = 80
"""Of a value quoted in a complaint."""

_ORDER_MEANS: dict[Order, str] = {
    "time": "a user's events stand in the order of their times",
    "sequence": "a user's events stand in the order the source gives; no times are known",
    "none": "no times: a user's events stand in a keyed random order",
}


@dataclass(frozen=True)
class RawData:
    """A data set as its source gives it: ids as text, columns named, titles not cleaned yet.

    Every row read is in ``interactions``, in ``quarantined`` or counted in ``dropped``; ``checked`` sees to it.
    """

    name: str
    """Said in reports."""
    interactions: pa.Table
    """Schema ``INTERACTIONS``."""
    items: pa.Table
    """Schema ``ITEMS``."""
    interactions_file: str
    """What a complaint about an interaction names."""
    items_file: str
    """What a complaint about an item names."""
    rows_read: int
    """Interactions the source holds, usable or not."""
    has_ratings: bool = True
    order: Order = "time"
    """What ``timestamp`` holds: UTC seconds; a place in the user's history, for sorting only; nothing."""
    scale: tuple[float, float] | None = None
    """Lowest and highest rating where the source knows; settings must agree."""
    thresholds: tuple[float, float] | None = None
    """The source's own defaults: a rating from the first on is a like, one below the second a dislike."""
    unrated_is_like: bool = False
    """Whether rows without a rating may stand among rated ones; each is a like."""
    event_means: str = "every row is a like"
    """What a row without a rating says."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out on purpose: name of the count -> rows."""
    quarantined: pa.Table = field(default_factory=QUARANTINED.empty_table)
    """Schema ``QUARANTINED``: broken rows, where the settings say to leave them out."""
    notes: dict[str, int] = field(default_factory=dict)
    """Further counts worth a line in the manifest, of items for instance."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column name -> the name in the file, where it differs; complaints use the latter."""

    @property
    def has_time(self) -> bool:
        """Whether ``timestamp`` holds times."""
        return self.order == "time"

    @property
    def like_means(self) -> str:
        """What a like is, in a sentence for the manifest."""
        if not self.has_ratings:
            return self.event_means
        rated = "a rating of data.like_at_least or more is a like, one below data.dislike_below a dislike"
        return f"{rated}; {self.event_means}" if self.unrated_is_like else rated

    @property
    def order_means(self) -> str:
        """What the order of a history is, in a sentence for the manifest."""
        return _ORDER_MEANS[self.order]

    @property
    def accounts(self) -> dict[str, int]:
        """What became of every row read, for the manifest; the rows kept are the rest."""
        return {
            "interactions_read": self.rows_read,
            "interactions_quarantined": self._quarantined("interactions"),
            **self.dropped,
            "items_quarantined": self._quarantined("items"),
            **self.notes,
        }

    def column(self, name: str) -> str:
        """The user's own name of a column."""
        return self.columns.get(name, name)

    def _quarantined(self, table: str) -> int:
        return int(pc.sum(pc.equal(self.quarantined["table"], table)).as_py() or 0)


def checked(raw: RawData, rating_min: float, rating_max: float) -> RawData:
    """``raw``, when it is usable.

    Raises:
        DataError: If a table is empty, an id is missing or endless, an item comes twice, a rating is off the scale, a
            time is no time in seconds, or not one interaction has its item in the table of items.
    """
    left_out = sum(raw.dropped.values()) + raw._quarantined("interactions")
    assert raw.rows_read == raw.interactions.num_rows + left_out, f"{raw.name}: a row read is neither kept nor counted"
    _check_filled(raw)
    _check_items_once(raw)
    if raw.has_ratings:
        _check_scale(raw, rating_min, rating_max)
    if raw.order != "none":
        _check_times(raw)
    if not pc.any(pc.is_in(raw.interactions["item_id"], value_set=raw.items["item_id"])).as_py():
        examples = [shown(table["item_id"][0].as_py()) for table in (raw.interactions, raw.items)]
        raise DataError(
            f"{raw.interactions_file}: no value of column {raw.column('item_id')!r} is in {raw.items_file} "
            f"(for instance {' against '.join(examples)}); the ids of both files must be the same"
        )
    return raw


def with_known_items(raw: RawData) -> tuple[pa.Table, int]:
    """The interactions whose item is in the table of items, and how many are not."""
    known = raw.interactions.filter(pc.is_in(raw.interactions["item_id"], value_set=raw.items["item_id"]))
    return known, raw.interactions.num_rows - known.num_rows


def cleaned_items(items: pa.Table, max_characters: int) -> tuple[pa.Table, dict[str, float]]:
    """``items`` with clean titles and genres; how many had no title left, so that their id stands in, and how many
    titles were cut to length."""
    ids = items["item_id"].to_pylist()
    whole = [clean_title(title or "", sys.maxsize) for title in items["title"].to_pylist()]
    titles = [title[:max_characters].rstrip() for title in whole]
    genres = [[clean_title(one or "", max_characters) for one in row or ()] for row in items["genres"].to_pylist()]
    columns: dict[str, Any] = {
        "item_id": ids,
        "title": [title or item_id for title, item_id in zip(titles, ids, strict=True)],
        "genres": [[one for one in row if one] for row in genres],
    }
    cut = sum(len(title) > max_characters for title in whole)
    return pa.table(columns, schema=ITEMS), {"items_without_title": titles.count(""), "titles_cut": cut}


def shown(value: object) -> str:
    """``value`` as a complaint quotes it: on one line, not too long."""
    text = repr(value if not isinstance(value, str) else value[: SHOWN_CHARACTERS + 1])
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _check_filled(raw: RawData) -> None:
    tables = {"interactions": (raw.interactions, raw.interactions_file), "items": (raw.items, raw.items_file)}
    for kind, (table, file) in tables.items():
        if table.num_rows == 0:
            raise DataError(f"{file}: needed a row per {kind[:-1]}, found none; {_why_none(raw, kind)}")
        for name in {"user_id", "item_id"} & set(table.schema.names):
            where = f"{file}: column {raw.column(name)!r}"
            missing = pc.equal(pc.fill_null(table[name], ""), "")
            _refuse_first(table, missing, where, name, "must hold an id in every row", "fill or drop these rows")
            endless = pc.greater(pc.utf8_length(table[name]), MAX_ID_CHARACTERS)
            needed = f"must hold ids of at most {MAX_ID_CHARACTERS} characters"
            _refuse_first(table, endless, where, name, needed, "check separator and quotes of the file")


def _why_none(raw: RawData, kind: str) -> str:
    aside = raw.quarantined.filter(pc.equal(raw.quarantined["table"], kind))
    if aside.num_rows:
        first = f"{aside['row'][0].as_py()}: {aside['reason'][0].as_py()}"
        return f"{aside.num_rows} rows are quarantined, the first is {first}"
    if kind == "interactions" and raw.dropped:
        return f"left out by the settings: {', '.join(f'{rows} {name}' for name, rows in raw.dropped.items())}"
    return "check the path"


def _check_items_once(raw: RawData) -> None:
    counts = raw.items.group_by("item_id").aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    if twice.num_rows:
        raise DataError(
            f"{raw.items_file}: column {raw.column('item_id')!r} must hold every item once, found {twice.num_rows} ids "
            f"several times (for instance {shown(pc.min(twice['item_id']).as_py())}); keep one row of each"
        )


def _check_scale(raw: RawData, rating_min: float, rating_max: float) -> None:
    if raw.scale is not None and raw.scale != (rating_min, rating_max):
        raise DataError(
            f"{raw.name}: ratings run from {raw.scale[0]:g} to {raw.scale[1]:g}, settings say {rating_min:g} to "
            f"{rating_max:g}; set data.rating_min and data.rating_max"
        )
    ratings = raw.interactions["rating"]
    inside = pc.and_(pc.greater_equal(ratings, rating_min), pc.less_equal(ratings, rating_max))
    _refuse_first(
        raw.interactions,
        pc.invert(pc.fill_null(inside, raw.unrated_is_like)),  # NaN is outside
        f"{raw.interactions_file}: column {raw.column('rating')!r}",
        "rating",
        f"must lie within {rating_min:g} and {rating_max:g}",
        "set data.rating_min and data.rating_max to the scale of this file, or drop these rows",
    )


def _check_times(raw: RawData) -> None:
    times = raw.interactions["timestamp"]
    sane = pc.and_(pc.greater_equal(times, 0), pc.less_equal(times, MAX_TIMESTAMP))
    _refuse_first(
        raw.interactions,
        pc.invert(pc.fill_null(sane, False)),
        f"{raw.interactions_file}: column {raw.column('timestamp')!r}",
        "timestamp",
        f"must hold UTC seconds from 0 to {MAX_TIMESTAMP}" if raw.has_time else "must hold places from 0 on",
        "set data.source.time_unit to the unit of this file, or drop these rows",
    )


def _refuse_first(table: pa.Table, bad: pa.ChunkedArray, where: str, name: str, needed: str, way_out: str) -> None:
    """Complain about the rows marked ``bad``, quoting the first."""
    count = pc.sum(bad).as_py() or 0
    if count:
        row = pc.index(bad, True).as_py()
        found = shown(table[name][row].as_py())
        raise DataError(f"{where} {needed}, {count} rows do not (row {row + 1}: {found}); {way_out}")
