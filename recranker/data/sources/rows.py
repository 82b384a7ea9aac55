"""Tables in which every row can be used, with those that cannot set aside.

A row that is broken (too few fields, not text, no number, no id) ends the job with one line, or is quarantined: left
out, counted, and kept with its place and reason. What is wrong with a file as a whole always ends the job.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.lookup import column
from recranker.data.sources import raw
from recranker.data.sources.raw import shown
from recranker.data.sources.settings import BadRows
from recranker.errors import DataError
from recranker.parquet import Section

ASIDE = pa.schema([pa.field("row", pa.string()), pa.field("reason", pa.string())])
UNITS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}

_NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"
_FAR = float(10 * raw.MAX_TIMESTAMP)


@dataclass(frozen=True)
class Rows:
    """The usable rows of one file so far, and those set aside."""

    file: str
    """As complaints name it."""
    table: pa.Table
    numbers: NDArray[np.int64]
    """``(rows,)`` where each row stands, from 1."""
    policy: BadRows
    unit: str = "line"
    """What ``numbers`` count: lines of the file, or rows of data."""
    aside: pa.Table = field(default_factory=ASIDE.empty_table)
    """Schema ``ASIDE``."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Our column name -> the file's own, for complaints."""
    sections: Sequence[Section] = ()
    """The row groups that ``numbers`` run through, where the rows come from Parquet."""

    @property
    def read(self) -> int:
        """Rows of the file, usable or not."""
        return int(self.table.num_rows + self.aside.num_rows)

    def without(self, bad: NDArray[np.bool_], reason: str, values: pa.ChunkedArray | None = None) -> "Rows":
        """The rows not marked ``bad``; the others are set aside, quoting their ``values``.

        Raises:
            DataError: If there are bad rows and they are not to be quarantined.
        """
        if not bad.any():
            return self
        quoted = values.filter(pa.array(bad)).to_pylist() if values is not None else None
        aside = set_aside(self, self.numbers[bad], reason, quoted)
        kept = self.table.filter(pa.array(~bad))
        return replace(self, table=kept, numbers=self.numbers[~bad], aside=pa.concat_tables([self.aside, aside]))

    def with_column(self, name: str, values: pa.Array | pa.ChunkedArray) -> "Rows":
        """The same rows with one column replaced."""
        return replace(self, table=self.table.set_column(self.table.schema.get_field_index(name), name, values))

    def places(self, numbers: NDArray[np.int64]) -> list[str]:
        """Where the rows of these numbers stand, as complaints say it; in Parquet rows are counted file by file."""
        if not self.sections:
            return [f"{self.file} {self.unit} {number}" for number in numbers]
        ends = np.cumsum([section.rows for section in self.sections])
        found = [self.sections[place] for place in np.searchsorted(ends, numbers)]
        before: dict[str, int] = {}
        for end, section in zip(ends, self.sections, strict=True):
            before.setdefault(section.file, int(end) - section.rows)
        return [
            f"'{section.file}' row group {section.number}, row {number - before[section.file]}"
            for section, number in zip(found, numbers, strict=True)
        ]

    def column(self, name: str) -> str:
        """How a complaint speaks of a column."""
        return f"column {shown(self.names.get(name, name))}"


def set_aside(rows: Rows, numbers: NDArray[np.int64], reason: str, quoted: list[object] | None = None) -> pa.Table:
    """Broken rows of one kind, of schema ``ASIDE``.

    Raises:
        DataError: If they are not to be quarantined.
    """
    places = rows.places(numbers)
    if quoted is not None:
        places = [f"{place} ({shown(value)})" for place, value in zip(places, quoted, strict=True)]
    if rows.policy == "refuse":
        more = f", and {len(places) - 1} more are like it" if len(places) > 1 else ""
        raise DataError(
            f'{places[0]}: {reason}{more}; mend the file, or set data.source.on_bad_rows = "quarantine" to leave such '
            "rows out, counted"
        )
    return pa.table({"row": places, "reason": [reason] * len(places)}, schema=ASIDE)


