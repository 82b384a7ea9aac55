from dataclasses import replace
from typing import Any

import pytest

from recranker.llm.hardware import GB, GPUS
from recranker.llm.plan import (
    NETWORK_GB_S,
    Amount,
    Place,
    PromptTokens,
    Row,
    Speed,
    Times,
    Tuning,
    Work,
    activation_bytes,
    fits,
    gpu_speed,
    link_gb_s,
    memory_of,
    needed,
    operations,
    times_of,
    way_out,
)
from recranker.llm.settings import TuneSettings
from recranker.llm.shapes import NAMED

ROW = Row((PromptTokens(900, (100,)),))
P, A = 6_738_415_616, 19_988_480
"""Parameters of LLaMA-2-7B, and of an adapter of rank 8 on all its linear layers."""


def llama(**tune: Any) -> Tuning:
    """LLaMA-2-7B in bfloat16 on GPUs, eight workers."""
    settings = TuneSettings.model_validate({"workers": 8, "batch_prompts": 8, **tune})
    return Tuning(NAMED["llama-2-7b"], settings, value_bytes=2, on_gpu=True)


def work(steps: int, passes: int, tokens: int, row: Row = ROW) -> Work:
    return Work("joint", 10, 10, 0, 1000, steps, passes, tokens, typical=row, largest=row)


@pytest.mark.parametrize(
    ("stage", "base", "adapter", "buffers"),
    [
        (0, 2 * P, 16 * A, 0),  # weights 4, gradients 4, state 8
        (1, 2 * P, 8 * A + 12 * A / 8, 4 * 5e8),  # a copy of the weights joins the state; a bucket of gradients
        (2, 2 * P, 4 * A + 16 * A / 8, 4 * 5e8),
        (3, 2 * P / 8, 16 * A / 8, 4 * 5e8 + 2 * 1e9),  # no copy; a billion weights gathered
    ],
)
def test_a_line_of_memory_by_hand(stage: Any, base: float, adapter: float, buffers: float) -> None:
    memory = memory_of(llama(), ROW, stage)
    assert memory is not None
    assert (memory.base, memory.adapter, memory.host) == (base, pytest.approx(adapter), 0)
    assert memory.working == buffers + 1.5 * GB
    assert memory.total == pytest.approx(base + adapter + buffers + 1.5 * GB + 8_941_312_000)


def test_activations_by_hand() -> None:
    inputs = 4 * (3 * 4096 + 4096 + 2 * 4096 + 11_008)  # of q k v, o, gate up, down, each its own in float32
    between = 2 * (2 * 4096 + 2 * 4096 + 1000 + 3 * 11_008)  # queries, output, keys, values, mask, gated layer
    layer = 1000 * (8 * 4096 + inputs + 4 * 8 * 7 + between)
    ends = 1000 * 4 * 4096 + 8 * 32_000 + 1000 * 8 * 11_008
    assert activation_bytes(llama(), ROW) == 32 * layer + ends == 8_941_312_000
    checkpointed = llama(gradient_checkpointing=True)
    assert activation_bytes(checkpointed, ROW) == layer + 32 * 1000 * 2 * 4096 + ends == 642_992_000


def test_layers_below_the_adapters_keep_nothing() -> None:
    half = llama(lora={"last_layers": 16})
    ends = 104_704_000
    assert activation_bytes(half, ROW) - ends == (activation_bytes(llama(), ROW) - ends) / 2


def test_offloading_moves_state_and_then_weights_to_the_host() -> None:
    state = memory_of(llama(zero_stage=2, offload="optimizer"), ROW, 2)
    assert state is not None
    assert (state.base, state.adapter, state.host) == (2 * P, 4 * A, 16 * A / 8)
    weights = memory_of(llama(zero_stage=3, offload="parameters"), ROW, 3)
    assert weights is not None
    assert (weights.base, weights.adapter, weights.host) == (0, 4 * A / 8, 2 * P / 8 + 16 * A / 8)


