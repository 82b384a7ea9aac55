"""A team's own files: what is accepted, and one clear line for what is not."""

import datetime as dt
import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from recranker.data.sources.raw import RawData, checked
from recranker.data.sources.registry import read_source
from recranker.data.sources.settings import FilesSource, TextFormat
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
    return checked(read_source(source, Path("cache")), 1.0, 5.0)


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
        ("", "is empty; check the path"),
        ("user_id,item_id,rating,timestamp\n", "needed a row per interaction, found none"),
        (
            "user_id,item_id,rating,timestamp\nu,a,good,1\n",
            r"row 1 \('good'\): column 'rating' must hold a number; mend the file",
        ),
        (
            "user_id,item_id,rating,timestamp\nu,a,4,1\nv,b,,1\n",
            r"row 2 \(''\): column 'rating' must hold a number",
        ),
        ("user_id,item_id,rating,timestamp\nu,a,0,1\nv,b,6,1\n", r"2 rows do not \(row 1: 0.0\); set data.rating_min"),
        (
            "user_id,item_id,rating,timestamp\nu,a,4,-1\n",
            r"row 1 \(-1\): column 'timestamp' must hold UTC seconds from 0 on",
        ),
        (
            "user_id,item_id,rating,timestamp\nu,a,4,1700000000000\n",
            "set data.source.time_unit to the unit of this file",
        ),
        ("user_id,item_id,rating,timestamp\nu,a,4,1e300\n", "column 'timestamp' must hold UTC seconds"),
        (
            "user_id,item_id,rating,timestamp\nu,a,4,\nv,a,4,1\n",
            r"row 1 \(''\): column 'timestamp' must hold UTC time as a number",
        ),
        (
            "user_id,item_id,rating,timestamp\nu,a,4,noon\n",
            r"row 1 \('noon'\): column 'timestamp' must hold UTC time as a number \(s since 1970\)",
        ),
        (
            "user_id,item_id,rating,timestamp\n,a,4,1\n",
            r"row 1 \(''\): column 'user_id' must hold an id of 1 to 1000 characters",
        ),
        (
            "user_id,item_id,rating,timestamp\nu,a,4\n",
            "row 1: needed 4 fields, got 3; mend the file, or set data.source.on_bad_rows",
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
        ("item_id,title,genres\n,A,X\n", "'item_id' must hold an id"),
    ],
)
def test_bad_items_are_refused_in_one_line(tmp_path: Path, items: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _checked(_source(tmp_path, items=items))
    assert "items.csv" in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path)
    Path(source.items).write_bytes("item_id,title,genres\na,Café,X\n".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"items.csv' must be utf-8 text and is not \(line 2\); convert it .* set its encoding"
    ):
        _checked(source)


def test_a_corrupt_parquet_file_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path, items=pa.table({"item_id": ["a"], "title": ["A"], "genres": ["X"]}))
    Path(source.items).write_bytes(Path(source.items).read_bytes()[:40])
    with pytest.raises(DataError, match=r"items.parquet' cannot be read: "):
        _checked(source)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path).model_copy(update={"items": str(tmp_path / "none.csv")})
    with pytest.raises(DataError, match=r"none.csv' is not there; set data.source"):
        _checked(source)


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.xlsx").write_bytes(b"PK")
    source = _source(tmp_path).model_copy(update={"items": str(tmp_path / "items.xlsx")})
    with pytest.raises(DataError, match=r"must end in .csv, .tsv, .txt, .dat \(or .gz after it\) or .parquet"):
        _checked(source)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user_id", [1.0], "'user_id' must hold text or whole numbers, got double"),
        ("user_id", pa.array([None], pa.string()), r"row 1 \(None\): column 'user_id' must hold an id"),
        ("rating", ["good"], r"row 1 \('good'\): column 'rating' must hold a number"),
        ("rating", [float("nan")], r"row 1 \(nan\): column 'rating' must hold a number"),
        ("rating", [[4.0]], "'rating' must hold numbers, got list"),
        ("rating", [True], "'rating' must hold numbers, got bool"),
        ("timestamp", pa.array([2**64 - 1], pa.uint64()), r"'timestamp' must hold UTC seconds from 0 to"),
    ],
)
def test_parquet_columns_of_a_wrong_type_are_refused(tmp_path: Path, column: str, values: Any, message: str) -> None:
    columns: dict[str, Any] = {"user_id": ["u"], "item_id": ["a"], "rating": [4.0], "timestamp": [1], column: values}
    with pytest.raises(DataError, match=message):
        _checked(_source(tmp_path, pa.table(columns)))


