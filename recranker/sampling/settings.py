"""Settings of user sampling."""

from typing import Annotated, Literal

from pydantic import Field

from recranker.settings import Settings


class UniformSampling(Settings):
    """Every eligible user is equally likely at every draw."""

    kind: Literal["uniform"] = "uniform"
    num_draws: int = Field(default=5000, ge=1)
    """Draws, with replacement (RecRanker: 5,000 for MovieLens-100K)."""


class AdaptiveSampling(Settings):
    """Importance, clustering, then a penalty on repetition (RecRanker section 4.1)."""

    kind: Literal["adaptive"] = "adaptive"
    num_draws: int = Field(default=5000, ge=1)
    """Final draws, with replacement (RecRanker: 5,000 for MovieLens-100K)."""
    pool_share: float = Field(default=0.6, gt=0)
    """Draws of each of the two pools, as a share of ``num_draws`` (RecRanker: 0.6)."""
    num_clusters: int = Field(default=10, ge=1)
    """k-means clusters over the retriever's user embeddings (RecRanker: 10)."""
    repetition_penalty: float = Field(default=0.95, gt=0, le=1)
    """C: a user n times in the pool has mass n * C^(n - 1) (RecRanker: 0.95)."""


SamplingSettings = Annotated[AdaptiveSampling | UniformSampling, Field(discriminator="kind")]
