"""The door for Parquet files: what they say of themselves is compared with limits before anything is loaded.

A file of 10 MB may hold 100 GB: values that repeat are stored once, and pages are compressed. Neither shows in the
size that the footer gives. So what each column takes in memory is bounded from above: by the number of its values and
the width of their type, by what its pages are once decompressed, and for text by the longest value of its dictionary.
Files that hold other than they say, and files with extension types, which may run code, are not opened at all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs
from pydantic import Field

from recranker.errors import DataError, first_line
from recranker.parquet_format import MAGIC, TEXT, Broken, Chunk, Footer, Leaf, Pages, footer_of, pages_of
from recranker.settings import Settings

MB = 1 << 20
SMALL_MB = 256
"""Tables of fewer MB may be packed as well as they like."""

_WINDOWS = {True: 1 << 12, False: 1 << 23}
"""Bytes read at a time in search of page headers, on a local disk and elsewhere, where each request is slow."""
_LIST_WIDTH = 8
"""Bytes for levels and offsets of each value inside lists."""


class ParquetLimits(Settings):
    """What a table in Parquet files may hold at most; more is refused before it is loaded."""

    max_rows: int = Field(default=1_000_000_000, ge=1)
    """Rows, all files together."""
    max_row_groups: int = Field(default=100_000, ge=1)
    """Row groups, all files together."""
    max_footer_mb: int = Field(default=16, ge=1)
    """Size of one file's footer, MB."""
    max_column_mb: int = Field(default=4_096, ge=1)
    """Size of one column of one row group in memory, MB."""
    max_table_mb: int = Field(default=65_536, ge=1)
    """Size of all columns that are read, in memory, MB."""
    max_expansion: float = Field(default=100.0, ge=1)
    """Size in memory of all columns that are read by the size of the files; looked at from 256 MB on."""


@dataclass(frozen=True)
class Section:
    """One row group: the stretch of rows a complaint can name."""

    file: str
    number: int
    """Of the row group in its file, from 0."""
    rows: int


@dataclass(frozen=True)
class Door:
    """Lets Parquet files in that keep to the limits and to what they say."""

    filesystem: fs.FileSystem
    """Where they are."""
    limits: ParquetLimits
    way_out: str
    """Ends the complaint about a limit; ``{}`` stands for the limit's name."""
    look_at_pages: bool = True
    """Whether pages are compared with the footer; that reads a little of every page."""

    def admit(self, files: Sequence[str], columns: Sequence[str] | None = None) -> list[Section]:
        """The row groups of ``files`` in order, when nothing speaks against loading ``columns`` (None: all) of them.

        Raises:
            DataError: Naming the file, and where it can the row group and column, what was needed and what came.
        """
        sections: list[Section] = []
        rows = size = in_memory = 0
        for path in files:
            for section, taken in self._row_groups(path, columns):
                sections.append(section)
                rows, in_memory = rows + section.rows, in_memory + taken
                self._keep_to("max_rows", rows, f"'{path}'", "rows so far")
                self._keep_to("max_table_mb", in_memory / MB, f"'{path}'", "MB in memory at most, all so far")
            self._keep_to("max_row_groups", len(sections), f"'{path}'", "row groups so far")
            size += self.filesystem.get_file_info(path).size
        if in_memory > SMALL_MB * MB:
            packed = f"'{files[0]}'" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
            self._keep_to("max_expansion", in_memory / size, packed, "times the size of the files, once in memory")
        return sections

    def _row_groups(self, path: str, columns: Sequence[str] | None) -> Iterator[tuple[Section, int]]:
        """Each row group and the bytes it takes in memory."""
        try:
            with self.filesystem.open_input_file(path) as file:
                footer, end = self._footer(file, path)
                self._keep_to("max_rows", footer.rows, f"'{path}'", "rows")
                self._keep_to("max_row_groups", len(footer.groups), f"'{path}'", "row groups")
                _check_layout(footer, end)
                wanted = [n for n, leaf in enumerate(footer.leaves) if columns is None or leaf.column in columns]
                for number, group in enumerate(footer.groups):
                    taken = 0
                    for place in wanted:
                        leaf = footer.leaves[place]
                        where = f"'{path}' row group {number}, column {leaf.path[:80]!r}"
                        taken += self._in_memory(file, leaf, group.chunks[place], where)
                    yield Section(path, number, group.rows), taken
        except (pa.ArrowException, OSError, ValueError, Broken) as error:
            raise not_readable(path, error) from None

    def _footer(self, file: pa.NativeFile, path: str) -> tuple[Footer, int]:
        """The footer, and the byte it begins at."""
        size = int(file.size())
        tail = file.read_at(8, max(size - 8, 0))
        length = int.from_bytes(tail[:4], "little")
        if size < 12 or tail[4:] != MAGIC or length > size - 12:
            raise Broken("it does not end as a Parquet file does")
        self._keep_to("max_footer_mb", length / MB, f"'{path}'", "MB of footer")
        begins = size - 8 - length
        return footer_of(file.read_at(length, begins)), begins

    def _in_memory(self, file: pa.NativeFile, leaf: Leaf, chunk: Chunk, where: str) -> int:
        """Bytes the values of one column of one row group take at most."""
        pages = Pages(chunk.values, chunk.unpacked)
        if self.look_at_pages and chunk.values:
            window = _WINDOWS[isinstance(self.filesystem, fs.LocalFileSystem)]
            pages = pages_of(file, chunk, is_text=leaf.kind == TEXT, window=window)
            if pages.values != chunk.values:
                raise DataError(f"{where}: its pages hold {pages.values} values, the footer says {chunk.values}")
        width = leaf.width + (_LIST_WIDTH if leaf.repeated else 0)
        taken = max(pages.unpacked, pages.values * width) + pages.references * pages.longest
        self._keep_to("max_column_mb", taken / MB, where, "MB in memory at most")
        return taken

    def _keep_to(self, limit: str, came: float, where: str, what: str) -> None:
        most = getattr(self.limits, limit)
        if came > most:
            raise DataError(f"{where}: {came:,.0f} {what}, allowed are {most:,.0f}; {self.way_out.format(limit)}")


