"""Files that nobody should have sent: each is refused in one clear line, or its broken rows are counted."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from recranker.data.sources.raw import RawData, checked
from recranker.data.sources.registry import read_source
from recranker.data.sources.settings import Source
from recranker.errors import DataError
from tests import bombs

HEAD = "user_id,item_id,rating,timestamp\n"
GOOD = HEAD + "u,a,4,10\nv,b,2.5,20\n"
ITEMS = "item_id,title\na,Alpha\nb,Beta\n"
COLUMNS = {"rating_column": "rating", "time_column": "timestamp"}
REVIEW = json.dumps({"overall": 5.0, "reviewerID": "A1", "asin": "a", "unixReviewTime": 1})
PRODUCT = json.dumps({"asin": "a", "title": "Alpha", "category": []})


def _table(**changes: Any) -> pa.Table:
    return pa.table({"user_id": ["u"], "item_id": ["a"], "rating": [4.0], "timestamp": [10], **changes})


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def _files(folder: Path, name: str, content: bytes, policy: str) -> RawData:
    """Read ``content`` as a team's interactions."""
    path = folder / name
    path.write_bytes(content)
    (folder / "items.csv").write_text(ITEMS)
    source = {"kind": "files", "interactions": str(path), "items": str(folder / "items.csv"), "on_bad_rows": policy}
    return _read(source | COLUMNS)


def _read(source: dict[str, Any]) -> RawData:
    return checked(read_source(TypeAdapter(Source).validate_python(source), Path("cache")), 1.0, 5.0)


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "empty": ("x.csv", b"", "is empty"),
    "only blank lines": ("x.csv", b"\n\n \r\n", "is empty"),
    "only a header": ("x.csv", HEAD.encode(), "needed a row per interaction, found none"),
    "a header without a line end": ("x.csv", HEAD.strip().encode(), "needed a row per interaction, found none"),
    "UTF-16 with a mark": ("x.csv", GOOD.encode("utf-16"), "is UTF-16 text"),
    "UTF-16 without a mark": ("x.csv", GOOD.encode("utf-16-le"), r"must be utf-8 text and is not \(line 1\)"),
    "UTF-32": ("x.csv", GOOD.encode("utf-32"), "is UTF-16 text|must be utf-8 text"),
    "Latin-1 in the header": ("x.csv", ("é" + GOOD).encode("latin-1"), r"must be utf-8 text and is not \(line 1\)"),
    "random bytes": ("x.csv", np.random.default_rng(0).bytes(5000), "must be utf-8 text and is not"),
    "Parquet called CSV": ("x.csv", _parquet(_table()), "must be utf-8 text and is not|has one column, 'PAR1"),
    "a zip called CSV": ("x.csv", b"PK\x03\x04" + bytes(100), "must be utf-8 text and is not"),
    "a web page": ("x.csv", b"<html><body>Moved, sorry</body></html>", "lacks column 'user_id'"),
    "a file of one column": ("x.csv", b"user_id\nu\n", "has one column, 'user_id', needed two or more"),
    "another separator": ("x.csv", GOOD.replace(",", ";").encode(), "has one column, .* check the separator"),
    "a missing column": (
        "x.csv",
        b"user_id,item_id,rating\nu,a,4\n",
        r"lacks column 'timestamp' \(found: user_id, item",
    ),
    "a column named twice": (
        "x.csv",
        b"user_id,user_id,item_id,rating,timestamp\n1,2,a,4,1\n",
        "has more than one col",
    ),
    "a million columns": ("x.csv", b"c," * 1_000_000 + b"\n", "has 1000001 columns, needed at most 10000"),
    "a column name of 1 MB": (
        "x.csv",
        b"x" * 1_000_000 + b",b\n1,2\n",
        "cannot be read: field larger than field limit",
    ),
    "a quote open in the middle": ("x.csv", GOOD.replace("v,b", '"v,b').encode() + b"w,a,4,1\n" * 9, "quote is opened"),
    "a quote open at the end": ("x.csv", GOOD.encode() + b'w,a,4,"1\nx,a,4,1\ny,a,4,1\n', "quote is opened"),
    "a quote open and closed later": ("x.csv", HEAD.encode() + b'"u,a,4,1\nv",a,4,1\n', "quote is opened"),
    "a quote open over 40 MB": (
        "x.csv",
        HEAD.encode() + b'"' + b"u,a,4,1\n" * 5_000_000,
        "quote is opened",
    ),
    "truncated gzip": ("x.csv.gz", gzip.compress(GOOD.encode() * 99)[:-20], "cannot be read: Compressed file ended"),
    "gzip with a wrong checksum": ("x.csv.gz", gzip.compress(GOOD.encode())[:-8] + bytes(8), "cannot be read: CRC"),
    "gzip broken inside": ("x.csv.gz", gzip.compress(GOOD.encode())[:12] + b"\xff" * 40, "cannot be read: "),
    "gz that is no gzip": ("x.csv.gz", GOOD.encode(), "is not a gzip file, though its name says so"),
    "an unknown ending": ("x.xlsx", b"PK", "must end in .csv, .tsv"),
    "Parquet without a footer": ("x.parquet", _parquet(_table())[:-30], "cannot be read: "),
    "Parquet of four bytes": ("x.parquet", b"PAR1", "cannot be read: "),
    "text called Parquet": ("x.parquet", GOOD.encode(), "cannot be read: "),
    "Parquet with other columns": ("x.parquet", _parquet(pa.table({"a": [1]})), "lacks column 'user_id'"),
    "Parquet with nested ids": ("x.parquet", _parquet(_table(user_id=[["u"]])), "'user_id' must hold text or whole nu"),
    "Parquet with a struct for a rating": (
        "x.parquet",
        _parquet(_table(rating=[{"stars": 4}])),
        "'rating' must hold num",
    ),
    "Parquet with bytes for ids": (
        "x.parquet",
        _parquet(_table(item_id=[b"\xff"])),
        "'item_id' must hold text or whole",
    ),
    "Parquet with times for ratings": (
        "x.parquet",
        _parquet(_table(rating=pa.array([0], pa.timestamp("s")))),
        "'rating' must hold numbers, got timestamp",
    ),
    "Parquet without rows": ("x.parquet", _parquet(_table().slice(1)), "needed a row per interaction, found none"),
    "times in milliseconds": ("x.csv", (HEAD + "u,a,4,1700000000000\n").encode(), "set data.source.time_unit"),
    "a time of 10^300": ("x.csv", (HEAD + "u,a,4,1e300\n").encode(), "must hold UTC seconds from 0 to"),
    "ratings off the scale": ("x.csv", (HEAD + "u,a,11,1\nu,b,0,1\n").encode(), "within 1 and 5, 2 rows do not"),
    "a rating of 10^30": ("x.csv", (HEAD + "u,a,1e30,1\n").encode(), "must lie within 1 and 5"),
    "ids of no item": ("x.csv", (HEAD + "u,z,4,1\n").encode(), "no value of column 'item_id' is in .*'z' against 'a'"),
}
"""What is wrong with a file as a whole, or with what settings say of it: refused, whatever the settings on bad rows."""

