import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recranker.errors import ModelError
from recranker.llm.model import (
    ADAPTER_WEIGHTS,
    LanguageModel,
    add_adapter,
    load_adapter,
    load_model,
    merge_adapter,
    prepare_quantized,
    remove_adapter,
    resolve_model,
)
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings, LoraSettings
from recranker.tasks.protocol import Prompt, Question
from tests.models import tiny_model

SETTINGS = LLMSettings(model="tiny", device="cpu")
PROMPT = Prompt("p", "Liked: Alien", (Question("pointwise", "Fargo?", ("Yes", "No"), ("1",)),))


def answer(lm: LanguageModel) -> np.ndarray:
    return make_scorer(lm, SETTINGS).score([PROMPT])[0][0]


def tune(lm: LanguageModel, seed: int = 0) -> None:
    """An adapter that changes answers, without a training run."""
    add_adapter(lm, LoraSettings(), seed=seed)
    random = torch.Generator().manual_seed(seed)
    for name, weight in lm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=random)


def saved(lm: LanguageModel, folder: Path) -> Path:
    lm.model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def test_a_model_runs_on_the_cpu_in_float32(shared_lm: LanguageModel) -> None:
    assert shared_lm.device.type == "cpu"
    assert {weight.dtype for weight in shared_lm.model.parameters()} == {torch.float32}
    assert not shared_lm.model.training


