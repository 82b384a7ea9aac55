"""Settings of the instructions."""

from string import ascii_uppercase
from typing import Literal

from pydantic import Field, model_validator

from recranker.settings import Settings

TaskName = Literal["pointwise", "pairwise", "listwise"]
Hint = Literal["reranker", "backbone", "none"]
PairSchedule = Literal["disjoint", "all", "budgeted"]

MAX_CANDIDATES = 200
"""Candidates of one list."""
MAX_SHOWN = len(ascii_uppercase)
"""Candidates of one listwise question: a letter each."""


class InstructSettings(Settings):
    """What a prompt tells the model and how often it asks."""

    max_liked: int = Field(default=50, ge=0)
    """Liked titles in the history, the most recent ones (RecRanker: 50)."""
    max_disliked: int = Field(default=10, ge=0)
    """Disliked titles in the history, the most recent ones (RecRanker: 10)."""
    min_liked: int = Field(default=0, ge=0)
    """Likes before a list without which it is put aside; 0 asks about lists of users of whom no like is known too."""
    templates: str | None = None
    """File with the texts of prompts, or a folder that holds just one; None takes this version's own."""
    hints: Hint = "reranker"
    """Signal in a question: the re-ranker's order, the retriever's with predicted ratings (as the paper), or none."""
    pointwise_answer: Literal["like", "rating"] = "like"
    """'like' asks Yes or No; 'rating' asks for a rating on the data's scale, as the paper does."""
    pointwise_negatives: int = Field(default=1, ge=0)
    """Unrated candidates per training prompt asked about as 'No', where the answer is 'like'."""
    pairs: int = Field(default=2, ge=1)
    """Pairs per training prompt: the target against hard candidates."""
    pair_schedule: PairSchedule = "budgeted"
    """Pairs at inference: 'disjoint' halves of a shuffle (RecRanker), which leave most items uncompared, 'all' pairs,
    or 'budgeted': neighbours in the order that hints quote, the nearest first."""
    pairs_per_candidate: int = Field(default=1, ge=1)
    """Pairs per candidate of a list, at the most, where the schedule is 'budgeted'; each is asked in both orders."""
    list_permutations: int = Field(default=2, ge=1, le=100)
    """Keyed shuffles of the candidates at inference, at the most, averaged; a third and further ones are there for
    lists whose order the one before has changed."""
    list_window: int = Field(default=20, ge=2, le=MAX_SHOWN)
    """Candidates per listwise question where a list has more than 26."""
    list_stride: int = Field(default=15, ge=1)
    """Places of the shuffle from one such question to the next, at the most; below list_window they overlap, which
    is what ties their answers together."""

    @model_validator(mode="after")
    def _enough_likes_are_shown(self) -> "InstructSettings":
        if self.min_liked > self.max_liked:
            raise ValueError(
                f"instruct.min_liked {self.min_liked} must be at most instruct.max_liked {self.max_liked}, as likes "
                "are counted as shown"
            )
        return self

    @model_validator(mode="after")
    def _windows_leave_no_gap(self) -> "InstructSettings":
        if self.list_stride > self.list_window:
            raise ValueError(
                f"instruct.list_stride {self.list_stride} must be at most instruct.list_window {self.list_window}, "
                "or no question would ask about the items between two windows"
            )
        return self
