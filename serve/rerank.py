"""The rerank contract of Cohere and Jina: a query and documents in, indices with relevance scores out.

What their query is to a document, a user's history is here to a candidate: ``query`` holds the titles the user liked,
one per line, oldest first; a blank one is a user of whom nothing is known. ``documents`` are the candidates' titles,
best first by whatever found them. Keys of those clients that mean nothing here are taken and ignored.
"""

import uuid
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from scipy.special import expit

from recranker.data.titles import clean_title
from serve.messages import Candidate, HistoryEntry, Many, Message, RankedItem, RankRequest, RankResponse, Text
from serve.ranking import check_counts
from serve.settings import ServeSettings
from serve.source import ServedRun

PATHS = {"/rerank": "1", "/v1/rerank": "1", "/v2/rerank": "2"}
"""Each with the version of Cohere's contract it stands for; the answers differ in that number alone."""


class Document(Message):
    """A document as an object, which some clients send."""

    model_config = ConfigDict(extra="ignore")

    text: Text
    """Title of the item."""


class RerankRequest(Message):
    """A user's history as a query, and candidates as documents."""

    model_config = ConfigDict(extra="ignore")

    query: Text
    """Titles the user liked, one per line, oldest first; blank where nothing is known."""
    documents: Annotated[tuple[Text | Document, ...], Many] = Field(min_length=1)
    """Titles of the candidates, best first by the retriever."""
    top_n: int | None = Field(default=None, ge=1)
    """How many to answer with; all where it is missing."""
    return_documents: bool | None = None
    """Whether to repeat the documents, as they were ranked."""
    model: Any = None
    """Ignored: what is served answers, and says its name."""


class EchoedDocument(Message):
    """A document of the request."""

    text: str
    """Its title after cleaning."""


class RerankResult(Message):
    """One document's place in the answer."""

    index: int
    """Its place in the request, from 0."""
    relevance_score: float = Field(ge=0, le=1)
    """How likely it is what the user likes next, given that one of the documents is."""
    document: EchoedDocument | None = None
    """Where ``return_documents`` is set."""


class ApiVersion(Message):
    """Of the contract."""

    version: str
    """1 or 2."""


class RerankMeta(Message):
    """What clients may want to know about the answer."""

    api_version: ApiVersion
    """Of the contract."""
    warnings: tuple[str, ...] | None = None
    """What the scores lack."""


class RerankResponse(Message):
    """The documents, most relevant first."""

    id: str
    """The request's id: its ``x-request-id``, or a new one."""
    results: tuple[RerankResult, ...]
    """Best first."""
    model: str
    """Run and base model that answered."""
    meta: RerankMeta
    """About the answer."""


def as_rank_request(request: RerankRequest, limits: ServeSettings) -> RankRequest:
    """The same question in the words of ``/v1/rank``; candidates have their places as ids.

    Raises:
        RefusedError: If there are more of something than may be sent; before anything is made of it, as a body can
            hold a million lines.
    """
    liked = [title for line in request.query.split("\n") if (title := line.strip())]
    check_counts(len(request.documents), len(liked), limits)
    return RankRequest(
        history=tuple(HistoryEntry(title=title, liked=True) for title in liked),
        candidates=tuple(Candidate(title=_text(one)) for one in request.documents),
    )


def as_rerank_response(
    answer: RankResponse, request: RerankRequest, run: ServedRun, *, request_id: str | None, version: str
) -> RerankResponse:
    """``answer`` in the words of the rerank contract."""
    wanted = answer.ranking[: request.top_n]
    return RerankResponse(
        id=request_id or str(uuid.uuid4()),
        results=tuple(_result(one, request, run) for one in wanted),
        model=f"{answer.model.run}/{answer.model.model}",
        meta=RerankMeta(api_version=ApiVersion(version=version), warnings=_warnings(answer)),
    )


def _result(item: RankedItem, request: RerankRequest, run: ServedRun) -> RerankResult:
    index = int(item.id)
    document = None
    if request.return_documents:
        title = clean_title(_text(request.documents[index]), run.data.max_title_characters)
        document = EchoedDocument(text=title)
    # without a probability the order is the retriever's: scores that fall with it keep clients that sort on course
    relevance = float(expit(item.score)) if item.probability is None else item.probability
    return RerankResult(index=index, relevance_score=relevance, document=document)


def _warnings(answer: RankResponse) -> tuple[str, ...] | None:
    found = []
    if answer.degraded:
        found.append(f"degraded: no answer from {', '.join(answer.degraded)}")
    if answer.plan and answer.plan.pairs_asked:
        found.append(f"pairwise: time for {answer.plan.pairs_asked} of {answer.plan.pairs_wanted} pairs")
    if answer.order == "backbone":
        found.append("the order is that of the request, and relevance scores are no probabilities")
    return tuple(found) or None


def _text(document: str | Document) -> str:
    return document if isinstance(document, str) else document.text
