"""Amazon reviews: both forms of metadata, files of sequences, and lines that are neither."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from recranker.data.sources import amazon
from recranker.data.sources.raw import RawData, checked
from recranker.data.sources.settings import AmazonSource
from recranker.errors import DataError
from tests.data.sources.shared import SHARED, needs, sizes

REVIEWS = [
    {"overall": 5.0, "reviewerID": "A1", "asin": "B1", "reviewText": "asin", "unixReviewTime": 1529193600},
    {"overall": 2.0, "reviewerID": "A2", "asin": "B2", "unixReviewTime": 1528934400},
    {"overall": 4.0, "reviewerID": "A2", "asin": "B3", "unixReviewTime": 1528934401},
]
NEW = [
    {"category": ["Gift Cards", "Gift Cards", "</span>"], "title": "A $5 Card", "brand": "Acme", "asin": "B1"},
    {"category": [], "title": "var aPageStart = (new Date()).getTime();", "brand": "", "asin": "B2"},
    {"category": [], "title": "Of no review", "brand": "", "asin": "B9"},
    {"category": [], "title": "Told twice", "brand": "", "asin": "B1"},
]
OLD = "{'asin': 'B1', 'title': 'It\\'s \"it\"', 'categories': [['Beauty', 'Skin'], ['Beauty']], 'price': 7.5}"


def _jsonl(path: Path, values: list[Any]) -> str:
    path.write_bytes(gzip.compress("".join(json.dumps(one) + "\n" for one in values).encode()))
    return str(path)


def _read(reviews: str, metadata: str, **settings: Any) -> RawData:
    source = AmazonSource(kind="amazon", reviews=reviews, metadata=metadata, **settings)
    return amazon.read(source, Path("cache"))


def test_reviews_and_metadata_of_2018(tmp_path: Path) -> None:
    raw = checked(_read(_jsonl(tmp_path / "r.json.gz", REVIEWS), _jsonl(tmp_path / "m.json.gz", NEW)), 1, 5)
    assert raw.interactions.to_pylist()[0] == {"user_id": "A1", "item_id": "B1", "rating": 5.0, "timestamp": 1529193600}
    assert raw.items.to_pylist() == [
        {"item_id": "B1", "title": "A $5 Card", "genres": ["Gift Cards", "Acme"]},
        {"item_id": "B2", "title": None, "genres": []},
        {"item_id": "B3", "title": None, "genres": None},
    ]
    assert raw.accounts["items_without_metadata"] == 1
    assert (raw.order, raw.scale) == ("time", (1, 5))


def test_metadata_of_2014_is_read_as_the_dict_it_is_and_never_run(tmp_path: Path) -> None:
    metadata = tmp_path / "m.json"
    metadata.write_text(f"{OLD}\n__import__('os').abort() or {{'asin': 'B2'}}\n")
    reviews = _jsonl(tmp_path / "r.json.gz", REVIEWS)
    with pytest.raises(DataError, match=r"m.json' line 2 \(\"__import__.*must be a JSON object or a Python dict"):
        _read(reviews, str(metadata))
    raw = _read(reviews, str(metadata), on_bad_rows="quarantine", category="Beauty", edition=2014)
    assert raw.items.to_pylist()[0] == {"item_id": "B1", "title": 'It\'s "it"', "genres": ["Beauty", "Skin"]}
    assert (raw.name, raw.accounts["items_quarantined"]) == ("Amazon Beauty (2014, 5-core)", 1)


def test_a_file_of_sequences_has_an_order_and_neither_ratings_nor_times(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("A1 B2 B1\nA2 B1\n")
    (tmp_path / "i.csv").write_text('asin,name\nB1,"One, 1"\n')
    raw = checked(_read(str(tmp_path / "s.txt"), str(tmp_path / "i.csv")), 1, 5)
    assert [tuple(row.values()) for row in raw.interactions.to_pylist()] == [
        ("A1", "B2", None, 0),
        ("A1", "B1", None, 1),
        ("A2", "B1", None, 0),
    ]
    assert raw.items["title"].to_pylist() == ["One, 1", None]
    assert (raw.order, raw.has_time, raw.has_ratings, raw.scale) == ("sequence", False, False, None)
    assert raw.like_means == "every review is a like: the file does not hold the stars"


def test_broken_sequences_are_counted(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("A1 B2 B1\nA2\n\nA3 B1\n")
    (tmp_path / "i.csv").write_text("asin,name\nB1,One\n")
    raw = _read(str(tmp_path / "s.txt"), str(tmp_path / "i.csv"), on_bad_rows="quarantine")
    checked(raw, 1, 5)
    assert (raw.rows_read, raw.interactions.num_rows) == (4, 3)
    assert raw.quarantined["row"].to_pylist() == [f"'{tmp_path}/s.txt' line 2"]


def test_a_category_or_both_files_must_be_named() -> None:
    with pytest.raises(ValidationError, match=r"reviews and data.source.metadata must be given together"):
        AmazonSource(kind="amazon", reviews="r")
    with pytest.raises(ValidationError, match="category must be set"):
        AmazonSource(kind="amazon")


@needs("amazon-beauty")
def test_shared_beauty_holds_what_its_owner_says() -> None:
    folder = SHARED / "amazon-beauty"
    raw = checked(_read(str(folder / "user_sequence.txt"), str(folder / "items.csv.gz")), 1, 5)
    assert sizes(raw) == (22_363, 12_101, 198_502)
    assert sum(not title for title in raw.items["title"].to_pylist()) == 7


@needs("amazon-gift-cards")
def test_shared_gift_cards_hold_what_their_owner_says() -> None:
    folder = SHARED / "amazon-gift-cards"
    raw = checked(_read(str(folder / "Gift_Cards_5.json.gz"), str(folder / "meta_Gift_Cards.json.gz")), 1, 5)
    assert sizes(raw) == (458, 148, 2972)
    assert all(raw.items["title"].to_pylist())
