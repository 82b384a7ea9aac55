"""Settings of ranking and fusion."""

from typing import Literal, get_args

from pydantic import Field, model_validator

from recranker.settings import Settings

CalibrationKind = Literal["temperature", "isotonic"]
"""Platt scaling, or a monotone curve through the data."""


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
    untuned_without_hints: bool = True
    """And with the untuned model that sees no hints."""
    workers: int = Field(default=2, ge=1)
    """Ray Data actors, each with its own copy of the model."""
    calibration: CalibrationKind = "temperature"
    """How scores become probabilities, learned on validation: 'temperature' has two numbers, 'isotonic' any rising
    shape, which needs more lists."""


FeatureGroup = Literal["backbone", "signals", "ratings", "similarity", "transitions", "popularity", "time", "text"]
"""Kinds of evidence: the retriever's score and place; those of other backbones; predicted ratings; closeness to the
last likes; what followed them; popularity, activity and cold flags; recency; genres and titles."""

ConventionalModel = Literal["logistic", "trees", "lambdamart"]

Reranker = Literal["logistic", "trees", "lambdamart", "logistic_text", "trees_text", "lambdamart_text"]
"""A conventional re-ranker; '_text' ones look at genres and titles too."""


class ConventionalSettings(Settings):
    """The conventional re-rankers: the bar that an LLM is held against, its hint and its teacher."""

    models: tuple[ConventionalModel, ...] = Field(default=("logistic", "trees"), min_length=1)
    """Which are fitted, each with and without text; 'lambdamart' needs LightGBM, recranker[lambdamart]."""
    hint: Reranker = "logistic_text"
    """Whose scores are quoted in prompts and teach the LLM (the default did best on validation lists of MovieLens)."""
    groups: tuple[FeatureGroup, ...] = get_args(FeatureGroup)
    """What they may look at; without 'text' there are no '_text' ones."""
    min_lists: int = Field(default=50, ge=10)
    """With fewer training lists that hold their target nothing is fitted and the retriever's scores are kept."""

    @model_validator(mode="after")
    def _hint_is_fitted(self) -> "ConventionalSettings":
        model, _, text = self.hint.partition("_")
        if model not in self.models:
            raise ValueError(f"conventional.hint {self.hint!r} needs {model!r} in conventional.models {self.models}")
        if text and "text" not in self.groups:
            raise ValueError(f"conventional.hint {self.hint!r} needs 'text' in conventional.groups {self.groups}")
        if not {"backbone", "similarity", "transitions", "popularity"} & set(self.groups):
            raise ValueError(
                "conventional.groups needs one of 'backbone', 'similarity', 'transitions' or 'popularity', "
                f"which all data have, got {self.groups}"
            )
        return self