def quarantined(**tables: Rows) -> pa.Table:
    """What was set aside of each table, by its name, of schema ``raw.QUARANTINED``."""
    named = [
        pa.table([pa.array([name] * rows.aside.num_rows, pa.string()), *rows.aside.columns], schema=raw.QUARANTINED)
        for name, rows in tables.items()
    ]
    return pa.concat_tables(named)


def with_ids(rows: Rows, *names: str) -> Rows:
    """``rows`` with text ids, those without one set aside.

    Raises:
        DataError: If a column cannot hold ids, or a row is not to be quarantined.
    """
    for name in names:
        values = rows.table[name]
        if not (is_text(values.type) or pa.types.is_integer(values.type) or pa.types.is_null(values.type)):
            raise wrong_type(rows, name, "text or whole numbers")
        rows = rows.with_column(name, values.cast(pa.string()))
        _refuse_unclosed(rows, name)
        lengths = column(pc.fill_null(pc.utf8_length(rows.table[name]), 0))
        reason = f"{rows.column(name)} must hold an id of 1 to {raw.MAX_ID_CHARACTERS} characters"
        rows = rows.without((lengths == 0) | (lengths > raw.MAX_ID_CHARACTERS), reason, rows.table[name])
    return rows


def with_numbers(rows: Rows, name: str, *, decimal: str = ".") -> Rows:
    """``rows`` with a column of finite float64, those that hold no number there set aside.

    Raises:
        DataError: If the column cannot hold numbers, or a row is not to be quarantined.
    """
    values = rows.table[name]
    short = pa.types.is_float32(values.type) or pa.types.is_float16(values.type)
    numbers = pc.round(_floats(rows, name, decimal), ndigits=3 if short else 9)  # a stored 4.1 must reach 4.1
    bad = ~np.isfinite(column(pc.fill_null(numbers, np.nan)))
    return rows.with_column(name, numbers).without(bad, f"{rows.column(name)} must hold a number", values)


def with_times(rows: Rows, name: str, unit: str, date_format: str | None = None, *, decimal: str = ".") -> Rows:
    """``rows`` with a column of UTC seconds as int64, fractions cut off; of places where that is the unit.

    A time without a zone is taken as UTC. Rows that hold no time are set aside; how far a time may lie
    away is not asked here.

    Args:
        rows: With the column as text, numbers or dates.
        name: Of the column.
        unit: A key of ``UNITS_PER_SECOND``, 'date' or 'position'.
        date_format: How a date is written; None: as in ISO 8601.
        decimal: What stands before fractions.

    Raises:
        DataError: If the column cannot hold times, or a row is not to be quarantined.
    """
    values = rows.table[name]
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        seconds, needed = values.cast(pa.timestamp("s"), safe=False).cast(pa.int64()), "a time"
    elif unit == "date":
        seconds, needed = _dates(rows, name, date_format), f"a date ({date_format or 'ISO 8601'})"
    else:
        seconds = _cut(_floats(rows, name, decimal), UNITS_PER_SECOND.get(unit, 1))
        needed = "a place, as a number" if unit == "position" else f"UTC time as a number ({unit} since 1970)"
    bad = column(pc.is_null(seconds))
    return rows.with_column(name, seconds).without(bad, f"{rows.column(name)} must hold {needed}", values)


def with_text(rows: Rows, *names: str) -> Rows:
    """``rows`` whose text, alone or in lists, is UTF-8; those with other bytes set aside.

    Raises:
        DataError: If a row is not to be quarantined.
    """
    for name in names:
        bad = [_not_utf8(chunk) for chunk in rows.table[name].chunks]
        rows = rows.without(np.concatenate([np.empty(0, bool), *bad]), f"{rows.column(name)} must hold UTF-8 text")
    return rows


