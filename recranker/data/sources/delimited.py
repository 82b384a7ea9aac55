"""Text files with a separator between fields, as tables of text."""

import csv as python_csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
from numpy.typing import NDArray

from recranker.data.lookup import column
from recranker.data.sources.raw import shown
from recranker.data.sources.rows import ASIDE, Rows, set_aside, unclosed_quote
from recranker.data.sources.settings import BadRows, TextFormat
from recranker.data.sources.text import UNREADABLE, Text, read_text
from recranker.errors import DataError
from recranker.parquet import not_readable

MAX_COLUMNS = 10_000
"""More are a sign of a wrong separator, and take a reader minutes."""
BLOCK_BYTES = 1 << 25
"""Longest row that is read, roughly."""


@dataclass(frozen=True)
class Column:
    """One column wanted of a file."""

    name: str
    """In the file's first line, or where the settings name the columns."""
    setting: str = ""
    """The setting that names it, for complaints; empty: the data set has it under this name."""


def read_delimited(path: str, written: TextFormat, wanted: Mapping[str, Column | str], policy: BadRows) -> Rows:
    """The wanted columns of a text file, as text.

    Args:
        path: Of the file; gzip is seen by its content.
        written: How fields are set apart.
        wanted: Our column name -> the file's own.
        policy: What becomes of broken rows.

    Raises:
        DataError: If the file is no such text, lacks a column, or has broken rows that are not to be quarantined.
    """
    text = read_text(path, written.encoding, policy)
    separator = written.separator or ("\t" if ".tsv" in Path(path).suffixes else ",")
    header, body = _header(text, written, separator)
    if len(header) < 2:
        raise DataError(f"{text.file} has one column, {shown(header[0])}, needed two or more; check the separator")
    columns = {ours: Column(one) if isinstance(one, str) else one for ours, one in wanted.items()}
    places = {ours: _place(one, header, text.file) for ours, one in columns.items()}
    names = {ours: one.name for ours, one in columns.items()}
    empty = Rows(text.file, pa.table({}), np.empty(0, np.int64), policy, names=names)
    if len(separator) == 1:
        rows = _read_csv(replace(empty, unit="row"), body, written, separator, len(header), set(places.values()))
    else:
        rows = _read_split(empty, body, separator, len(header), first_line=1 if written.columns else 2)
    chosen = pa.table([rows.table[str(place)] for place in places.values()], names=list(places))
    return replace(rows, table=chosen)


def read_lines(path: str, encoding: str, policy: BadRows) -> Rows:
    """The lines of a text file that are not blank, as column 'line'."""
    text = read_text(path, encoding, policy)
    empty = Rows(text.file, pa.table({}), np.empty(0, np.int64), policy)
    return _lines(empty, text.content, first_line=1)


def _header(text: Text, written: TextFormat, separator: str) -> tuple[list[str], bytes]:
    """The names of all columns, and the content without the line that holds them."""
    if written.columns:
        return list(written.columns), text.content
    line, _, body = text.content.partition(b"\n")
    if line.count(separator.encode()) >= MAX_COLUMNS:
        raise DataError(
            f"{text.file} has {line.count(separator.encode()) + 1} columns, needed at most {MAX_COLUMNS}; "
            "check the separator"
        )
    if len(separator) > 1:
        return line.decode().split(separator), body
    try:
        parsed = python_csv.reader(
            [line.decode()],
            delimiter=separator,
            quotechar=written.quote or '"',
            escapechar=written.escape,
            doublequote=written.escape is None,
            quoting=python_csv.QUOTE_MINIMAL if written.quote else python_csv.QUOTE_NONE,
        )
        return next(parsed), body
    except (python_csv.Error, StopIteration) as error:
        raise not_readable(text.path, error) from None


def _place(wanted: Column, header: list[str], file: str) -> int:
    if header.count(wanted.name) == 1:
        return header.index(wanted.name)
    times = "has more than one column" if wanted.name in header else "lacks column"
    way_out = f"rename it or set {wanted.setting}" if wanted.setting else "take the publisher's own file"
    raise DataError(f"{file} {times} {shown(wanted.name)} (found: {shown_names(header)}); {way_out}")