def test_nf4_keeps_matrices_in_4_bits_and_the_rest_in_float32() -> None:
    memory = memory_of(llama(quantization="nf4"), ROW, 2)
    assert memory is not None
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008)
    assert memory.base == pytest.approx(matrices * 4.127 / 8 + (P - matrices) * 4)
    assert memory.base < 2 * P / 2.9


def test_what_contradicts_itself_has_no_line() -> None:
    assert memory_of(llama(quantization="nf4"), ROW, 3) is None
    assert memory_of(llama(zero_stage=3, offload="parameters"), ROW, 2) is None


def test_on_a_cpu_a_bucket_is_no_larger_than_the_adapter() -> None:
    tuning = replace(llama(), value_bytes=4, on_gpu=False)
    memory = memory_of(tuning, ROW, 2)
    assert memory is not None
    assert memory.working == 4 * A + 0.6 * GB


def test_a_model_is_read_whole_before_it_is_cut_or_offloaded() -> None:
    for offload in ("none", "parameters"):
        tuning = llama(zero_stage=3, offload=offload, gradient_checkpointing=True)
        memory = memory_of(tuning, ROW, 3)
        assert memory is not None
        assert memory.loading == 2 * P + 1.5 * GB
        assert memory.total < memory.loading
        assert fits(memory, tuning, Place("there", memory.loading, on_gpu=True))
        assert not fits(memory, tuning, Place("there", memory.loading - 1, on_gpu=True))
    on_cpus = replace(llama(zero_stage=3, gradient_checkpointing=True), value_bytes=4, on_gpu=False)
    memory = memory_of(on_cpus, ROW, 3)
    assert memory is not None
    assert needed(memory, on_cpus, Place("here", GB, on_gpu=False)) == 8 * (4 * P + 0.6 * GB)


def test_workers_of_one_machine_share_its_memory() -> None:
    tuning = replace(llama(), value_bytes=4, on_gpu=False)
    memory = memory_of(tuning, ROW, 2)
    assert memory is not None
    assert fits(memory, tuning, Place("here", 8 * memory.total, on_gpu=False))
    assert not fits(memory, tuning, Place("here", 8 * memory.total - 1, on_gpu=False))
    assert fits(memory, tuning, Place("there", memory.total, on_gpu=True))


def test_the_way_out_is_the_smallest_change_that_fits() -> None:
    l4 = Place("there", 24 * GB, on_gpu=True)
    assert way_out(llama(), ROW, l4) == {"gradient_checkpointing": True}  # 26 GB without
    long = Row((PromptTokens(900, (100,)),) * 8)
    assert way_out(llama(), long, Place("there", 20 * GB, on_gpu=True)) == {
        "gradient_checkpointing": True,
        "zero_stage": 3,
    }
    assert way_out(llama(), ROW, Place("there", 1 * GB, on_gpu=True)) is None


def test_operations_by_hand() -> None:
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008)
    pairs, head = 32 * 4 * 4096 * 1000 * 1000, 4 * 4096 * 32_000  # one question
    forward = 1000 * 2 * (matrices + A) + pairs
    backward = 1000 * (2 * matrices + 4 * A) + 2.5 * pairs
    assert operations(llama(), ROW) == forward + backward + head
    assert operations(llama(gradient_checkpointing=True), ROW) == 2 * forward + backward + head
    half = 1000 * (matrices + 4 * A / 2) + 2.5 * pairs / 2
    assert operations(llama(lora={"last_layers": 16}), ROW) == forward - 1000 * 2 * A / 2 + half + head


