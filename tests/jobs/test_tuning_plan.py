import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import tuning_plan
from jobs.settings import JobSettings
from jobs.stage import main, store_of
from jobs.tune import STAGE
from jobs.tuning_plan import next_command, options, show_plan
from recranker.errors import ModelError, SettingsError
from recranker.llm.hardware import GB
from recranker.llm.plan import Place
from tests.jobs.small import ROOT
from tests.jobs.test_tune import publish_prompts, settings_in
from tests.llm.prompts import toy_prompts
from tests.models import tiny_model

CONFIGS = ROOT / "jobs" / "configs"


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    options(parser)
    return parser.parse_intermixed_args(["some.toml", *arguments])


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a plan prints, blanks and lines drawn left out."""

    def plan(settings: JobSettings, *arguments: str) -> str:
        assert show_plan(settings, parsed("--plan", *arguments))
        return tidy(capsys.readouterr().out)

    return plan


def tidy(text: str) -> str:
    return re.sub(r"[\s│┃━─]+", " ", text)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan by arithmetic must not reach for any."""

    def refuse(*_: Any) -> Path:
        raise AssertionError("the model was wanted")

    monkeypatch.setattr(tuning_plan, "resolve_model", refuse)
    monkeypatch.setattr(tuning_plan, "measure", refuse)


@pytest.mark.parametrize(
    ("config", "gpu", "says"),
    [
        (
            "one_gpu.toml",
            "l4-24gb",
            "SmolLM2-1.7B-Instruct (1.71 billion parameters, 9.0 million in the adapter)",
        ),
        ("cluster_7b.toml", "a100-80gb", "Qwen2.5-7B-Instruct (7.62 billion parameters, 20.2 million in the"),
    ],
)
def test_ready_settings_for_gpus_are_planned_anywhere(
    config: str, gpu: str, says: str, no_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(STAGE, [str(CONFIGS / config), "--plan", "--gpu", gpu, "--prompts", "5000"]) == 0
    printed = tidy(capsys.readouterr().out)
    assert says in printed
    assert "The settings fit." in printed
    assert "training prompts 5,000" in printed
    assert "number of prompts from --prompts" in printed
    assert f"Next: python -m jobs.pipeline {CONFIGS / config}" in printed


def test_the_laptops_settings_are_planned_by_measuring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(tmp_path / "model")
    arguments = [f"llm.model={model}", "tune.lora.last_layers=1", "llm.device=cpu", f"store.home={tmp_path / 'home'}"]
    assert main(STAGE, [str(CONFIGS / "quickstart.toml"), *arguments, "--plan", "--prompts", "40"]) == 0
    printed = tidy(capsys.readouterr().out)
    assert "2 workers on this machine" in printed
    assert "Time on this machine, measured" in printed
    assert re.search(r"held 0\.\d\d GB of activations \(0\.\d\d by arithmetic\)", printed)
    assert "optimizer steps 10" in printed
    assert not (tmp_path / "home" / "runs").exists()  # a plan leaves nothing behind


def test_llama_2_on_eight_gpus_needs_no_file(tmp_path: Path, no_model: None, planned: Callable[..., str]) -> None:
    settings = settings_in(tmp_path, batch_prompts=8, gradient_checkpointing=True, zero_stage=3)
    settings = settings.model_copy(update={"llm": settings.llm.model_copy(update={"device": "auto"})})
    printed = planned(
        settings, "--gpu", "a100-80gb", "--model-shape", "llama-2-7b", "--workers", "8", "--prompts", "80"
    )
    assert "llama-2-7b (6.74 billion parameters, 20.0 million in the adapter), 8 workers" in printed
    assert "0 13.5 0.32" in printed  # 6,738,415,616 x 2 bytes; 16 bytes for each of 19,988,480
    assert "3 (chosen) 1.68 0.04" in printed  # an eighth of each
    assert "optimizer steps 10" in printed
    assert "40% of 312 TFLOP/s" in printed
    assert "Next: python -m jobs.pipeline some.toml tune.workers=8" in printed


def test_prompts_that_were_made_are_counted(tmp_path: Path, planned: Callable[..., str]) -> None:
    settings = settings_in(tmp_path, validation={"every_steps": 1})
    publish_prompts(settings, "train", toy_prompts(6))
    printed = planned(settings)
    assert "Counted in the prompts that jobs.instruct has made." in printed
    assert "questions 15 " in printed  # 6 prompts, every other one with a list
    assert "tokens of the longest prompt, with all its questions 110" in printed
    assert "optimizer steps 2 " in printed
    assert "2 looks at validation lists" in printed
    assert "Next: python -m jobs.tune some.toml" in printed
    assert store_of(settings).manifest("tune") is None
    assert "training prompts 50 " in planned(settings, "--prompts", "50")


def test_what_does_not_fit_is_said_with_what_would(tmp_path: Path, no_model: None, planned: Callable[..., str]) -> None:
    settings = settings_in(tmp_path, batch_prompts=8, micro_batch_tokens=8192)
    settings = settings.model_copy(update={"llm": settings.llm.model_copy(update={"device": "auto"})})
    printed = planned(settings, "--gpu", "l4-24gb", "--model-shape", "llama-2-7b", "--prompts", "80")
    assert "does not fit" in printed
    assert "The settings do not fit; these do: tune.gradient_checkpointing=true" in printed


def test_a_model_that_does_not_fit_here_is_not_fetched(
    tmp_path: Path, no_model: None, planned: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning_plan, "_place", lambda *_: Place("on this machine", 8 * GB, on_gpu=False))
    settings = settings_in(tmp_path)
    settings = settings.model_copy(
        update={"llm": settings.llm.model_copy(update={"model": "Qwen/Qwen2.5-7B-Instruct"})}
    )
    assert "Time: not measured, as the model does not fit here" in planned(settings)
    assert "--model-shape brings no weights" in planned(settings, "--model-shape", "smollm2-135m")


def test_a_stage_that_cannot_be_is_shown_as_such(tmp_path: Path, no_model: None, planned: Callable[..., str]) -> None:
    def of(**tune: Any) -> str:
        settings = settings_in(tmp_path, **tune)
        settings = settings.model_copy(update={"llm": settings.llm.model_copy(update={"device": "auto"})})
        return planned(settings, "--gpu", "l40s-48gb", "--model-shape", "llama-2-7b", "--prompts", "8")

    assert "3 - - - - - nf4 up to 2" in of(quantization="nf4")
    offloaded = of(zero_stage=3, offload="parameters")
    assert "on the host" in offloaded
    assert "2 - - - - - - offload in 3 only" in offloaded


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "l4-24gb"], "--gpu: only a plan can suppose that; add --plan"),
        (["--plan", "--gpu", "l4"], "--gpu must be one of"),
        (["--plan", "--workers", "3"], "--workers: .*batch_prompts must be a multiple of tune.workers, got 4 and 3"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, arguments: list[str], says: str) -> None:
    settings = settings_in(tmp_path)
    settings = settings.model_copy(update={"llm": settings.llm.model_copy(update={"device": "auto"})})
    with pytest.raises(SettingsError, match=says):
        show_plan(settings, parsed(*arguments))