def shown_names(names: list[str]) -> str:
    """Column names as a complaint lists them: on one line, not too many."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(name if name.isprintable() and len(name) < 80 else shown(name) for name in names[:20]) + more


def _read_csv(rows: Rows, body: bytes, written: TextFormat, separator: str, width: int, places: set[int]) -> Rows:
    """All columns of ``places``, under their number, and what is ragged set aside."""
    ragged: list[tuple[int, int, str]] = []  # row, fields, the start of it

    def skip(row: csv.InvalidRow) -> str:
        text = row.text.strip("\n")
        ragged.append((row.number, row.actual_columns, "\n" if "\n" in text else text[:2]))
        return "skip"  # an error raised here would be swallowed

    included = [str(place) for place in sorted(places | {width - 1})]
    options = (
        csv.ReadOptions(column_names=[str(place) for place in range(width)], block_size=BLOCK_BYTES, use_threads=False),
        csv.ParseOptions(
            delimiter=separator,
            quote_char=written.quote or False,
            double_quote=written.quote is not None and written.escape is None,
            escape_char=written.escape or False,
            newlines_in_values=written.quote is not None,
            invalid_row_handler=skip,
        ),
        csv.ConvertOptions(
            include_columns=included, column_types=dict.fromkeys(included, pa.string()), strings_can_be_null=False
        ),
    )
    try:
        table = csv.read_csv(pa.BufferReader(body), *options) if body.strip() else _no_rows(included)
    except (pa.ArrowException, OSError, ValueError) as error:
        if "straddling" in str(error):
            raise unclosed_quote(rows, 1) from None
        raise not_readable(rows.file.strip("'"), error) from None
    for number, _, start in ragged:
        if start == "\n":
            raise unclosed_quote(rows, number)
    numbers = np.setdiff1d(np.arange(1, table.num_rows + len(ragged) + 1), [number for number, _, _ in ragged])
    rows = replace(rows, table=table, numbers=numbers)
    _refuse_open_end(rows, body, written.quote, str(width - 1))
    return replace(rows, aside=_ragged(rows, ragged, width))


def _no_rows(names: list[str]) -> pa.Table:
    return pa.schema([pa.field(name, pa.string()) for name in names]).empty_table()


def _refuse_open_end(rows: Rows, body: bytes, quote: str | None, last: str) -> None:
    """A quote opened in the last field and never closed takes the rest of the file for one field."""
    if not quote or not rows.table.num_rows or body.rstrip().endswith(quote.encode()):
        return
    if "\n" in rows.table[last][-1].as_py():
        raise unclosed_quote(rows, int(rows.numbers[-1]))


def _ragged(rows: Rows, ragged: list[tuple[int, int, str]], width: int) -> pa.Table:
    reasons = sorted(
        ("the line is not text" if start == UNREADABLE else f"needed {width} fields, got {fields}", number)
        for number, fields, start in ragged
    )
    kinds = [(reason, [number for _, number in group]) for reason, group in groupby(reasons, key=lambda one: one[0])]
    kinds.sort(key=lambda kind: kind[1][0])
    return pa.concat_tables([ASIDE.empty_table(), *(set_aside(rows, np.array(at), reason) for reason, at in kinds)])


def _lines(rows: Rows, body: bytes, *, first_line: int) -> Rows:
    lines = pa.chunked_array([pa.array(body.decode().split("\n"), pa.large_string())])
    numbers: NDArray[np.int64] = np.arange(first_line, first_line + len(lines))
    filled = column(pc.not_equal(pc.utf8_trim_whitespace(lines), ""))
    kept = pa.table({"line": lines.filter(pa.array(filled))})
    rows = replace(rows, table=kept, numbers=numbers[filled])
    return rows.without(column(pc.equal(rows.table["line"], UNREADABLE)), "the line is not text")


def _read_split(rows: Rows, body: bytes, separator: str, width: int, *, first_line: int) -> Rows:
    """Fields between separators of several characters; there are no quotes."""
    rows = _lines(rows, body, first_line=first_line)
    counts = column(pc.add(pc.count_substring(rows.table["line"], separator), 1))
    for found in np.unique(counts[counts != width]):
        rows = rows.without(counts == found, f"needed {width} fields, got {found}")
        counts = counts[counts != found]
    fields = pc.split_pattern(rows.table["line"], separator)
    columns = [pc.list_element(fields, place).cast(pa.string()) for place in range(width)]
    return replace(rows, table=pa.table(columns, names=[str(place) for place in range(width)]))
