"""Settings of the language model and its tuning."""

from typing import Any, Literal

from pydantic import Field, model_validator

from recranker.settings import Settings
from recranker.tasks.settings import TaskName

Quantization = Literal["none", "nf4"]

HOW_IT_RUNS = ("workers", "micro_batch_tokens", "gradient_checkpointing", "checkpoint_steps", "max_failures")
"""Fields of TuneSettings that say how training runs, and leave the adapter as it is."""
DROPOUT_DRAWN_BY = ("workers", "micro_batch_tokens")
"""Those of them by which dropout is drawn, where there is any."""


class LLMSettings(Settings):
    """Which model answers, and how it is run."""

    model: str
    """'smollm2-135m-instruct' (fetched), a local folder, or a hub id; no default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; 'auto' takes CUDA where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of weights and activations; 'auto' is bfloat16 on CUDA and float32 on CPUs. There bfloat16 is
    several times faster with AMX instructions, slower without any for it, and moves close calls in either case."""
    backend: Literal["packed", "kv", "plain"] = "packed"
    """How questions share their prefix: one tree per prompt, a key-value cache, or not at all (reference)."""
    max_prompt_tokens: int = Field(default=2048, ge=64)
    """Prefix and one question at the most; longer histories lose their oldest titles (RecRanker: 2,048)."""
    token_budget: int = Field(default=4096, ge=64)
    """Tokens per forward pass at the most."""
    threads: int = Field(default=1, ge=1)
    """CPU threads per process; one per process and a process per core is the steady choice."""

    def shaping(self) -> dict[str, Any]:
        """All that shapes a tuned adapter, by more than rounding."""
        return self.model_dump(mode="json", exclude={"token_budget", "threads"})


class LoraSettings(Settings):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(default=8, ge=1)
    """Width of the low-rank update."""
    alpha: float = Field(default=16.0, gt=0)
    """Scale of the update is alpha / rank."""
    rank_stabilised: bool = False
    """Scale alpha / sqrt(rank) instead, so that high ranks learn as fast (Kalajdzievski 2023, arXiv 2312.03732)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the update's inputs dropped in training."""
    last_layers: int | None = Field(default=None, ge=1)
    """Only so many layers nearest to the output are adapted: less memory and time, as nothing flows back below."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers adapted."""


class ObjectiveSettings(Settings):
    """What a question's loss is; all read the logits at the one position where the model answers."""

    over: Literal["labels", "vocabulary"] = "labels"
    """'labels' normalises over the question's own labels, as ranking reads them; 'vocabulary' is the cross-entropy of
    the answer among all tokens, as RecRanker trains, and goes with no other objective."""
    pointwise: Literal["cross_entropy", "ordinal"] = "cross_entropy"
    """'ordinal' charges a rating for its distance: the cross-entropies of 'above this rating' at every threshold."""
    listwise: Literal["softmax", "ranknet"] = "softmax"
    """'softmax' is the cross-entropy of the target's letter; 'ranknet' compares the target with every other item."""
    distillation: float = Field(default=2.0, ge=0)
    """Weight of the divergence from the re-ranker's probabilities beside the labels' loss; 0: labels alone."""

    @model_validator(mode="after")
    def _vocabulary_has_no_order(self) -> "ObjectiveSettings":
        if self.over == "vocabulary" and (self.pointwise, self.listwise) != ("cross_entropy", "softmax"):
            raise ValueError(
                "tune.objective.over='vocabulary' knows cross-entropy only, so it needs tune.objective.pointwise="
                f"'cross_entropy' and tune.objective.listwise='softmax', got {self.pointwise!r} and {self.listwise!r}"
            )
        return self


class ValidationSettings(Settings):
    """Looks at validation lists while training."""

    every_steps: int = Field(default=20, ge=1)
    """Optimizer steps between two looks."""
    max_lists: int = Field(default=64, ge=1)
    """Lists ranked at each look, at the most; those with their target among the candidates."""
    patience: int | None = Field(default=3, ge=1)
    """Looks without a better NDCG@3 after which training stops; None never stops early."""


