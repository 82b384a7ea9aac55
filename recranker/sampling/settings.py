"""Settings of user sampling."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recranker.settings import Settings


class UniformSampling(Settings):
    """Every eligible user is equally likely at every draw."""

    kind: Literal["uniform"] = "uniform"
    num_draws: int = Field(default=5000, ge=1)
    """Draws, with replacement (RecRanker: 5,000 for MovieLens-100K)."""


class AdaptiveSampling(Settings):
    """Importance, clustering, then a penalty on repetition (RecRanker section 4.1); defaults are the paper's."""

    kind: Literal["adaptive"] = "adaptive"
    num_draws: int = Field(default=5000, ge=1)
    """Final draws, with replacement (RecRanker: 5,000 for MovieLens-100K)."""
    importance_share: float = Field(default=0.6, ge=0)
    """Draws into the pool in proportion to the logarithm of likes, as a share of num_draws; 0 leaves this out."""
    cluster_share: float = Field(default=0.6, ge=0)
    """Draws into the pool from clusters in proportion to their size, as a share of num_draws; 0 leaves this out."""
    num_clusters: int = Field(default=10, ge=1)
    """k-means clusters over the retriever's user embeddings (RecRanker: 10)."""
    cluster_fit_users: int = Field(default=200_000, ge=1)
    """Users whose embeddings the clusters are fitted to, at most, a keyed choice; all users are put into clusters."""
    repetition_penalty: float = Field(default=0.95, gt=0, le=1)
    """C: a user n times in the pool has mass n * C^(n - 1) (RecRanker: 0.95)."""

    @property
    def importance_draws(self) -> int:
        """Draws into the pool by importance."""
        return round(self.importance_share * self.num_draws)

    @property
    def cluster_draws(self) -> int:
        """Draws into the pool by cluster."""
        return round(self.cluster_share * self.num_draws)

    @model_validator(mode="after")
    def _pool_is_filled(self) -> "AdaptiveSampling":
        if self.importance_draws + self.cluster_draws < 1:
            raise ValueError(
                f"sampling.importance_share={self.importance_share:g} and sampling.cluster_share="
                f"{self.cluster_share:g} of sampling.num_draws={self.num_draws} leave the pool empty; raise one of them"
            )
        if self.cluster_fit_users < self.num_clusters:
            raise ValueError(
                f"sampling.cluster_fit_users={self.cluster_fit_users} must be at least "
                f"sampling.num_clusters={self.num_clusters}"
            )
        return self


class PaperSampling(Settings):
    """Adaptive sampling with the paper's numbers, whatever the defaults become."""

    kind: Literal["paper"] = "paper"
    num_draws: int = Field(default=5000, ge=1)
    """Final draws: 5,000 in the paper for MovieLens-100K and BookCrossing, 10,000 for MovieLens-1M."""

    @property
    def adaptive(self) -> AdaptiveSampling:
        """The same, spelled out."""
        return AdaptiveSampling(
            num_draws=self.num_draws,
            importance_share=0.6,
            cluster_share=0.6,
            num_clusters=10,
            repetition_penalty=0.95,
        )


SamplingSettings = Annotated[AdaptiveSampling | PaperSampling | UniformSampling, Field(discriminator="kind")]
