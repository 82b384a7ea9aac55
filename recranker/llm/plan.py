"""What a tuning will take, by arithmetic: memory of a worker under every ZeRO stage, and time on a GPU; no torch.

**Memory.** Let P be the base model's parameters of b bytes each, A the adapter's, always of 4, and N the workers. ZeRO
(Rajbhandari et al. 2020, arXiv 1910.02054) cuts into N shards the optimizer's state from stage 1 on, gradients from
stage 2 on, parameters in stage 3. A frozen base has neither gradients nor state; where every weight is trained, P takes
the place of A, and there is no adapter:

    stage   base       adapter   gradients   state                gathered
    0       P b        4 A       4 A         8 A                  0
    1       P b        4 A       4 A         12 A / N             0
    2       P b        4 A       4 A / N     12 A / N             0
    3       P b / N    4 A / N   4 A / N     8 or 12 A / N        min(P, 10^9) b

State is AdamW's two moments; 12 where DeepSpeed keeps a copy of the weights beside them, in stage 3 only if the host
keeps the state. Offloading moves state and gradients to the host, and the base with 'parameters'. In stage 3
DeepSpeed holds up to ``stage3_max_live_parameters`` gathered, and from stage 1 on a bucket of ``reduce_bucket_size``
gradients of 4 bytes, which only a GPU takes whole. In nf4 (Dettmers et al. 2023, arXiv 2305.14314) a matrix weight is
4 bits and its share of the scales 0.127; embedding, head and norms are float32, and so is what passes between layers.

**Activations** are counted as Korthikanti et al. 2022, arXiv 2205.05198, count them, adapted: fused attention keeps no
scores; a frozen matrix keeps no input, an adapter a float32 one. Per token and layer these are kept, in bytes, where a
row has T tokens, E is the width, Q that of all queries, K of all keys, F of the gated layer and r the rank:

    two norms                  8 E, in float32; 16 E where they are trained
    inputs of trained layers   4 x their width for each; where b = 4 the same input once, that of o_proj not at all;
                               with dropout 5 x for each, on a CPU 8 x
    low-rank middles           4 r for each
    attention                  2 b Q for queries and output, 2 b K for keys and values; on a GPU 2 b Q for these,
                               as heads that share a key get a copy each, and b T for the mask
    gated layer                3 b F

Gradient checkpointing keeps b E per token and layer, and all of the above of one layer at a time. On top come the last
norm (4 E), the widest gradients in flight (8 F), and 8 bytes per question and entry of the vocabulary. The layers of
``training_layers`` compute most of it again: 4 (2 E + 2 Q + 2 K + 2 F + heads) and the middles, of the last layer
only what attention needs, with 4 (3 E + 2 Q + 2 K) in flight.

**Time.** Per token a weight takes 2 operations forward, 2 backward through it, 2 for its gradient if it is trained, and
2 if it is recomputed. A pair of tokens takes 4 Q per layer forward and 2.5 times as much backward (Dao 2023, arXiv
2307.08691). In stage 3 weights are gathered twice per pass, forward and backward; of the volume of 3 P that
Rajbhandari et al. count the third is gradients, which frozen weights do not have.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pydantic import ValidationError

from recranker.llm.hardware import GB, GPUS_PER_MACHINE, Gpu
from recranker.llm.settings import LoraSettings, TuneSettings
from recranker.llm.shapes import ModelShape

ZeroStage = Literal[0, 1, 2, 3]
STAGES: tuple[ZeroStage, ...] = get_args(ZeroStage)

TRAINED_BYTES = 4
NF4_BYTES = (4 + 0.127) / 8
NETWORK_GB_S = 25.0
"""Between machines, for each GPU, one direction: a port of 200 Gbit/s."""
UTILISATION = 0.4
"""Share of the peak that training reaches; reports of large runs lie between 0.3 and 0.55."""
GPU_OVERHEAD = 1.5 * GB
"""CUDA's context, NCCL's buffers, and what the allocator leaves unused."""
PROCESS_OVERHEAD = 0.6 * GB
"""A worker without a model: Python, torch, transformers, Ray and DeepSpeed."""


@dataclass(frozen=True)
class PromptTokens:
    """A training prompt by its lengths."""

    prefix: int
    questions: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Of its row: the prefix once, and all questions."""
        return self.prefix + sum(self.questions)


