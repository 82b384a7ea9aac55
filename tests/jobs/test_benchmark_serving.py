import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import benchmark
from jobs.benchmarks import serving, serving_engine
from jobs.benchmarks.serving import Outcome, Served
from jobs.benchmarks.serving_engine import Speed, engine_speed, load_scorers, one_tree_of, prompts_of
from jobs.benchmarks.serving_load import (
    RECOVERY_S,
    judged,
    memory_figures,
    recovery_s,
    row,
    warm_and_last,
)
from jobs.benchmarks.settings import ServingBenchmark
from jobs.load.bodies import bodies
from jobs.load.capacity import Capacity
from jobs.load.plan import Sent
from recranker.settings import load_settings
from serve.settings import ServeSettings
from serve.source import read_run
from tests.jobs.load.published import USERS, published_run, sent
from tests.jobs.small import job

CONFIG = """
users = {users}
lone_requests = 3
clients = 4
saturation_s = 3
steady_s = 3
steady_shares = [0.5]
overload_s = 3
soak_minutes = 0.05
generated_requests = 1
cpus = 2
object_store_mb = 100
[service]
run = "{run}"
home = "{home}"
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ServeSettings:
    return published_run(tmp_path_factory.mktemp("run"))


def served(lone: list[Sent]) -> Served:
    return Served([], lone, Capacity(0.8, 0.4, []), {"held": True}, None)


def test_figures_by_hand() -> None:
    lone = [sent(0, 2.010, engine_ms=2000.0), sent(1, 1.508, engine_ms=1500.0), sent(2, 1.020, engine_ms=1001.0)]
    found = serving.figures(served(lone), Speed(60, 1.0, 0.5), Speed(60, 1.6, 0.8), 0.025)
    assert found["router_ms_p50"] == pytest.approx(10.0)  # of 10, 8 and 19 ms
    assert found["throughput_share"] == 0.8
    assert found["throughput_share_one_tree"] == 0.5
    assert found["throughput_share_of_cpu_s"] == pytest.approx(0.8)
    assert found["speedup_over_generate_app"] == pytest.approx(16.0)
    assert (found["overload"], found["soak"]) == ({"held": True}, None)


def test_figures_of_shared_replicas_by_hand() -> None:
    shared = Served([], [sent(0, 1.508, engine_ms=1500.0)], Capacity(1.2, 0.6, []), None, None)
    found = serving.shared_figures(shared, Speed(60, 1.6, 0.8), 0.025)
    assert found["shared_throughput_share_one_tree"] == pytest.approx(0.75)
    assert found["shared_speedup_over_generate_app"] == pytest.approx(24.0)
    assert found["shared_router_ms_p50"] == pytest.approx(8.0)
    assert (found["shared_requests_per_s"], found["shared_requests_per_cpu_s"]) == (1.2, 0.6)
    assert set(serving.shared_figures(None, None, 0.025).values()) == {None}


def test_what_was_not_measured_is_none() -> None:
    found = serving.figures(served([sent(0)]), Speed(60, 1.0, 0.5), None, None)
    for name in ("router_ms_p50", "throughput_share_one_tree", "speedup_over_generate_app"):
        assert found[name] is None, name


def test_overload_holds_where_everybody_is_answered_in_time_or_told_when_to_come_again() -> None:
    kept = [sent(0, 0.9), sent(1, 1.2, degraded=True), sent(2, 0.1, 503, retry_after=True)]
    found = judged(kept, deadline_ms=1000, grace_ms=250)
    assert (found["held"], found["late"], found["ok"], found["degraded"], found["busy"]) == (True, 0, 1, 1, 1)
    assert judged([*kept, sent(3, 1.3)], deadline_ms=1000, grace_ms=250)["late"] == 1
    assert not judged([*kept, sent(3, 1.3)], deadline_ms=1000, grace_ms=250)["held"]
    assert not judged([*kept, sent(3, 0.1, 503)], deadline_ms=1000, grace_ms=250)["held"]
    assert not judged([*kept, sent(3, 0.1, 504)], deadline_ms=1000, grace_ms=250)["held"]
    # sent late by the sender: the service had the request for 0.9 s only
    assert judged([sent(0, 1.9, late_s=1.0)], deadline_ms=1000, grace_ms=0)["held"]


class Clock:
    """Time that passes as it is told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def asking(self, *answers: tuple[float, int, bool]) -> object:
        """Requests one after the other that take so long, with status and whether degraded; the last one for ever."""
        left = list(answers)

        def ask() -> Sent:
            took, status, degraded = left.pop(0) if len(left) > 1 else left[0]
            start, self.seconds = self.seconds, self.seconds + took
            return Sent(0, start, start, self.seconds, status, degraded, True)

        return ask


def test_recovery_ends_where_a_request_is_sent_that_is_answered_as_usual() -> None:
    clock = Clock()
    ask = clock.asking((0.2, 503, False), (1.5, 200, True), (3.0, 200, False), (0.9, 200, False))
    found = recovery_s(ask, 1.0, now=clock.now, sleep=clock.sleep)  # type: ignore[arg-type]
    assert found == pytest.approx(0.2 + 0.1 + 1.5 + 0.1 + 3.0 + 0.1)  # refused, degraded, slow; a pause after each


