"""The bytes of a file, unpacked, and the text they are."""

import gzip
import zlib
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from recranker.data.sources.settings import BadRows
from recranker.errors import DataError
from recranker.parquet import located, not_readable

UNREADABLE = "\x1a"
"""Stands in for a line that is no text."""

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Text:
    """A whole file as UTF-8 with line feeds."""

    path: str
    encoding: str
    content: bytes
    """Ends with a line feed; ``UNREADABLE`` stands for each line that is no text."""

    @property
    def file(self) -> str:
        """As complaints name it."""
        return f"'{self.path}'"


def read_text(path: str, encoding: str, policy: BadRows) -> Text:
    """The text of a file, which may be packed with gzip.

    Raises:
        DataError: If the file cannot be read, is empty, or has lines that are no text and are not to be quarantined.
    """
    content = contents(path)
    if not content.strip():
        raise DataError(f"'{path}' is empty; check the path")
    if content.startswith(_UTF16_MARKS) and not _is_wide(encoding):
        raise DataError(f"'{path}' is UTF-16 text; {_way_out()}")
    if _is_wide(encoding):
        content, encoding = _narrowed(content, encoding, path), "utf-8"
    content = content.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not content.endswith(b"\n"):
        content += b"\n"
    whole = _as_utf8(content, encoding)
    return Text(path, encoding, whole if whole is not None else _line_by_line(content, encoding, path, policy))


def contents(path: str) -> bytes:
    """The bytes of a file, on a disk or in an object store, unpacked where they are gzip.

    Raises:
        DataError: If there is no such file or it cannot be read or unpacked.
    """
    try:
        filesystem, inner = located(path)
        kind = filesystem.get_file_info(inner).type
        if kind != fs.FileType.File:
            state = "is not there" if kind == fs.FileType.NotFound else "is a folder where a file is needed"
            raise DataError(f"'{path}' {state}; set data.source to your files")
        with filesystem.open_input_file(inner) as file:
            packed: bytes = file.read()
        return _unpacked(packed, path)
    except (pa.ArrowException, OSError, EOFError, zlib.error, ValueError) as error:
        raise not_readable(path, error) from None


def _unpacked(packed: bytes, path: str) -> bytes:
    if packed.startswith(b"\x1f\x8b"):
        return gzip.decompress(packed)
    if path.endswith(".gz"):
        raise DataError(f"'{path}' is not a gzip file, though its name says so; rename it or pack it again")
    return packed


def _is_wide(encoding: str) -> bool:
    """Whether a line feed is more than its one byte, so that bytes must not be cut at it."""
    return "\n".encode(encoding) != b"\n"


def _narrowed(content: bytes, encoding: str, path: str) -> bytes:
    try:
        return content.decode(encoding).removeprefix("\ufeff").encode()
    except UnicodeError:
        raise DataError(f"'{path}' is not {encoding} text; {_way_out()}") from None


def _as_utf8(content: bytes, encoding: str) -> bytes | None:
    """The content when all of it is text without NUL."""
    try:
        text = content.decode(encoding)
        return None if b"\0" in content else content if encoding == "utf-8" else text.encode()
    except UnicodeError:
        return None


def _line_by_line(content: bytes, encoding: str, path: str, policy: BadRows) -> bytes:
    lines = [_as_utf8(line, encoding) for line in content.split(b"\n")]
    first = lines.index(None) + 1
    if policy == "refuse" or first == 1:
        way_out = _way_out() if first == 1 else f'{_way_out()}, or set data.source.on_bad_rows = "quarantine"'
        raise DataError(f"'{path}' must be {encoding} text and is not (line {first}); {way_out}")
    return b"\n".join(UNREADABLE.encode() if line is None else line for line in lines)


def _way_out() -> str:
    return "convert it (iconv -f LATIN1 -t UTF-8, if that is what it is), or set its encoding where you can"
