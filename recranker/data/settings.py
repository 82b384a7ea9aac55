"""Settings of the data: where it comes from, what a like is, how it is split."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

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


class DataSettings(Settings):
    """What is read and what its ratings mean."""

    source: Source
    """Which data; no default."""
    rating_min: float = 1.0
    """Lowest rating of the scale; a rating below it is refused."""
    rating_max: float = 5.0
    """Highest rating of the scale; a rating above it is refused."""
    like_at_least: float = 4.0
    """A rating from here on is a like (RecRanker: 4 of 5)."""
    dislike_below: float = 3.0
    """A rating below this is a dislike (RecRanker: 3 of 5)."""
    max_title_characters: int = Field(default=200, ge=10)
    """Longer titles are cut after cleaning."""

    @model_validator(mode="after")
    def _scale_is_ordered(self) -> "DataSettings":
        if not self.rating_min <= self.dislike_below <= self.like_at_least <= self.rating_max:
            raise ValueError("data.rating_min <= data.dislike_below <= data.like_at_least <= data.rating_max must hold")
        return self
