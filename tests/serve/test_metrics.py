import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.metrics import ALL, CONTENT_TYPE, Metrics, sanitised_kinds
from tests.serve.fake_service import FakeService, send
from tests.serve.test_ranking import request, served

SECRET = "k4nary"
NAMES = {
    "recranker_requests_total": {"task", "outcome"},
    "recranker_request_duration_seconds": {"task"},
    "recranker_task_retries_total": {"task", "reason"},
    "recranker_degraded_total": {"missing"},
    "recranker_shed_total": set(),
    "recranker_candidates": set(),
    "recranker_prompt_tokens": set(),
    "recranker_input_sanitised_total": {"kind"},
    "recranker_model_swaps_total": set(),
    "recranker_model_refused_total": {"reason"},
    "recranker_shadow_requests_total": {"outcome"},
    "recranker_shadow_kendall_tau": set(),
    "recranker_shadow_rank_biased_overlap": set(),
    "recranker_build_info": {"version", "model_sha"},
}


def test_the_names_are_those_that_are_promised() -> None:
    metrics = Metrics(served())
    metrics.finished("pointwise", "answered", 0.1)
    metrics.retries.labels("pointwise", "replica_lost").inc()
    metrics.degraded.labels("pointwise").inc()
    metrics.sanitised.labels("cut").inc()
    metrics.refused.labels("golden_answers").inc()
    metrics.shadowed.labels("compared").inc()
    found = {
        family.name if family.type == "histogram" else sample.name: set(sample.labels) - {"le"}
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }
    assert found == NAMES


def test_a_request_leaves_numbers_and_no_text() -> None:
    metrics = Metrics(served())
    titles = [f"{SECRET} &amp; {SECRET}", f"<|im_end|>{SECRET}", SECRET]
    metrics.arrived(request(candidates=[{"title": one} for one in titles]), 100)
    metrics.finished(ALL, "shed", 0.2)
    text = metrics.text().decode()
    for line in (
        "recranker_candidates_sum 3.0",
        'recranker_input_sanitised_total{kind="entity"} 1.0',
        'recranker_input_sanitised_total{kind="chat_token"} 1.0',
        'recranker_requests_total{outcome="shed",task="all"} 1.0',
        'recranker_request_duration_seconds_bucket{le="0.25",task="all"} 1.0',
        'recranker_request_duration_seconds_bucket{le="0.1",task="all"} 0.0',
        "recranker_shed_total 1.0",
    ):
        assert line in text.splitlines()
    assert SECRET not in text


@pytest.mark.parametrize(
    ("title", "kinds"),
    [
        ("Alien (1979)", []),
        ("  Alien\n(1979) ", []),
        ("Amélie", []),
        ("A &amp; B", ["entity"]),
        ("A\u200bB", ["control"]),
        ("\uff21lien", ["normalised"]),
        ("x" * 21, ["cut"]),
        ("\ufdfa" * 2, ["normalised", "cut"]),  # NFKC makes 18 characters of one
        ("<|im_end|>", ["chat_token"]),
        ("&lt;|im_end|>", ["entity", "chat_token"]),
    ],
)
def test_what_is_taken_out_of_a_title_is_counted_by_kind(title: str, kinds: list[str]) -> None:
    assert sanitised_kinds(title, 20) == kinds


def test_where_there_are_several_routers_each_sample_names_its_own() -> None:
    metrics = Metrics(served(), router="r1")
    metrics.finished("pointwise", "answered", 0.1)
    for _ in range(2):  # reading leaves no mark
        families = list(text_string_to_metric_families(metrics.text().decode()))
    assert {sample.labels.get("router") for family in families for sample in family.samples} == {"r1"}
    [requests] = [family for family in families if family.name == "recranker_requests"]
    assert requests.samples[0].labels == {"task": "pointwise", "outcome": "answered", "router": "r1"}


def test_prometheus_reads_them_over_http() -> None:
    response = send(FakeService(), "GET", "/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == CONTENT_TYPE
    assert 'recranker_build_info{model_sha="0",version=' in response.text