def from_1970(rows: Rows, name: str, unit: str) -> Rows:
    """``rows`` without those whose time lies before 1970, or whose place in the history before the first."""
    needed = "places from 0 on" if unit == "position" else "UTC seconds from 0 on, that is from 1970"
    early = column(pc.less(rows.table[name], 0)).astype(np.bool_)
    return rows.without(early, f"{rows.column(name)} must hold {needed}", rows.table[name])


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def wrong_type(rows: Rows, name: str, needed: str) -> DataError:
    """The complaint about a column whose type cannot be what it should."""
    values = rows.table[name].drop_null()
    example = shown(values[0].as_py()) if len(values) else "nothing"
    return DataError(
        f"{rows.file}: {rows.column(name)} must hold {needed}, got {str(values.type)[:60]} (for instance {example}); "
        "convert it or name another"
    )


def _not_utf8(chunk: pa.Array) -> NDArray[np.bool_]:
    """``(rows,)``; Arrow takes a file's word for it that text is text."""
    try:
        chunk.validate(full=True)
        return np.zeros(len(chunk), dtype=np.bool_)
    except pa.ArrowInvalid:
        nested = not is_text(chunk.type)
        bad = np.zeros(len(chunk), dtype=np.bool_)
        values = pc.list_flatten(chunk) if nested else chunk
        wrong = np.array([not _decodes(one) for one in values.cast(pa.large_binary()).to_pylist()], dtype=np.bool_)
        bad[column(pc.list_parent_indices(chunk))[wrong] if nested else wrong] = True
        return bad


def _decodes(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def _refuse_unclosed(rows: Rows, name: str) -> None:
    """An id over several lines swallowed rows whole, so it cannot be counted as one."""
    broken = column(pc.fill_null(pc.match_substring(rows.table[name], "\n"), False))
    if broken.any():
        number = rows.numbers[broken][0]
        raise unclosed_quote(rows, int(number))


def unclosed_quote(rows: Rows, number: int) -> DataError:
    """The complaint about a quote that swallows the rows after it."""
    return DataError(
        f"{rows.file} {rows.unit} {number}: a quote is opened and not closed, so the rows after it cannot be told "
        "apart; close it, or say how fields are quoted"
    )


def _floats(rows: Rows, name: str, decimal: str) -> pa.ChunkedArray:
    """The column as float64; null where it holds no number."""
    values = rows.table[name]
    if pa.types.is_null(values.type):
        return values.cast(pa.float64())
    if not is_text(values.type):
        if not (
            pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type)
        ):
            raise wrong_type(rows, name, "numbers")
        return values.cast(pa.float64(), safe=False)
    text = values if decimal == "." else pc.replace_substring(values, decimal, ".")
    try:
        return text.cast(pa.float64())
    except pa.ArrowInvalid:
        text = pc.utf8_trim_whitespace(text)
        return pc.if_else(pc.match_substring_regex(text, _NUMBER), text, pa.scalar(None, text.type)).cast(pa.float64())


def _cut(values: pa.ChunkedArray, per_second: int) -> pa.ChunkedArray:
    """Whole seconds as int64; what lies beyond all times stays beyond; null where there is none."""
    seconds = pc.floor(pc.divide(values, float(per_second)))
    seconds = pc.if_else(pc.is_finite(seconds), seconds, pa.scalar(None, pa.float64()))
    seconds = pc.min_element_wise(seconds, _FAR, skip_nulls=False)
    return pc.max_element_wise(seconds, -_FAR, skip_nulls=False).cast(pa.int64())


def _dates(rows: Rows, name: str, date_format: str | None) -> pa.ChunkedArray:
    """UTC seconds of written dates; null where there is none."""
    values = rows.table[name]
    if not is_text(values.type):
        raise wrong_type(rows, name, "written dates")
    if date_format is not None:
        return pc.strptime(values, format=date_format, unit="s", error_is_null=True).cast(pa.int64())
    for kind in (pa.timestamp("us"), pa.timestamp("us", tz="UTC")):
        try:
            return values.cast(kind).cast(pa.timestamp("s"), safe=False).cast(pa.int64())
        except pa.ArrowInvalid:
            continue
    distinct = pc.unique(values)
    seconds = pa.array([_seconds_of(one) for one in distinct.to_pylist()], pa.int64())
    return seconds.take(pc.index_in(values, value_set=distinct).combine_chunks())


def _seconds_of(text: str | None) -> int | None:
    try:
        moment = datetime.fromisoformat((text or "").strip())
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return None
