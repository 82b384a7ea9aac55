import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from recranker.errors import ModelError, OutputError
from recranker.llm.adapter import (
    check_adapter,
    check_trained,
    golden_of,
    golden_prompts,
    read_record,
    record_of,
    reload_and_check,
    save_adapter,
)
from recranker.llm.model import LanguageModel, load_adapter, load_model
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.llm.training import make_trainable
from tests.llm.prompts import toy_prompts
from tests.models import tiny_model

LLM = LLMSettings(model="tiny", device="cpu")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def trained(path: Path) -> LanguageModel:
    """A model whose adapter has left its start."""
    lm = load_model(path, LLM)
    make_trainable(lm, TuneSettings(), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in lm.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return lm


@pytest.fixture
def folder(model_path: Path, tmp_path: Path) -> Path:
    """A saved adapter."""
    lm, prompts = trained(model_path), golden_prompts(toy_prompts(5))
    golden = golden_of(lm, prompts, make_scorer(lm, LLM).score(prompts))
    save_adapter(lm, tmp_path / "joint", record_of(lm, prompts, LLM, TuneSettings(), 7), golden)
    return tmp_path / "joint"


def test_saved_adapter_answers_as_the_trained_model_did(model_path: Path, folder: Path) -> None:
    assert reload_and_check(model_path, folder, LLM) < 1e-5
    untuned = load_model(model_path, LLM)
    with pytest.raises(ModelError, match="does not answer as the trained model did"):
        check_adapter(untuned, folder, LLM)


def test_record_says_what_the_adapter_was_trained_with(model_path: Path, folder: Path) -> None:
    record = read_record(folder)
    assert (record.model, record.seed, record.dtype) == ("tiny", 7, "float32")
    assert record.labels == {
        "listwise": (("A", "B", "C"),),
        "pairwise": (("No", "Yes"),),
        "pointwise": (("No", "Yes"),),
    }
    assert str(model_path) not in (folder / "adapter_config.json").read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        WEIGHTS,
        "golden.json",
        "recranker_adapter.json",
    ]


def test_changed_weights_are_caught(model_path: Path, folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({name: weight * 1.5 for name, weight in weights.items()}, folder / WEIGHTS)
    with pytest.raises(ModelError, match="log-probabilities differ by"):
        reload_and_check(model_path, folder, LLM)


def test_damaged_file_is_caught(model_path: Path, folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="joint"):
        reload_and_check(model_path, folder, LLM)


def test_adapter_of_another_base_model_is_caught(folder: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="log-probabilities differ by"):
        reload_and_check(other, folder, LLM)


def test_another_chat_template_is_caught(model_path: Path, folder: Path) -> None:
    record = json.loads((folder / "recranker_adapter.json").read_text())
    (folder / "recranker_adapter.json").write_text(json.dumps(record | {"frame": "0"}))
    with pytest.raises(ModelError, match="another chat template"):
        reload_and_check(model_path, folder, LLM)


@pytest.mark.parametrize("name", ["golden.json", "recranker_adapter.json"])
def test_broken_papers_are_caught(model_path: Path, folder: Path, name: str) -> None:
    lm = load_model(model_path, LLM)
    load_adapter(lm, folder)
    for damage in ("{", '{"dtype": "float32"}', '{"unknown": 1}'):
        (folder / name).write_text(damage)
        with pytest.raises(ModelError, match=f"{name}: .*tune again"):
            check_adapter(lm, folder, LLM)


def test_golden_file_that_lacks_an_answer_is_refused(model_path: Path, folder: Path) -> None:
    golden = json.loads((folder / "golden.json").read_text())
    golden["answers"][0]["log_probabilities"].pop()
    (folder / "golden.json").write_text(json.dumps(golden))
    with pytest.raises(ModelError, match="differ by inf nats"):
        reload_and_check(model_path, folder, LLM)


def test_other_hardware_is_given_more_room(model_path: Path, folder: Path) -> None:
    lm = load_model(model_path, LLM)
    load_adapter(lm, folder)
    golden = json.loads((folder / "golden.json").read_text())
    golden["answers"][0]["log_probabilities"][0][0] += 5e-3
    (folder / "golden.json").write_text(json.dumps(golden))
    assert check_adapter(lm, folder, LLM) == pytest.approx(5e-3, abs=1e-5)
    with pytest.raises(ModelError, match=r"differ by 0.005 nats, allowed 0.001"):
        check_adapter(lm, folder, LLM, same_machine=True)


def test_golden_file_without_answers_is_refused(model_path: Path, folder: Path) -> None:
    (folder / "golden.json").write_text('{"dtype": "float32", "answers": []}')
    with pytest.raises(ModelError, match=r"golden.json"):
        reload_and_check(model_path, folder, LLM)


def test_untrained_adapter_is_not_saved(model_path: Path) -> None:
    lm = load_model(model_path, LLM)
    make_trainable(lm, TuneSettings(), seed=0)
    with pytest.raises(ModelError, match=r"14 of 14 LoRA B matrices are empty, zero"):
        check_trained(lm)
    check_trained(trained(model_path))


@pytest.mark.parametrize("error", [SafetensorError("I/O error: No space left on device"), OSError(28, "No space left")])
def test_a_disk_that_fills_up_is_named(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    lm, prompts = trained(model_path), golden_prompts(toy_prompts(2))
    golden = golden_of(lm, prompts, make_scorer(lm, LLM).score(prompts))

    def fill(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("peft.peft_model.safe_save_file", fill)
    with pytest.raises(OutputError, match=rf"the adapter into '{tmp_path}/joint': .*No space left.*; free some space"):
        save_adapter(lm, tmp_path / "joint", record_of(lm, prompts, LLM, TuneSettings(), 7), golden)
