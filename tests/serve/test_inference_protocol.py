"""Health and metadata as serving platforms ask for them."""

import pytest

from tests.serve.fake_service import FakeService, send


@pytest.mark.parametrize(
    ("path", "ready", "missing_pairwise"),
    [
        ("/v2/health/live", {"live": True}, None),
        ("/v2/health/ready", {"ready": True}, {"ready": False}),
        ("/v2/models/pairwise/ready", {"name": "pairwise", "ready": True}, {"name": "pairwise", "ready": False}),
        ("/v2/models/listwise/ready", {"name": "listwise", "ready": True}, None),
        ("/v2/models/recranker/ready", {"name": "recranker", "ready": True}, {"name": "recranker", "ready": False}),
    ],
)
def test_readiness_is_per_task_and_of_all(path: str, ready: object, missing_pairwise: object) -> None:
    answer = send(FakeService(), "GET", path)
    assert (answer.status_code, answer.json()) == (200, ready)
    answer = send(FakeService(replicas=0), "GET", path)
    assert answer.json() == (missing_pairwise or ready)
    assert answer.status_code == (503 if missing_pairwise else 200)


def test_server_and_models_describe_themselves() -> None:
    server = send(FakeService(), "GET", "/v2").json()
    assert (server["name"], server["extensions"]) == ("recranker", [])
    for name in ("recranker", "pointwise"):
        model = send(FakeService(), "GET", f"/v2/models/{name}").json()
        assert model == {"name": name, "versions": ["0"], "platform": "recranker", "inputs": [], "outputs": []}


def test_a_model_that_is_not_there_is_not_repeated() -> None:
    for path in ("/v2/models/k4nary", "/v2/models/k4nary/ready"):
        answer = send(FakeService(), "GET", path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "k4nary" not in answer.text
