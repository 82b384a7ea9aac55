import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from recranker import tracking
from recranker.distributed.channel import Channel
from recranker.distributed.engine import deepspeed_config
from recranker.distributed.training import TuneJob, check_in_fresh_process, memory_said, tune_adapters
from recranker.distributed.validation import ValidationList
from recranker.errors import ModelError, SettingsError
from recranker.llm.adapter import load_tuned
from recranker.llm.checkpoints import STATE, Checkpoints
from recranker.llm.model import load_adapter, load_model
from recranker.llm.reports import Look, Progress, StepReport
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.llm.training import Trainer, make_trainable, plan_adapters
from recranker.tasks.protocol import Prompt
from tests.llm.plain_engine import PlainEngine
from tests.llm.prompts import toy_prompts
from tests.models import tiny_model

LLM = LLMSettings(model="tiny", device="cpu")
TUNE = TuneSettings(batch_prompts=4, learning_rate=1e-2, warmup_steps=2, epochs=4, lora={"dropout": 0.0})
WEIGHTS = "joint/adapter_model.safetensors"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def tuned(
    model: Path,
    folder: Path,
    *,
    llm: LLMSettings = LLM,
    on_report: Callable[[StepReport | Look], None] = lambda report: None,
    **changes: object,
) -> tuple[pa.Table, list[StepReport | Look]]:
    """Log and reports of a training on eight toy prompts."""
    tune = TuneSettings.model_validate(TUNE.model_dump() | changes)
    heard: list[StepReport | Look] = []

    def tell(name: str, report: StepReport | Look) -> None:
        heard.append(report)
        on_report(report)

    log, _ = tune_adapters(
        plan_adapters(toy_prompts(8), tune, 2048),
        model=model,
        folder=folder,
        work=folder / "work",
        llm=llm,
        tune=tune,
        seed=0,
        tell=tell,
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
    assert not (folder / "work" / "ray").exists()


@pytest.mark.ray
def test_two_workers_train_the_same_adapter_as_one(
    one_worker: tuple[Path, pa.Table], model_path: Path, tmp_path: Path
) -> None:
    folder, log = one_worker
    again, _ = tuned(model_path, tmp_path, workers=2)
    _assert_same(folder, log, tmp_path, again)


@pytest.mark.ray
@pytest.mark.slow
def test_two_nodes_train_the_adapter_of_one(
    one_worker: tuple[Path, pa.Table], model_path: Path, tmp_path: Path
) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.two_nodes_training", str(model_path), str(tmp_path)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["1", "1"]
    assert Checkpoints(tmp_path / "work" / "checkpoints" / "joint").latest_step == 8
    _assert_same_weights(one_worker[0], tmp_path)


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
@pytest.mark.parametrize("changes", [{"workers": 1}, {"workers": 2}, {"workers": 2, "method": "full"}])
def test_weights_so_large_that_zero_3_shards_them_train_the_same_and_answer(
    ray_cluster: None, tmp_path: Path, changes: dict[str, object]
) -> None:
    model = tiny_model(tmp_path / "model", width=512)  # weights of up to 1e5 numbers stay whole on every worker
    method = {"method": changes.get("method", "lora"), "learning_rate": 1e-3}
    expected, _ = tuned(model, tmp_path / "whole", **method)
    again, _ = tuned(model, tmp_path / "sharded", zero_stage=3, **method | changes)
    assert again["loss"].to_pylist() == pytest.approx(expected["loss"].to_pylist(), rel=1e-3)


class Stopwatch(Channel):
    """Gives every report the wall time since the one before arrived: of a whole step, its reporting included."""

    def __init__(self) -> None:
        super().__init__()
        self._last = time.perf_counter()

    def report(self, *reports: StepReport | Look) -> bool:
        now = time.perf_counter()
        took, self._last = now - self._last, now
        return super().report(*(replace(one, seconds=took) for one in reports if isinstance(one, StepReport)))


@pytest.mark.ray
@pytest.mark.slow
def test_sharded_weights_and_layers_computed_again_train_the_same(ray_cluster: None, tmp_path: Path) -> None:
    """What ``jobs/configs/cluster_7b.toml`` asks for: LoRA on two workers, ZeRO-3, gradient checkpointing."""
    model = tiny_model(tmp_path / "model", width=512)
    same = {"workers": 2, "learning_rate": 1e-3}
    expected, _ = tuned(model, tmp_path / "whole", zero_stage=0, **same)
    again, _ = tuned(model, tmp_path / "sharded", zero_stage=3, gradient_checkpointing=True, **same)
    assert again["loss"].to_pylist() == pytest.approx(expected["loss"].to_pylist(), rel=1e-3)


@pytest.mark.ray
@pytest.mark.slow
def test_a_tracking_server_that_never_answers_costs_no_step_time(
    ray_cluster: None, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "RETRY_AFTER_S", 0.0)  # at its worst: every report of a step waits for the server
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr("recranker.distributed.training.Channel", Stopwatch)
    seconds: dict[str, list[float]] = {"alone": [], "hanging": []}
    with socket.create_server(("127.0.0.1", 0)) as server:
        tracker = tracking.Tracker(f"http://127.0.0.1:{server.getsockname()[1]}", "hanging")
        for turn in range(2):
            for name, measured in seconds.items():
                with tracker.pipeline_run(name, {}) if name == "hanging" else nullcontext() as run:
                    waits = 10 if run else 0  # then the driver listens again

                    def log(report: StepReport | Look, run: Any = run, waits: int = waits) -> None:
                        if report.step <= waits:
                            run.log_metrics({"loss": 1.0}, step=report.step)

                    _, heard = tuned(
                        model_path, tmp_path / f"{name}-{turn}", epochs=100, checkpoint_steps=1000, on_report=log
                    )
                measured += [one.seconds for one in heard[1:] if isinstance(one, StepReport)]
    assert len(seconds["hanging"]) == len(seconds["alone"]) == 2 * 199
    assert statistics.median(seconds["hanging"]) <= 1.05 * statistics.median(seconds["alone"]), seconds
    # had steps waited for the server, twice ten of them would have taken a second more, which no median shows
    assert sum(seconds["hanging"]) <= sum(seconds["alone"]) + 5, seconds


@pytest.mark.ray
@pytest.mark.slow
def test_killed_worker_is_replaced_and_the_adapter_is_that_of_the_unbroken_run(
    ray_cluster: None, model_path: Path, tmp_path: Path
) -> None:
    changes = {"epochs": 10, "workers": 2, "checkpoint_steps": 3}
    unbroken, _ = tuned(model_path, tmp_path / "whole", **changes)
    killed: list[psutil.Process] = []

    def kill_once(report: StepReport | Look) -> None:
        if not killed and report.step >= 4:
            killed.append(next(one for one in psutil.Process().children(recursive=True) if "RayTrainW" in _title(one)))
            killed[0].kill()

    log, _ = tuned(model_path, tmp_path / "killed", on_report=kill_once, **changes)
    assert killed
    assert log == unbroken
    whole, again = load_file(tmp_path / "whole" / WEIGHTS), load_file(tmp_path / "killed" / WEIGHTS)
    for name, weight in whole.items():
        torch.testing.assert_close(again[name], weight, atol=1e-6, rtol=0)


class Interrupted(Exception):
    """Somebody stops the driver."""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_workers_may_change_while_training_goes_on(
    ray_cluster: None, model_path: Path, tmp_path: Path, zero_stage: int
) -> None:
    changes = {"zero_stage": zero_stage, "checkpoint_steps": 2, "lora": {"rank": 3}}
    whole, _ = tuned(model_path, tmp_path / "whole", **changes)
    folder = tmp_path / "broken"

    def stop_at(step: int) -> Callable[[StepReport | Look], None]:
        def on_report(report: StepReport | Look) -> None:
            if report.step == step:
                raise Interrupted

        return on_report

    for workers, step in ((2, 3), (1, 5)):
        with pytest.raises(Interrupted):
            tuned(model_path, folder, on_report=stop_at(step), workers=workers, **changes)
    again, heard = tuned(model_path, folder, workers=2, **changes)
    assert [report.step for report in heard] == list(range(1, 9))  # those before are told of too
    _assert_same(tmp_path / "whole", whole, folder, again)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_every_weight_can_be_trained_and_answers_after_a_reload(
    ray_cluster: None, model_path: Path, tmp_path: Path, zero_stage: int
) -> None:
    changes = {"method": "full", "adapters": "joint_then_per_task", "tasks": ("pointwise", "listwise")}
    changes |= {"zero_stage": zero_stage, "workers": 2, "learning_rate": 2e-3}
    log, heard = tuned(model_path, tmp_path, **changes)
    first, last = (report for report in (heard[0], heard[7]) if isinstance(report, StepReport))
    assert last.loss < 0.5 * first.loss
    lm = load_tuned(model_path, tmp_path / "listwise", LLM)
    prompt = replace(toy_prompts(2)[1], questions=toy_prompts(2)[1].questions[2:])
    found = make_scorer(lm, LLM).score([prompt])[0][0]
    assert prompt.questions[0].labels[int(found.argmax())] == prompt.questions[0].answer
    starts = {row["adapter"]: row["loss"] for row in reversed(log.to_pylist())}
    assert starts["pointwise"] < 0.7 * starts["joint"]  # it goes on from the joint one


def one_list(prompts: list[Prompt]) -> list[ValidationList]:
    """What training looks at: the listwise question of one prompt."""
    asked = prompts[1].questions[2]
    return [ValidationList(replace(prompts[1], questions=(asked,)), asked.item_ids, "Jaws")]


@pytest.mark.ray
@pytest.mark.slow
def test_the_best_adapter_of_validation_is_kept(ray_cluster: None, model_path: Path, tmp_path: Path) -> None:
    prompts = toy_prompts(8)
    validation = one_list(prompts)
    tune = TuneSettings.model_validate(TUNE.model_dump() | {"validation": {"every_steps": 2, "patience": None}})
    folder, plans = tmp_path / "out", plan_adapters(prompts, tune, 2048)
    paths = {"model": model_path, "folder": folder, "work": tmp_path / "work"}
    _, done = tune_adapters(
        plans, **paths, llm=LLM, tune=tune, seed=0, tell=lambda name, report: None, validation=validation
    )
    best = done["joint"].best
    assert [look.step for look in done["joint"].looks] == [2, 4, 6, 8]
    assert best is not None
    expected = Checkpoints(tmp_path / "work" / "checkpoints" / "joint").at(best.step).weights
    found = load_file(folder / WEIGHTS)
    assert best.step < 8
    for name, weight in expected.items():
        assert torch.equal(found[name.replace(".default", "")], weight)


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_whose_best_adapter_breaks_goes_on_and_ends_with_one_that_is_there(
    ray_cluster: None, model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="recranker")
    prompts = toy_prompts(8)
    tune = TuneSettings.model_validate(TUNE.model_dump() | {"validation": {"every_steps": 2, "patience": None}})

    def train() -> Progress:
        _, done = tune_adapters(
            plan_adapters(prompts, tune, 2048),
            model=model_path,
            folder=tmp_path / "out",
            work=tmp_path / "work",
            llm=LLM,
            tune=tune,
            seed=0,
            tell=lambda name, report: None,
            validation=one_list(prompts),
        )
        return done["joint"]

    best = train().best
    assert best is not None
    assert best.step < 8
    kept = tmp_path / "work" / "checkpoints" / "joint"
    (kept / f"step-{best.step:08d}" / STATE).write_bytes(b"broken")
    assert train().step == 8
    assert "adapter joint: training goes on behind step 8 of 8" in caplog.text
    assert f"validation's best look, after step {best.step}, is lost; that after step" in caplog.text
    now = Checkpoints(kept).newest()
    assert now is not None
    found = load_file(tmp_path / "out" / WEIGHTS)
    expected = Checkpoints(kept).at(now.best.step if now.best else now.step).weights
    assert all(torch.equal(found[name.replace(".default", "")], weight) for name, weight in expected.items())


@pytest.mark.ray
@pytest.mark.slow
def test_sharded_weights_can_be_looked_at_between_steps(ray_cluster: None, model_path: Path, tmp_path: Path) -> None:
    prompts = toy_prompts(8)
    validation = one_list(prompts)
    logs = []
    for looks in ({"every_steps": 1, "patience": None}, None):
        changes = {"zero_stage": 3, "workers": 2, "validation": looks}
        tune = TuneSettings.model_validate(TUNE.model_dump() | changes)
        paths = {"model": model_path, "folder": tmp_path / f"out{len(logs)}", "work": tmp_path / f"work{len(logs)}"}
        log, done = tune_adapters(
            plan_adapters(prompts, tune, 2048),
            **paths,
            llm=LLM,
            tune=tune,
            seed=0,
            tell=lambda name, report: None,
            validation=validation if looks else [],
        )
        logs.append(log["loss"].to_pylist())
        assert [look.step for look in done["joint"].looks] == ([*range(1, len(log) + 1)] if looks else [])
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)  # looking changes nothing


