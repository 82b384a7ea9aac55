"""Settings of the instructions."""

from typing import Literal

from pydantic import Field

from recranker.settings import Settings

TaskName = Literal["pointwise", "pairwise", "listwise"]
Hint = Literal["reranker", "backbone", "none"]


class InstructSettings(Settings):
    """What a prompt tells the model and how often it asks."""

    max_liked: int = Field(default=50, ge=0)
    """Liked titles in the history, the most recent ones (RecRanker: 50)."""
    max_disliked: int = Field(default=10, ge=0)
    """Disliked titles in the history, the most recent ones (RecRanker: 10)."""
    hints: Hint = "reranker"
    """Signal in a question: the re-ranker's order, the retriever's with predicted ratings (as the paper), or none."""
    pointwise_answer: Literal["like", "rating"] = "like"
    """'like' asks Yes or No; 'rating' asks for a rating on the data's scale, as the paper does."""
    pointwise_negatives: int = Field(default=1, ge=0)
    """Unrated candidates per training prompt asked about as 'No', where the answer is 'like'."""
    pairs: int = Field(default=2, ge=1)
    """Pairs per training prompt: the target against hard candidates."""
    list_permutations: int = Field(default=2, ge=1)
    """Keyed shuffles of the candidates per listwise question at inference, averaged."""
