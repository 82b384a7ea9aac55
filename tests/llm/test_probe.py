from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recranker.llm.model import LanguageModel, load_model
from recranker.llm.packing import Packed, pack
from recranker.llm.plan import PromptTokens, Row, Speed, Tuning, activation_bytes, operations
from recranker.llm.probe import Measured, activations_held, cuda_memory, made_up_loss, made_up_trees, measure
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.llm.shapes import shape_of
from recranker.llm.training import make_trainable
from recranker.llm.training_layers import quicken

ROW = Row((PromptTokens(200, (40, 40, 60, 60, 120)), PromptTokens(300, (50, 50))))


def settings(path: Path, dtype: Any = "float32") -> LLMSettings:
    return LLMSettings(model=str(path), device="cpu", dtype=dtype)


def prepared(path: Path, tune: TuneSettings, dtype: Any = "float32") -> tuple[LanguageModel, Tuning]:
    """The tiny model ready to be trained as workers make it ready, and the same for arithmetic."""
    lm = load_model(path, settings(path, dtype))
    make_trainable(lm, tune, seed=0)
    if tune.zero_stage < 3:
        quicken(lm)
    return lm, Tuning(shape_of(str(path)), tune, value_bytes=4 if dtype == "float32" else 2, on_gpu=False)


def row_of(lm: LanguageModel) -> Packed:
    """What its layout keeps for all layers is there already: next to so small a model it would count."""
    packed = pack(made_up_trees(ROW.prompts, lm.model.config.vocab_size))
    with torch.no_grad():
        made_up_loss(lm, packed)
    return packed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "tune",
    [
        {},
        {"zero_stage": 3},
        {"zero_stage": 3, "lora": {"targets": ("q_proj", "v_proj")}},
        {"zero_stage": 3, "lora": {"last_layers": 1}},
        {"lora": {"last_layers": 1}},
        {"lora": {"dropout": 0.1}},
        {"zero_stage": 3, "gradient_checkpointing": True},
        {"gradient_checkpointing": True},
    ],
    ids=[
        *("quick", "peft", "two-targets", "last-layer", "quick-last-layer", "dropout", "checkpointing"),
        "quick-checkpointing",
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_activations_are_what_arithmetic_says(tiny_path: Path, dtype: str, tune: dict[str, Any]) -> None:
    lm, tuning = prepared(tiny_path, TuneSettings.model_validate(tune), dtype)
    held = activations_held(lm, row_of(lm))
    assert activation_bytes(tuning, ROW) == pytest.approx(held, rel=0.15)


def test_every_weight_keeps_more(tiny_path: Path) -> None:
    lm, tuning = prepared(tiny_path, TuneSettings(method="full"))
    held = activations_held(lm, row_of(lm))
    gradients = 4 * tuning.trained  # not made before
    assert activation_bytes(tuning, ROW) == pytest.approx(held - gradients, rel=0.15)


def test_what_autograd_saves_is_within_what_is_held(tiny_path: Path) -> None:
    lm, tuning = prepared(tiny_path, TuneSettings(zero_stage=3))
    packed = row_of(lm)
    own = {one.untyped_storage().data_ptr() for one in (*lm.model.parameters(), *lm.model.buffers())}
    sizes: dict[int, int] = {}

    def saved(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        loss = made_up_loss(lm, packed)
    held = activations_held(lm, packed)
    assert 0.8 * held < sum(sizes.values()) <= held
    assert activation_bytes(tuning, ROW) == pytest.approx(sum(sizes.values()), rel=0.25)
    assert torch.isfinite(loss)


def test_a_gpu_keeps_a_mask_and_keys_for_every_head(tiny_path: Path) -> None:
    lm, on_cpu = prepared(tiny_path, TuneSettings(zero_stage=3))
    packed = row_of(lm)
    sizes: dict[int, int] = {}

    def saved(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        output = lm.model(  # without a layout the mask decides, as on CUDA
            input_ids=packed.input_ids,
            attention_mask=packed.layout.mask(torch.device("cpu")),
            position_ids=packed.position_ids,
            use_cache=False,
            logits_to_keep=packed.answer_positions,
        )
    weights = sum(one.nbytes for one in {p.data_ptr(): p for p in lm.model.parameters()}.values())
    on_gpu = Tuning(on_cpu.shape, on_cpu.tune, value_bytes=4, on_gpu=True)
    assert output.logits.shape[1] == ROW.questions
    assert activation_bytes(on_gpu, ROW) == pytest.approx(sum(sizes.values()) - weights, rel=0.1)
    assert activation_bytes(on_gpu, ROW) > 1.5 * activation_bytes(on_cpu, ROW)


@pytest.mark.parametrize(
    "tune",
    [{}, {"lora": {"last_layers": 1}}, {"gradient_checkpointing": True}, {"method": "full"}],
    ids=["all", "last-layer", "checkpointing", "full"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_operations_are_those_that_torch_counts(tiny_path: Path, tune: dict[str, Any]) -> None:
    lm, tuning = prepared(tiny_path, TuneSettings.model_validate({"zero_stage": 3, **tune}))
    packed = row_of(lm)
    with FlopCounterMode(display=False) as counter:
        made_up_loss(lm, packed).backward()
    width, flown = tuning.shape.queries, tuning.layers_flown
    again = flown if tuning.tune.gradient_checkpointing else 0
    pairs = (
        4 * width * ROW.tokens**2 * (tuning.shape.layers + 2.5 * flown + again)
    )  # not matrix products to the counter
    # the lowest adapted layer passes no gradient on, which is much of a model with two layers
    assert operations(tuning, ROW) - pairs == pytest.approx(counter.get_total_flops(), rel=0.09)


def test_a_probe_measures_the_row_it_is_given(tiny_path: Path) -> None:
    passes: list[int] = []
    measured = measure(tiny_path, settings(tiny_path), TuneSettings(), ROW, on_pass=lambda: passes.append(1))
    assert measured.tokens == ROW.tokens == 920
    assert min(measured.forward_s, measured.backward_s, measured.cpu_s) > 0
    assert len(passes) == 3


def test_speeds_by_hand() -> None:
    measured = Measured(tokens=100, forward_s=1.0, backward_s=3.0, cpu_s=8.0, activation_bytes=0)
    assert measured.speed() == Speed(0.04, 0.01)
    assert measured.speed(2.0) == Speed(0.08, 0.02)
    assert measured.cpu_speed(2) == Speed(0.16, 0.04)  # all workers together, of which times_of takes each one's share


def test_a_wall_clock_ahead_of_the_cpu_is_noticed() -> None:
    assert Measured(100, forward_s=1.0, backward_s=2.0, cpu_s=2.0, activation_bytes=0).was_disturbed
    assert not Measured(100, forward_s=1.0, backward_s=2.0, cpu_s=2.9, activation_bytes=0).was_disturbed


def test_a_cpu_has_no_cuda_memory() -> None:
    assert cuda_memory(LLMSettings(model="m", device="cpu")) is None