@dataclass(frozen=True)
class Row:
    """What one forward pass computes."""

    prompts: tuple[PromptTokens, ...]

    @property
    def tokens(self) -> int:
        return sum(prompt.tokens for prompt in self.prompts)

    @property
    def questions(self) -> int:
        return sum(len(prompt.questions) for prompt in self.prompts)


@dataclass(frozen=True)
class Work:
    """What is to be done for one adapter."""

    adapter: str
    prompts: int
    """Different ones."""
    questions: int
    """Of these."""
    too_long: int
    """Prompts cut, or left out."""
    longest: int
    """Tokens of the longest prompt."""
    steps: int
    passes: int
    """Forward passes of one worker, all steps together."""
    tokens: int
    """Computed in all steps by all workers."""
    typical: Row
    """A pass of about the mean length."""
    largest: Row
    """The longest pass."""

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.steps

    @property
    def passes_per_step(self) -> float:
        """Of one worker."""
        return self.passes / self.steps


@dataclass(frozen=True)
class Amount:
    """All that is to be computed."""

    works: tuple[Work, ...]
    look_tokens: float = 0.0
    """Of one look at the validation lists; 0 where nobody looks."""

    @property
    def steps(self) -> int:
        return sum(work.steps for work in self.works)

    @property
    def passes(self) -> int:
        """Of one worker."""
        return sum(work.passes for work in self.works)

    @property
    def tokens(self) -> int:
        """Computed by all workers, looks left out."""
        return sum(work.tokens for work in self.works)

    @property
    def typical(self) -> Row:
        """A pass of about the mean length, of the adapter with the most tokens."""
        return max(self.works, key=lambda work: work.tokens).typical

    @property
    def largest(self) -> Row:
        """The longest pass of all."""
        return max((work.largest for work in self.works), key=lambda row: row.tokens)

    def looks(self, tune: TuneSettings) -> int:
        """Looks at validation lists, if training goes to the end: every so many steps, and after the last."""
        if tune.validation is None:
            return 0
        return sum(math.ceil(work.steps / tune.validation.every_steps) for work in self.works)


@dataclass(frozen=True)
class Tuning:
    """What arithmetic needs to know of a tuning."""

    shape: ModelShape
    tune: TuneSettings
    value_bytes: Literal[2, 4]
    """Of a base weight that is not quantised, and of what passes between layers."""
    on_gpu: bool
    bucket: int = 500_000_000
    """DeepSpeed's reduce_bucket_size, elements."""
    live: int = 1_000_000_000
    """DeepSpeed's stage3_max_live_parameters."""

    @property
    def lora(self) -> LoraSettings:
        return self.tune.lora

    @property
    def is_full(self) -> bool:
        """Whether every weight is trained."""
        return self.tune.method == "full"

    @property
    def adapter(self) -> int:
        """A, the adapter's parameters; none where every weight is trained."""
        return 0 if self.is_full else self.shape.adapter_parameters(self.lora)

    @property
    def trained(self) -> int:
        """Parameters that have gradients."""
        return self.shape.parameters if self.is_full else self.adapter

    @property
    def number_format(self) -> str:
        """Of the base weights."""
        return {2: "bfloat16", 4: "float32"}[self.value_bytes] if self.tune.quantization == "none" else "nf4"

    @property
    def base_bytes(self) -> float:
        """Of the whole base model."""
        if self.tune.quantization == "none":
            return self.shape.parameters * self.value_bytes
        return self.shape.matrix_weights * NF4_BYTES + (self.shape.parameters - self.shape.matrix_weights) * 4

    @property
    def flow_bytes(self) -> int:
        """Of a value that passes between layers."""
        return self.value_bytes if self.tune.quantization == "none" else 4

    @property
    def is_quick(self) -> bool:
        """Whether layers are those of ``training_layers``."""
        on_cpu = not self.on_gpu and self.flow_bytes == 4 and self.tune.zero_stage < 3
        return on_cpu and not (self.is_full or self.lora.dropout or self.shape.head_norms)

    @property
    def layers_flown(self) -> int:
        """Layers that the gradient flows through: down to the lowest trained."""
        return self.shape.layers if self.is_full else self.shape.adapted_layers(self.lora)


