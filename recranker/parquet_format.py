"""What the bytes of a Parquet file say of themselves: its footer, and the header in front of each page.

Arrow allocates what a page's own header asks for, whatever the footer promised; it reads extension types, which may
run code, as soon as a file is opened; and some broken footers end the process. So these bytes are read here first, with
nothing but the small part of Thrift's compact protocol that they use. No page is unpacked but dictionaries of text,
whose longest value bounds what a column takes in memory.

Source: parquet.thrift of the Parquet format 2.10; the compact protocol as Apache Thrift describes it.
"""

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

MAGIC = b"PAR1"
MAX_LEAVES = 10_000
"""Columns, nested ones counted by their parts; more take Arrow minutes and are a sign of a broken file."""
MAX_DEPTH = 32
"""Levels of nesting; Arrow descends by recursion."""
MAX_HEADER_BYTES = 1 << 22
"""Longest page header that is read; statistics of long text are in it."""
MAX_DICTIONARY_BYTES = 1 << 26
"""Largest dictionary that is unpacked to see how long its values are; a larger one counts as one value."""

TEXT = 6
"""BYTE_ARRAY, the type of texts, among Parquet's physical types."""
WIDTHS = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8, TEXT: 4}
"""Bytes in memory of a value of each physical type; of a text without its characters. The rest have their own width."""

_MAX_LEVELS = 16
"""Structures inside structures of Parquet's own metadata."""
_MAX_ELEMENTS = 1 << 20
_REPEATED = 2
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_TO_DICTIONARY = (2, 8)
"""Encodings whose values are places in the chunk's dictionary."""
_DELTA_BYTE_ARRAY = 7
"""The encoding that stores of each text what is new after the one before."""
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}


class Broken(Exception):
    """The bytes are not what Parquet prescribes."""


@dataclass(frozen=True)
class Leaf:
    """A column, or a part of a nested one."""

    column: str
    """The whole column's name."""
    path: str
    """Names from the column's on, with dots between them."""
    kind: int
    """Physical type."""
    width: int
    """Bytes of a value in memory; of a text without its characters."""
    repeated: bool
    """Whether it is inside a list."""


@dataclass(frozen=True)
class Chunk:
    """One leaf in one row group, as the footer describes it."""

    values: int
    """Nulls too."""
    codec: int
    unpacked: int
    """Bytes of all pages once decompressed."""
    span: tuple[int, int]
    """Byte of the first page header, and the byte after the last page."""


@dataclass(frozen=True)
class RowGroup:
    """A stretch of rows."""

    rows: int
    chunks: tuple[Chunk, ...]
    """One per leaf, in their order."""


@dataclass(frozen=True)
class Footer:
    """What a file says it holds."""

    rows: int
    leaves: tuple[Leaf, ...]
    groups: tuple[RowGroup, ...]


@dataclass(frozen=True)
class Pages:
    """The pages of one chunk, added up."""

    values: int = 0
    """Nulls too."""
    unpacked: int = 0
    """Bytes once decompressed."""
    references: int = 0
    """Texts that are stored as a reference to others: to a dictionary, or to what came before."""
    longest: int = 0
    """Bytes each of these takes at most."""


def footer_of(text: bytes) -> Footer:
    """A file's footer.

    Raises:
        Broken: If it is none, names an extension type, or what it says does not add up.
    """
    if any(name in text for name in _EXTENSION_NAMES):
        raise Broken("it has a column of an extension type, which may run code; write plain types")
    fields = _Compact(text).struct()
    leaves = _leaves(_list(fields, 2))
    groups = tuple(_group(one, len(leaves)) for one in _list(fields, 4))
    rows = _number(fields, 3)
    if sum(group.rows for group in groups) != rows:
        raise Broken("its row groups hold other numbers of rows than the file")
    return Footer(rows, leaves, groups)