BROKEN_ROWS: dict[str, tuple[bytes, str]] = {
    "too few fields": (b"w,a\n", "needed 4 fields, got 2"),
    "too many fields": (b"w,a,4,10,11,12\n", "needed 4 fields, got 6"),
    "a header once more": (HEAD.encode(), "column 'rating' must hold a number"),
    "Latin-1": ("Zoë,a,4,10\n".encode("latin-1"), "the line is not text"),
    "half a character": (b"Zo\xc3,a,4,10\n", "the line is not text"),
    "a NUL byte": (b"w\0,a,4,10\n", "the line is not text"),
    "no user": (b",a,4,10\n", "column 'user_id' must hold an id of 1 to 1000 characters"),
    "a user of 1 MB": (b"w" * 1_000_000 + b",a,4,10\n", "column 'user_id' must hold an id of 1 to 1000 characters"),
    "NaN for a rating": (b"w,a,nan,10\n", "column 'rating' must hold a number"),
    "infinity for a rating": (b"w,a,-inf,10\n", "column 'rating' must hold a number"),
    "a word for a rating": (b"w,a,four,10\n", "column 'rating' must hold a number"),
    "a hexadecimal rating": (b"w,a,0x4,10\n", "column 'rating' must hold a number"),
    "no rating": (b"w,a,,10\n", "column 'rating' must hold a number"),
    "no time": (b"w,a,4,\n", "column 'timestamp' must hold UTC time as a number (s since 1970)"),
    "infinity for a time": (b"w,a,4,inf\n", "column 'timestamp' must hold UTC time as a number (s since 1970)"),
    "a time before 1970": (b"w,a,4,-5\n", "column 'timestamp' must hold UTC seconds from 0 on, that is from 1970"),
    "a date for a time": (b"w,a,4,2020-01-01\n", "column 'timestamp' must hold UTC time as a number (s since 1970)"),
}

