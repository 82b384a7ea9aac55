"""A team's own interactions and items, as text or Parquet, on a disk or in an object store."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import fs

from recranker.data.sources import raw
from recranker.data.sources.catalogue import SourceFacts
from recranker.data.sources.delimited import Column, read_delimited, shown_names
from recranker.data.sources.raw import shown
from recranker.data.sources.rows import (
    Rows,
    from_1970,
    is_text,
    quarantined,
    with_ids,
    with_numbers,
    with_text,
    with_times,
    wrong_type,
)
from recranker.data.sources.settings import BadRows, FilesSource, TextFormat
from recranker.errors import DataError
from recranker.parquet import Door, ParquetLimits, located, not_readable, parquet_files

FACTS = SourceFacts(
    kind="files",
    users=None,
    items=None,
    events=None,
    ratings="rating_column, or none",
    order="time_column, or none",
    terms="your own",
    download="nothing",
    where="interactions and items = CSV, TSV or Parquet, on a disk or in an object store",
)
TEXT_ENDINGS = (".csv", ".tsv", ".txt", ".dat")


def read(source: FilesSource, cache: Path) -> raw.RawData:
    """Both files with their columns under our names and types.

    Raises:
        DataError: If a file cannot be read, or a column is missing or of a type that cannot be what it should.
    """
    named = _columns(source)
    events = _events(source, {name: one for name, one in named.items() if name not in ("title", "genres")})
    items = _items(source, {name: named[name] for name in ("item_id", "title", "genres") if name in named})
    return raw.RawData(
        name=f"{Path(source.interactions).name} and {Path(source.items).name}",
        interactions=events.table,
        items=items.table,
        interactions_file=events.file,
        items_file=items.file,
        rows_read=events.read,
        has_ratings=source.rating_column is not None,
        order=_order(source),
        quarantined=quarantined(interactions=events, items=items),
        columns={ours: one.name for ours, one in named.items()},
    )


def _columns(source: FilesSource) -> dict[str, Column]:
    """Our column name -> the file's own, for those that the settings name."""
    settings = {
        **{"user_id": "user_column", "item_id": "item_column", "rating": "rating_column", "timestamp": "time_column"},
        **{"split": "split_column", "title": "title_column", "genres": "genres_column"},
    }
    named = {ours: (getattr(source, setting), f"data.source.{setting}") for ours, setting in settings.items()}
    return {ours: Column(name, setting) for ours, (name, setting) in named.items() if name is not None}


def _order(source: FilesSource) -> raw.Order:
    if source.time_column is None:
        return "none"
    return "sequence" if source.time_unit == "position" else "time"


def _events(source: FilesSource, wanted: dict[str, Column]) -> Rows:
    """Of schema ``raw.INTERACTIONS``, and the split where there is one."""
    decimal = source.interactions_format.decimal
    rows = _read(source.interactions, source.interactions_format, wanted, source)
    rows = with_ids(rows, "user_id", "item_id")
    if "rating" in wanted:
        rows = with_numbers(rows, "rating", decimal=decimal)
    if "timestamp" in wanted:
        rows = with_times(rows, "timestamp", source.time_unit, source.date_format, decimal=decimal)
        rows = from_1970(rows, "timestamp", source.time_unit)
    if "split" not in wanted:
        return _filled(rows, raw.INTERACTIONS)
    return _filled(_as_text(rows, "split"), raw.INTERACTIONS.append(pa.field("split", pa.string())))


def _items(source: FilesSource, wanted: dict[str, Column]) -> Rows:
    """Of schema ``raw.ITEMS``."""
    rows = with_ids(_read(source.items, source.items_format, wanted, source), "item_id")
    rows = _as_text(rows, "title")
    return _filled(_genres(rows, source.genre_separator) if "genres" in wanted else rows, raw.ITEMS)


def _filled(rows: Rows, schema: pa.Schema) -> Rows:
    """With the columns of ``schema``; one that the file is not said to have is null."""
    there = rows.table.schema.names
    columns = [rows.table[one.name] if one.name in there else pa.nulls(rows.table.num_rows, one.type) for one in schema]
    return replace(rows, table=pa.table(columns, schema=schema))


def _read(path: str, written: TextFormat, wanted: dict[str, Column], source: FilesSource) -> Rows:
    """The wanted columns of a text or .parquet file, or of a folder of .parquet files."""
    try:
        filesystem, inner = located(path)
        kind = filesystem.get_file_info(inner).type
    except (pa.ArrowException, OSError, ValueError) as error:
        raise not_readable(path, error) from None
    if kind == fs.FileType.NotFound:
        raise DataError(f"'{path}' is not there; set data.source.interactions and data.source.items to your files")
    if kind == fs.FileType.File and inner.lower().removesuffix(".gz").endswith(TEXT_ENDINGS):
        return read_delimited(path, written, wanted, source.on_bad_rows)
    if kind == fs.FileType.File and not inner.lower().endswith(".parquet"):
        endings = ", ".join(TEXT_ENDINGS)
        raise DataError(
            f"'{path}' must end in {endings} (or .gz after it) or .parquet, or be a folder of .parquet files"
        )
    return _read_parquet(filesystem, inner, path, wanted, source.on_bad_rows, source.parquet)


def _read_parquet(
    filesystem: fs.FileSystem,
    inner: str,
    path: str,
    wanted: Mapping[str, Column],
    policy: BadRows,
    limits: ParquetLimits,
) -> Rows:
    names = {ours: one.name for ours, one in wanted.items()}
    door = Door(filesystem, limits, "if the file is what you meant, raise data.source.parquet.{}")
    try:
        files = parquet_files(filesystem, inner)
        if not files:
            raise DataError(f"'{path}' is a folder without .parquet files; set the path to your files")
        sections = door.admit(files, list(names.values()))
        found = ds.dataset(files, format="parquet", filesystem=filesystem)
        _require(path, wanted, found.schema.names)
        read = found.to_table(columns=list(dict.fromkeys(names.values())))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise not_readable(path, error) from None
    table = pa.table({ours: _plain(read[name]) for ours, name in names.items()})
    numbers = np.arange(1, table.num_rows + 1)
    rows = Rows(f"'{path}'", table, numbers, policy, "row", names=names, sections=sections)
    return with_text(rows, *(name for name in names if _holds_text(table[name].type)))


def _require(path: str, wanted: Mapping[str, Column], found: list[str]) -> None:
    for one in wanted.values():
        if found.count(one.name) != 1:
            times = "lacks column" if one.name not in found else "has more than one column"
            raise DataError(
                f"'{path}' {times} {shown(one.name)} (found: {shown_names(found)}); rename it or set {one.setting}"
            )


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _holds_text(kind: pa.DataType) -> bool:
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_text(kind.value_type if nested else kind)


def _as_text(rows: Rows, name: str) -> Rows:
    values = rows.table[name]
    if not (is_text(values.type) or pa.types.is_null(values.type)):
        raise wrong_type(rows, name, "text")
    return rows.with_column(name, values.cast(pa.string()))


def _genres(rows: Rows, separator: str) -> Rows:
    values, kind = rows.table["genres"], pa.list_(pa.string())
    if is_text(values.type):
        return rows.with_column("genres", pc.split_pattern(values.cast(pa.string()), separator).cast(kind))
    nested = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    if not (pa.types.is_null(values.type) or (nested and is_text(values.type.value_type))):
        raise wrong_type(rows, "genres", "text or lists of text")
    return rows.with_column("genres", values.cast(kind))
