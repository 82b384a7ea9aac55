"""Layers for training against peft's and transformers' own under the row's dense mask."""

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPTNeoXConfig, PretrainedConfig

from recranker.llm import training_layers
from recranker.llm.attention import PrefixState
from recranker.llm.model import LanguageModel, add_adapter, base_of, load_model, remove_adapter
from recranker.llm.packing import Packed, Part, answer_logits, label_logits, pack, pack_parts
from recranker.llm.settings import LLMSettings, LoraSettings
from recranker.llm.training_layers import quicken, restore
from tests.llm.test_decoder import CONFIGS, model_of
from tests.llm.test_packing import random_trees

SEVEN = LoraSettings().targets


def tuned(lm: LanguageModel, config: PretrainedConfig = CONFIGS[0], **options: Any) -> LanguageModel:
    """A random model with an adapter that says something."""
    found = model_of(copy.deepcopy(config), lm)  # some tests change it
    options = {"r": 3, "lora_alpha": 5, "target_modules": list(SEVEN), "task_type": "CAUSAL_LM", **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        found.model = get_peft_model(found.model, LoraConfig(**options))
        for name, weight in found.model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
    found.model.train()
    return found


def loss_of(lm: LanguageModel, packed: Packed, *, dense: bool) -> Tensor:
    """A loss that weighs every answer differently."""
    forward = lm.model
    if dense:
        mask = packed.layout.mask(packed.input_ids.device)

        def forward(**inputs: Any) -> Any:
            return lm.model(**{**inputs, "layout": None, "attention_mask": mask})

    logits = torch.cat(label_logits(forward, packed))
    return (logits * torch.linspace(-1, 2, len(logits)) + logits.square() * 0.01).mean()


def gradients(lm: LanguageModel, packed: Packed, *, dense: bool = False) -> dict[str, Tensor]:
    """Of all that is trained; and the loss."""
    lm.model.zero_grad()
    loss = loss_of(lm, packed, dense=dense)
    loss.backward()
    found = {name: weight.grad for name, weight in lm.model.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach(), **found}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert any("lora_" in name for name in found)
    for name, one in found.items():
        bound = 2e-5 if name == "loss" else 1e-5  # a loss near 0.1 is a difference of logits near 1
        assert float((one - wanted[name]).norm()) < bound * float(wanted[name].norm()), name


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"layers_to_transform": [1, 2]},
        {"layers_to_transform": [2]},
        {"layers_to_transform": [0]},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["up_proj", "o_proj"], "rank_pattern": {"up_proj": 2}},
    ],
    ids=str,
)
def test_gradients_and_loss_are_those_of_peft_under_the_mask(
    shared_lm: LanguageModel, config: PretrainedConfig, options: dict[str, Any]
) -> None:
    lm, packed = tuned(shared_lm, config, **options), pack(random_trees(3))
    wanted = gradients(lm, packed, dense=True)
    assert quicken(lm)
    assert_same(gradients(lm, packed), wanted)


@pytest.mark.parametrize("last_layers", [None, 1])
def test_gradient_checkpointing_changes_nothing_but_memory(shared_lm: LanguageModel, last_layers: int | None) -> None:
    lm = tuned(shared_lm, layers_to_transform=None if last_layers is None else [2])
    packed = pack(random_trees(3))
    wanted = gradients(lm, packed, dense=True)
    assert quicken(lm)
    whole = kept_by(lm, packed)
    lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lm.model.enable_input_require_grads()
    assert_same(gradients(lm, packed), wanted)
    assert kept_by(lm, packed) < whole * 0.6


def kept_by(lm: LanguageModel, packed: Packed) -> int:
    """Numbers kept for the gradients between forward and backward."""
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
        loss_of(lm, packed, dense=False)
    return sum(kept)


def test_rows_in_many_tiles(shared_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, packed = tuned(shared_lm), pack(random_trees(3))
    wanted = gradients(lm, packed, dense=True)
    assert quicken(lm)
    monkeypatch.setattr(training_layers, "TILE_TOKENS", 32)
    assert_same(gradients(lm, packed), wanted)


def test_layers_below_the_first_adapted_one_keep_nothing(shared_lm: LanguageModel) -> None:
    packed, kept = pack(random_trees(3)), []
    for chosen in ([2], [1, 2], [0, 1, 2]):
        lm = tuned(shared_lm, layers_to_transform=chosen)
        assert quicken(lm)
        kept.append(kept_by(lm, packed))
    assert kept[1] - kept[0] == kept[2] - kept[1] > 0


def test_a_row_gives_every_adapter_one_gradient_through_its_own_hook(shared_lm: LanguageModel) -> None:
    lm, seen = tuned(shared_lm), Counter[str]()
    assert quicken(lm)
    for name, weight in lm.model.named_parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda _, name=name: seen.update([name]))
    gradients(lm, pack(random_trees(3)))
    assert seen == {name: 1 for name, weight in lm.model.named_parameters() if weight.requires_grad}


