"""Settings of the conventional recommenders."""

from typing import Annotated, Literal

from pydantic import Field

from recranker.parquet import ParquetLimits
from recranker.settings import Settings


class FactorSettings(Settings):
    """What all trained models share."""

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
    """A trained model that stops early by validation NDCG@10."""

    patience: int = Field(default=5, ge=1)
    """Validation checks without a better NDCG@10 before training stops."""
    check_every: int = Field(default=10, ge=1)
    """Epochs between two validation checks."""


class PopularitySettings(Settings):
    """What most people like, the same for everybody."""

    kind: Literal["popularity"] = "popularity"


class ItemKNNSettings(Settings):
    """Nearest neighbours of the liked items, by cosine."""

    kind: Literal["item_knn"] = "item_knn"
    neighbours: int = Field(default=100, ge=1)
    """Neighbours kept per item."""
    shrinkage: float = Field(default=10.0, ge=0)
    """Users added to the denominator of the cosine, so that few common users count less."""
    decay: float = Field(default=0.9, gt=0, le=1)
    """Weight of a like one step further back in the history; 1 weighs all alike."""


class EASESettings(Settings):
    """EASE: an item-item matrix in closed form."""

    kind: Literal["ease"] = "ease"
    l2: float = Field(default=200.0, gt=0)
    """Penalty added to the diagonal of the Gram matrix, in users."""
    decay: float = Field(default=0.9, gt=0, le=1)
    """Weight of a like one step further back in the history; 1 weighs all alike."""


class MFSettings(RetrieverSettings):
    """Matrix factorisation under the BPR loss."""

    kind: Literal["mf"] = "mf"
    l2: float = Field(default=1e-3, ge=0)
    """Weight of the squared norm of a batch's embeddings, per event (RecRanker: 1e-4; better on validation)."""
    epochs: int = Field(default=200, ge=1)
    """Passes over the training likes at the most (RecRanker: 100)."""


class GraphSettings(RetrieverSettings):
    """What the models on the graph of likes share."""

    learning_rate: float = Field(default=5e-3, gt=0)
    """Adam step size (RecRanker: 1e-3; this gets as far on validation in a fraction of the epochs)."""
    l2: float = Field(default=3e-4, ge=0)
    """Weight of the squared norm of a batch's embeddings, per event (RecRanker: 1e-4; better on validation)."""
    layers: int = Field(default=2, ge=1)
    """Propagation layers (RecRanker: 2)."""


class LightGCNSettings(GraphSettings):
    """LightGCN under the BPR loss."""

    kind: Literal["lightgcn"] = "lightgcn"
    epochs: int = Field(default=300, ge=1)
    """Passes over the training likes at the most (RecRanker: 300)."""


class SGLSettings(GraphSettings):
    """SGL: LightGCN with a contrastive loss between two views of the graph."""

    kind: Literal["sgl"] = "sgl"
    contrast: float = Field(default=0.01, ge=0)
    """Weight of the contrastive loss per event, lambda (RecRanker: 0.1; ML-100K's validation prefers less)."""
    edge_drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of likes left out of each view (RecRanker: 0.1)."""
    temperature: float = Field(default=0.2, gt=0)
    """Temperature of the contrastive softmax (RecRanker: 0.2)."""
    epochs: int = Field(default=100, ge=1)
    """Passes over the training likes at the most (RecRanker: 20)."""
    check_every: int = Field(default=5, ge=1)
    """Epochs between two validation checks."""


class MixGCFSettings(GraphSettings):
    """MixGCF: LightGCN against hard negatives mixed from many and from the liked item."""

    kind: Literal["mixgcf"] = "mixgcf"
    layers: int = Field(default=3, ge=1)
    """Propagation layers (RecRanker: 3)."""
    negatives: int = Field(default=8, ge=1)
    """Items the hard negative of a like is mixed from (RecRanker: 64; ML-100K's validation prefers fewer)."""
    epochs: int = Field(default=300, ge=1)
    """Passes over the training likes at the most (RecRanker: 500)."""


class SASRecSettings(RetrieverSettings):
    """SASRec: self-attention over the order of likes."""

    kind: Literal["sasrec"] = "sasrec"
    layers: int = Field(default=2, ge=1)
    """Self-attention blocks (SASRec: 2)."""
    heads: int = Field(default=1, ge=1)
    """Attention heads (SASRec: 1)."""
    max_length: int = Field(default=50, ge=2)
    """Latest likes looked at."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of activations dropped in training (SASRec: 0.2 on MovieLens)."""
    negatives: int | None = Field(default=None, ge=1)
    """Items in the softmax beside the next one, drawn anew for each step; None takes the whole catalogue."""
    batch_size: int = Field(default=128, ge=1)
    """Sequences per step, all workers together (SASRec: 128)."""
    l2: float = Field(default=0.0, ge=0)
    """Weight of the squared norm of the item embeddings, per sequence."""
    epochs: int = Field(default=100, ge=1)
    """Passes over the sequences at the most."""
    check_every: int = Field(default=5, ge=1)
    """Epochs between two validation checks."""
    patience: int = Field(default=3, ge=1)
    """Validation checks without a better NDCG@10 before training stops."""


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


class OwnCandidates(Settings):
    """A team's own candidates with scores, in place of a backbone of ours."""

    kind: Literal["own"] = "own"
    path: str
    """Parquet file or folder: columns user_id, split ('train', 'validation', 'test'), target_id, item_id, score."""
    parquet: ParquetLimits = ParquetLimits()
    """What the file or folder may hold at most."""


Trained = MFSettings | LightGCNSettings | SGLSettings | MixGCFSettings | SASRecSettings
ClosedForm = PopularitySettings | ItemKNNSettings | EASESettings
Signal = Annotated[PopularitySettings | ItemKNNSettings | EASESettings, Field(discriminator="kind")]
Retriever = Annotated[
    PopularitySettings
    | ItemKNNSettings
    | EASESettings
    | MFSettings
    | LightGCNSettings
    | SGLSettings
    | MixGCFSettings
    | SASRecSettings
    | OwnCandidates,
    Field(discriminator="kind"),
]


class BackboneSettings(Settings):
    """Which recommender proposes candidates, and how training lists are rolled back."""

    retriever: Retriever = LightGCNSettings()
    """The recommender whose top items are re-ranked."""
    signals: tuple[Signal, ...] = (EASESettings(), ItemKNNSettings())
    """Further recommenders whose scores of the candidates the conventional re-ranker sees."""
    rating_predictor: RatingPredictorSettings = RatingPredictorSettings()
    """The model behind the pointwise hint."""
    num_candidates: int = Field(default=10, ge=2, le=200)  # tasks.settings.MAX_CANDIDATES, which stands below here
    """Items per candidate list (RecRanker: 10)."""
    rolls: int = Field(default=1, ge=0)
    """Earlier moments training lists are made at, each with fits of its own. 0 compares backbones alone: no training
    lists, no rating predictor."""
    rolled_back_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of a user's training likes, the latest, that become training targets; no rolled-back fit sees them."""
    max_targets_per_user: int = Field(default=10, ge=1)
    """Rolled-back targets of one user at the most."""
    validation_in_history: bool = True
    """Whether the validation like is known at test time (in the history, not a candidate); no fit ever sees it."""
    workers: int = Field(default=1, ge=1)
    """Ray Train workers that share each batch."""
    checkpoint_every_s: float = Field(default=60.0, ge=0)
    """Seconds of training between two checkpoints a killed run goes on from, each some seconds of waiting; 0 makes one
    after every epoch."""
