"""Settings of the data: where it comes from, what a like is, how it is split."""

from pydantic import Field, model_validator

from recranker.data.sources.settings import Source
from recranker.settings import Settings


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
