"""Settings of ranking and fusion."""

from typing import Literal

from pydantic import Field

from recranker.settings import Settings


class RankingSettings(Settings):
    """Which lists are ranked, and how three answers become one order."""

    preset: Literal["recranker", "paper"] = "recranker"
    """What is served. 'recranker': z-scores, weights learned on validation; 'paper': its utilities and constants."""
    only_hits: bool = True
    """Spend the model only on lists that hold their target; the others are misses for every ranker."""
    max_validation_lists: int = Field(default=200, ge=1)
    """Validation lists ranked to learn the weights, a keyed choice."""
    untuned: bool = True
    """Also rank with the untuned model, for the comparison."""
    workers: int = Field(default=2, ge=1)
    """Ray Data actors, each with its own copy of the model."""
