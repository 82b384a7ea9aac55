"""Settings of the data: where it comes from, what a like is, which events count, how they are split."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from recranker.data.sources.settings import Source
from recranker.parquet import ParquetLimits
from recranker.settings import Settings


class LeaveOneOutSplit(Settings):
    """A user's last like is the test target, the last but one the validation target (RecRanker, section 5.1)."""

    kind: Literal["leave-one-out"] = "leave-one-out"


class TimeSplit(Settings):
    """Two moments for all users: training ends at the first, testing starts at the second. Needs clock times.

    Training is everything before ``validation``. A user's validation target is one like between the two moments, the
    test target one like from the second on; what else comes after the first moment is in no fit. Users without a like
    before the first moment are not tested.
    """

    kind: Literal["time"]
    validation_quantile: float = Field(default=0.8, gt=0, lt=1)
    """Share of all interactions before the first moment, where ``validation_from`` does not say when it is."""
    test_quantile: float = Field(default=0.9, gt=0, lt=1)
    """Share of all interactions before the second moment, where ``test_from`` does not say when it is."""
    validation_from: datetime | None = None
    """The first moment, UTC."""
    test_from: datetime | None = None
    """The second moment, UTC."""
    target: Literal["first", "last"] = "first"
    """Which like from a moment on is the target: the first, the least time after training, or the last."""

    @field_validator("validation_from", "test_from")
    @classmethod
    def _is_utc(cls, moment: datetime | None) -> datetime | None:
        return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)

    @model_validator(mode="after")
    def _moments_are_ordered(self) -> "TimeSplit":
        if (self.validation_from is None) != (self.test_from is None):
            raise ValueError("data.split.validation_from and data.split.test_from must be given together")
        if self.validation_from and self.test_from and self.validation_from >= self.test_from:
            raise ValueError("data.split.validation_from must come before data.split.test_from")
        if self.validation_quantile >= self.test_quantile:
            raise ValueError("data.split.validation_quantile must be below data.split.test_quantile")
        return self


class OwnSplit(Settings):
    """A team's own split; the same rules hold for it as for ours, and it is refused where it breaks them."""

    kind: Literal["own"]
    path: str | None = None
    """Parquet file of user_id, item_id, split ('train', 'validation', 'test' or 'unused') with a row per interaction;
    None: the source's data.source.split_column says it."""
    parquet: ParquetLimits = ParquetLimits()
    """What that file may hold at most."""


Split = Annotated[LeaveOneOutSplit | TimeSplit | OwnSplit, Field(discriminator="kind")]


class DataSettings(Settings):
    """What is read, what its ratings mean, which of it counts, and how it is split."""

    source: Source
    """Which data; no default."""
    split: Split = LeaveOneOutSplit()
    """Which events are training, validation and test."""
    rating_min: float | None = None
    """Lowest rating of the scale; a rating below it is refused. None: the source's own."""
    rating_max: float | None = None
    """Highest rating of the scale; a rating above it is refused. None: the source's own."""
    like_at_least: float | None = None
    """A rating from here on is a like (RecRanker: 4 of 5, 9 of 10). None: the source's own."""
    dislike_below: float | None = None
    """A rating below this is a dislike (RecRanker: 3 of 5, 3 of 10). None: the source's own."""
    min_user_interactions: int = Field(default=1, ge=1)
    """Users with fewer interactions are dropped, together with rare items until none is left (RecRanker: 10 for
    BookCrossing)."""
    min_item_interactions: int = Field(default=1, ge=1)
    """Items with fewer interactions are dropped, together with rare users until none is left (RecRanker: 10 for
    BookCrossing)."""
    max_title_characters: int = Field(default=200, ge=10)
    """Longer titles are cut after cleaning."""

    @model_validator(mode="after")
    def _scale_is_ordered(self) -> "DataSettings":
        scale = (self.rating_min, self.dislike_below, self.like_at_least, self.rating_max)
        stated = [value for value in scale if value is not None]
        if stated != sorted(stated):
            raise ValueError("data.rating_min <= data.dislike_below <= data.like_at_least <= data.rating_max must hold")
        return self