def parquet_files(filesystem: fs.FileSystem, path: str) -> list[str]:
    """The file at ``path``, or all files of the folder at ``path`` and below, by name; hidden ones are no data."""
    found = filesystem.get_file_info(path)
    if found.type != fs.FileType.Directory:
        return [path]
    inside = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    base = len(found.path.rstrip("/")) + 1
    return sorted(
        one.path
        for one in inside
        if one.type == fs.FileType.File and not any(part[:1] in "._" for part in one.path[base:].split("/"))
    )


def located(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem a path or URI belongs to, and the path there."""
    if "://" in uri:
        filesystem, inner = fs.FileSystem.from_uri(uri)
        return filesystem, inner
    return fs.LocalFileSystem(), str(Path(uri).expanduser().resolve())


def read_admitted(uri: str, columns: Sequence[str], limits: ParquetLimits, setting: str) -> pa.Table:
    """``columns`` of a Parquet file, or of all in a folder, when nothing speaks against loading them.

    Args:
        uri: Of the file or folder.
        columns: All must be there.
        limits: What it may hold.
        setting: Section whose ``path`` names it and whose ``parquet`` holds the limits, for messages.

    Raises:
        DataError: Naming the file, what was needed and what came.
    """
    try:
        filesystem, inner = located(uri)
        if filesystem.get_file_info(inner).type == fs.FileType.NotFound:
            raise DataError(f"'{uri}' is not there; set {setting}.path to your file")
        files = parquet_files(filesystem, inner)
        door = Door(filesystem, limits, f"if the file is what you meant, raise {setting}.parquet.{{}}")
        door.admit(files, columns)
        found = ds.dataset(files, format="parquet", filesystem=filesystem)
        names = found.schema.names
        for name in columns:
            if name not in names:
                raise DataError(f"'{uri}' lacks column {name!r} (found: {', '.join(names)}); write {list(columns)}")
        table = found.to_table(columns=list(columns))
        table.validate(full=True)  # Arrow takes a file's word for it that text is UTF-8
        return table
    except (pa.ArrowException, OSError, ValueError) as error:
        raise not_readable(uri, error) from None


def not_readable(path: str, error: BaseException) -> DataError:
    """A library's complaint about a file, in one line."""
    return DataError(f"'{path}' cannot be read: {first_line(error)}; check the file or write it again")


def _check_layout(footer: Footer, end: int) -> None:
    """The columns of all row groups lie beside one another in front of the footer."""
    spans = sorted(chunk.span for group in footer.groups for chunk in group.chunks if chunk.values)
    previous = len(MAGIC)
    for start, stop in spans:
        if start < previous or stop > end:
            raise Broken("its columns overlap or lie outside it")
        previous = stop