def test_a_tab_separated_file_in_another_encoding_without_a_header(tmp_path: Path) -> None:
    source = _source(tmp_path)
    path = tmp_path / "odd.tsv.gz"
    path.write_bytes(gzip.compress("Zoë\ta\t4,5\t31.12.2020 23:59\n".encode("cp1252")))
    written = {"encoding": "cp1252", "decimal": ",", "columns": ["user_id", "item_id", "rating", "timestamp"]}
    changes = {"interactions": str(path), "interactions_format": TextFormat.model_validate(written)}
    dated = {"time_unit": "date", "date_format": "%d.%m.%Y %H:%M"}
    raw = _checked(source.model_copy(update=changes | dated))
    second = int(dt.datetime(2020, 12, 31, 23, 59, tzinfo=dt.UTC).timestamp())
    assert raw.interactions.to_pylist() == [{"user_id": "Zoë", "item_id": "a", "rating": 4.5, "timestamp": second}]


def test_several_characters_may_separate_fields(tmp_path: Path) -> None:
    source = _source(tmp_path, events=EVENTS.replace(",", "||"), interactions_format=TextFormat(separator="||"))
    assert _checked(source).interactions["user_id"].to_pylist() == ["007", "8"]


def test_utf16_is_read_when_the_settings_say_so(tmp_path: Path) -> None:
    source = _source(tmp_path, interactions_format=TextFormat(encoding="utf-16"))
    Path(source.interactions).write_bytes(EVENTS.encode("utf-16"))
    assert _checked(source).interactions["user_id"].to_pylist() == ["007", "8"]


@pytest.mark.parametrize(
    ("unit", "written"),
    [
        ("ms", "1000000000500"),
        ("us", "1000000000500000"),
        ("ns", "1000000000500000000"),
        ("date", "2001-09-09 01:46:40.5"),
        ("date", "2001-09-09T01:46:40Z"),
        ("date", "2001-09-09T03:46:40+02:00"),
    ],
)
def test_times_in_any_unit_become_utc_seconds(tmp_path: Path, unit: str, written: str) -> None:
    raw = _checked(_source(tmp_path, f"user_id,item_id,rating,timestamp\nu,a,4,{written}\n", time_unit=unit))
    assert raw.interactions["timestamp"].to_pylist() == [1_000_000_000]


def test_dates_written_in_several_ways_are_read_one_by_one(tmp_path: Path) -> None:
    events = "user_id,item_id,rating,timestamp\nu,a,4,1970-01-02\nv,a,4,1970-01-01T00:00:07Z\nw,b,4,soon\n"
    raw = _checked(_source(tmp_path, events, time_unit="date", on_bad_rows="quarantine"))
    assert raw.interactions["timestamp"].to_pylist() == [86_400, 7]
    assert raw.quarantined["reason"].to_pylist() == ["column 'timestamp' must hold a date (ISO 8601)"]


def test_a_place_in_the_history_is_an_order_without_times(tmp_path: Path) -> None:
    raw = _checked(_source(tmp_path, time_unit="position"))
    assert (raw.order, raw.has_time, raw.interactions["timestamp"].to_pylist()) == ("sequence", False, [10, 20])


def test_a_teams_own_split_is_handed_on(tmp_path: Path) -> None:
    events = "user_id,item_id,rating,timestamp,part\nu,a,4,1,train\nu,b,4,2,test\n"
    raw = _checked(_source(tmp_path, events, split_column="part"))
    assert raw.interactions["split"].to_pylist() == ["train", "test"]


def test_broken_rows_are_quarantined_with_place_and_reason_and_all_are_counted(tmp_path: Path) -> None:
    events = b"user_id,item_id,rating,timestamp\nu,a,4,1\nu,b\n,a,3,1\nv\xff,a,3,1\nv,a,nan,1\nv,b,5,2\n"
    source = _source(tmp_path, items=ITEMS + ",Nameless,X\n", on_bad_rows="quarantine")
    Path(source.interactions).write_bytes(events)
    raw = _checked(source)
    assert raw.interactions["user_id"].to_pylist() == ["u", "v"]
    place = f"'{source.interactions}' row"
    assert [tuple(row.values()) for row in raw.quarantined.to_pylist()] == [
        ("interactions", f"{place} 2", "needed 4 fields, got 2"),
        ("interactions", f"{place} 4", "the line is not text"),
        ("interactions", f"{place} 3 ('')", "column 'user_id' must hold an id of 1 to 1000 characters"),
        ("interactions", f"{place} 5 ('nan')", "column 'rating' must hold a number"),
        ("items", f"'{source.items}' row 3 ('')", "column 'item_id' must hold an id of 1 to 1000 characters"),
    ]
    assert raw.accounts == {"interactions_read": 6, "interactions_quarantined": 4, "items_quarantined": 1}


def test_a_row_neither_kept_nor_counted_is_our_mistake(tmp_path: Path) -> None:
    raw = read_source(_source(tmp_path), tmp_path)
    with pytest.raises(AssertionError, match="a row read is neither kept nor counted"):
        checked(replace(raw, rows_read=raw.rows_read + 1), 1.0, 5.0)


def test_an_unknown_encoding_is_refused() -> None:
    for encoding in ("klingon", "hex"):
        with pytest.raises(ValidationError, match=f"no text encoding is called '{encoding}'"):
            TextFormat(encoding=encoding)
