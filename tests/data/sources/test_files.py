"""A team's own files: what is accepted, and one clear line for what is not."""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recranker.data.sources import files
from recranker.data.sources.raw import RawData, checked
from recranker.data.sources.settings import FilesSource
from recranker.errors import DataError

EVENTS = "user_id,item_id,rating,timestamp\n007,a,4,10\n8,b,2.5,20\n"
ITEMS = "item_id,title,genres\na,Alpha,X|Y\nb,Beta,\n"


def _source(
    folder: Path, events: str | pa.Table = EVENTS, items: str | pa.Table = ITEMS, **columns: Any
) -> FilesSource:
    paths = {}
    for name, content in (("interactions", events), ("items", items)):
        if isinstance(content, str):
            paths[name] = folder / f"{name}.csv"
            paths[name].write_text(content, encoding="utf-8")
        else:
            paths[name] = folder / f"{name}.parquet"
            pq.write_table(content, paths[name])
    named = {"rating_column": "rating", "time_column": "timestamp", "genres_column": "genres", **columns}
    return FilesSource(kind="files", **{name: str(path) for name, path in paths.items()}, **named)


def _checked(source: FilesSource) -> RawData:
    return checked(files.read(source), 1.0, 5.0)


def test_csv_ids_stay_text_and_genres_are_split(tmp_path: Path) -> None:
    raw = _checked(_source(tmp_path))
    assert raw.interactions.to_pylist()[0] == {"user_id": "007", "item_id": "a", "rating": 4.0, "timestamp": 10}
    assert raw.items["genres"].to_pylist() == [["X", "Y"], [""]]


def test_parquet_with_numbers_dates_and_lists(tmp_path: Path) -> None:
    when = dt.datetime(2001, 9, 9, 1, 46, 40, 500_000, tzinfo=dt.UTC)  # 1_000_000_000.5 s
    events = pa.table(
        {
            "who": pa.array([1, 2]),
            "what": pa.array(["a", "b"]).dictionary_encode(),
            "rating": pa.array([4.1, 5.0], pa.float32()),
            "when": pa.array([when, when], pa.timestamp("ms", tz="UTC")),
        }
    )
    items = pa.table({"what": ["a", "b"], "name": ["Alpha", "Beta"], "genres": [["X"], []]})
    named = {"user_column": "who", "item_column": "what", "time_column": "when", "title_column": "name"}
    raw = _checked(_source(tmp_path, events, items, **named))
    first = {"user_id": "1", "item_id": "a", "rating": 4.1, "timestamp": 1_000_000_000}
    assert raw.interactions.to_pylist()[0] == first
    assert raw.items["genres"].to_pylist() == [["X"], []]


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    for part in range(2):
        pq.write_table(pa.table({"user_id": [f"u{part}"], "item_id": ["a"]}), folder / f"{part}.parquet")
    source = _source(tmp_path, rating_column=None, time_column=None)
    raw = _checked(source.model_copy(update={"interactions": str(folder)}))
    assert raw.interactions["user_id"].to_pylist() == ["u0", "u1"]
    assert raw.interactions["rating"].null_count == raw.interactions["timestamp"].null_count == 2


def test_fractions_of_a_second_are_cut_off(tmp_path: Path) -> None:
    raw = _checked(_source(tmp_path, "user_id,item_id,rating,timestamp\nu,a,4,10.9\n"))
    assert raw.interactions["timestamp"].to_pylist() == [10]