BROKEN_CELLS: dict[str, tuple[str, pa.Array, str]] = {
    "NaN": ("rating", pa.array([4.0, float("nan"), 1.0]), "row 2 (nan): column 'rating' must hold a number"),
    "infinity": ("rating", pa.array([4.0, float("inf"), 1.0]), "row 2 (inf): column 'rating' must hold a number"),
    "no rating": ("rating", pa.array([4.0, None, 1.0]), "row 2 (None): column 'rating' must hold a number"),
    "before 1970": (
        "timestamp",
        pa.array([1, -5, 2]),
        "row 2 (-5): column 'timestamp' must hold UTC seconds from 0 on",
    ),
    "before 1970, as a date": (
        "timestamp",
        pa.array([1, -5, 2], pa.timestamp("s")),
        "row 2 (-5): column 'timestamp' must hold UTC seconds from 0 on",
    ),
    "no time": ("timestamp", pa.array([1, None, 2]), "row 2 (None): column 'timestamp' must hold UTC time"),
    "no user": ("user_id", pa.array(["u", None, "x"]), "row 2 (None): column 'user_id' must hold an id of 1 to 1000"),
    "a user that is no text": (
        "user_id",
        pa.array([b"u", b"Zo\xeb", b"x"]).view(pa.string()),
        "row 2: column 'user_id' must hold UTF-8 text",
    ),
}
"""What is wrong with one cell of a Parquet file, and the complaint."""

BROKEN_LINES: dict[str, tuple[bytes, str]] = {
    "cut short": (REVIEW[:40].encode(), "the line must be a JSON object"),
    "a list": (b"[1, 2]", "the line must be a JSON object"),
    "nested 100,000 deep": (b'{"asin": ' + b"[" * 100_000, "the line must be a JSON object"),
    "a rating in words": (REVIEW.replace("5.0", '"five"').encode(), "field 'overall' must hold a number"),
    "NaN": (REVIEW.replace("5.0", "NaN").encode(), "field 'overall' must hold a number"),
    "a number of 5,000 digits": (REVIEW.replace("5.0", "9" * 5000).encode(), "the line must be a JSON object"),
    "a user that is a number": (REVIEW.replace('"A1"', "7").encode(), "field 'reviewerID' must hold text"),
    "without a product": (b'{"reviewerID": "A1", "overall": 5, "unixReviewTime": 1}', "field 'asin' must hold text"),
    "not text": (b'{"reviewerID": "\xff"}', "the line is not text"),
}

BROKEN_PRODUCTS: dict[str, bytes] = {
    "a dict nested 100,000 deep": b"{'asin': 'a', 'x': " + b"[" * 100_000,
    "a dict that calls": b"{'asin': 'a', 'x': open('/etc/hostname').read()}",
    "a dict with a list for a key": b"{'asin': 'a', []: 1}",
    "a set": b"{'asin'}",
}