def test_a_service_that_stays_slow_has_not_recovered() -> None:
    clock = Clock()
    assert recovery_s(clock.asking((2.0, 200, False)), 1.0, now=clock.now, sleep=clock.sleep) is None  # type: ignore[arg-type]
    assert clock.seconds >= 100 + RECOVERY_S


def test_growth_is_from_the_second_fifth_to_the_last() -> None:
    samples = [100, 150, 200, 204, 205, 206, 207, 208, 209, 211]
    assert warm_and_last(samples) == (202.0, 210.0)
    assert memory_figures(200e6, 206e6)["rss_growth_percent"] == pytest.approx(3.0)


def test_the_engine_alone_is_asked_what_the_router_asks(service: ServeSettings) -> None:
    run = read_run(service)
    body = bodies(ServingBenchmark(service=service, users=1))[0]
    prompts = prompts_of(body, run, service)
    assert list(prompts) == ["pointwise", "pairwise", "listwise"]
    assert len(prompts["pointwise"].questions) == 10
    whole = one_tree_of(prompts)
    assert whole.prefix == prompts["pairwise"].prefix
    assert len(whole.questions) == sum(len(prompt.questions) for prompt in prompts.values())
    scorers = load_scorers(service, run)
    assert len({id(scorer) for scorer in scorers.values()}) == 1  # one adapter for all
    apart = [values for task, prompt in prompts.items() for values in scorers[task].score([prompt])[0]]
    together = scorers["pointwise"].score([whole])[0]
    assert all(one == pytest.approx(other, abs=1e-4) for one, other in zip(apart, together, strict=True))


def test_the_speeds_of_all_processes_add_up(service: ServeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = [(12, 4.0, 3.0), (8, 2.0, 2.0)]
    monkeypatch.setattr(serving_engine, "in_own_processes", lambda count, *rest: answered[:count])
    found = engine_speed(service, [], processes=2, batch=4, seconds=1, one_tree=False)
    assert found == Speed(20, 12 / 4 + 8 / 2, 20 / 5)


def test_tasks_with_adapters_of_their_own_share_no_tree(
    monkeypatch: pytest.MonkeyPatch, service: ServeSettings
) -> None:
    monkeypatch.setattr(serving_engine, "adapters_of", lambda run: {"pointwise": Path("a"), "listwise": Path("b")})
    assert engine_speed(service, [], processes=1, batch=1, seconds=1, one_tree=True) is None


def test_the_other_service_generates_a_text_for_every_question(service: ServeSettings) -> None:
    from jobs.benchmarks.serving_generate import Generate, GenerateSettings

    body = bodies(ServingBenchmark(service=service, users=1))[0]
    asked = Generate(GenerateSettings(service=service, tokens=2))
    answers = asked.answers(body)
    assert len(answers) == sum(len(one.questions) for one in prompts_of(body, asked.run, service).values())
    assert all(isinstance(one, str) for one in answers)


def test_settings_load_and_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_settings(ServingBenchmark, str(benchmark.config_of("serving")), ["service.replicas=2"])
    assert (settings.service.run, settings.service.replicas, settings.overload_s) == ("quickstart", 2, 120.0)
    assert benchmark.main(["serving", "soak_minutes=30", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["soak_minutes"] == 30
    assert benchmark.main(["serving", f"service.home={tmp_path}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "python -m jobs.pipeline jobs/configs/quickstart.toml" in said[0]


def test_the_outcome_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("one at a time", [sent(0, 1.25)]), row("overload", [sent(0, 0.1, 503, retry_after=True)], 4.0)]
    figures = {"router_ms_p50": 7.5, "soak": None, "overload": {"held": True, "recovery_s": 0.5}}
    outcome = Outcome(rows, figures)
    benchmark.show_serving(outcome, SimpleNamespace())  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    for text in ("1250", "4.00", "router_ms_p50 7.5", "overload.held True", "overload.recovery_s 0.5"):
        assert text in printed
    assert "soak" not in printed
    benchmark.write_outcome(tmp_path / "found.json", outcome)
    written = json.loads((tmp_path / "found.json").read_text())
    assert (written["router_ms_p50"], written["soak"], written["rows"][1]["busy"]) == (7.5, None, 1)


@pytest.mark.slow
@pytest.mark.ray
def test_the_command_measures_a_service_of_its_own_and_leaves_nothing(service: ServeSettings, tmp_path: Path) -> None:
    config, found = tmp_path / "serving.toml", tmp_path / "found.json"
    config.write_text(CONFIG.format(users=USERS, run=service.run, home=service.home))
    done = job("benchmark", "serving", str(config), "--json", str(found))
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads(found.read_text())
    phases = ["one at a time", "4 clients", "0.5 of it", "overload", "soak"]
    shared = [f"{phase}, shared replicas" for phase in phases[:2]]
    assert [one["phase"] for one in written["rows"]] == [*phases, *shared]
    assert written["rows"][0]["ok"] == 3
    for name in ("throughput_share", "throughput_share_one_tree", "speedup_over_generate_app"):
        assert written[name] > 0, name
    assert written["shared_throughput_share_one_tree"] > 0
    assert written["overload"]["other"] == 0
    assert written["overload"]["recovery_s"] is not None
    assert written["soak"]["rss_after_gb"] > 0
    assert "router_ms_p50" in written
    assert "overload.held" in done.stdout
