"""BookCrossing: the publisher's two files with their backslashes, and one file that joins them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recranker.data.sources import bookcrossing
from recranker.data.sources.raw import RawData, checked
from recranker.data.sources.settings import BookCrossingSource
from tests.data.sources.shared import SHARED, needs, sizes

RATINGS = (
    '"User-ID";"ISBN";"Book-Rating"\n"276725";"034545104X";"0"\n"276726";"0155061224";"5"\n'
    '"276727";"\\"0432534220\\"";"10"\n"276727";"0155061224";"9"\n'
)
BOOKS = (
    '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S"\n'
    '"034545104X";"Flesh Tones; a \\"Novel\\"";"M. J. Rose";"2002";"Ballantine &amp; Co";"http://x"\n'
    '"0155061224";"Rites of Passage\\\\";"Judith Rae";"2001";"Heinle";"http://x"\n'
    '"\\"0432534220\\"";"Café (Level 4)\\"";"";"2001";"Heinle";"http://x"\n'
)
JOINED = (
    "user_id,ISBN,rating,title,author,year,publisher\n"
    '1,a,0,"Dune, a novel",F. Herbert,1965,X\n1,b,10,"Dune, a novel",Frank Herbert,1984,Y\n'
    '2,b,8,"Dune, a novel",Frank Herbert,1984,Y\n2,c,2,Emma,Jane Austen,1815,Z\n'
)


def _read(path: Path, **settings: Any) -> RawData:
    source = BookCrossingSource(kind="bookcrossing", path=str(path), **settings)
    return checked(bookcrossing.read(source, path), 1.0, 10.0)


@pytest.fixture
def publisher(tmp_path: Path) -> Path:
    (tmp_path / "BX-Book-Ratings.csv").write_bytes(RATINGS.encode("latin-1"))
    (tmp_path / "BX-Books.csv").write_bytes(BOOKS.encode("latin-1"))
    return tmp_path


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    (tmp_path / "joined.csv").write_text(JOINED)
    return tmp_path / "joined.csv"


def test_the_publishers_files_are_read_with_their_backslashes(publisher: Path) -> None:
    raw = _read(publisher)
    assert raw.interactions["item_id"].to_pylist() == ["0155061224", '"0432534220"', "0155061224"]
    assert raw.interactions["rating"].to_pylist() == [5.0, 10.0, 9.0]
    assert raw.items["title"].to_pylist() == ['Flesh Tones; a "Novel"', "Rites of Passage\\", 'Café (Level 4)"']
    assert raw.items["genres"].to_pylist() == [["M. J. Rose"], ["Judith Rae"], [""]]
    assert raw.accounts["implicit_ratings_dropped"] == 1
    assert (raw.rows_read, raw.order, raw.scale, raw.thresholds) == (4, "none", (1, 10), (9, 3))
    assert raw.order_means == "no times: a user's events stand in a keyed random order"


def test_a_book_handled_without_a_rating_can_be_a_like(joined: Path) -> None:
    raw = _read(joined, implicit="like")
    assert raw.interactions["rating"].to_pylist() == [None, 10.0, 8.0, 2.0]
    assert raw.dropped == {}
    assert raw.like_means.endswith("; a book handled without a rating is a like")


def test_editions_are_one_book_under_the_isbn_with_most_rows(joined: Path) -> None:
    raw = _read(joined, implicit="like", merge_editions=True)
    assert raw.interactions["item_id"].to_pylist() == ["b", "b", "b", "c"]
    assert raw.items["item_id"].to_pylist() == ["b", "c"]
    assert raw.notes == {"editions_merged": 1}


def test_books_without_a_title_are_not_editions_of_one_another() -> None:
    books = pa.table({"item_id": ["z", "y", "x", "w"], "title": ["", "T", None, "T"]})
    rated = pa.chunked_array([["y", "w", "z"]])
    assert bookcrossing.editions(books, rated).to_pylist() == ["z", "w", "x", "w"]  # of equals the smallest


@needs("bookcrossing")
def test_the_shared_subset_holds_what_its_owner_says() -> None:
    path = SHARED / "bookcrossing" / "ratings_with_titles.csv.gz"
    raw = _read(path, implicit="like")
    assert sizes(raw) == (888, 2144, 59_850)
    assert raw.interactions["rating"].null_count == 59_850 - 14_942
    assert sizes(_read(path, implicit="like", merge_editions=True)) == (888, 742, 59_850)
    explicit = _read(path)
    assert (explicit.interactions.num_rows, explicit.dropped) == (14_942, {"implicit_ratings_dropped": 44_908})
