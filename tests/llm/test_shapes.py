import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM as AutoModel
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from recranker.errors import ModelError
from recranker.llm.model import LanguageModel, add_adapter
from recranker.llm.settings import LoraSettings
from recranker.llm.shapes import NAMED, SHAPE_OF_MODEL, read_shape, shape_of

SMALL = {
    "vocab_size": 100,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


def written(folder: Path, **values: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": "llama", **SMALL, **values}))
    return path


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-2-7b", 6_738_415_616),
        ("llama-3-8b", 8_030_261_248),
        ("mistral-7b", 7_248_023_552),
        ("qwen2.5-7b", 7_615_616_512),
        ("smollm2-135m", 134_515_008),
        ("smollm2-1.7b", 1_711_376_384),
    ],
)
def test_named_models_have_the_parameters_their_makers_count(name: str, parameters: int) -> None:
    assert NAMED[name].parameters == parameters


def test_llama_2_by_hand() -> None:
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11_008 + 2 * 4096  # attention, gated layer, two norms
    assert NAMED["llama-2-7b"].parameters == 32 * layer + 2 * 32_000 * 4096 + 4096
    assert NAMED["llama-2-7b"].matrix_weights == 32 * (layer - 2 * 4096)


def test_every_known_model_has_a_shape() -> None:
    assert set(SHAPE_OF_MODEL.values()) <= set(NAMED)
    assert shape_of("Qwen/Qwen2.5-7B-Instruct") == NAMED["qwen2.5-7b"]


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, tie_word_embeddings=True),
        LlamaConfig(**SMALL, tie_word_embeddings=False),
        MistralConfig(**SMALL, head_dim=8),
        Qwen2Config(**SMALL),
        Qwen3Config(**SMALL, head_dim=8),
    ],
    ids=["llama-tied", "llama", "mistral", "qwen2", "qwen3"],
)
def test_a_config_file_gives_as_many_parameters_as_transformers_makes(tmp_path: Path, config: PretrainedConfig) -> None:
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert shape_of(str(tmp_path)).parameters == sum(weight.numel() for weight in model.parameters())


def test_an_adapter_has_rank_times_inputs_and_outputs() -> None:
    by_hand = 4 * (4096 + 4096) + 3 * (4096 + 11_008)  # q k v o, gate up down
    assert NAMED["llama-2-7b"].adapter_parameters(LoraSettings(rank=8)) == 32 * 8 * by_hand == 19_988_480
    last = LoraSettings(rank=4, last_layers=2, targets=("q_proj", "v_proj"))
    assert NAMED["llama-2-7b"].adapter_parameters(last) == 2 * 4 * 2 * (4096 + 4096)


@pytest.mark.parametrize(
    "lora",
    [LoraSettings(), LoraSettings(rank=3, last_layers=1), LoraSettings(targets=("k_proj", "down_proj"))],
    ids=["default", "last-layer", "two-targets"],
)
def test_peft_trains_as_many(tiny_path: Path, lm: LanguageModel, lora: LoraSettings) -> None:
    add_adapter(lm, lora)
    trained = sum(weight.numel() for weight in lm.model.parameters() if weight.requires_grad)
    assert shape_of(str(tiny_path)).adapter_parameters(lora) == trained


def test_a_model_fetched_from_the_hub_is_known_by_its_id(tmp_path: Path) -> None:
    place = tmp_path / "models--someone--their-model"
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    written(place / "snapshots" / "abc", num_hidden_layers=5)
    assert shape_of("someone/their-model", hub=tmp_path).layers == 5
    with pytest.raises(ModelError, match="no shape is known of 'someone/other'"):
        shape_of("someone/other", hub=tmp_path)


def test_what_is_no_model_of_this_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no shape is known of '/nowhere/x'; known: llama-2-7b.*config\.json"):
        shape_of("/nowhere/x", hub=tmp_path)
    with pytest.raises(ModelError, match="knows models of type llama, mistral, qwen2, qwen3, got 'gpt2'"):
        read_shape(written(tmp_path, model_type="gpt2"))
    with pytest.raises(ModelError, match="hidden_size must be whole numbers above 0"):
        read_shape(written(tmp_path, hidden_size="wide"))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match="not readable"):
        read_shape(tmp_path / "config.json")


def test_adapters_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"tune\.lora\.targets: the plan knows .*, got \['c_attn'\]"):
        NAMED["llama-2-7b"].adapter_parameters(LoraSettings(targets=("c_attn",)))
    with pytest.raises(ModelError, match="last_layers=33, but this model has 32 layers"):
        NAMED["llama-2-7b"].adapter_parameters(LoraSettings(last_layers=33))
