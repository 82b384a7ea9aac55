import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import benchmark
from jobs.benchmarks import tuning, tuning_zero
from jobs.benchmarks.settings import TuningBenchmark
from jobs.benchmarks.tuning import PACKED, PADDED, TRAINER, Outcome
from jobs.benchmarks.tuning_ways import Given, Step, Trained, measure_packed, measure_padded, measure_trainer
from jobs.benchmarks.tuning_work import Work, answer_pairs, visible_pairs, work_of
from jobs.benchmarks.tuning_zero import zero_cases, zero_row
from recranker.errors import SettingsError
from recranker.llm.encoding import Branch, Tree
from recranker.llm.reports import Progress, StepReport
from recranker.llm.settings import LLMSettings, LoraSettings, TuneSettings
from recranker.llm.shapes import ModelShape
from recranker.settings import load_settings
from tests.jobs.small import job
from tests.llm.prompts import toy_prompts
from tests.models import tiny_model
from tests.toy import toy_interactions

TREE = Tree("t", [1, 2, 3], [Branch([4, 5], [1, 2], 0, "pointwise"), Branch([6], [1, 2], 1, "pairwise")])


def trained(losses: list[float], cpu_s: list[float], questions: int = 10, work: Work | None = None) -> Trained:
    steps = [Step(questions, 100, loss) for loss in losses]
    return Trained(steps, cpu_s, [40.0, 50.0, 60.0], 1.5, work)