def test_a_title_may_hold_quotes_commas_and_line_breaks(tmp_path: Path) -> None:
    raw = _checked(_source(tmp_path, items='item_id,title,genres\na,"Alpha, ""the"" \nfirst",X\nb,NA,Y\n'))
    assert raw.items["title"].to_pylist() == ['Alpha, "the" \nfirst', "NA"]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (
            "user,item_id,rating,timestamp\n",
            r"lacks column 'user_id' \(found: user, item_id, rating, timestamp\); "
            "rename it or set data.source.user_column",
        ),
        ("user_id,user_id,item_id,rating,timestamp\n1,1,a,4,1\n", "has more than one column 'user_id'"),
        ("", "cannot be read: Empty CSV file"),
        ("user_id,item_id,rating,timestamp\n", "needed a row per interaction, found none"),
        ("user_id,item_id,rating,timestamp\nu,a,good,1\n", "column 'rating' must hold numbers, got string .*'good'"),
        (
            "user_id,item_id,rating,timestamp\nu,a,4,1\nv,b,,1\n",
            r"column 'rating' must lie within 1 and 5, 1 rows do "
            r"not \(row 2: None\)",
        ),
        ("user_id,item_id,rating,timestamp\nu,a,0,1\nv,b,6,1\n", r"2 rows do not \(row 1: 0.0\); set data.rating_min"),
        ("user_id,item_id,rating,timestamp\nu,a,4,-1\n", r"column 'timestamp' must hold UTC seconds.*row 1: -1"),
        ("user_id,item_id,rating,timestamp\nu,a,4,1700000000000\n", "milliseconds: divide by 1000"),
        ("user_id,item_id,rating,timestamp\nu,a,4,1e300\n", "column 'timestamp' must hold UTC seconds"),
        ("user_id,item_id,rating,timestamp\nu,a,4,\nv,a,4,1\n", r"column 'timestamp' must hold UTC.*row 1: None"),
        (
            "user_id,item_id,rating,timestamp\nu,a,4,noon\n",
            "'timestamp' must hold UTC seconds as numbers, or dates, got string .*'noon'",
        ),
        ("user_id,item_id,rating,timestamp\n,a,4,1\n", r"'user_id' must hold an id in every row.*row 1: ''"),
        (
            "user_id,item_id,rating,timestamp\nu,a,4\n",
            "cannot be read: CSV parse error: Row #2: Expected 4 columns, got 3",
        ),
        ("user_id,item_id,rating,timestamp\nu,z,4,1\n", "no value of column 'item_id' is in .*'z' against 'a'"),
    ],
)
def test_bad_interactions_are_refused_in_one_line(tmp_path: Path, events: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _checked(_source(tmp_path, events))
    assert "\n" not in str(caught.value)
    assert "interactions.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("item_id,name\na,Alpha\n", "lacks column 'title'.*set data.source.title_column"),
        ("item_id,title,genres\n", "needed a row per item, found none"),
        ("item_id,title,genres\na,A,X\na,B,Y\n", "must hold every item once, found 1 ids several times .*'a'"),
        ("item_id,title,genres\n,A,X\n", "'item_id' must hold an id in every row"),
    ],
)
def test_bad_items_are_refused_in_one_line(tmp_path: Path, items: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _checked(_source(tmp_path, items=items))
    assert "items.csv" in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path)
    Path(source.items).write_bytes("item_id,title,genres\na,Café,X\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"items.csv' must be UTF-8 text and is not; convert it"):
        files.read(source)


def test_a_corrupt_parquet_file_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path, items=pa.table({"item_id": ["a"], "title": ["A"], "genres": ["X"]}))
    Path(source.items).write_bytes(Path(source.items).read_bytes()[:40])
    with pytest.raises(DataError, match=r"items.parquet' cannot be read: "):
        files.read(source)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path).model_copy(update={"items": str(tmp_path / "none.csv")})
    with pytest.raises(DataError, match=r"none.csv' is not there; set data.source"):
        files.read(source)


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.xlsx").write_bytes(b"PK")
    source = _source(tmp_path).model_copy(update={"items": str(tmp_path / "items.xlsx")})
    with pytest.raises(DataError, match=r"must end in .csv, .csv.gz or .parquet"):
        files.read(source)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user_id", [1.0], "'user_id' must hold text or whole numbers, got double"),
        ("user_id", pa.array([None], pa.string()), "must hold an id in every row.*row 1: None"),
        ("rating", ["4"], "'rating' must hold numbers, got string"),
        ("rating", [float("nan")], r"must lie within 1 and 5, 1 rows do not \(row 1: nan\)"),
        ("rating", [True], "'rating' must hold numbers, got bool"),
        ("timestamp", pa.array([2**64 - 1], pa.uint64()), "'timestamp' holds a value out of reach"),
    ],
)
def test_parquet_columns_of_a_wrong_type_are_refused(tmp_path: Path, column: str, values: Any, message: str) -> None:
    columns: dict[str, Any] = {"user_id": ["u"], "item_id": ["a"], "rating": [4.0], "timestamp": [1], column: values}
    with pytest.raises(DataError, match=message):
        _checked(_source(tmp_path, pa.table(columns)))
