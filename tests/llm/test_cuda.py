"""The same promises on a GPU: bfloat16 by default, packed rows, gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recranker.llm.encoding import encode_all
from recranker.llm.model import LanguageModel, add_adapter, load_model
from recranker.llm.packing import label_logits, pack
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings, LoraSettings
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


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.2)])
def test_all_backends_agree_on_the_device(tiny_path: Path, dtype: str, tolerance: float) -> None:
    found = []
    for backend in ("plain", "packed", "kv"):
        lm, settings = on_cuda(tiny_path, dtype, backend)
        found.append(np.concatenate([one for row in make_scorer(lm, settings).score(toy_prompts(4)) for one in row]))
    assert np.abs(found[1] - found[0]).max() < tolerance
    assert np.abs(found[2] - found[0]).max() < tolerance


def test_gradients_reach_the_adapter_on_the_device(tiny_path: Path) -> None:
    lm, settings = on_cuda(tiny_path)
    add_adapter(lm, LoraSettings())
    packed = pack(encode_all(toy_prompts(2), lm, settings.max_prompt_tokens), lm.device)
    torch.cat(label_logits(lm.model, packed)).sum().backward()
    gradients = [weight.grad for name, weight in lm.model.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