def test_gradients_of_two_rows_add_up(shared_lm: LanguageModel) -> None:
    lm = tuned(shared_lm)
    assert quicken(lm)
    first, second = pack(random_trees(3)), pack(random_trees(4))
    wanted = [gradients(lm, packed) for packed in (first, second)]
    lm.model.zero_grad()
    for packed in (first, second):
        loss_of(lm, packed, dense=False).backward()
    for name, weight in lm.model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad, wanted[0][name] + wanted[1][name])


def test_answers_without_gradients_are_the_same(shared_lm: LanguageModel) -> None:
    lm, trees = tuned(shared_lm), random_trees(5)
    lm.model.eval()
    with torch.inference_mode():
        wanted = answer_logits(lm, pack(trees))
        assert quicken(lm)
        torch.testing.assert_close(answer_logits(lm, pack(trees)), wanted, atol=1e-4, rtol=1e-4)
        state = PrefixState()
        parts = [Part(trees[0], 0, 0, 1, True, state), Part(trees[0], 0, 1, 3, False, state)]
        apart = [one for part in parts for one in answer_logits(lm, pack_parts([part]))]
    torch.testing.assert_close(apart, wanted[:3], atol=1e-4, rtol=1e-4)


def test_an_adapter_that_is_switched_off_or_taken_off_adds_nothing(shared_lm: LanguageModel) -> None:
    plain, lm, packed = model_of(CONFIGS[0], shared_lm), tuned(shared_lm), pack(random_trees(5))
    assert quicken(lm)
    with torch.inference_mode():
        wanted = label_logits(plain.model, packed)
        with lm.model.disable_adapter():
            torch.testing.assert_close(label_logits(lm.model, packed), wanted, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(label_logits(lm.model, packed)[0], wanted[0], atol=1e-2)
        remove_adapter(lm)
        torch.testing.assert_close(label_logits(lm.model, packed), wanted, atol=1e-4, rtol=1e-4)


def test_a_prompt_without_a_layout_goes_through_transformers(shared_lm: LanguageModel) -> None:
    lm, ids = tuned(shared_lm), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    wanted = lm.model(input_ids=ids).logits
    assert quicken(lm)
    torch.testing.assert_close(lm.model(input_ids=ids).logits, wanted, atol=0, rtol=0)


def test_restored_layers_are_transformers_own(shared_lm: LanguageModel) -> None:
    lm = tuned(shared_lm)
    assert quicken(lm)
    layers = base_of(lm).model.layers
    assert all("forward" in vars(layer) for layer in layers)
    restore(lm)
    assert not any("forward" in vars(layer) for layer in layers)


def with_bfloat16(lm: LanguageModel) -> LanguageModel:
    return replace(lm, dtype=torch.bfloat16)


def with_two_adapters(lm: LanguageModel) -> LanguageModel:
    lm.model.add_adapter("other", LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    lm.model.base_model.set_adapter(["default", "other"])
    return lm


def with_a_merged_adapter(lm: LanguageModel) -> LanguageModel:
    lm.model.merge_adapter()
    return lm


def with_a_trained_norm(lm: LanguageModel) -> LanguageModel:
    base_of(lm).model.norm.weight.requires_grad = True
    return lm


def with_attention_dropout(lm: LanguageModel) -> LanguageModel:
    base_of(lm).config.attention_dropout = 0.1
    return lm


def with_another_gate(lm: LanguageModel) -> LanguageModel:
    base_of(lm).config.hidden_act = "gelu"
    return lm


def without_an_adapter(lm: LanguageModel) -> LanguageModel:
    remove_adapter(lm)
    return lm


@pytest.mark.parametrize(
    "change",
    [
        with_bfloat16,
        with_two_adapters,
        with_a_merged_adapter,
        with_a_trained_norm,
        with_attention_dropout,
        with_another_gate,
        without_an_adapter,
    ],
)
def test_what_these_layers_cannot_do_is_left_as_it_was(shared_lm: LanguageModel, change: Any) -> None:
    lm = change(tuned(shared_lm))
    assert not quicken(lm)
    assert not any("forward" in vars(layer) for layer in base_of(lm).model.layers)


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_other_kinds_of_adapters_are_left_as_they_were(shared_lm: LanguageModel, options: dict[str, Any]) -> None:
    biased = CONFIGS[1] if "lora_bias" in options else CONFIGS[0]
    assert not quicken(tuned(shared_lm, biased, **options))


def test_other_architectures_are_left_as_they_were(shared_lm: LanguageModel) -> None:
    config = GPTNeoXConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    assert not quicken(tuned(shared_lm, config, target_modules=["query_key_value"]))


def test_an_adapter_of_our_own_settings_is_quickened(tiny_path: Any) -> None:
    lm = load_model(tiny_path, LLMSettings(model="tiny", device="cpu"))
    add_adapter(lm, LoraSettings(last_layers=1))
    assert quicken(lm)
