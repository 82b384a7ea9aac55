"""BookCrossing: ratings of books from 1 to 10, and rating 0 for books merely handled (Ziegler et al. 2005).

There are no times: a history has no order. Read from the publisher's two files or from one that joins them.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recranker.data.fetch import Remote, fetch_archive
from recranker.data.lookup import codes, column
from recranker.data.sources import raw
from recranker.data.sources.catalogue import SourceFacts
from recranker.data.sources.delimited import read_delimited
from recranker.data.sources.folders import files_in
from recranker.data.sources.rows import Rows, quarantined, with_ids, with_numbers
from recranker.data.sources.settings import BookCrossingSource, TextFormat
from recranker.errors import DataError

FACTS = SourceFacts(
    kind="bookcrossing",
    users=105_283,
    items=271_379,
    events=1_149_780,
    ratings="1-10, and 0: implicit",
    order="none",
    terms="no written licence; used in research",
    download="25 MB",
    where="fetched from www2.informatik.uni-freiburg.de, or path = folder with BX-Book-Ratings.csv and BX-Books.csv, "
    "or one CSV with user_id, ISBN, rating, title, author",
)
ARCHIVE = Remote("http://www2.informatik.uni-freiburg.de/~cziegler/BX/BX-CSV-Dump.zip")
NAMES = ("BX-Book-Ratings.csv", "BX-Books.csv")
WRITTEN = TextFormat(separator=";", escape="\\", encoding="latin-1")
RATINGS = {"user_id": "User-ID", "item_id": "ISBN", "rating": "Book-Rating"}
BOOKS = {"item_id": "ISBN", "title": "Book-Title", "author": "Book-Author"}
JOINED = {"user_id": "user_id", "item_id": "ISBN", "rating": "rating", "title": "title", "author": "author"}


def read(source: BookCrossingSource, cache: Path) -> raw.RawData:
    """Ratings and books; a book's genre is its author.

    Raises:
        FetchError: If the files cannot be fetched.
        DataError: If a file is missing or broken.
    """
    ratings, books, aside = _tables(source, cache / FACTS.kind)
    events, dropped = _feedback(ratings.table, source.implicit)
    items, notes = _items(books), {}
    if source.merge_editions:
        kept_as = editions(items, events["item_id"])
        events = events.set_column(1, "item_id", _renamed(events["item_id"], items["item_id"], kept_as))
        notes = {"editions_merged": items.num_rows - len(pc.unique(kept_as))}
        items = items.filter(pc.equal(items["item_id"], kept_as))
    return raw.RawData(
        name="BookCrossing",
        interactions=events.cast(raw.INTERACTIONS),
        items=items,
        interactions_file=ratings.file,
        items_file=books.file,
        rows_read=ratings.read,
        order="none",
        scale=(1.0, 10.0),
        thresholds=(9.0, 3.0),  # RecRanker, arXiv 2312.16018: 9-10 is a like, 1-2 a dislike
        unrated_is_like=source.implicit == "like",
        event_means="a book handled without a rating is a like",
        dropped=dropped,
        quarantined=aside,
        notes=notes,
        columns=RATINGS if ratings.file != books.file else JOINED,
    )


def editions(items: pa.Table, rated: pa.ChunkedArray) -> pa.Array:
    """The id each book is kept under: of books of one title, the one with most rows; the smallest of several.

    Args:
        items: ``item_id`` and ``title``; a book without title stays by itself.
        rated: The item of every interaction.
    """
    counts = pc.value_counts(rated)
    place = pc.index_in(items["item_id"], value_set=counts.field("values"))
    rows = pc.fill_null(counts.field("counts").take(place.combine_chunks()), 0)
    titles = pc.if_else(pc.equal(pc.fill_null(items["title"], ""), ""), items["item_id"], items["title"])
    table = pa.table({"title": titles, "rows": rows, "item_id": items["item_id"], "at": np.arange(items.num_rows)})
    ordered = table.sort_by([("title", "ascending"), ("rows", "descending"), ("item_id", "ascending")])
    groups = codes(ordered["title"])
    first = np.flatnonzero(np.append(True, groups[1:] != groups[:-1])[: len(groups)])
    kept = np.repeat(first, np.diff(np.append(first, len(groups))))
    back = np.argsort(column(ordered["at"]))
    return ordered["item_id"].combine_chunks().take(pa.array(kept[back]))


def _feedback(ratings: pa.Table, implicit: str) -> tuple[pa.Table, dict[str, int]]:
    """The interactions, without those rated 0 or with no rating in their place, and what is dropped."""
    unrated = pc.equal(ratings["rating"], 0.0)
    if implicit == "drop":
        kept = ratings.filter(pc.invert(unrated))
        dropped = {"implicit_ratings_dropped": ratings.num_rows - kept.num_rows}
    else:
        kept, dropped = ratings, {}
    rating = pc.if_else(pc.equal(kept["rating"], 0.0), pa.scalar(None, pa.float64()), kept["rating"])
    nothing = pa.nulls(kept.num_rows, pa.int64())
    return pa.table([kept["user_id"], kept["item_id"], rating, nothing], schema=raw.INTERACTIONS), dropped


def _items(books: Rows) -> pa.Table:
    authors = pc.cast(pc.split_pattern(books.table["author"], "\n"), pa.list_(pa.string()))
    return pa.table([books.table["item_id"], books.table["title"], authors], schema=raw.ITEMS)


def _renamed(ids: pa.ChunkedArray, known: pa.ChunkedArray, kept_as: pa.Array) -> pa.ChunkedArray:
    """Each id as ``kept_as`` says; one that is not among the ``known`` stays."""
    place = pc.index_in(ids, value_set=known.combine_chunks()).combine_chunks()
    return pc.coalesce(kept_as.take(place), ids)


def _tables(source: BookCrossingSource, cache: Path) -> tuple[Rows, Rows, pa.Table]:
    """Ratings, books, and what is quarantined of both."""
    if source.path is not None and Path(source.path).expanduser().is_file():
        joined = _numbered(read_delimited(source.path, TextFormat(), JOINED, source.on_bad_rows))
        return joined, _books_of(joined), quarantined(interactions=joined)
    ratings_file, books_file = _files(source, cache)
    ratings = _numbered(read_delimited(str(ratings_file), WRITTEN, RATINGS, source.on_bad_rows))
    books = with_ids(read_delimited(str(books_file), WRITTEN, BOOKS, source.on_bad_rows), "item_id")
    if source.path is None and ratings.read != FACTS.events:
        raise DataError(
            f"{ratings.file}: BookCrossing has {FACTS.events} ratings, found {ratings.read}; delete it and try again"
        )
    return ratings, books, quarantined(interactions=ratings, items=books)


def _numbered(rows: Rows) -> Rows:
    return with_numbers(with_ids(rows, "user_id", "item_id"), "rating")


def _books_of(joined: Rows) -> Rows:
    """A row per book of the joined file: its first."""
    grouped = joined.table.group_by("item_id", use_threads=False).aggregate([("title", "first"), ("author", "first")])
    table = grouped.rename_columns(["item_id", "title", "author"])
    return Rows(joined.file, table, np.arange(table.num_rows), joined.policy)


def _files(source: BookCrossingSource, cache: Path) -> list[Path]:
    if source.path is not None:
        return files_in(source.path, NAMES)
    way_out = "make it reachable, or set data.source.path to the folder with BX-Book-Ratings.csv and BX-Books.csv"
    return fetch_archive(ARCHIVE, NAMES, cache, way_out)
