"""Settings of the language model and its tuning."""

from typing import Literal

from pydantic import Field, model_validator

from recranker.settings import Settings
from recranker.tasks.settings import TaskName


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


class LoraSettings(Settings):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(default=8, ge=1)
    """Width of the low-rank update."""
    alpha: float = Field(default=16.0, gt=0)
    """Scale of the update is alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the update's inputs dropped in training."""
    last_layers: int | None = Field(default=None, ge=1)
    """Only so many layers nearest to the output are adapted: less memory and time, as nothing flows back below."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers adapted."""


class TuneSettings(Settings):
    """How the adapter is trained."""

    adapters: Literal["joint", "per_task"] = "joint"
    """One adapter for all tasks, or one for each."""
    tasks: tuple[TaskName, ...] = ("pointwise", "pairwise", "listwise")
    """Tasks trained."""
    lora: LoraSettings = LoraSettings()
    """The adapter's shape."""
    learning_rate: float = Field(default=8e-4, gt=0)
    """AdamW step size at its peak."""
    warmup_steps: int = Field(default=10, ge=0)
    """Optimizer steps before the learning rate peaks; it then falls to 0 by a cosine."""
    distillation: float = Field(default=2.0, ge=0)
    """Weight of the divergence from the re-ranker's probabilities beside the labels' loss; 0: labels alone."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the training prompts."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Training prompts used at the most, the earliest draws; None uses all."""
    batch_prompts: int = Field(default=8, ge=1)
    """Prompts per optimizer step, all workers together."""
    micro_batch_prompts: int = Field(default=1, ge=1)
    """Prompts per forward pass on one worker."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    gradient_checkpointing: bool = False
    """Trade compute for memory."""
    workers: int = Field(default=1, ge=1)
    """Ray Train workers; one GPU each on CUDA, one CPU otherwise."""

    @model_validator(mode="after")
    def _batch_divides(self) -> "TuneSettings":
        if self.batch_prompts % (self.workers * self.micro_batch_prompts):
            raise ValueError("tune.batch_prompts must be a multiple of tune.workers * tune.micro_batch_prompts")
        return self
