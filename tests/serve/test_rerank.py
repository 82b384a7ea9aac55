"""The rerank contract, by hand and by the client of Cohere itself."""

import asyncio
from typing import Any

import pytest

from serve.messages import RankResponse
from serve.rerank import RerankRequest, as_rank_request, as_rerank_response
from tests.serve.fake_service import MODEL, FakeService, reversed_ranking, send, served_on_loopback
from tests.serve.test_ranking import LIMITS, served

SECRET = "k4nary"
ASKED = {
    "query": "Alien (1979)\n\n  Brazil (1985) \r\n",
    "documents": ["Sabrina", {"text": "Aliens", "year": "1986"}, "Big"],
}
PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")
COHERE = {
    "model": "rerank-v3.5",
    "rank_fields": ["text"],
    "max_chunks_per_doc": 10,
    "max_tokens_per_doc": 4096,
    "relevant_spans": None,
    "priority": 0,
}
JINA = {"model": "jina-reranker-v2-base-multilingual", "truncation": True, "return_embeddings": False}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("extra", [{}, COHERE, JINA])
def test_documents_come_back_as_places_with_scores(path: str, extra: dict[str, Any]) -> None:
    service = FakeService("right")
    headers = {"Authorization": "Bearer right", "x-request-id": "r1"}
    response = send(service, path=path, json=ASKED | extra, headers=headers)
    assert response.json() == {
        "id": "r1",
        "results": [
            {"index": 2, "relevance_score": 0.9},
            {"index": 1, "relevance_score": 0.8},
            {"index": 0, "relevance_score": 0.7},
        ],
        "model": "toy/m",
        "meta": {"api_version": {"version": "2" if "v2" in path else "1"}},
    }
    asked = service.asked[0]
    assert [(one.title, one.liked) for one in asked.history] == [("Alien (1979)", True), ("Brazil (1985)", True)]
    assert [one.title for one in asked.candidates] == ["Sabrina", "Aliens", "Big"]
    assert send(service, path=path, json=ASKED).status_code == 401


def test_a_blank_query_is_a_user_of_whom_nothing_is_known() -> None:
    for query in ("", " \n\t"):
        assert as_rank_request(RerankRequest(query=query, documents=("A",)), LIMITS).history == ()


def test_top_n_and_documents_are_for_the_client_to_choose() -> None:
    asked = {**ASKED, "documents": ["A", " B\u200b  b\n"], "top_n": 1, "return_documents": True}
    results = send(FakeService(), path="/rerank", json=asked).json()["results"]
    assert results == [{"index": 1, "relevance_score": 0.9, "document": {"text": "B b"}}]
    assert len(send(FakeService(), path="/rerank", json={**ASKED, "top_n": 99}).json()["results"]) == 3


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no query": ({"documents": ["A"]}, "query: Field required"),
    "no documents": ({"query": ""}, "documents: Field required"),
    "documents that are none": ({"query": "", "documents": []}, "documents: Tuple should have at least 1 item"),
    "a document without text": ({"query": "", "documents": [{SECRET: SECRET}]}, "documents.0.text: Field required"),
    "a document that is none": ({"query": "", "documents": [7]}, "documents.0: Input should be a valid string"),
    "nothing wanted": ({"query": "", "documents": ["A"], "top_n": 0}, "top_n: "),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_rerank_request_is_refused(case: str) -> None:
    body, message = BAD[case]
    response = send(FakeService(), path="/v1/rerank", json=body)
    assert response.status_code == 422
    assert message in response.json()["message"]
    assert SECRET not in response.text


def test_what_the_scores_lack_is_said_and_they_fall_all_the_same() -> None:
    asked = RerankRequest(query="", documents=("A", "B", "C"))
    ranking = tuple(
        one.model_copy(update={"probability": None}) for one in reversed_ranking(as_rank_request(asked, LIMITS))
    )
    answer = RankResponse(ranking=ranking, model=MODEL, degraded=("pairwise",), order="backbone")
    response = as_rerank_response(answer, asked, served(), request_id=None, version="2")
    scores = [one.relevance_score for one in response.results]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3
    assert all(0.0 < one < 1.0 for one in scores)
    assert response.meta.warnings == (
        "degraded: no answer from pairwise",
        "the order is that of the request, and relevance scores are no probabilities",
    )
    assert len(response.id) == 36


def test_the_client_of_cohere_reads_the_answers() -> None:
    import cohere

    documents = ["Sabrina", "Aliens", "Big"]
    with served_on_loopback(FakeService("right")) as url:
        for kind in (cohere.Client, cohere.ClientV2):
            with kind("right", base_url=url) as client:
                answer = client.rerank(model="any", query="Alien (1979)", documents=documents, top_n=2)
            assert [(one.index, one.relevance_score) for one in answer.results] == [(2, 0.9), (1, 0.8)]
            assert answer.id
        with cohere.Client("right", base_url=url) as client:
            echoed = client.rerank(
                query="", documents=[{"text": "A"}, {"text": "B"}], return_documents=True, rank_fields=["text"]
            )
        assert [one.document and one.document.text for one in echoed.results] == ["B", "A"]
        assert echoed.meta
        assert echoed.meta.api_version
        assert echoed.meta.api_version.version == "1"


def test_the_awaiting_client_of_cohere_reads_the_answers() -> None:
    import cohere

    async def ask(url: str) -> Any:
        async with cohere.AsyncClientV2("right", base_url=url) as client:
            return await client.rerank(model="any", query="Alien", documents=["A", "B"])

    with served_on_loopback(FakeService("right")) as url:
        assert [one.index for one in asyncio.run(ask(url)).results] == [1, 0]


def test_the_client_of_cohere_knows_our_errors() -> None:
    import cohere

    with served_on_loopback(FakeService("right")) as url:
        wrong, right = cohere.Client("wrong", base_url=url), cohere.Client("right", base_url=url)
        with wrong, pytest.raises(cohere.UnauthorizedError, match="Authorization"):
            wrong.rerank(query="", documents=["A"])
        with right, pytest.raises(cohere.UnprocessableEntityError, match="top_n"):
            right.rerank(query="", documents=["A"], top_n=0)