def _refused(read: Callable[[], RawData], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read()
    said = str(caught.value)
    assert said.isprintable(), "one line, no control characters"
    assert len(said) < 1000
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "no traceback of another error"


@pytest.mark.parametrize("policy", ["refuse", "quarantine"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_wrong_as_a_whole_is_refused_in_one_line(tmp_path: Path, case: str, policy: str) -> None:
    name, content, message = REFUSED[case]
    _refused(lambda: _files(tmp_path, name, content, policy), message)


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_a_broken_row_is_refused_or_counted(tmp_path: Path, case: str) -> None:
    row, reason = BROKEN_ROWS[case]
    content = GOOD.encode() + row + b"x,b,1,30\n"
    unreadable = r"must be utf-8 text and is not \(line 4\).*on_bad_rows = \"quarantine\""
    expected = unreadable if reason == "the line is not text" else r"row 3( \(.*\))?: "
    _refused(lambda: _files(tmp_path, "x.csv", content, "refuse"), expected)
    raw = _files(tmp_path, "x.csv", content, "quarantine")
    assert raw.interactions["user_id"].to_pylist() == ["u", "v", "x"]
    assert raw.quarantined["reason"].to_pylist() == [reason]
    assert raw.quarantined["row"][0].as_py().startswith(f"'{tmp_path}/x.csv' row 3")
    assert (raw.accounts["interactions_read"], raw.accounts["interactions_quarantined"]) == (4, 1)


@pytest.mark.parametrize("case", BROKEN_LINES)
def test_a_broken_line_of_json_is_refused_or_counted(tmp_path: Path, case: str) -> None:
    line, reason = BROKEN_LINES[case]
    (tmp_path / "r.json").write_bytes(REVIEW.encode() + b"\n" + line + b"\n")
    (tmp_path / "m.json").write_text(PRODUCT)
    source = {"kind": "amazon", "reviews": str(tmp_path / "r.json"), "metadata": str(tmp_path / "m.json")}
    _refused(lambda: _read(source), reason if reason != "the line is not text" else "must be utf-8 text and is not")
    raw = _read(source | {"on_bad_rows": "quarantine"})
    assert raw.quarantined["reason"].to_pylist() == [reason]
    assert (raw.rows_read, raw.interactions.num_rows) == (2, 1)


@pytest.mark.parametrize("case", BROKEN_PRODUCTS)
def test_a_broken_product_is_refused_or_counted(tmp_path: Path, case: str) -> None:
    (tmp_path / "r.json").write_text(REVIEW)
    (tmp_path / "m.json").write_bytes(PRODUCT.encode() + b"\n" + BROKEN_PRODUCTS[case] + b"\n")
    source = {"kind": "amazon", "reviews": str(tmp_path / "r.json"), "metadata": str(tmp_path / "m.json")}
    _refused(lambda: _read(source), r"m.json' line 2 \(.*must be a JSON object or a Python dict|field 'asin' must")
    assert _read(source | {"on_bad_rows": "quarantine"}).accounts["items_quarantined"] == 1


def test_when_every_row_is_quarantined_the_first_reason_is_said(tmp_path: Path) -> None:
    content = HEAD.encode() + b"u,a,four,1\n" * 3
    message = r"found none; 3 rows are quarantined, the first is '.*x.csv' row 1 \('four'\): column 'rating' must hold"
    _refused(lambda: _files(tmp_path, "x.csv", content, "quarantine"), message)


@pytest.mark.parametrize(
    ("films", "message"),
    [
        (b"a::Alpha\n", r"movies.dat' line 1: needed 3 fields, got 2"),
        (b"a::Alpha::X\na::Beta::X\n", "must hold every item once, found 1 ids several times"),
        (b"::Alpha::X\n", "must hold an id"),
        (b"", "movies.dat' is empty"),
        (b"\xff\xfea\0:\0", "movies.dat' is UTF-16 text"),
    ],
)
def test_a_dat_file_that_is_wrong_is_refused_in_one_line(tmp_path: Path, films: bytes, message: str) -> None:
    (tmp_path / "ratings.dat").write_bytes(b"1::a::4::1\n")
    (tmp_path / "movies.dat").write_bytes(films)
    _refused(lambda: _read({"kind": "movielens-1m", "path": str(tmp_path)}), message)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").mkdir()
    (tmp_path / "items.csv").write_text(ITEMS)
    source = {"kind": "files", "interactions": str(tmp_path / "x.csv"), "items": str(tmp_path / "items.csv")}
    _refused(lambda: _read(source), "is a folder without .parquet files")
    amazon = {"kind": "amazon", "reviews": str(tmp_path), "metadata": str(tmp_path)}
    _refused(lambda: _read(amazon), "is a folder where a file is needed")


def test_a_folder_of_parquet_files_that_differ_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "a.parquet").write_bytes(_parquet(_table()))
    (folder / "b.parquet").write_bytes(_parquet(_table(user_id=[["u"]])))
    (tmp_path / "items.csv").write_text(ITEMS)
    source = {"kind": "files", "interactions": str(folder), "items": str(tmp_path / "items.csv")}
    _refused(lambda: _read(source | COLUMNS), "x' cannot be read: ")


@pytest.mark.parametrize("case", BROKEN_CELLS)
def test_a_broken_cell_of_parquet_is_named_by_file_row_group_and_column(tmp_path: Path, case: str) -> None:
    name, values, complaint = BROKEN_CELLS[case]
    table = pa.table(
        {"user_id": list("uvx"), "item_id": list("aba"), "rating": [4.0, 5.0, 1.0], "timestamp": [1, 2, 3]}
    )
    table = table.set_column(table.schema.get_field_index(name), name, values)
    folder = tmp_path / "events"
    folder.mkdir()
    for part in "ab":  # only the second is broken
        rows = table if part == "b" else table.take([0, 2])
        pq.write_table(rows, folder / f"{part}.parquet", row_group_size=1)
    (tmp_path / "items.csv").write_text(ITEMS)
    source = {"kind": "files", "interactions": str(folder), "items": str(tmp_path / "items.csv"), **COLUMNS}
    place = f"'{folder}/b.parquet' row group 1, {complaint}"
    _refused(lambda: _read(source), re.escape(place))
    raw = _read(source | {"on_bad_rows": "quarantine"})
    assert raw.interactions["user_id"].to_pylist() == list("uxux")
    row, reason = raw.quarantined["row"].to_pylist(), raw.quarantined["reason"].to_pylist()
    assert f"{row[0]}: {reason[0]}".startswith(place)
    assert raw.accounts["interactions_quarantined"] == len(row) == 1


@pytest.mark.parametrize("column", ["title", "genres"])
def test_text_of_items_that_is_no_utf8_is_named(tmp_path: Path, column: str) -> None:
    bad = pa.array([b"Alpha", b"Caf\xe9"]).view(pa.string())
    genres = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), bad)
    columns = {"item_id": ["a", "b"], "title": ["Alpha", "Beta"], "genres": [["X"], []]}
    pq.write_table(pa.table(columns | {column: bad if column == "title" else genres}), tmp_path / "i.parquet")
    (tmp_path / "x.csv").write_text(GOOD)
    source = {"kind": "files", "interactions": str(tmp_path / "x.csv"), "items": str(tmp_path / "i.parquet")}
    source |= {"genres_column": "genres", **COLUMNS}
    _refused(lambda: _read(source), f"i.parquet' row group 0, row 2: column '{column}' must hold UTF-8 text; mend")
    assert _read(source | {"on_bad_rows": "quarantine"}).items["item_id"].to_pylist() == ["a"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bombs.extension, "a column of an extension type, which may run code"),
        (bombs.deep, "columns are nested 33 deep"),
        (bombs.lying_pages, "column 'rating': its pages hold 8388608 values"),
    ],
)
@pytest.mark.parametrize("policy", ["refuse", "quarantine"])
def test_parquet_that_must_not_be_loaded_is_refused(
    tmp_path: Path, make: Callable[[Path], None], message: str, policy: str
) -> None:
    make(tmp_path / "y.parquet")
    content = (tmp_path / "y.parquet").read_bytes()
    _refused(lambda: _files(tmp_path, "x.parquet", content, policy), f"x.parquet'.*{message}")