@pytest.mark.ray
def test_training_on_workers_is_that_of_plain_torch(
    one_worker: tuple[Path, pa.Table], model_path: Path, tmp_path: Path
) -> None:
    tune = TUNE.model_copy(update={"max_grad_norm": 1e6})
    lm = load_model(model_path, LLM)
    make_trainable(lm, tune, 0)
    trainer = Trainer(PlainEngine(lm, tune), lm, toy_prompts(8), tune, LLM.max_prompt_tokens, 0)
    expected = list(trainer.steps(Progress()))
    log, _ = tuned(model_path, tmp_path, max_grad_norm=1e6)
    assert log["loss"].to_pylist() == pytest.approx([report.loss for report in expected], rel=1e-4)
    assert log["gradient_norm"].to_pylist() == pytest.approx([report.gradient_norm for report in expected], rel=1e-3)


def _title(process: psutil.Process) -> str:
    return " ".join(process.cmdline()) if process.is_running() else ""


def _assert_same(folder: Path, log: pa.Table, other: Path, again: pa.Table) -> None:
    assert again["loss"].to_pylist() == pytest.approx(log["loss"].to_pylist(), rel=1e-3)
    assert again["tokens"].to_pylist() == log["tokens"].to_pylist()
    assert again["learning_rate"].to_pylist() == log["learning_rate"].to_pylist()
    _assert_same_weights(folder, other)


