"""A team's own interactions and items, from CSV or Parquet, on a disk or in an object store."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.dataset as ds
from pyarrow import fs

from recranker.data.sources import raw
from recranker.data.sources.settings import FilesSource
from recranker.errors import DataError

TEXT_COLUMNS = ("user_id", "item_id", "title", "genres")
"""Read from a CSV as they stand there, so that 007 is not 7 and NA is not missing."""

_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


def read(source: FilesSource) -> raw.RawData:
    """Both files with their columns under our names and types.

    Raises:
        DataError: If a file cannot be read, or a column is missing or of a type that cannot be what it should.
    """
    named = {
        "user_id": source.user_column,
        "item_id": source.item_column,
        "rating": source.rating_column,
        "timestamp": source.time_column,
        "title": source.title_column,
        "genres": source.genres_column,
    }
    columns = {ours: theirs for ours, theirs in named.items() if theirs is not None}
    return raw.RawData(
        name=f"{Path(source.interactions).name} and {Path(source.items).name}",
        interactions=_table(source.interactions, raw.INTERACTIONS, columns, source.genre_separator),
        items=_table(source.items, raw.ITEMS, columns, source.genre_separator),
        interactions_file=f"'{source.interactions}'",
        items_file=f"'{source.items}'",
        has_ratings=source.rating_column is not None,
        has_time=source.time_column is not None,
        columns=columns,
    )


def _table(path: str, schema: pa.Schema, columns: dict[str, str], separator: str) -> pa.Table:
    """The columns of ``schema`` from one file; one that the file is not said to have is null."""
    wanted = {name: columns[name] for name in schema.names if name in columns}
    found = _read(path, wanted)
    made = [
        _convert(name, found[wanted[name]], separator, f"'{path}': column {wanted[name]!r}")
        if name in wanted
        else pa.nulls(found.num_rows, schema.field(name).type)
        for name in schema.names
    ]
    return pa.table(made, schema=schema)


def _read(path: str, wanted: dict[str, str]) -> pa.Table:
    """The wanted columns of a .csv, .csv.gz or .parquet file, or of a folder of .parquet files."""
    try:
        filesystem, inner = _located(path)
        kind = filesystem.get_file_info(inner).type
        if kind == fs.FileType.NotFound:
            raise DataError(f"'{path}' is not there; set data.source.interactions and data.source.items to your files")
        if kind == fs.FileType.File and inner.lower().endswith((".csv", ".csv.gz")):
            return _read_csv(filesystem, inner, path, wanted)
        if kind == fs.FileType.File and not inner.lower().endswith(".parquet"):
            raise DataError(f"'{path}' must end in .csv, .csv.gz or .parquet, or be a folder of .parquet files")
        return _read_parquet(filesystem, inner, path, wanted)
    except UnicodeDecodeError:
        raise DataError(_not_utf8(path)) from None
    except (pa.ArrowException, OSError) as error:
        if "UTF8" in str(error):
            raise DataError(_not_utf8(path)) from None
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"'{path}' cannot be read: {first}; check the file or write it again") from None


def _located(path: str) -> tuple[fs.FileSystem, str]:
    if "://" in path:
        filesystem, inner = fs.FileSystem.from_uri(path)
        return filesystem, inner
    return fs.LocalFileSystem(), str(Path(path).expanduser().resolve())


def _not_utf8(path: str) -> str:
    return f"'{path}' must be UTF-8 text and is not; convert it (iconv -f LATIN1 -t UTF-8, if that is what it is)"


def _read_csv(filesystem: fs.FileSystem, inner: str, path: str, wanted: dict[str, str]) -> pa.Table:
    parse = csv.ParseOptions(newlines_in_values=True)
    with filesystem.open_input_stream(inner) as stream:
        _require(path, wanted, csv.open_csv(stream, parse_options=parse).schema.names)
    text = {theirs: pa.string() for ours, theirs in wanted.items() if ours in TEXT_COLUMNS}
    convert = csv.ConvertOptions(include_columns=_distinct(wanted), column_types=text, strings_can_be_null=False)
    with filesystem.open_input_stream(inner) as stream:
        return csv.read_csv(stream, parse_options=parse, convert_options=convert)


def _read_parquet(filesystem: fs.FileSystem, inner: str, path: str, wanted: dict[str, str]) -> pa.Table:
    found = ds.dataset(inner, format="parquet", filesystem=filesystem)
    if not found.files:
        raise DataError(f"'{path}' is a folder without .parquet files; set the path to your files")
    _require(path, wanted, found.schema.names)
    return found.to_table(columns=_distinct(wanted))


def _distinct(wanted: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(wanted.values()))


def _require(path: str, wanted: dict[str, str], found: list[str]) -> None:
    settings = {"timestamp": "time_column", "user_id": "user_column", "item_id": "item_column"}
    for ours, theirs in wanted.items():
        if found.count(theirs) != 1:
            times = "lacks column" if theirs not in found else "has more than one column"
            setting = settings.get(ours, f"{ours}_column")
            raise DataError(
                f"'{path}' {times} {theirs!r} (found: {', '.join(found)}); rename it or set data.source.{setting}"
            )


def _convert(name: str, column: pa.ChunkedArray, separator: str, where: str) -> pa.ChunkedArray:
    """One column of a file as the type ``raw`` wants."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_null(column.type):  # all missing, or no rows: the checks of all sources speak about that
        return column.cast((raw.INTERACTIONS if name in raw.INTERACTIONS.names else raw.ITEMS).field(name).type)
    converters: dict[str, Callable[[pa.ChunkedArray, str], pa.ChunkedArray]] = {
        "rating": _ratings,
        "timestamp": _times,
        "title": _titles,
        "genres": lambda values, place: _genres(values, separator, place),
    }
    try:
        return converters.get(name, _ids)(column, where)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where} holds a value out of reach: {error}; convert it") from None


