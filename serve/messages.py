"""What travels over HTTP: requests and answers of ``POST /v1/rank``, several of them at once, and every error's shape.

An answer holds ids and numbers; no text of a model or of a client comes back. Only demo users come with titles, those
of the published catalogue.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, WithJsonSchema, model_validator

from recranker.data.sources.raw import MAX_ID_CHARACTERS
from recranker.tasks.settings import TaskName


def _is_unicode(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no encoding can write again."""
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise ValueError("half of a surrogate pair is no character")
    return text


Text = Annotated[str, AfterValidator(_is_unicode)]


class _FirstFault(FailFast):
    """Pydantic's own is not hashable, so that it cannot stand in a union."""

    __hash__ = object.__hash__


Many = _FirstFault()
"""Of a list that clients send: the first entry that is wrong speaks for all, as a body can hold half a million."""

ErrorCode = Literal[
    "unauthorized",
    "not_found",
    "method_not_allowed",
    "too_slow",
    "too_large",
    "invalid_request",
    "limit_exceeded",
    "not_served",
    "refused",
    "busy",
    "unavailable",
    "deadline_exceeded",
    "internal_error",
]
"""What went wrong, for programs; these words do not change."""
UserState = Literal["known", "unknown", "unavailable"]
LeftOut = Literal["queue", "deadline", "no_replica", "too_long"]
"""Why a task was not asked: the questions before it take too long; its answer alone takes longer than there is; all its
replicas are gone and the new ones not there yet; a question of it has more tokens than the model reads
(llm.max_prompt_tokens of the run)."""
RefusalCode = Literal[
    "invalid", "not_readable", "not_loaded", "golden_answers", "other_tasks", "no_users", "users", "late"
]
"""Why a run is not served: what was asked for makes no sense; a file of the run is missing, broken or not the one that
was meant; the model cannot be loaded; it does not answer as the trained one did; it has other tasks; no users are
published for it, as they are for the run that answers; they do not fit it; it was not ready in time."""


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

    title: Text | None = None
    """Title of the item; may be left out beside the id of an item whose title is published."""
    id: Text | None = Field(default=None, min_length=1, max_length=MAX_ID_CHARACTERS)
    """Key the answer names it by; the place in the request, from 0, where it is missing."""
    backbone_score: float | None = Field(default=None, ge=-1e12, le=1e12)
    """The retriever's score, higher is better; for all candidates or for none."""
    predicted_rating: float | None = None
    """A rating predictor's guess, the hint of pointwise questions; for all candidates or for none."""
    hint_score: float | None = Field(default=None, ge=-1e12, le=1e12)
    """Another ranker's score, whose order prompts quote in place of the retriever's; for all candidates or for none."""

    @model_validator(mode="after")
    def _has_a_name(self) -> "Candidate":
        if self.title is None and self.id is None:
            raise ValueError("give a 'title', or the 'id' of an item whose title is published")
        return self


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

    user_id: Text | None = Field(default=None, min_length=1, max_length=MAX_ID_CHARACTERS)
    """A user whose history is published, in place of a history; of an unknown one nothing is known."""
    history: Annotated[tuple[HistoryEntry, ...], Many] = ()
    """What the user rated or liked, oldest first."""
    candidates: Annotated[tuple[Candidate, ...], Many] = Field(default=(), min_length=1)
    """The items to rank; best first by the retriever, unless backbone scores say what its order is. Left out beside a
    user_id: those the retriever offered this user, or the most popular items."""
    tasks: Annotated[tuple[TaskName, ...], Many] | None = Field(default=None, min_length=1)
    """The tasks to ask; all that are served where it is missing."""
    weights: Weights | None = None
    """Replaces the weights learned in the run; signals left out get 0."""
    deadline_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    """Milliseconds from the arrival of the request until it is answered with what has come; the service's own limit
    where it is missing or longer."""
    explain: bool = False
    """Whether to ask again without each of the latest entries of the history, to see what they change."""

    @model_validator(mode="after")
    def _is_consistent(self) -> "RankRequest":
        if self.user_id is not None and self.history:
            raise ValueError("give either 'user_id' or 'history'")
        if self.user_id is None and not self.candidates:
            raise ValueError("give 'candidates', or a 'user_id' whose candidates are published")
        ids = candidate_ids(self.candidates)
        if len(set(ids)) != len(ids):
            raise ValueError("candidates must have distinct ids; a missing id is the place in the request, from 0")
        for name in ("backbone_score", "predicted_rating", "hint_score"):
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
    probability: float | None = Field(default=None, ge=0, le=1)
    """How likely this is what the user likes next, given that one of the candidates is. Calibrated for the run's own
    weights, so less exact where a task is missing or the request has weights; None in the retriever's order."""
    pointwise: float | None = None
    """The task's own score, None where the task was not asked or did not answer."""
    pairwise: float | None = None
    """Likewise."""
    listwise: float | None = None
    """Likewise."""
    signals: dict[str, float] = {}
    """What decided, per task and for the retriever, on one scale: weighted by ``model.weights`` they add up to the
    score, and other weights give the order that a request with those weights would get."""
    backbone_rank: int
    """Place in the retriever's order, 1 is best."""
    hint: int | None = None
    """Place that the prompts quoted; None where they quote none."""