def _assert_same_weights(folder: Path, other: Path) -> None:
    expected, found = load_file(folder / WEIGHTS), load_file(other / WEIGHTS)
    assert set(expected) == set(found)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-4, rtol=0)


@pytest.mark.ray
def test_fresh_process_catches_a_damaged_adapter(one_worker: tuple[Path, pa.Table], model_path: Path) -> None:
    folder = one_worker[0] / "joint"
    paths = {"model": str(model_path), "folder": str(folder), "checkpoints": str(folder)}
    job = TuneJob(name="joint", **paths, llm=LLM, tune=TUNE, seed=0)
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
@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_gradient_out_of_range_under_a_finite_loss_is_said_and_nothing_of_it_kept(
    ray_cluster: None, model_path: Path, tmp_path: Path, zero_stage: int
) -> None:
    heard: list[StepReport | Look] = []
    changes = {"zero_stage": zero_stage, "checkpoint_steps": 1, "max_failures": 0}
    with pytest.raises(ModelError, match=r"stopped at step 1: the gradient is no finite number for prompts \['train/"):
        # at first B is zero, so the loss knows nothing of alpha, but B's gradient is a multiple of it
        tuned(model_path, tmp_path, on_report=heard.append, lora={"alpha": 3e38, "rank": 1}, **changes)
    assert heard == []
    assert Checkpoints(tmp_path / "work" / "checkpoints" / "joint").latest_step == 0


