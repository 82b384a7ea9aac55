"""The same promises on a GPU: bfloat16 by default, packed rows, gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recranker.llm.adapter import ELSEWHERE
from recranker.llm.encoding import encode_all
from recranker.llm.model import LanguageModel, add_adapter, load_model, prepare_quantized
from recranker.llm.objectives import losses
from recranker.llm.packing import label_logits, pack
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings, LoraSettings, ObjectiveSettings
from tests.llm.prompts import toy_prompts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_cuda(path: Path, dtype: str = "auto", backend: str = "packed") -> tuple[LanguageModel, LLMSettings]:
    settings = LLMSettings.model_validate({"model": "tiny", "device": "cuda", "dtype": dtype, "backend": backend})
    return load_model(path, settings), settings


def test_weights_are_bfloat16_on_the_device(tiny_path: Path) -> None:
    lm, _ = on_cuda(tiny_path)
    assert next(lm.model.parameters()).dtype == torch.bfloat16
    assert next(lm.model.parameters()).is_cuda


def test_weights_are_read_onto_the_device_of_this_process_without_hooks(tiny_path: Path) -> None:
    lm, _ = on_cuda(tiny_path)
    here = torch.device("cuda", torch.cuda.current_device())
    assert {weight.device for weight in [*lm.model.parameters(), *lm.model.buffers()]} == {here}
    assert not any(hasattr(module, "_hf_hook") for module in lm.model.modules())


def test_no_attention_plans_anew_for_every_length_of_row(tiny_path: Path) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    on_cuda(tiny_path)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.2)])
def test_all_backends_agree_on_the_device(tiny_path: Path, dtype: str, tolerance: float) -> None:
    found = []
    for backend in ("plain", "packed", "kv"):
        lm, settings = on_cuda(tiny_path, dtype, backend)
        found.append(np.concatenate([one for row in make_scorer(lm, settings).score(toy_prompts(4)) for one in row]))
    assert np.abs(found[1] - found[0]).max() < tolerance
    assert np.abs(found[2] - found[0]).max() < tolerance


def test_bfloat16_answers_are_within_the_golden_tolerance_of_float32_ones_on_a_cpu(tiny_path: Path) -> None:
    lm, settings = on_cuda(tiny_path)
    on_cpu = LLMSettings(model="tiny", device="cpu")
    found, wanted = (
        np.concatenate([one for row in scorer.score(toy_prompts(8)) for one in row])
        for scorer in (make_scorer(lm, settings), make_scorer(load_model(tiny_path, on_cpu), on_cpu))
    )
    assert np.abs(found - wanted).max() < ELSEWHERE[torch.bfloat16]


def test_gradients_reach_the_adapter_on_the_device(tiny_path: Path) -> None:
    lm, settings = on_cuda(tiny_path)
    add_adapter(lm, LoraSettings())
    packed = pack(encode_all(toy_prompts(2), lm, settings.max_prompt_tokens), lm.device)
    torch.cat(label_logits(lm.model, packed)).sum().backward()
    gradients = [weight.grad for name, weight in lm.model.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_over_four_bits_learns_in_a_step(tiny_path: Path, checkpointing: bool) -> None:
    pytest.importorskip("bitsandbytes")
    settings = LLMSettings(model="tiny", device="cuda")
    lm = load_model(tiny_path, settings, "nf4")
    linear = lm.model.model.layers[0].mlp.up_proj.weight
    assert (linear.dtype, linear.numel()) == (torch.uint8, 32 * 64 // 2)  # two weights a byte
    assert (linear.quant_state.quant_type, linear.quant_state.nested) == ("nf4", True)
    prepare_quantized(lm)
    assert {weight.dtype for weight in lm.model.parameters()} == {torch.uint8, torch.float32}
    add_adapter(lm, LoraSettings())
    if checkpointing:
        lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        lm.model.enable_input_require_grads()
    lm.model.train()
    trained = {name: weight for name, weight in lm.model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    packed = pack(encode_all(toy_prompts(4), lm, settings.max_prompt_tokens), lm.device)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    found = []
    for _ in range(2):
        loss = losses(lm.model, packed, ObjectiveSettings()).mean()
        found.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert found[1] < found[0]
    assert all(weight.any() for name, weight in trained.items() if "lora_B" in name)