@dataclass(frozen=True)
class Memory:
    """Of one worker, bytes."""

    zero_stage: ZeroStage
    base: float
    """Base weights."""
    adapter: float
    """The adapter, its gradients and AdamW's state."""
    activations: float
    working: float
    """Gathered weights, buckets of gradients, and what the process takes by itself."""
    host: float
    """Offloaded."""
    loading: float
    """While the base weights are read: whole, as they are cut or offloaded only afterwards."""

    @property
    def total(self) -> float:
        """Without what is offloaded."""
        return self.base + self.adapter + self.activations + self.working


def memory_of(tuning: Tuning, row: Row, zero_stage: ZeroStage) -> Memory | None:
    """Memory of one worker while it computes ``row``; None where ``zero_stage`` cannot do what is asked for."""
    tune = _with(tuning.tune, zero_stage=zero_stage)
    if tune is None:
        return None
    tuning = replace(tuning, tune=tune)
    base, state = _base(tuning), _gradients_and_state(tuning)
    host = (base if tune.offload == "parameters" else 0.0) + (state if tune.offload != "none" else 0.0)
    return Memory(
        zero_stage=zero_stage,
        base=0.0 if tune.offload == "parameters" else base,
        adapter=_share(tuning, 3) * TRAINED_BYTES * tuning.adapter + (0.0 if tune.offload != "none" else state),
        activations=activation_bytes(tuning, row),
        working=_working(tuning),
        host=host,
        loading=tuning.base_bytes + _overhead(tuning),
    )


def _share(tuning: Tuning, from_stage: int) -> float:
    """What one worker keeps of that which is cut into shards from ``from_stage`` on."""
    return 1 / tuning.tune.workers if tuning.tune.zero_stage >= from_stage else 1.0


def _base(tuning: Tuning) -> float:
    return tuning.base_bytes * _share(tuning, 3)


def _gradients_and_state(tuning: Tuning) -> float:
    stage, offloaded = tuning.tune.zero_stage, tuning.tune.offload != "none"
    state = 8 if stage == 0 or (stage == 3 and not offloaded) else 12
    return tuning.trained * (TRAINED_BYTES * _share(tuning, 2) + state * _share(tuning, 1))


def _working(tuning: Tuning) -> float:
    stage = tuning.tune.zero_stage
    gathered = min(tuning.shape.parameters, tuning.live) * tuning.value_bytes if stage == 3 else 0
    bucket = tuning.bucket if tuning.on_gpu else min(tuning.bucket, tuning.trained)
    buffers = gathered + (bucket * TRAINED_BYTES if stage else 0)
    return buffers + _overhead(tuning)


def _overhead(tuning: Tuning) -> float:
    return GPU_OVERHEAD if tuning.on_gpu else PROCESS_OVERHEAD


def activation_bytes(tuning: Tuning, row: Row) -> float:
    """What is kept of ``row`` for the way back, at the most at any moment, bytes."""
    shape, tokens = tuning.shape, row.tokens
    layer, last = layer_bytes(tuning, row), _last_layer_bytes(tuning, row)
    layers = layer * (tuning.layers_flown - 1) + last
    if tuning.tune.gradient_checkpointing:
        layers = layer + tuning.layers_flown * tuning.flow_bytes * shape.width * tokens
    in_flight = 4 * (3 * shape.width + 2 * (shape.queries + shape.keys)) if tuning.is_quick else 8 * shape.feed_forward
    return layers + (4 * shape.width + in_flight) * tokens + 8 * row.questions * shape.vocabulary


def layer_bytes(tuning: Tuning, row: Row) -> float:
    """What one layer keeps of ``row``, bytes."""
    shape, size, tokens = tuning.shape, tuning.flow_bytes, row.tokens
    middles = 0 if tuning.is_full else TRAINED_BYTES * tuning.lora.rank * len(tuning.lora.targets)
    if tuning.is_quick:
        widths = shape.width + shape.queries + shape.keys + shape.feed_forward
        return tokens * (4 * (2 * widths + shape.heads) + middles)
    norms = (16 if tuning.is_full else 8) * shape.width
    keys = shape.queries if tuning.on_gpu else shape.keys
    mask = tokens if tuning.on_gpu else 0
    between = 2 * shape.queries + 2 * keys + mask + 3 * shape.feed_forward
    return tokens * (norms + _inputs_kept(tuning) + middles + size * between)