def test_limits_of_parquet_are_settings(tmp_path: Path) -> None:
    pq.write_table(
        _table(user_id=["u", "v"], item_id=["a", "b"], rating=[4, 5], timestamp=[1, 2]), tmp_path / "x.parquet"
    )
    (tmp_path / "items.csv").write_text(ITEMS)
    source = {"kind": "files", "interactions": str(tmp_path / "x.parquet"), "items": str(tmp_path / "items.csv")}
    assert _read(source | COLUMNS | {"parquet": {"max_rows": 2}}).rows_read == 2
    message = "2 rows, allowed are 1; if the file is what you meant, raise data.source.parquet.max_rows"
    _refused(lambda: _read(source | COLUMNS | {"parquet": {"max_rows": 1}}), message)


@pytest.mark.parametrize("scheme", ["nowhere://x.csv", "file://host/x.csv", "://"])
def test_an_address_that_leads_nowhere_is_refused(tmp_path: Path, scheme: str) -> None:
    _refused(lambda: _read({"kind": "files", "interactions": scheme, "items": scheme}), "cannot be read|is not there")


@pytest.mark.parametrize(
    ("content", "users"),
    [
        (b"\xef\xbb\xbf" + GOOD.encode(), ["u", "v"]),
        (GOOD.replace("\n", "\r\n", 1).replace("20\n", "20\r").encode(), ["u", "v"]),
        (GOOD.strip().encode(), ["u", "v"]),
        (GOOD.replace("v,b", "1" + "0" * 30 + ",b").encode(), ["u", "1" + "0" * 30]),
        (GOOD.replace("v,b", '"v, ""x""",b').encode(), ["u", 'v, "x"']),
        (GOOD.replace("v,b", "7,b").encode(), ["u", "7"]),
        (gzip.compress(GOOD.encode()), ["u", "v"]),
    ],
    ids=["mark", "mixed newlines", "no last newline", "id of 10^30", "quotes", "mixed ids", "gzip by content"],
)
def test_what_is_odd_but_clear_is_read(tmp_path: Path, content: bytes, users: list[str]) -> None:
    assert _files(tmp_path, "x.csv", content, "refuse").interactions["user_id"].to_pylist() == users


def test_there_are_fifty_hostile_files() -> None:
    assert len(REFUSED) + len(BROKEN_ROWS) + len(BROKEN_LINES) + len(BROKEN_PRODUCTS) >= 50
