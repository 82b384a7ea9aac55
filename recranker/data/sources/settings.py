"""Settings of every source: where its files are and what their columns mean."""

from typing import Annotated, Literal

from pydantic import Field

from recranker.settings import Settings


class MovieLens100KSource(Settings):
    """MovieLens-100K, fetched by whoever runs this; its terms forbid redistribution."""

    kind: Literal["movielens-100k"]
    path: str | None = None
    """Folder with u.data and u.item where it has been unpacked already; None fetches it."""


class FilesSource(Settings):
    """A team's own interactions and items, as CSV or Parquet."""

    kind: Literal["files"]
    interactions: str
    """Path of one .csv or .parquet file, or a folder of .parquet files: who, what, rating, when."""
    items: str
    """Path of a .csv or .parquet file with a row per item: key, title, genres."""
    user_column: str = "user_id"
    """Column of ``interactions`` with the user's key."""
    item_column: str = "item_id"
    """Column of both files with the item's key."""
    rating_column: str | None = None
    """Column of ``interactions`` with the rating; None: every row is a like."""
    time_column: str | None = None
    """Column of ``interactions`` with the time in UTC seconds; None: a user's order is a keyed random one."""
    title_column: str = "title"
    """Column of ``items`` with the title."""
    genres_column: str | None = None
    """Column of ``items`` with genres: a list, or text separated by ``genre_separator``."""
    genre_separator: str = "|"
    """What stands between two genres in a text column."""


Source = Annotated[MovieLens100KSource | FilesSource, Field(discriminator="kind")]
