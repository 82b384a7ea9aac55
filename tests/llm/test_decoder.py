"""Our own layers against transformers' forward, architecture by architecture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config

from recranker.llm.attention import NAME
from recranker.llm.decoder import KINDS, TILE_TOKENS, decoder_of
from recranker.llm.model import LanguageModel, add_adapter, load_adapter, load_model, merge_adapter
from recranker.llm.packing import answer_logits, check_packing, label_logits, pack
from recranker.llm.settings import LLMSettings, LoraSettings
from tests.llm.test_packing import one_by_one, random_tree, random_trees

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
CONFIGS: list[PretrainedConfig] = [
    LlamaConfig(**SHAPE),
    LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, head_dim=16, tie_word_embeddings=True),
    LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
    MistralConfig(**SHAPE, sliding_window=None),
    Qwen2Config(**SHAPE),
]


def model_of(config: PretrainedConfig, lm: LanguageModel, dtype: torch.dtype = torch.float32) -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=NAME).eval()
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:  # ones and zeros would hide a mistake
                weight.data.uniform_(0.5, 1.5)
    return replace(lm, model=model, dtype=dtype)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_the_layers_give_the_logits_of_transformers(shared_lm: LanguageModel, config: PretrainedConfig) -> None:
    lm = model_of(config, shared_lm)
    assert decoder_of(lm) is not None
    trees = random_trees(3)
    with torch.inference_mode():
        torch.testing.assert_close(answer_logits(lm, pack(trees)), one_by_one(lm, trees), atol=1e-4, rtol=1e-4)


def test_a_row_longer_than_a_tile(shared_lm: LanguageModel) -> None:
    import numpy as np

    lm, random = model_of(CONFIGS[0], shared_lm), np.random.default_rng(0)
    trees = [random_tree(random, TILE_TOKENS - 7, [3, 30, 400, 200])]
    with torch.inference_mode():
        torch.testing.assert_close(answer_logits(lm, pack(trees)), one_by_one(lm, trees), atol=1e-4, rtol=1e-4)


def test_bfloat16_stays_near_float32(shared_lm: LanguageModel) -> None:
    trees = random_trees(3)
    exact, rounded = model_of(CONFIGS[0], shared_lm), model_of(CONFIGS[0], shared_lm, torch.bfloat16)
    with torch.inference_mode():
        wanted = torch.cat(answer_logits(exact, pack(trees)))
        found = torch.cat(answer_logits(rounded, pack(trees)))
        theirs = torch.cat([one.float() for one in one_by_one(rounded, trees)])
    assert 0 < (found - wanted).abs().mean() <= 1.1 * (theirs - wanted).abs().mean()


def test_other_architectures_go_through_transformers(shared_lm: LanguageModel) -> None:
    config = GPTNeoXConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    lm = model_of(config, shared_lm)
    assert type(lm.model) not in KINDS
    assert decoder_of(lm) is None
    trees = random_trees(3)
    with torch.inference_mode():
        torch.testing.assert_close(answer_logits(lm, pack(trees)), one_by_one(lm, trees), atol=1e-4, rtol=1e-4)


def test_an_adapter_beside_the_weights_goes_through_transformers_until_it_is_merged(
    lm: LanguageModel, tiny_path: Path, tmp_path: Path
) -> None:
    add_adapter(lm, LoraSettings(), seed=1)
    for name, weight in lm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    lm.model.save_pretrained(str(tmp_path))
    tuned = load_model(tiny_path, LLMSettings(model="tiny", device="cpu"))
    untuned = load_model(tiny_path, LLMSettings(model="tiny", device="cpu"))
    load_adapter(tuned, tmp_path)
    assert decoder_of(tuned) is None
    with torch.inference_mode():
        beside = answer_logits(tuned, pack(random_trees(5)))
        merge_adapter(tuned)
        assert decoder_of(tuned) is not None
        merged = answer_logits(tuned, pack(random_trees(5)))
        without = answer_logits(untuned, pack(random_trees(5)))
    torch.testing.assert_close(merged, beside, atol=1e-3, rtol=1e-3)
    assert max(float((a - b).abs().max()) for a, b in zip(merged, without, strict=True)) > 0.1


@pytest.mark.parametrize("part", ["input_layernorm", "self_attn.o_proj", "mlp.up_proj"])
def test_a_model_whose_layers_differ_from_ours_is_found_out(lm: LanguageModel, part: str) -> None:
    """``check_packing`` compares our layers with transformers' forward, which a hook makes another one here."""
    layer = lm.model.model.layers[1].get_submodule(part)
    layer.register_forward_hook(lambda module, inputs, output: output * 1.5)
    with pytest.raises(Exception, match="WAY OUT"):
        check_packing(lm, max_prompt_tokens=512, way_out="WAY OUT")
    with torch.inference_mode():
        assert label_logits(lm.model, pack(random_trees(1)))