class TuneSettings(Settings):
    """How the adapter is trained."""

    adapters: Literal["joint", "per_task", "joint_then_per_task"] = "joint"
    """One adapter for all tasks, one for each, or one for each that starts from the trained one for all."""
    tasks: tuple[TaskName, ...] = ("pointwise", "pairwise", "listwise")
    """Tasks trained."""
    method: Literal["lora", "full"] = "lora"
    """'full' trains every weight, as RecRanker does (with learning_rate 2e-5); the adapter is then a whole model."""
    lora: LoraSettings = LoraSettings()
    """The adapter's shape."""
    objective: ObjectiveSettings = ObjectiveSettings()
    """The loss."""
    learning_rate: float = Field(default=8e-4, gt=0)
    """AdamW step size at its peak."""
    warmup_steps: int = Field(default=10, ge=0)
    """Optimizer steps before the learning rate peaks; it then falls to 0 by a cosine."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the training prompts."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Training prompts used at the most, the earliest draws; None uses all."""
    batch_prompts: int = Field(default=8, ge=1)
    """Prompts per optimizer step, all workers together."""
    micro_batch_tokens: int = Field(default=2048, ge=64)
    """Tokens of a forward pass on one worker; a longer prompt goes alone."""
    long_prompts: Literal["cut", "drop"] = "cut"
    """A prompt longer than llm.max_prompt_tokens loses its oldest titles, or is left out; either is counted."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What waits in the memory of the host: AdamW's state (ZeRO-2 or 3), or the parameters too (ZeRO-3)."""
    quantization: Quantization = "none"
    """'nf4' keeps the base model in 4 bits (QLoRA, arXiv 2305.14314): CUDA, ZeRO-2 at the most, needs bitsandbytes."""
    gradient_checkpointing: bool = False
    """Trade compute for memory."""
    workers: int = Field(default=1, ge=1)
    """Ray Train workers; one GPU each on CUDA, one CPU otherwise."""
    checkpoint_steps: int = Field(default=20, ge=1)
    """Optimizer steps between two checkpoints; a killed training repeats so many at the most."""
    max_failures: int = Field(default=3, ge=0)
    """Times in a row, without a new checkpoint between them, that training may be lost before it gives up."""
    validation: ValidationSettings | None = None
    """None trains to the end without a look; otherwise the checkpoint with the best NDCG@3 is kept."""
    seed: int | None = None
    """Of the adapter's start, the order of prompts and dropout; None: the run's own seed."""

    def shaping(self) -> dict[str, Any]:
        """All that shapes the adapter, by more than rounding: what a stopped training must have in common to go on.

        Dropout is drawn by worker and pass, so with it both count.
        """
        left_out = set(HOW_IT_RUNS) - (set(DROPOUT_DRAWN_BY) if self.lora.dropout else set())
        return self.model_dump(mode="json", exclude=left_out)

    def seed_in(self, run_seed: int) -> int:
        """The seed of training in a run of ``run_seed``."""
        return run_seed if self.seed is None else self.seed

    @model_validator(mode="after")
    def _batch_divides(self) -> "TuneSettings":
        if self.batch_prompts % self.workers:
            raise ValueError(
                f"tune.batch_prompts must be a multiple of tune.workers, got {self.batch_prompts} and {self.workers}"
            )
        return self

    @model_validator(mode="after")
    def _deepspeed_can(self) -> "TuneSettings":
        least = {"none": 0, "optimizer": 2, "parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f"tune.offload={self.offload!r} needs tune.zero_stage {least} or more, got {self.zero_stage}"
            )
        if self.quantization != "none" and self.method == "full":
            raise ValueError(
                f"tune.quantization={self.quantization!r} needs tune.method='lora': weights of 4 bits cannot be trained"
            )
        if self.quantization != "none" and self.zero_stage == 3:
            raise ValueError(
                f"tune.quantization={self.quantization!r} needs tune.zero_stage 2 at the most: ZeRO-3 cannot cut "
                "weights of 4 bits into shards"
            )
        return self