FOUND = {
    PACKED: trained([1.0, 0.9, 0.75], [2.0, 3.0, 5.0], work=Work(linear=300.0, attention=100.0)),
    PADDED: trained([1.0, 0.875, 0.75], [20.0, 20.0, 20.0]),
    TRAINER: trained([4.0], [75.0], questions=20),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """Three steps of four prompts with two or three questions each."""
    model = tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    tune = TuneSettings(batch_prompts=4, warmup_steps=1, learning_rate=1e-2, micro_batch_tokens=200)
    return Given(str(model), LLMSettings(model="tiny", device="cpu"), tune, toy_prompts(12), seed=0)


def test_figures_by_hand() -> None:
    figures = tuning.figures(FOUND)
    assert figures["speedup_over_padded"] == 6.0  # 30 instructions in 10 s and in 60 s
    assert figures["speedup_over_trainer"] == 15.0  # the first 20 of them in 5 s, and in 75 s
    assert figures["gemm_share"] == 400 / (10 * 50)
    assert figures["gemm_share_without_attention"] == 300 / (10 * 50)
    assert figures["largest_loss_difference"] == pytest.approx(0.025)


def test_rows_by_hand() -> None:
    assert tuning.row_of("trainer", FOUND[TRAINER]) == {
        "way": "trainer",
        "instructions": 20,
        "tokens": 100,
        "cpu_s": 75.0,
        "instructions_per_cpu_s": 20 / 75,
        "gemm_gflops": 2e-9 * 50,
        "peak_rss_gb": 1.5,
    }
    assert tuning.loss_rows(FOUND)[1] == {"step": 2, "instructions": 10, "packed": 0.9, "padded": 0.875}


def test_ways_train_on_the_same_instructions_with_the_same_curve(given: Given) -> None:
    packed, padded, stock = measure_packed(given), measure_padded(given, 3), measure_trainer(given, 3, steps=99)
    questions = [step.questions for step in packed.steps]
    assert questions == [step.questions for step in padded.steps]
    assert sum(questions) == sum(len(prompt.questions) for prompt in given.prompts) == stock.steps[0].questions
    curves = [[step.loss for step in way.steps] for way in (packed, padded)]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert curves[0][2] < curves[0][0] - 0.2  # something was learnt, so that later losses hang on earlier steps
    for way in (packed, padded, stock):
        assert len(way.cpu_s) == len(way.steps) == len(way.gemm_rates) - 1
        assert min(way.cpu_s) > 0
        assert 0.1 < way.peak_rss_gb < 10


def test_packing_computes_the_fewest_tokens_and_the_answer_is_one_more(given: Given) -> None:
    packed, padded, stock = measure_packed(given), measure_padded(given, 1), measure_trainer(given, 1, steps=1)
    assert packed.steps[0].tokens < padded.steps[0].tokens
    assert stock.steps[0].tokens == padded.steps[0].tokens + padded.steps[0].questions


def test_rows_of_a_batch_are_padded_to_the_longest(given: Given) -> None:
    alone, together = measure_padded(given, 1).steps[0], measure_padded(given, 99).steps[0]
    assert together.tokens > alone.tokens
    assert together.tokens % together.questions == 0
    assert together.loss == pytest.approx(alone.loss, abs=1e-5)


def test_pairs_of_tokens_by_hand() -> None:
    assert visible_pairs(TREE) == (1 + 2 + 3) + (4 + 5) + 4
    assert answer_pairs(TREE) == 5 + 4


def test_work_of_a_small_model_by_hand() -> None:
    shape = ModelShape(
        vocabulary=10, width=4, feed_forward=6, layers=2, heads=2, key_value_heads=1, head_width=2, tied=True
    )
    attention, gated = 2 * 4 * 4 + 2 * 4 * 2, 3 * 4 * 6
    keys, head = 2 * 4 * 2, 2 * 4 * 10
    # six tokens, two of which answer; the first layer's q, k and v have nothing to hand down, its others have
    rank = 2 * 3 * ((4 + 4) * 2 + (4 + 2) * 2 + (4 + 6) * 3)
    first = 6 * (attention + gated) + 6 * (16 + gated) + 6 * (rank - 3 * 2 * 4)
    last = 2 * (6 * keys + 2 * (attention + gated - keys)) + 6 * 2 * 3 * (4 + 2) * 2 + 2 * (rank - 2 * 3 * (4 + 2) * 2)
    found = work_of(TREE, shape, LoraSettings(rank=2))
    assert found.linear == 2 * head + first + last
    assert found.attention == 6 * 4 * (19 + 9)


def test_nothing_flows_below_the_first_adapter() -> None:
    shape = ModelShape(
        vocabulary=10, width=4, feed_forward=6, layers=2, heads=2, key_value_heads=1, head_width=2, tied=True
    )
    lora = LoraSettings(rank=2, last_layers=1, targets=("down_proj",))
    attention, gated = 2 * 4 * 4 + 2 * 4 * 2, 3 * 4 * 6
    keys, head = 2 * 4 * 2, 2 * 4 * 10
    adapter = 3 * 2 * (6 + 4) - 2 * 6
    found = work_of(TREE, shape, lora)
    assert found.linear == 2 * head + 6 * (attention + gated) + 6 * keys + 2 * (attention + gated - keys + adapter)
    assert found.attention == 2 * 4 * (19 + 9)


def small_settings(**values: object) -> TuningBenchmark:
    needed = {"data": {"source": {"kind": "movielens-100k"}}, "llm": {"model": "tiny"}}
    return TuningBenchmark.model_validate(needed | values)


def test_every_zero_stage_is_timed_with_every_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fake(plans: list[object], **options: object) -> tuple[None, dict[str, Progress]]:
        asked.append(options["tune"])
        reports = tuple(
            StepReport(
                step=step,
                loss=1.0,
                learning_rate=1.0,
                tokens=1,
                step_tokens=1,
                task_losses={},
                prompt_ids=(),
                questions=1,
                gradient_norm=1.0,
                seconds=seconds,
                memory_gb=2.0,
            )
            for step, seconds in enumerate([9.0, 2.0, 3.0], start=1)
        )
        return None, {"joint": Progress(reports=reports)}

    monkeypatch.setattr(tuning_zero, "tune_adapters", fake)
    monkeypatch.setattr(tuning_zero, "cluster", SimpleNamespace(connect=lambda *_: None))
    settings = small_settings(zero_stages=[0, 3])
    cases = zero_cases(settings)
    rows = [zero_row(settings, toy_prompts(8), tmp_path, *case) for case in cases]
    assert [(tune.workers, tune.zero_stage) for tune in asked] == cases == [(1, 0), (1, 3), (2, 0), (2, 3)]
    assert rows[3] == {"workers": 2, "zero_stage": 3, "steps": 3, "seconds": 3.0, "memory_gb": 2.0}
    with pytest.raises(SettingsError, match=r"zero_workers, zero_stages.* multiple of tune\.workers, got 8 and 3"):
        zero_row(settings, toy_prompts(8), tmp_path, 3, 0)


CONFIG = """
prompts = 4
trainer_steps = 2
zero_stages = [2]
zero_workers = [1]
[store]
home = "{home}"
[data]
rating_min = 1
rating_max = 5
like_at_least = 4
dislike_below = 3
[data.source]
kind = "files"
interactions = "{interactions}"
items = "{items}"
rating_column = "rating"
time_column = "timestamp"
genres_column = "genres"
[backbone]
retriever = {{ kind = "ease" }}
rating_predictor = {{ dim = 4, epochs = 2 }}
[sampling]
kind = "uniform"
num_draws = 12
[llm]
model = "{model}"
device = "cpu"
max_prompt_tokens = 4096
[tune]
batch_prompts = 2
[ray]
cpus = 2
object_store_mb = 100
"""


@pytest.mark.slow
@pytest.mark.ray
def test_the_command_makes_its_prompts_once_and_measures_all(tmp_path: Path) -> None:
    interactions, items = toy_interactions(tmp_path / "data")
    config, found = tmp_path / "tuning.toml", tmp_path / "found.json"
    values = {"home": tmp_path / "home", "interactions": interactions, "items": items}
    config.write_text(CONFIG.format(**values, model=tiny_model(tmp_path / "model")))
    done = job("benchmark", "tuning", str(config), "--json", str(found))
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads(found.read_text())
    assert written["largest_loss_difference"] < 1e-4
    assert len({row["instructions"] for row in written["rows"]}) == 1
    assert [(row["zero_stage"], row["workers"], row["steps"]) for row in written["zero_step_seconds"]] == [(2, 1, 2)]
    again = job("benchmark", "tuning", str(config), "prompts=13")
    assert again.returncode == 2
    assert again.stderr.count("unchanged, skipped") == 4
    assert "error: prompts=13, but the stages made 12 to train on; raise sampling.num_draws" in again.stderr


def test_ways_that_cannot_be_compared_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["tuning", "tune.lora.dropout=0.1", "--dry-run"]) == 2
    assert "tune.lora.dropout 0, got 'joint' and 0.1" in capsys.readouterr().err