def _last_layer_bytes(tuning: Tuning, row: Row) -> float:
    """The same of the last layer, of which quick layers compute only answers behind the attention."""
    if not tuning.is_quick:
        return layer_bytes(tuning, row)
    shape = tuning.shape
    return 4 * row.tokens * (2 * shape.width + 2 * (shape.queries + shape.keys) + shape.heads)


def _inputs_kept(tuning: Tuning) -> int:
    """Bytes per token that the trained linears of one layer keep of what they are given."""
    shape, lora = tuning.shape, tuning.lora
    targets = set(shape.linears) if tuning.is_full else set(lora.targets)
    kept = 0
    for names in (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)):
        count, width = len(targets & set(names)), shape.linears[names[0]][0]
        if lora.dropout and not tuning.is_full:  # each its own, and what it dropped
            kept += count * width * (TRAINED_BYTES + (1 if tuning.on_gpu else TRAINED_BYTES))
        elif tuning.flow_bytes == TRAINED_BYTES:
            kept += min(count, 1) * width * TRAINED_BYTES * (names != ("o_proj",))
        else:
            kept += count * width * TRAINED_BYTES
    return kept


@dataclass(frozen=True)
class Place:
    """Where the workers run."""

    name: str
    capacity: float
    """Bytes of each GPU, or of the machine whose memory all workers share."""
    on_gpu: bool
    gpu: Gpu | None = None
    """Its data sheet, where time comes by arithmetic."""


def fits(memory: Memory, tuning: Tuning, place: Place) -> bool:
    """Whether a GPU, or the machine that all workers share, holds it."""
    return needed(memory, tuning, place) <= place.capacity


def needed(memory: Memory, tuning: Tuning, place: Place) -> float:
    """Bytes at the most at any moment, of a GPU or of the machine that all workers share."""
    if place.on_gpu:
        return max(memory.total, memory.loading)
    return tuning.tune.workers * max(memory.total + memory.host, memory.loading)


def way_out(tuning: Tuning, row: Row, place: Place) -> dict[str, object] | None:
    """Settings of ``tune``, as few as possible, with which it fits; None if there are none."""
    for changes in _changes(tuning):
        tune = _with(tuning.tune, **changes)
        if tune is not None:
            changed = replace(tuning, tune=tune)
            memory = memory_of(changed, row, tune.zero_stage)
            if memory is not None and fits(memory, changed, place):
                return changes
    return None


def _changes(tuning: Tuning) -> Iterator[dict[str, object]]:
    """From those that cost least."""
    checkpointing: dict[str, object] = {"gradient_checkpointing": True}
    yield checkpointing
    yield {"zero_stage": 3}
    yield checkpointing | {"zero_stage": 3}
    if tuning.on_gpu:
        yield checkpointing | {"zero_stage": 2, "quantization": "nf4", "offload": "none"}
        yield checkpointing | {"zero_stage": 3, "offload": "parameters", "quantization": "none"}
    else:
        yield checkpointing | {"zero_stage": 3, "workers": 1}


def _with(tune: TuneSettings, **changes: object) -> TuneSettings | None:
    """``tune`` with changes; None where they contradict the rest."""
    try:
        return TuneSettings.model_validate(tune.model_dump() | changes)
    except ValidationError:
        return None


def operations(tuning: Tuning, row: Row) -> float:
    """Floating-point operations of ``row`` on a GPU, forward and backward; there attention computes every pair."""
    shape, tokens, flown = tuning.shape, row.tokens, tuning.layers_flown
    forward = _forward(tuning, tokens, shape.layers)
    matrices = shape.layer_weights * flown * (2 if tuning.is_full else 1)  # through them, and for them
    backward: float = 2 * matrices * tokens + 4 * tuning.adapter * tokens
    backward += 2.5 * 4 * shape.queries * flown * tokens**2
    if tuning.tune.gradient_checkpointing:
        backward += _forward(tuning, tokens, flown)
    head = (6 if tuning.is_full else 4) * shape.width * shape.vocabulary * row.questions
    return forward + backward + head