def test_a_gpu_and_a_cpu_are_not_planned_together(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"llm\.device='cpu' wants none; set llm\.device=auto"):
        show_plan(settings_in(tmp_path), parsed("--plan", "--gpu", "l4-24gb"))


def test_a_model_of_unknown_shape_is_asked_for(tmp_path: Path, no_model: None) -> None:
    settings = settings_in(tmp_path)
    settings = settings.model_copy(update={"llm": settings.llm.model_copy(update={"model": "a/b", "device": "auto"})})
    with pytest.raises(ModelError, match=r"llm\.model: no shape is known of 'a/b'.*give one as --model-shape"):
        show_plan(settings, parsed("--plan", "--gpu", "l4-24gb"))


def test_numbers_must_be_above_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--plan", "--prompts", "0")
    assert "must be a number above 0, got '0'" in capsys.readouterr().err


def test_without_a_plan_the_stage_runs_as_ever(tmp_path: Path) -> None:
    assert not show_plan(settings_in(tmp_path), parsed())


def test_the_next_command_is_the_one_planned() -> None:
    assert next_command(parsed("tune.epochs=2", "--workers", "4"), is_made=True) == (
        "python -m jobs.tune some.toml tune.epochs=2 tune.workers=4"
    )
    assert next_command(parsed("name=my run"), is_made=False).startswith(
        "python -m jobs.pipeline some.toml 'name=my run'"
    )