class Influence(Message):
    """What one entry of the history changes."""

    history: int
    """Place of the entry in the history, 0 = oldest."""
    lifts: dict[str, float]
    """Per candidate its score minus that without the entry; above 0: the entry speaks for it."""


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


class Plan(Message):
    """What was left out for the answer to be there in time."""

    left_out: dict[TaskName, LeftOut] = {}
    """Tasks that were not asked, and why: 'queue', the questions before would have taken too long; 'deadline', there
    was too little time even without them; 'no_replica', none of its replicas runs just now; 'too_long', with these
    titles one of its questions has more tokens than the model reads."""
    pairs_asked: int | None = Field(default=None, ge=1)
    """Pairs of candidates asked about, neighbours in the quoted order first; None where all that were wanted."""
    pairs_wanted: int | None = Field(default=None, ge=1)
    """Pairs that there would have been with more time; None likewise."""


class RankResponse(Message):
    """The candidates in their new order."""

    ranking: tuple[RankedItem, ...]
    """Best first; always all candidates."""
    degraded: tuple[TaskName, ...] = ()
    """Tasks wanted that did not answer in time, or were left out; the others decided without them."""
    plan: Plan | None = None
    """What was left out, and why; None where everything was asked."""
    order: Literal["fused", "backbone"] = "fused"
    """'backbone' where nothing that has a weight answered: the retriever's order, unchanged."""
    user: UserState | None = None
    """Whether the user_id is known; 'unavailable' where it could not be looked up, so that the order knows nothing of
    the user. None where the request named none."""
    influences: tuple[Influence, ...] | None = None
    """Of the latest entries of the history, the latest first; None where no explanation was asked for."""
    model: ModelInfo
    """What answered."""


class DemoUser(Message):
    """A user to try the service with."""

    user_id: str
    """Key for ``/v1/rank``."""
    history: tuple[HistoryEntry, ...]
    """As ``/v1/rank`` takes it from the store."""
    candidates: tuple[Candidate, ...]
    """Likewise."""


class DemoUsers(Message):
    """Answer of ``GET /v1/demo-users``."""

    users: tuple[DemoUser, ...]
    """None where no users are published."""


class BatchRequest(Message):
    """Several requests at once."""

    requests: tuple[Annotated[Any, WithJsonSchema({"$ref": "#/components/schemas/RankRequest"})], ...] = Field(
        min_length=1
    )
    """Each as for ``/v1/rank``; one that is wrong is refused by itself."""
    deadline_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    """For all of them together; one that names a shorter one keeps it."""


class Refusal(Message):
    """A run that was to be served and is not."""

    run: str
    """Its name."""
    code: RefusalCode
    """Why."""
    handover: str = ""
    """Which attempt it was."""


class ModelState(Message):
    """Which run answers, and whether another is to take its place."""

    run: str
    """Name of the run that answers."""
    adapter: str
    """Fingerprint of its tuning."""
    loading: str | None = None
    """Name of the run that is being made ready."""
    refused: Refusal | None = None
    """The last run that was to be served, where it was refused."""


class Readiness(Message):
    """Answer of ``GET /readyz``."""

    ready: bool
    """Whether every task can answer."""
    replicas: dict[str, int]
    """Running replicas per task; a replica runs once its model has reproduced its golden answers."""
    missing: tuple[str, ...] = ()
    """Tasks without one."""
    model: ModelState | None = None
    """What this router answers with."""


class Limit(Message):
    """A bound that a request went beyond."""

    name: str
    """The setting of the service, see serve/settings.py."""
    value: float
    """What it allows."""


class ErrorMessage(Message):
    """Every error, whatever the status; never repeats what was sent."""

    code: ErrorCode
    """One word for programs."""
    message: str
    """One sentence for people."""
    limit: Limit | None = None
    """The bound, where the error is about one."""


class BatchAnswer(Message):
    """The answer to one request of several: a response or an error."""

    status: int
    """What ``/v1/rank`` would have answered with: 200, 422, 503, 504 or 500."""
    response: RankResponse | None = None
    """Where the status is 200."""
    error: ErrorMessage | None = None
    """Otherwise."""


class BatchResponse(Message):
    """The answers, in the order of the requests."""

    answers: tuple[BatchAnswer, ...]
    """One per request."""


def candidate_ids(candidates: tuple[Candidate, ...]) -> list[str]:
    """The id of each candidate, its place in the request where it has none."""
    return [str(place) if one.id is None else one.id for place, one in enumerate(candidates)]


def known_names() -> set[str]:
    """Every key that a message has, so that an error may name it."""
    return {name for kind in Message.__subclasses__() for name in kind.model_fields}