def test_settings_load_and_help_shows_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["tuning", "zero=false", "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["zero"], shown["instruct"]["max_liked"], shown["instruct"]["max_disliked"]) == (False, 50, 10)
    assert shown["tune"]["lora"]["last_layers"] is None
    settings = load_settings(TuningBenchmark, str(benchmark.config_of("tuning")), ["prompts=5"])
    assert settings.job.tune.max_prompts == 5
    with pytest.raises(SystemExit):
        benchmark.main(["tuning", "--help"])
    assert "transformers' Trainer" in capsys.readouterr().out


def test_the_outcome_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [tuning.row_of(way, found) for way, found in FOUND.items()]
    zero = [{"workers": workers, "zero_stage": 2, "steps": 3, "seconds": 7.25, "memory_gb": 1.0} for workers in (1, 2)]
    outcome = Outcome(rows, tuning.loss_rows(FOUND), zero, tuning.figures(FOUND))
    benchmark.show_tuning(outcome, None)  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert "speedup_over_padded 6" in printed
    assert "0.875000" in printed
    assert "2 workers" in printed
    assert "7.25" in printed
    benchmark.write_outcome(tmp_path / "found.json", outcome)
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["gemm_share"] == 0.8
    assert written["zero_step_seconds"] == zero
    assert [row["way"] for row in written["rows"]] == [PACKED, PADDED, TRAINER]