def test_bfloat16_on_request(tiny_path: Path) -> None:
    half = load_model(tiny_path, SETTINGS.model_copy(update={"dtype": "bfloat16"}))
    assert half.model.dtype == torch.bfloat16
    np.testing.assert_allclose(answer(half), answer(load_model(tiny_path, SETTINGS)), atol=0.2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_asked_for_and_absent(tiny_path: Path) -> None:
    with pytest.raises(ModelError, match=r"sees no CUDA device; set llm\.device=auto"):
        load_model(tiny_path, SETTINGS.model_copy(update={"device": "cuda"}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_four_bits_are_refused_off_cuda(tiny_path: Path, device: str) -> None:
    settings = SETTINGS.model_copy(update={"device": device})
    with pytest.raises(ModelError, match=rf"tune\.quantization='nf4' needs a CUDA device, .* llm\.device='{device}'"):
        load_model(tiny_path, settings, "nf4")


def test_four_bits_are_refused_without_their_library(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ModelError, match=r"tune\.quantization='nf4' needs bitsandbytes.*: pip install bitsandbytes"):
        load_model(tiny_path, SETTINGS.model_copy(update={"device": "cuda"}), "nf4")


def test_a_model_that_is_not_quantised_needs_no_preparation(lm: LanguageModel) -> None:
    before = lm.model
    prepare_quantized(lm)
    assert lm.model is before
    assert all(weight.requires_grad for weight in lm.model.parameters())


def test_a_prompt_longer_than_the_model_reads_is_refused(tiny_path: Path) -> None:
    with pytest.raises(ModelError, match=r"max_prompt_tokens is 5000, the model .* reads 4096"):
        load_model(tiny_path, SETTINGS.model_copy(update={"max_prompt_tokens": 5000}))


def test_a_folder_is_its_own_resolution(tiny_path: Path, tmp_path: Path) -> None:
    assert resolve_model(str(tiny_path), tmp_path) == tiny_path


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder '/nowhere/at/all'"):
        resolve_model("/nowhere/at/all", tmp_path)
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(tmp_path), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        resolve_model(str(tmp_path), tmp_path)


def test_torn_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="not loadable as a causal language model"):
        load_model(folder, SETTINGS)


def test_a_model_that_brings_its_own_code_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match="not loadable"):
        load_model(folder, SETTINGS)


def test_only_the_adapter_is_trainable(lm: LanguageModel) -> None:
    add_adapter(lm, LoraSettings(rank=4, targets=("q_proj", "v_proj")))
    trainable = [name for name, weight in lm.model.named_parameters() if weight.requires_grad]
    assert len(trainable) == 2 * 2 * 2  # layers, targets, A and B
    assert all("lora_" in name for name in trainable)


def test_a_fresh_adapter_changes_nothing_and_is_keyed_by_its_seed(lm: LanguageModel, tiny_path: Path) -> None:
    before = answer(lm)
    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    add_adapter(lm, LoraSettings(), seed=5)
    assert torch.rand(1) == expected  # the global stream is left alone
    np.testing.assert_allclose(answer(lm), before, atol=1e-6)
    other = load_model(tiny_path, SETTINGS)
    add_adapter(other, LoraSettings(), seed=5)
    weights = dict(other.model.named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in lm.model.named_parameters())


def test_without_its_adapter_a_model_answers_as_untuned(lm: LanguageModel) -> None:
    before = answer(lm)
    tune(lm)
    tuned = answer(lm)
    assert np.abs(tuned - before).max() > 1e-2
    remove_adapter(lm)
    np.testing.assert_allclose(answer(lm), before, atol=1e-6)


def test_a_merged_adapter_answers_as_beside_the_weights_and_cannot_be_replaced(
    lm: LanguageModel, tiny_path: Path, tmp_path: Path
) -> None:
    tune(lm)
    folder = saved(lm, tmp_path / "adapter")
    wanted = answer(lm)
    merge_adapter(lm)
    np.testing.assert_allclose(answer(lm), wanted, atol=1e-5)
    with pytest.raises(ModelError, match="hold another adapter already"):
        load_adapter(lm, folder)


def test_a_saved_adapter_answers_the_same_after_loading(lm: LanguageModel, tiny_path: Path, tmp_path: Path) -> None:
    tune(lm)
    folder = saved(lm, tmp_path / "adapter")
    fresh = load_model(tiny_path, SETTINGS)
    load_adapter(fresh, folder)
    np.testing.assert_allclose(answer(fresh), answer(lm), atol=1e-6)
    assert not any(weight.requires_grad for weight in fresh.model.parameters())


def test_an_adapter_is_read_on_the_cpu_whatever_device_peft_would_take(
    lm: LanguageModel, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(lm)
    folder = saved(lm, tmp_path / "adapter")
    monkeypatch.setattr("peft.peft_model.infer_device", lambda: "cuda")
    fresh = load_model(tiny_path, SETTINGS)
    load_adapter(fresh, folder)
    np.testing.assert_array_equal(answer(fresh), answer(lm))


def test_loading_takes_the_place_of_the_adapter_before(lm: LanguageModel, tiny_path: Path, tmp_path: Path) -> None:
    untuned = answer(lm)
    folders = []
    for seed in (1, 2):
        other = load_model(tiny_path, SETTINGS)
        tune(other, seed)
        folders.append((saved(other, tmp_path / str(seed)), answer(other)))
    for folder, expected in [*folders, folders[0]]:
        load_adapter(lm, folder)
        np.testing.assert_allclose(answer(lm), expected, atol=1e-6)
    remove_adapter(lm)
    np.testing.assert_allclose(answer(lm), untuned, atol=1e-6)


def test_an_adapter_can_be_loaded_to_train_on(lm: LanguageModel, tmp_path: Path) -> None:
    tune(lm)
    folder = saved(lm, tmp_path / "adapter")
    load_adapter(lm, folder, trainable=True)
    assert {"lora_" in name for name, weight in lm.model.named_parameters() if weight.requires_grad} == {True}


def test_an_adapter_with_tensors_missing_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    tune(lm)
    folder = saved(lm, tmp_path / "adapter")
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    with pytest.raises(ModelError, match="the adapter lacks 1 tensors"):
        load_adapter(lm, folder)


def test_an_empty_adapter_of_a_sharded_save_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    tune(lm)
    folder = saved(lm, tmp_path / "adapter")
    tensors = {name: torch.empty(0) for name in load_file(folder / ADAPTER_WEIGHTS)}
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    with pytest.raises(ModelError, match="does not fit this model"):
        load_adapter(lm, folder)


def test_a_folder_without_adapter_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter here"):
        load_adapter(lm, tmp_path)


@pytest.mark.parametrize(("stabilised", "scale"), [(False, 12.0 / 9), (True, 12.0 / 3)])
def test_the_scale_of_an_update_is_alpha_over_rank_or_over_its_root(
    lm: LanguageModel, tiny_path: Path, tmp_path: Path, stabilised: bool, scale: float
) -> None:
    add_adapter(lm, LoraSettings(rank=9, alpha=12.0, rank_stabilised=stabilised))
    fresh = load_model(tiny_path, SETTINGS)
    load_adapter(fresh, saved(lm, tmp_path / "adapter"))
    for tuned in (lm, fresh):
        scales = [
            one.scaling["default"]
            for one in tuned.model.modules()
            if hasattr(one, "scaling") and hasattr(one, "lora_A")
        ]
        assert scales == pytest.approx([scale] * 14)  # two layers, seven targets each


def test_a_second_adapter_and_unknown_targets_are_refused(lm: LanguageModel) -> None:
    with pytest.raises(ModelError, match=r"tune\.lora\.targets do not fit this model"):
        add_adapter(lm, LoraSettings(targets=("nothing_proj",)))
    add_adapter(lm, LoraSettings())
    with pytest.raises(ModelError, match="has an adapter already"):
        add_adapter(lm, LoraSettings())


def test_only_the_last_layers_are_adapted_where_settings_say_so(tiny_path: Path) -> None:
    lm = load_model(tiny_path, LLMSettings(model="tiny", device="cpu"))
    add_adapter(lm, LoraSettings(last_layers=1))
    adapted = {name.split("layers.")[1][0] for name, weight in lm.model.named_parameters() if weight.requires_grad}
    assert adapted == {"1"}
    deep = load_model(tiny_path, LLMSettings(model="tiny", device="cpu"))
    with pytest.raises(ModelError, match=r"tune\.lora\.last_layers=3, but this model has 2 layers"):
        add_adapter(deep, LoraSettings(last_layers=3))
