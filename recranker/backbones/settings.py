"""Settings of the conventional recommenders."""

from typing import Annotated, Literal

from pydantic import Field

from recranker.settings import Settings


class FactorSettings(Settings):
    """What all factor models share."""

    dim: int = Field(default=64, ge=2)
    """Width of the embeddings (RecRanker: 64)."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Adam step size (RecRanker: 1e-3)."""
    batch_size: int = Field(default=2048, ge=1)
    """Training events per step, all workers together (RecRanker: 2048)."""
    l2: float = Field(default=1e-4, ge=0)
    """Weight of the squared norm of a batch's embeddings, per event (RecRanker: 1e-4)."""
    epochs: int = Field(default=100, ge=1)
    """Passes over the training events at the most."""


class RetrieverSettings(FactorSettings):
    """A factor model under the BPR loss that stops early by validation HR@10."""

    patience: int = Field(default=5, ge=1)
    """Validation checks without a better HR@10 before training stops."""
    check_every: int = Field(default=10, ge=1)
    """Epochs between two validation checks."""


class MFSettings(RetrieverSettings):
    """Matrix factorisation under the BPR loss."""

    kind: Literal["mf"] = "mf"


class LightGCNSettings(RetrieverSettings):
    """LightGCN under the BPR loss."""

    kind: Literal["lightgcn"] = "lightgcn"
    learning_rate: float = Field(default=3e-3, gt=0)
    """Adam step size (RecRanker: 1e-3; this gets as far on validation in half the epochs)."""
    layers: int = Field(default=2, ge=1)
    """Propagation layers (RecRanker: 2)."""
    epochs: int = Field(default=300, ge=1)
    """Passes over the training likes at the most (RecRanker: 300)."""


class RatingPredictorSettings(FactorSettings):
    """Biased matrix factorisation under squared error: the pointwise hint."""

    dim: int = Field(default=16, ge=2)
    """Width of the embeddings."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """Adam step size."""
    l2: float = Field(default=0.15, ge=0)
    """Weight of the squared norm of a batch's embeddings and biases, per event."""
    epochs: int = Field(default=30, ge=1)
    """Passes over the training ratings."""


Retriever = Annotated[MFSettings | LightGCNSettings, Field(discriminator="kind")]


class BackboneSettings(Settings):
    """Which recommender proposes candidates, and how training lists are rolled back."""

    retriever: Retriever = LightGCNSettings()
    """The recommender whose top items are re-ranked."""
    rating_predictor: RatingPredictorSettings = RatingPredictorSettings()
    """The model behind the pointwise hint."""
    num_candidates: int = Field(default=10, ge=2, le=26)
    """Items per candidate list (RecRanker: 10)."""
    rolled_back_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of a user's training likes, the latest, that become training targets; no rolled-back fit sees them."""
    max_targets_per_user: int = Field(default=10, ge=1)
    """Rolled-back targets of one user at the most."""
    validation_in_history: bool = True
    """Whether the validation like is known at test time (in the history, not a candidate); no fit ever sees it."""
    workers: int = Field(default=1, ge=1)
    """Ray Train workers that share each batch."""
