"""What a router counts, as Prometheus reads it; base units, and no text of a user in a label.

Each router replica counts for itself. With one router ``GET /metrics`` tells everything that reached it; with several
each answer is that of one of them, whose name is a label, so that counters of different ones are never mixed: sum over
``router``, in windows of several scrapes. What Serve's proxy refuses before it
reaches a router is counted by Ray (``ray_serve_num_http_error_requests``).
"""

import unicodedata
from collections.abc import Iterable
from html import unescape
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
)

from serve.messages import RankRequest
from serve.source import ServedRun

CONTENT_TYPE = CONTENT_TYPE_LATEST

ALL = "all"
"""Label of a whole request, beside those of its tasks."""
LEFT_OUT = "left_out"
"""Outcome of a task that was not asked, as it could not have answered in time."""
SHED = "shed"
"""Outcome of a whole request that found every queue full, or too long for its deadline."""
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CANDIDATES = (1, 2, 5, 10, 20, 26, 50, 100, 200)
TAUS = (-0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.999)
OVERLAPS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99, 0.999)
TOKENS = (100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000)


class Metrics:
    """The metrics of one process, in a registry of their own.

    Args:
        run: That is served.
        router: Name of this router, where there are several.
    """

    def __init__(self, run: ServedRun, router: str | None = None) -> None:
        self.router = router
        disable_created_metrics()  # type: ignore[no-untyped-call] # a gauge beside every counter, which says when it began
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "requests", "Requests, whole ones and per task, by what became of them", "outcome"
        )
        self.duration = self._histogram("request_duration_seconds", "Seconds until the answer", SECONDS, "task")
        self.retries = self._counter("task_retries", "Calls repeated because the replica was lost", "reason")
        self.degraded = Counter(
            "recranker_degraded", "Answers without a task that was asked", ["missing"], registry=self.registry
        )
        self.shed = Counter("recranker_shed", "Requests refused because every queue was full", registry=self.registry)
        self.candidates = self._histogram("candidates", "Candidates of a request", CANDIDATES)
        self.prompt_tokens = self._histogram(
            "prompt_tokens",
            "Tokens the model computed for a request, all tasks that answered together, explanations aside",
            TOKENS,
        )
        self.sanitised = Counter(
            "recranker_input_sanitised", "Titles changed or made harmless", ["kind"], registry=self.registry
        )
        self.build = Gauge("recranker_build_info", "What answers", ["version", "model_sha"], registry=self.registry)
        self.serves(run)
        self.swaps = Counter("recranker_model_swaps", "Runs that took another's place", registry=self.registry)
        self.refused = Counter(
            "recranker_model_refused", "Runs that were to be served and are not", ["reason"], registry=self.registry
        )
        self.shadowed = Counter(
            "recranker_shadow_requests", "Requests meant for the challenger", ["outcome"], registry=self.registry
        )
        self.shadow_tau = self._histogram("shadow_kendall_tau", "Kendall's tau of both orders", TAUS)
        self.shadow_rbo = self._histogram("shadow_rank_biased_overlap", "RBO of both orders, p = 0.9", OVERLAPS)

    def serves(self, run: ServedRun) -> None:
        """Say that ``run`` is what answers."""
        self.build.clear()
        self.build.labels(package_version(), run.tuning).set(1)

    def swapped(self, run: ServedRun) -> None:
        """Count that ``run`` took another's place."""
        self.serves(run)
        self.swaps.inc()

    def arrived(self, request: RankRequest, max_title_characters: int) -> None:
        """Count what ``request`` holds."""
        self.candidates.observe(len(request.candidates))
        titles = [one.title for one in request.history] + [one.title or "" for one in request.candidates]
        for title in titles:
            for kind in sanitised_kinds(title, max_title_characters):
                self.sanitised.labels(kind).inc()

    def finished(self, task: str, outcome: str, seconds: float) -> None:
        """Count a task's answer, or a whole request's under ``ALL``."""
        if outcome == SHED:
            self.shed.inc()
        self.requests.labels(task, outcome).inc()
        self.duration.labels(task).observe(seconds)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self if self.router else self.registry)

    def collect(self) -> Iterable[Metric]:
        """As a registry's: every sample with the router's name."""
        for family in self.registry.collect():
            family.samples = [one._replace(labels={**one.labels, "router": str(self.router)}) for one in family.samples]
            yield family

    def _counter(self, name: str, what: str, label: str) -> Counter:
        return Counter(f"recranker_{name}", what, ["task", label], registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"recranker_{name}", what, labels, buckets=buckets, registry=self.registry)


def sanitised_kinds(text: str, max_characters: int) -> list[str]:
    """What ``data.titles.clean_title``, or the tokenizer, takes out of a title's power; spaces do not count.

    'entity': an HTML entity; 'control': characters of the categories C*; 'normalised': another Unicode form;
    'cut': longer than allowed; 'chat_token': the spelling of a special token, which stays text.
    """
    if text.isascii() and text.isprintable() and "&" not in text and "<|" not in text and len(text) <= max_characters:
        return []
    plain = unescape(text)
    found = {
        "entity": plain != text,
        "control": any(unicodedata.category(one).startswith("C") and not one.isspace() for one in plain),
        "normalised": not unicodedata.is_normalized("NFKC", plain),
        "cut": len(unicodedata.normalize("NFKC", plain)) > max_characters,
        "chat_token": "<|" in plain,
    }
    return [kind for kind, there in found.items() if there]


def package_version() -> str:
    """Of recranker as installed."""
    try:
        return version("recranker")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