def test_time_on_a_gpu_by_hand() -> None:
    a100 = GPUS["a100-80gb"]
    speed = gpu_speed(llama(zero_stage=3), ROW, a100, utilisation=0.5, gb_s=100)
    assert speed.per_token == pytest.approx(operations(llama(), ROW) / 1000 / 156e12)
    gathered = 2 * (2 * P + 4 * A)  # forward and backward, in bytes
    gradients = 4 * A * 7 / 8  # of which a worker gets its shard
    assert speed.per_pass == pytest.approx((gathered * 7 / 8 + gradients) / 100e9)
    assert speed.per_step == 0
    offloaded = gpu_speed(llama(zero_stage=3, offload="parameters"), ROW, a100, utilisation=0.5, gb_s=100)
    assert offloaded.per_pass == pytest.approx(speed.per_pass + gathered / 8 / 32e9)
    second = gpu_speed(llama(zero_stage=2), ROW, a100, utilisation=0.5, gb_s=100)
    assert (second.per_pass, second.per_step) == pytest.approx((gradients / 100e9, gradients / 100e9))
    none = gpu_speed(llama(zero_stage=0), ROW, a100, utilisation=0.5, gb_s=100)
    assert (none.per_pass, none.per_step) == (0, pytest.approx(2 * gradients / 100e9))


def test_training_every_weight_by_hand() -> None:
    tuning = replace(llama(method="full", zero_stage=3), value_bytes=4)
    memory = memory_of(tuning, ROW, 3)
    assert memory is not None
    assert (memory.base, memory.adapter) == (4 * P / 8, pytest.approx(12 * P / 8))  # gradients 4, state 8
    layer = 16 * 4096 + 4 * (2 * 4096 + 11_008) + 4 * (4 * 4096 + 1000 + 3 * 11_008)  # norms, inputs, between
    assert memory.activations == 32 * 1000 * layer + 1000 * 4 * 4096 + 8 * 32_000 + 1000 * 8 * 11_008
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008)
    pairs, head = 32 * 4 * 4096 * 1000 * 1000, 6 * 4096 * 32_000
    assert operations(tuning, ROW) == 1000 * 6 * matrices + 3.5 * pairs + head
    speed = gpu_speed(tuning, ROW, GPUS["a100-80gb"], utilisation=0.5, gb_s=100)
    assert speed.per_token == pytest.approx(operations(tuning, ROW) / 1000 / (0.5 * 19.5e12))  # float32 is slower
    assert speed.per_pass == pytest.approx(3 * 4 * P * 7 / 8 / 100e9)  # Rajbhandari et al.'s 3 P


def test_quick_layers_keep_little_and_nothing_below() -> None:
    tuning = replace(llama(lora={"last_layers": 2}), value_bytes=4, on_gpu=False)
    attention = 4 * (2 * 4096 + 4 * 4096 + 32)  # stream and middle, queries, output, keys, values, sums
    layer = attention + 4 * 2 * 11_008 + 4 * 8 * 7
    ends = 1000 * (4 * 4096 + 4 * (3 + 4) * 4096) + 8 * 32_000
    assert activation_bytes(tuning, ROW) == 1000 * (layer + attention) + ends


def test_more_workers_than_a_machine_holds_talk_over_the_network() -> None:
    assert link_gb_s(GPUS["a100-80gb"], 8) == 300
    assert link_gb_s(GPUS["a100-80gb"], 9) == NETWORK_GB_S


def test_all_times_of_a_tuning_by_hand() -> None:
    amount = Amount((work(5, 10, 8000), work(20, 20, 8000)), look_tokens=400)
    speed = Speed(per_token=0.01, per_look_token=0.001, per_pass=0.1, per_step=1.0)
    tune = TuneSettings.model_validate({"workers": 4, "validation": {"every_steps": 10}})
    looks = 1 + 2  # after the last of 5 steps, and after 10 and 20
    assert amount.looks(tune) == looks
    assert times_of(amount, tune, speed) == Times(16_000 / 4 * 0.01, 30 * 0.1 + 25, pytest.approx(looks * 0.1))
    alone = tune.model_copy(update={"zero_stage": 3})  # every worker looks at all lists
    assert times_of(amount, alone, speed).looking == pytest.approx(looks * 0.4)
    assert amount.looks(TuneSettings()) == 0
