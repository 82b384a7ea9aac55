"""Settings of the evaluation."""

from pydantic import Field

from recranker.settings import Settings


class EvaluationSettings(Settings):
    """How results are judged."""

    bootstrap_samples: int = Field(default=2000, ge=100)
    """Paired resamples of users behind each interval."""