def pages_of(file: pa.NativeFile, chunk: Chunk, *, is_text: bool, window: int) -> Pages:
    """The pages of one chunk, as far as Arrow would read them.

    Args:
        file: Open for reading at any place.
        chunk: Of the footer.
        is_text: Whether a look into dictionaries is worth it.
        window: Bytes to read at a time.

    Raises:
        Broken: If a header is none, or a page reaches beyond the end.
    """
    found = Pages()
    for header, body in _headers(file, *chunk.span, window):
        kind, unpacked, packed = (_number(header, field) for field in (1, 2, 3))
        detail = header.get({_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(kind, -1))
        found = replace(found, unpacked=found.unpacked + unpacked)
        if kind == _DICTIONARY and is_text:
            longest = _longest(file.read_at(packed, body), unpacked, chunk.codec)
            found = replace(found, longest=max(found.longest, longest))
        elif kind in (_DATA, _DATA_V2):
            encoding = _number(detail, 4 if kind == _DATA_V2 else 2)
            found = _with_page(found, _number(detail, 1), encoding if is_text else 0)
            if found.values >= chunk.values:
                break
    return found


def _with_page(pages: Pages, values: int, encoding: int) -> Pages:
    longest = pages.unpacked if encoding == _DELTA_BYTE_ARRAY else 0  # each may repeat all that came before
    refers = encoding == _DELTA_BYTE_ARRAY or encoding in _TO_DICTIONARY
    references = pages.references + (values if refers else 0)
    return replace(pages, values=pages.values + values, references=references, longest=max(pages.longest, longest))


def _leaves(schema: list[Any]) -> tuple[Leaf, ...]:
    """The leaves of the tree whose nodes stand in ``schema``, parents first, each with its number of children."""
    if not schema or len(schema) > MAX_LEAVES:
        raise Broken(f"its schema has {len(schema)} parts, needed at most {MAX_LEAVES}")
    leaves: list[Leaf] = []
    above: list[tuple[int, tuple[str, ...], bool]] = [(1, (), False)]  # nodes still to come, names, inside a list
    for place, node in enumerate(schema):
        while above and not above[-1][0]:
            above.pop()
        if not above or len(above) > MAX_DEPTH:
            raise Broken(f"its columns are nested {len(above)} deep, needed at most {MAX_DEPTH}")
        left, names, repeated = above.pop()
        above.append((left - 1, names, repeated))
        names = (*names, _text(node, 4)) if place else ()  # the root's name is nobody's
        repeated |= place > 0 and _number(node, 3, missing=0) == _REPEATED
        children = _number(node, 5, missing=0)
        if children or not place:
            above.append((children, names, repeated))
        else:
            kind = _number(node, 1)
            width = WIDTHS.get(kind, _number(node, 2, missing=0))
            leaves.append(Leaf(names[0], ".".join(names), kind, width, repeated))
    if any(left for left, _, _ in above):
        raise Broken("its schema is no tree")
    return tuple(leaves)


def _group(fields: Any, leaves: int) -> RowGroup:
    columns = _list(fields, 1)
    if len(columns) != leaves:
        raise Broken(f"a row group has {len(columns)} columns, the schema {leaves}")
    return RowGroup(_number(fields, 3), tuple(_chunk(one) for one in columns))


def _chunk(column: Any) -> Chunk:
    fields = column.get(3) if isinstance(column, dict) else None
    if not isinstance(fields, dict) or 1 in column:
        raise Broken("a column lies in another file, or nowhere")
    first, dictionary = _number(fields, 9), _number(fields, 11, missing=0)
    start = dictionary if 0 < dictionary < first else first
    return Chunk(_number(fields, 5), _number(fields, 4), _number(fields, 6), (start, start + _number(fields, 7)))


def _headers(file: pa.NativeFile, start: int, end: int, window: int) -> Iterator[tuple[dict[int, Any], int]]:
    """Each page's header, and the byte at which the page itself begins."""
    at, begins, held = start, start, b""
    while at < end:
        found = _header(held, at - begins)
        for size in (window, MAX_HEADER_BYTES):
            if found is None:
                begins, held = at, file.read_at(min(size, end - at), at)
                found = _header(held, 0)
        if found is None:
            raise Broken("a page has no header, or an endless one")
        header, length = found
        at += length
        yield header, at
        at += _number(header, 3)
        if at > end:
            raise Broken("a page reaches beyond the end of its column")


def _header(held: bytes, at: int) -> tuple[dict[int, Any], int] | None:
    """The page header at a place, and its length; None where it is not whole."""
    reader = _Compact(held, at)
    try:
        return reader.struct(), reader.at - at
    except Broken:
        return None


def _longest(packed: bytes, unpacked: int, codec: int) -> int:
    """Bytes of the longest value of a dictionary of texts; all of it where it cannot be looked into."""
    if unpacked > MAX_DICTIONARY_BYTES:
        return unpacked
    try:
        plain = packed if codec == 0 else bytes(pa.Codec(_CODECS[codec]).decompress(packed, unpacked))
    except (KeyError, pa.ArrowException, OSError, ValueError):
        return unpacked
    longest = at = 0
    while at + 4 <= len(plain):
        length = int.from_bytes(plain[at : at + 4], "little")
        longest, at = max(longest, length), at + 4 + length
    return min(longest, unpacked)


def _number(fields: Any, number: int, *, missing: int | None = None) -> int:
    """A field that holds how many there are of something, or a place in the file."""
    found = fields.get(number, missing) if isinstance(fields, dict) else None
    if type(found) is not int or not 0 <= found < 1 << 62:
        raise Broken(f"field {number} of its metadata must be a number from 0 on, found {str(found)[:20]}")
    return found


def _text(fields: Any, number: int) -> str:
    found = fields.get(number) if isinstance(fields, dict) else None
    if not isinstance(found, bytes):
        raise Broken(f"field {number} of its metadata must be text, found {str(found)[:20]}")
    return found.decode(errors="replace")


def _list(fields: Any, number: int) -> list[Any]:
    found = fields.get(number) if isinstance(fields, dict) else None
    if not isinstance(found, list):
        raise Broken(f"field {number} of its metadata must be a list, found {str(found)[:20]}")
    return found


class _Compact:
    """Reads Thrift's compact protocol: numbers, texts, lists and structures by the number of their field."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def struct(self, level: int = 0) -> dict[int, Any]:
        """The fields of a structure.

        Raises:
            Broken: If the bytes end too early, or hold what Parquet's metadata never does.
        """
        if level > _MAX_LEVELS:
            raise Broken("its metadata is nested without end")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else self._zigzag()
            if number in fields:
                raise Broken(f"field {number} of its metadata stands twice")
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, level)
        return fields

    def _value(self, kind: int, level: int) -> Any:
        if kind in (4, 5, 6):  # whole numbers of 16, 32 and 64 bits
            return self._zigzag()
        if kind == 8:
            return self._bytes(self._varint())
        if kind == 12:
            return self.struct(level + 1)
        if kind in (9, 10):
            return self._list(level)
        if kind in (1, 2, 3):  # truth values in a list, and bytes
            return self._byte()
        if kind == 7:
            return struct.unpack("<d", self._bytes(8))[0]
        raise Broken("its metadata holds a value of an unknown kind")  # maps too: Parquet has none

    def _list(self, level: int) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        if count > _MAX_ELEMENTS:
            raise Broken("its metadata holds an endless list")
        return [self._value(head & 15, level) for _ in range(count)]

    def _byte(self) -> int:
        if self.at >= len(self.data):
            raise Broken("its metadata ends too early")
        self.at += 1
        return self.data[self.at - 1]

    def _bytes(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise Broken("its metadata ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def _varint(self) -> int:
        found = shift = 0
        while (byte := self._byte()) >= 128:
            found |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise Broken("its metadata holds a number of more than 64 bits")
        return found | byte << shift

    def _zigzag(self) -> int:
        found = self._varint()
        return (found >> 1) ^ -(found & 1)


def _in_base64(text: bytes) -> tuple[bytes, ...]:
    """How ``text`` reads inside something longer that is written in base64: one way for each place it may start at."""
    ways = []
    for before in range(3):
        written = base64.b64encode(bytes(before) + text + bytes(-(before + len(text)) % 3))
        first, last = -(-before * 8 // 6), (before + len(text)) * 8 // 6
        ways.append(written[first:last])
    return tuple(ways)


_EXTENSION_NAMES = _in_base64(b"ARROW:extension:name")
