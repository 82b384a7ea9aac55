"""What every source hands over, and the checks that hold for all of them."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recranker.data.titles import clean_title
from recranker.errors import DataError

INTERACTIONS = pa.schema(
    [
        pa.field("user_id", pa.string()),
        pa.field("item_id", pa.string()),
        pa.field("rating", pa.float64()),  # null: implicit
        pa.field("timestamp", pa.int64()),  # null: no time
    ]
)
ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string()),
        pa.field("title", pa.string()),
        pa.field("genres", pa.list_(pa.string())),
    ]
)

MAX_TIMESTAMP = 253_402_300_799
"""UTC seconds of the last second of the year 9999; what lies beyond is most likely milliseconds."""


@dataclass(frozen=True)
class RawData:
    """A data set as its source gives it, ids as text, columns named; nothing dropped and nothing cleaned yet."""

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
    has_ratings: bool = True
    has_time: bool = True
    scale: tuple[float, float] | None = None
    """Lowest and highest rating where the source knows; settings must agree."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column name -> the name in the file, where it differs; complaints use the latter."""

    def column(self, name: str) -> str:
        """The user's own name of a column."""
        return self.columns.get(name, name)


def checked(raw: RawData, rating_min: float, rating_max: float) -> RawData:
    """``raw``, when it is usable.

    Raises:
        DataError: If a table is empty, an id is missing, an item comes twice, a rating is off the scale, a time is no
            time in seconds, or not one interaction has its item in the table of items.
    """
    _check_filled(raw)
    _check_items_once(raw)
    if raw.has_ratings:
        _check_scale(raw, rating_min, rating_max)
    if raw.has_time:
        _check_times(raw)
    if not pc.any(pc.is_in(raw.interactions["item_id"], value_set=raw.items["item_id"])).as_py():
        examples = [repr(table["item_id"][0].as_py()) for table in (raw.interactions, raw.items)]
        raise DataError(
            f"{raw.interactions_file}: no value of column {raw.column('item_id')!r} is in {raw.items_file} "
            f"(for instance {' against '.join(examples)}); the ids of both files must be the same"
        )
    return raw


def with_known_items(raw: RawData) -> tuple[pa.Table, int]:
    """The interactions whose item is in the table of items, and how many are not."""
    known = raw.interactions.filter(pc.is_in(raw.interactions["item_id"], value_set=raw.items["item_id"]))
    return known, raw.interactions.num_rows - known.num_rows


def cleaned_items(items: pa.Table, max_characters: int) -> tuple[pa.Table, int]:
    """``items`` with clean titles and genres, and how many had no title left: their id stands in."""
    ids = items["item_id"].to_pylist()
    titles = [clean_title(title or "", max_characters) for title in items["title"].to_pylist()]
    genres = [[clean_title(one, max_characters) for one in row or ()] for row in items["genres"].to_pylist()]
    columns: dict[str, Any] = {
        "item_id": ids,
        "title": [title or item_id for title, item_id in zip(titles, ids, strict=True)],
        "genres": [[one for one in row if one] for row in genres],
    }
    return pa.table(columns, schema=ITEMS), titles.count("")


def _check_filled(raw: RawData) -> None:
    tables = {"interactions": (raw.interactions, raw.interactions_file), "items": (raw.items, raw.items_file)}
    for kind, (table, file) in tables.items():
        if table.num_rows == 0:
            raise DataError(f"{file}: needed a row per {kind[:-1]}, found none; check the path")
        for name in {"user_id", "item_id"} & set(table.schema.names):
            _refuse_first(
                table,
                pc.equal(pc.fill_null(table[name], ""), ""),
                f"{file}: column {raw.column(name)!r}",
                name,
                "must hold an id in every row",
                "fill or drop these rows",
            )


def _check_items_once(raw: RawData) -> None:
    counts = raw.items.group_by("item_id").aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    if twice.num_rows:
        raise DataError(
            f"{raw.items_file}: column {raw.column('item_id')!r} must hold every item once, found {twice.num_rows} ids "
            f"several times (for instance {pc.min(twice['item_id']).as_py()!r}); keep one row of each"
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
        pc.invert(pc.fill_null(inside, False)),  # null and NaN are outside too
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
        f"must hold UTC seconds from 0 to {MAX_TIMESTAMP}",
        "convert it (milliseconds: divide by 1000), or drop these rows",
    )


def _refuse_first(table: pa.Table, bad: pa.ChunkedArray, where: str, name: str, needed: str, way_out: str) -> None:
    """Complain about the rows marked ``bad``, quoting the first."""
    count = pc.sum(bad).as_py() or 0
    if count:
        row = pc.index(bad, True).as_py()
        found = table[name][row].as_py()
        raise DataError(f"{where} {needed}, {count} rows do not (row {row + 1}: {found!r}); {way_out}")
