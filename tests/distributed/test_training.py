from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from recranker.distributed.training import TuneJob, check_in_fresh_process, deepspeed_config, tune_adapters
from recranker.errors import ModelError, SettingsError
from recranker.llm.model import load_adapter, load_model
from recranker.llm.reports import StepReport
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.llm.training import make_trainable, plan_adapters, train
from tests.llm.plain_engine import PlainEngine
from tests.llm.prompts import toy_prompts
from tests.models import tiny_model

LLM = LLMSettings(model="tiny", device="cpu")
TUNE = TuneSettings(batch_prompts=4, learning_rate=1e-2, warmup_steps=2, epochs=4, lora={"dropout": 0.0})
WEIGHTS = "joint/adapter_model.safetensors"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def tuned(model: Path, folder: Path, *, llm: LLMSettings = LLM, **changes: object) -> tuple[pa.Table, list[StepReport]]:
    """Log and reports of a training on eight toy prompts."""
    tune = TUNE.model_copy(update=changes)
    heard: list[StepReport] = []
    log = tune_adapters(
        plan_adapters(toy_prompts(8), tune),
        model=model,
        folder=folder,
        work=folder / "work",
        llm=llm,
        tune=tune,
        seed=0,
        on_step=lambda name, report: heard.append(report),
    )
    return log, heard


@pytest.fixture(scope="module")
def one_worker(ray_cluster: None, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """Folder and log of a training on one worker."""
    folder = tmp_path_factory.mktemp("one")
    log, heard = tuned(model_path, folder)
    assert [report.loss for report in heard] == pytest.approx(log["loss"].to_pylist())
    return folder, log


@pytest.mark.ray
def test_loss_falls_and_the_saved_adapter_knows_the_rule(one_worker: tuple[Path, pa.Table], model_path: Path) -> None:
    folder, log = one_worker
    loss = log["loss"].to_pylist()
    assert log["step"].to_pylist() == list(range(1, 9))
    assert loss[-1] < 0.5 < 1.0 < loss[0]
    lm = load_model(model_path, LLM)
    load_adapter(lm, folder / "joint")
    prompt = toy_prompts(8)[1]
    answers = make_scorer(lm, LLM).score([prompt])[0]
    best = [question.labels[found.argmax()] for question, found in zip(prompt.questions, answers, strict=True)]
    assert best[:2] == [question.answer for question in prompt.questions][:2]
    assert not (folder / "work").exists()


@pytest.mark.ray
def test_two_workers_train_the_same_adapter_as_one(
    one_worker: tuple[Path, pa.Table], model_path: Path, tmp_path: Path
) -> None:
    folder, log = one_worker
    again, _ = tuned(model_path, tmp_path, workers=2)
    _assert_same(folder, log, tmp_path, again)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_every_zero_stage_trains_the_same_adapter(
    one_worker: tuple[Path, pa.Table], model_path: Path, tmp_path: Path, zero_stage: int
) -> None:
    folder, log = one_worker
    again, _ = tuned(model_path, tmp_path, workers=2, zero_stage=zero_stage)
    _assert_same(folder, log, tmp_path, again)


@pytest.mark.ray
@pytest.mark.slow
def test_killed_worker_is_replaced_and_the_adapter_is_that_of_plain_torch(
    ray_cluster: None, model_path: Path, tmp_path: Path
) -> None:
    tune = TUNE.model_copy(update={"epochs": 60, "learning_rate": 1e-3, "max_grad_norm": 1e6})
    lm = load_model(model_path, LLM)
    make_trainable(lm, tune, 0)
    expected = [report.loss for report in train(PlainEngine(lm, tune), lm, toy_prompts(8), tune, LLM, 0)]
    killed: list[psutil.Process] = []

    def kill_once(name: str, report: StepReport) -> None:
        if not killed:
            killed.append(next(one for one in psutil.Process().children(recursive=True) if "RayTrainW" in _title(one)))
            killed[0].kill()

    log = tune_adapters(
        plan_adapters(toy_prompts(8), tune),
        model=model_path,
        folder=tmp_path,
        work=tmp_path / "work",
        llm=LLM,
        tune=tune,
        seed=0,
        on_step=kill_once,
    )
    assert killed
    assert log["step"].to_pylist() == list(range(1, 121))
    assert log["loss"].to_pylist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def _title(process: psutil.Process) -> str:
    return " ".join(process.cmdline()) if process.is_running() else ""


def _assert_same(folder: Path, log: pa.Table, other: Path, again: pa.Table) -> None:
    assert again["loss"].to_pylist() == pytest.approx(log["loss"].to_pylist(), rel=1e-3)
    assert again["tokens"].to_pylist() == log["tokens"].to_pylist()
    assert again["learning_rate"].to_pylist() == log["learning_rate"].to_pylist()
    expected, found = load_file(folder / WEIGHTS), load_file(other / WEIGHTS)
    assert set(expected) == set(found)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=2e-3, rtol=1e-2)


@pytest.mark.ray
def test_fresh_process_catches_a_damaged_adapter(one_worker: tuple[Path, pa.Table], model_path: Path) -> None:
    folder = one_worker[0] / "joint"
    job = TuneJob(name="joint", model=str(model_path), folder=str(folder), llm=LLM, tune=TUNE, seed=0)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    damaged = bytearray(whole)
    damaged[-2000:-1000] = bytes(1000)
    weights.write_bytes(damaged)
    try:
        with pytest.raises(ModelError, match="does not answer as the trained model did"):
            check_in_fresh_process(job)
    finally:
        weights.write_bytes(whole)


@pytest.mark.ray
def test_worker_error_arrives_as_one_line_of_ours(ray_cluster: None, tmp_path: Path) -> None:
    broken = tiny_model(tmp_path / "broken")
    model = LlamaForCausalLM.from_pretrained(broken)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(broken)
    with pytest.raises(ModelError) as caught:
        tuned(broken, tmp_path / "out")
    assert str(caught.value).startswith("this model's answers are no finite numbers")
    assert "\n" not in str(caught.value)


@pytest.mark.ray
def test_more_workers_than_cores_are_refused_at_once(ray_cluster: None, model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tune\.workers=4 need a CPU each, the cluster has 2"):
        tuned(model_path, tmp_path, workers=4)


def test_deepspeed_settings_follow_ours() -> None:
    settings = TuneSettings(batch_prompts=16, micro_batch_prompts=2, workers=4, zero_stage=3, max_grad_norm=0.5)
    config = deepspeed_config(settings)
    assert config["gradient_accumulation_steps"] == 2
    assert config["train_batch_size"] == 2 * 2 * 4
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"] == {"stage": 3}


@pytest.mark.gpu
@pytest.mark.ray
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tuning_on_a_gpu_learns_the_rule_in_bfloat16(ray_cluster: None, model_path: Path, tmp_path: Path) -> None:
    _, heard = tuned(model_path, tmp_path, llm=LLMSettings(model="tiny", device="cuda"))
    assert heard[-1].loss < 0.5 * heard[0].loss
