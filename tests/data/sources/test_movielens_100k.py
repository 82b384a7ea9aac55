"""MovieLens-100K: both file formats, and the real files where they can be fetched."""

from pathlib import Path

import pytest

from recranker.data.sources import movielens_100k
from recranker.data.sources.movielens_100k import read_atomic, read_publisher
from recranker.data.sources.settings import MovieLens100KSource
from recranker.errors import DataError

FLAGS = {"Drama": 8, "War": 17}


def _publisher_line(key: str, title: str, *genres: str) -> str:
    flags = ["1" if index in {FLAGS[name] for name in genres} else "0" for index in range(19)]
    return "|".join([key, title, "01-Jan-1995", "", "http://x", *flags])


def test_both_formats_give_the_same_tables(tmp_path: Path) -> None:
    ratings = "196\t242\t3\t881250949\n22\t5\t1\t878887116\n"
    (tmp_path / "u.data").write_text(ratings)
    films = [
        ("242", "Misérables, Les (1995)", "Drama", "War"),
        ("5", "unknown", "Drama"),
        ("7", "Land III (1995) (V)", "War"),
    ]
    lines = [_publisher_line(*film) for film in films]
    (tmp_path / "u.item").write_text("\n".join(lines) + "\n", encoding="latin-1")
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + ratings)
    atomic = "242\tMisérables, Les\t1995\tDrama War\n5\tunkonwn\tunkonwn\tDrama\n7\tLand III (1995)\tV\tWar\n"
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    (tmp_path / "x.item").write_text(header + atomic)
    theirs = read_publisher(tmp_path / "u.data", tmp_path / "u.item")
    ours = read_atomic(tmp_path / "x.inter", tmp_path / "x.item")
    assert [rows.table.to_pylist() for rows in theirs] == [rows.table.to_pylist() for rows in ours]
    film = {"item_id": "242", "title": "Les Misérables (1995)", "genres": ["Drama", "War"]}
    assert ours[1].table.to_pylist()[0] == film
    assert ours[0].table.to_pylist()[0] == {"user_id": "196", "item_id": "242", "rating": 3.0, "timestamp": 881250949}


def test_a_folder_without_the_files_is_named(tmp_path: Path) -> None:
    source = MovieLens100KSource(kind="movielens-100k", path=str(tmp_path))
    with pytest.raises(DataError, match=r"u.data' is not there; data.source.path must be the folder"):
        movielens_100k.read(source, tmp_path)


def test_files_cut_short_are_refused(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("1\t2\t3\t4\n")
    (tmp_path / "u.item").write_text(_publisher_line("2", "A (1990)") + "\n")
    source = MovieLens100KSource(kind="movielens-100k", path=str(tmp_path))
    with pytest.raises(DataError, match=r"'ratings': 100000\}, found \{'users': 1, 'items': 1, 'ratings': 1\}"):
        movielens_100k.read(source, tmp_path)


def test_another_file_under_its_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("user,item\n1,2\n")
    (tmp_path / "u.item").write_text(_publisher_line("2", "A (1990)") + "\n")
    with pytest.raises(DataError, match=r"u.data' row 1: needed 4 fields, got 1, and 1 more are like it"):
        read_publisher(tmp_path / "u.data", tmp_path / "u.item")


@pytest.mark.slow
def test_the_real_files_hold_what_the_publisher_says(tmp_path: Path) -> None:
    raw = movielens_100k.read(MovieLens100KSource(kind="movielens-100k"), tmp_path)
    assert raw.interactions.num_rows == 100_000
    titles = dict(zip(raw.items["item_id"].to_pylist(), raw.items["title"].to_pylist(), strict=True))
    assert titles["12"] == "The Usual Suspects (1995)"
    assert len(titles) - len(set(titles.values())) == 18  # data set's own duplicates: match by id