def _forward(tuning: Tuning, tokens: int, layers: int) -> float:
    """Through so many layers, those with an adapter among them."""
    shape = tuning.shape
    return 2 * (shape.layer_weights * layers + tuning.adapter) * tokens + 4 * shape.queries * layers * tokens**2


@dataclass(frozen=True)
class Speed:
    """Seconds that one worker takes, beside all others."""

    per_token: float
    """Forward and backward."""
    per_look_token: float
    """Forward alone."""
    per_pass: float = 0.0
    """For what is exchanged in each."""
    per_step: float = 0.0
    """For what is exchanged once a step."""


@dataclass(frozen=True)
class Times:
    """Of a whole tuning, seconds."""

    computing: float
    exchanging: float
    """Weights and gradients between workers, and weights from the host; nothing is computed meanwhile, at the worst."""
    looking: float
    """At validation lists."""

    @property
    def total(self) -> float:
        return self.computing + self.exchanging + self.looking


def times_of(amount: Amount, tune: TuneSettings, speed: Speed) -> Times:
    """How long ``amount`` takes; under ZeRO-3 every worker looks at all validation lists."""
    lists = amount.look_tokens / (1 if tune.zero_stage == 3 else tune.workers)
    return Times(
        computing=amount.tokens / tune.workers * speed.per_token,
        exchanging=amount.passes * speed.per_pass + amount.steps * speed.per_step,
        looking=amount.looks(tune) * lists * speed.per_look_token,
    )


def link_gb_s(gpu: Gpu, workers: int) -> float:
    """Between two GPUs: the machine's own links, or the network where there are more than a machine holds."""
    return gpu.link_gb_s if workers <= GPUS_PER_MACHINE else min(gpu.link_gb_s, NETWORK_GB_S)


def gpu_speed(tuning: Tuning, row: Row, gpu: Gpu, *, utilisation: float, gb_s: float) -> Speed:
    """Of a worker that has a ``gpu``.

    Args:
        tuning: What is tuned.
        row: A pass of about the mean length.
        gpu: Its data sheet.
        utilisation: Share of the peak that is reached.
        gb_s: Between two workers, GB per second.
    """
    seconds = 1 / (tflops(tuning, gpu) * 1e12 * utilisation) / row.tokens
    forward = _forward(tuning, row.tokens, tuning.shape.layers)
    per_pass, per_step = _exchanged(tuning)
    from_host = _from_host(tuning) / (gpu.pcie_gb_s * GB)
    return Speed(
        per_token=operations(tuning, row) * seconds,
        per_look_token=forward * seconds,
        per_pass=per_pass / (gb_s * GB) + from_host,
        per_step=per_step / (gb_s * GB),
    )


def tflops(tuning: Tuning, gpu: Gpu) -> float:
    """Peak in the format that matrices are multiplied in."""
    return gpu.fp32_tflops if tuning.number_format == "float32" else gpu.bf16_tflops


def _exchanged(tuning: Tuning) -> tuple[float, float]:
    """Bytes that a worker takes from the others per pass, and per step.

    Gradients are summed once a step, from stage 2 on in every pass, each worker getting its shard; the weights made of
    shards are spread again, in stage 3 whenever they are needed.
    """
    stage, others = tuning.tune.zero_stage, (tuning.tune.workers - 1) / tuning.tune.workers
    gradients = TRAINED_BYTES * tuning.trained * others
    if stage < 2:
        return 0.0, 2 * gradients
    if stage == 2:
        return gradients, gradients
    return gradients + _gathered(tuning) * others, 0.0


def _gathered(tuning: Tuning) -> float:
    """Bytes of weights that a pass needs whole in stage 3: all of them forward, backward those it flows through."""
    times = 1 + tuning.layers_flown / tuning.shape.layers
    return times * (tuning.base_bytes + TRAINED_BYTES * tuning.adapter)


def _from_host(tuning: Tuning) -> float:
    """Bytes of weights that a worker takes from its host per pass: its own shards."""
    return _gathered(tuning) / tuning.tune.workers if tuning.tune.offload == "parameters" else 0.0