def _ids(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    if not (_is_text(column.type) or pa.types.is_integer(column.type)):
        raise _wrong_type(column, where, "text or whole numbers")
    return column.cast(pa.string())


def _titles(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    if not _is_text(column.type):
        raise _wrong_type(column, where, "text")
    return column.cast(pa.string())


def _ratings(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    if not _is_number(column.type):
        raise _wrong_type(column, where, "numbers")
    short = pa.types.is_float32(column.type) or pa.types.is_float16(column.type)
    column = column.cast(pa.float64())
    return pc.round(column, ndigits=3 if short else 9)  # a stored 4.1 must reach data.like_at_least = 4.1


def _times(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """UTC seconds, fractions cut off; a time without a zone is taken as UTC."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    if not _is_number(column.type):
        raise _wrong_type(column, where, "UTC seconds as numbers, or dates")
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    seconds = pc.floor(column.cast(pa.float64()))
    seconds = pc.if_else(pc.is_finite(seconds), seconds, pa.scalar(None, pa.float64()))  # refused as no time
    return pc.min_element_wise(seconds, float(10 * raw.MAX_TIMESTAMP), skip_nulls=False).cast(pa.int64())


def _genres(column: pa.ChunkedArray, separator: str, where: str) -> pa.ChunkedArray:
    kind = pa.list_(pa.string())
    if _is_text(column.type):
        return pc.split_pattern(column.cast(pa.string()), separator).cast(kind)
    nested = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not (nested and _is_text(column.type.value_type)):
        raise _wrong_type(column, where, "text or lists of text")
    return column.cast(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _wrong_type(column: pa.ChunkedArray, where: str, needed: str) -> DataError:
    example = column
    if _is_text(column.type) and "numbers" in needed:
        example = column.filter(pc.invert(pc.match_substring_regex(column.cast(pa.string()), _NUMBER)))
    shown = repr(example.drop_null()[0].as_py()) if len(example.drop_null()) else "nothing"
    return DataError(
        f"{where} must hold {needed}, got {column.type} (for instance {shown}); convert it or name another"
    )
