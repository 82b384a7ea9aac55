"""MovieLens-1M: whole, packed or in part, under a name that says which."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recranker.data.sources import movielens_1m
from recranker.data.sources.raw import RawData, checked
from recranker.data.sources.settings import MovieLens1MSource
from recranker.errors import DataError
from tests.data.sources.shared import SHARED, needs, sizes

RATINGS = "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n"
FILMS = "661::James and the Giant Peach (1996)::Animation|Children's\n1193::Misérables, Les (1995)::Drama\n"


def _read(path: Path, **settings: Any) -> RawData:
    source = MovieLens1MSource(kind="movielens-1m", path=str(path), **settings)
    return checked(movielens_1m.read(source, path), 1.0, 5.0)


def _write(folder: Path, ratings: str = RATINGS, films: str = FILMS) -> Path:
    (folder / "ratings.dat").write_bytes(ratings.encode("latin-1"))
    (folder / "movies.dat").write_bytes(films.encode("latin-1"))
    return folder


def test_the_publishers_files_are_read(tmp_path: Path) -> None:
    raw = _read(_write(tmp_path))
    assert raw.interactions.to_pylist()[1] == {"user_id": "1", "item_id": "661", "rating": 3.0, "timestamp": 978302109}
    assert raw.items.to_pylist()[1] == {"item_id": "1193", "title": "Les Misérables (1995)", "genres": ["Drama"]}
    assert (raw.name, raw.order, raw.scale, raw.thresholds) == ("MovieLens-1M (users 1-2)", "time", (1, 5), (4, 3))


def test_a_packed_file_under_any_name_is_read_with_the_films_beside_it(tmp_path: Path) -> None:
    path = _write(tmp_path) / "part-7.gz"
    path.write_bytes(gzip.compress((RATINGS + "5::661::1::978298413\n").encode()))
    assert _read(path).name == "MovieLens-1M (3 of 6,040 users)"


def test_the_name_of_the_whole_and_of_all_users_with_rows_missing() -> None:
    users = [str(1 + row % 6040) for row in range(1_000_209)]
    table = pa.table({"user_id": users})
    assert movielens_1m.name_of(table, "f") == "MovieLens-1M"
    assert movielens_1m.name_of(table.slice(1), "f") == "MovieLens-1M (1,000,208 of 1,000,209 ratings)"


def test_another_set_in_this_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has users 1 to 6040 .* found users 1 to 71567 .* kind = \"files\""):
        _read(_write(tmp_path, RATINGS + "71567::661::1::978298413\n"))


def test_a_broken_line_is_refused_or_quarantined_with_its_number(tmp_path: Path) -> None:
    _write(tmp_path, "1::1193::5::978300760\n1::661::3\n\n2::1193::five::1\n2::661::4::978300760\n")
    with pytest.raises(
        DataError, match=r"ratings.dat' line 2: needed 4 fields, got 3; mend the file, or set data.source"
    ):
        _read(tmp_path)
    raw = _read(tmp_path, on_bad_rows="quarantine")
    assert raw.accounts["interactions_read"] == 4
    assert raw.accounts["interactions_quarantined"] == 2
    aside = raw.quarantined.to_pylist()
    assert [row["reason"] for row in aside] == ["needed 4 fields, got 3", "column 'rating' must hold a number"]
    assert [row["row"].removeprefix(f"'{tmp_path}/ratings.dat' ") for row in aside] == ["line 2", "line 4 ('five')"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text(RATINGS)
    with pytest.raises(DataError, match=r"movies.dat' is not there; data.source.path must be the folder with ratings"):
        _read(tmp_path)


@needs("ml-1m")
def test_the_shared_half_holds_what_its_owner_says() -> None:
    raw = _read(SHARED / "ml-1m" / "ratings_users_1-2999.dat.gz")
    assert sizes(raw) == (2999, 3615, 487_650)
    assert (raw.name, raw.items.num_rows) == ("MovieLens-1M (users 1-2999)", 3883)
    assert "Les Misérables (1995)" in raw.items["title"].to_pylist()
