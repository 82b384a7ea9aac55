"""What travels over HTTP: the request and answers of ``POST /v1/rank``, and the shape of every error.

An answer holds ids and numbers; no text of a model or of a client comes back.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from recranker.tasks.settings import TaskName


def _is_unicode(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no encoding can write again."""
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise ValueError("half of a surrogate pair is no character")
    return text


Text = Annotated[str, AfterValidator(_is_unicode)]


class Message(BaseModel):
    """Frozen, refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class HistoryEntry(Message):
    """One thing the user rated, liked or disliked."""

    title: Text
    """Title of the item."""
    rating: float | None = None
    """On the scale of the data the model was tuned on."""
    liked: bool | None = None
    """Where there is no rating."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> "HistoryEntry":
        if (self.rating is None) == (self.liked is None):
            raise ValueError("give either 'rating' or 'liked'")
        return self


class Candidate(Message):
    """One item to be ranked."""

    title: Text
    """Title of the item."""
    id: Text | None = Field(default=None, min_length=1, max_length=200)
    """Key the answer names it by; the place in the request, from 0, where it is missing."""
    backbone_score: float | None = Field(default=None, ge=-1e12, le=1e12)
    """The retriever's score, higher is better; for all candidates or for none."""
    predicted_rating: float | None = None
    """A rating predictor's guess, the hint of pointwise questions; for all candidates or for none."""


class Weights(Message):
    """How much each signal counts; they need not sum to 1."""

    pointwise: float = Field(default=0.0, ge=0, le=1e6)
    """Weight of the pointwise task."""
    pairwise: float = Field(default=0.0, ge=0, le=1e6)
    """Weight of the pairwise task."""
    listwise: float = Field(default=0.0, ge=0, le=1e6)
    """Weight of the listwise task."""
    backbone: float = Field(default=0.0, ge=0, le=1e6)
    """Weight of the retriever's own scores."""

    @model_validator(mode="after")
    def _some_count(self) -> "Weights":
        if not any(self.model_dump().values()):
            raise ValueError("at least one weight must be above 0")
        return self


class RankRequest(Message):
    """One user's history and candidates."""

    history: tuple[HistoryEntry, ...] = ()
    """What the user rated or liked, oldest first."""
    candidates: tuple[Candidate, ...] = Field(min_length=2)
    """The items to rank; best first by the retriever, unless backbone scores say what its order is."""
    tasks: tuple[TaskName, ...] | None = Field(default=None, min_length=1)
    """The tasks to ask; all that are served where it is missing."""
    weights: Weights | None = None
    """Replaces the weights learned in the run; signals left out get 0."""

    @model_validator(mode="after")
    def _is_consistent(self) -> "RankRequest":
        ids = candidate_ids(self.candidates)
        if len(set(ids)) != len(ids):
            raise ValueError("candidates must have distinct ids; a missing id is the place in the request, from 0")
        for name in ("backbone_score", "predicted_rating"):
            given = sum(getattr(one, name) is not None for one in self.candidates)
            if given not in (0, len(self.candidates)):
                raise ValueError(f"{name} must be given for all candidates or for none")
        if self.tasks is not None and len(set(self.tasks)) != len(self.tasks):
            raise ValueError("tasks must be distinct")
        return self


class RankedItem(Message):
    """One candidate's place and what it rests on."""

    id: str
    """As in the request."""
    rank: int
    """1 is best."""
    score: float
    """Higher is better; comparable within one answer only."""
    pointwise: float | None = None
    """The task's own score, None where the task was not asked or did not answer."""
    pairwise: float | None = None
    """Likewise."""
    listwise: float | None = None
    """Likewise."""


class ModelInfo(Message):
    """What answered."""

    run: str
    """Name of the run that is served."""
    model: str
    """Its base language model."""
    adapter: str
    """Fingerprint of the tuning."""
    preset: Literal["recranker", "paper"]
    """How scores are put on one scale: z-scores, or the paper's utilities."""
    weights: dict[str, float]
    """Weights used, over the signals that were there."""


class RankResponse(Message):
    """The candidates in their new order."""

    ranking: tuple[RankedItem, ...]
    """Best first; always all candidates."""
    degraded: tuple[TaskName, ...] = ()
    """Tasks asked that did not answer in time; the others decided without them."""
    order: Literal["fused", "backbone"] = "fused"
    """'backbone' where nothing that has a weight answered: the retriever's order, unchanged."""
    model: ModelInfo
    """What answered."""


class Readiness(Message):
    """Answer of ``GET /readyz``."""

    ready: bool
    """Whether at least one task can answer."""
    replicas: dict[str, int]
    """Running replicas per task."""


class ErrorMessage(Message):
    """Every error, whatever the status; never repeats what was sent."""

    code: str
    """One word for programs."""
    message: str
    """One sentence for people."""


def candidate_ids(candidates: tuple[Candidate, ...]) -> list[str]:
    """The id of each candidate, its place in the request where it has none."""
    return [str(place) if one.id is None else one.id for place, one in enumerate(candidates)]