@pytest.mark.ray
def test_too_little_memory_is_said_with_what_needs_less_and_not_tried_again(
    ray_cluster: None, model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    says = r"of memory: .*can't allocate memory.*; lower tune\.micro_batch_tokens, now 2048, set tune\.grad.* --plan$"
    with pytest.raises(ModelError, match=says):
        tuned(model_path, tmp_path, lora={"rank": 10**12})  # of 2**48 bytes and more
    assert "training was lost" not in caplog.text


def test_a_lack_of_memory_on_a_gpu_is_told_from_other_errors() -> None:
    tune = TuneSettings(gradient_checkpointing=True, micro_batch_tokens=512)
    says = r"ran out of memory: CUDA out of memory\.; lower tune\.micro_batch_tokens, now 512, or see .* --plan$"
    with pytest.raises(ModelError, match=says), memory_said(tune):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
    with pytest.raises(RuntimeError, match="NCCL error"), memory_said(tune):
        raise RuntimeError("NCCL error")


@pytest.mark.ray
def test_more_workers_than_cores_are_refused_at_once(ray_cluster: None, model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tune\.workers=4 need a CPU each, the cluster has 2"):
        tuned(model_path, tmp_path, workers=4)


def test_deepspeed_settings_follow_ours() -> None:
    settings = TuneSettings(batch_prompts=16, workers=4, zero_stage=3, max_grad_norm=0.5)
    config = deepspeed_config(settings)
    assert config["gradient_accumulation_steps"] == 1
    assert config["train_batch_size"] == 4 * config["train_micro_batch_size_per_gpu"] == 16
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["stage"] == 3
    assert "offload_optimizer" not in config["zero_optimization"]
    offloaded = deepspeed_config(settings.model_copy(update={"offload": "parameters"}))["zero_optimization"]
    assert offloaded["offload_param"]["device"] == offloaded["offload_optimizer"]["device"] == "cpu"


@pytest.mark.gpu
@pytest.mark.ray
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tuning_on_a_gpu_learns_the_rule_in_bfloat16(ray_cluster: None, model_path: Path, tmp_path: Path) -> None:
    _, heard = tuned(model_path, tmp_path, llm=LLMSettings(model="tiny", device="cuda"))
    assert heard[-1].loss < 0.5 * heard[0].loss


@pytest.mark.gpu
@pytest.mark.ray
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_zero_stage_trains_the_same_on_a_gpu_with_layers_computed_again_or_kept(
    ray_cluster: None, tmp_path: Path
) -> None:
    model, on_gpu = tiny_model(tmp_path / "model", width=512), LLMSettings(model="tiny", device="cuda")
    expected, _ = tuned(model, tmp_path / "plain", llm=on_gpu, zero_stage=0, learning_rate=1e-3)
    for zero_stage in (0, 1, 2, 3):
        for checkpointing in (False, True):
            folder = tmp_path / f"{zero_stage}-{checkpointing}"
            changes = {"zero_stage": zero_stage, "gradient_checkpointing": checkpointing, "learning_rate": 1e-3}
            again, _ = tuned(model, folder, llm=on_gpu, **changes)
            assert again["loss"].to_pylist() == pytest.approx(expected["loss"].to_pylist(), rel=3e-2), changes


@pytest.mark.gpu
@pytest.mark.ray
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_an_optimizer_that_waits_in_the_hosts_memory_trains_the_same_over_four_passes_a_step(
    ray_cluster: None, tmp_path: Path, zero_stage: int
) -> None:
    model, on_gpu = tiny_model(tmp_path / "model", width=512), LLMSettings(model="tiny", device="cuda", dtype="float32")
    changes = {"zero_stage": zero_stage, "learning_rate": 1e-3, "micro_batch_tokens": 64}  # a prompt each
    expected, _ = tuned(model, tmp_path / "kept", llm=on_gpu, **changes)
    again, _ = tuned(model, tmp_path / "waiting", llm=on_gpu, offload="optimizer", **changes)
    assert again["loss"].to_pylist() == pytest.approx(expected["loss"].to_pylist(), rel=1e-3)
