"""DeepSpeed behind ``llm.training.Engine``: one step over all workers, its state whole on each of them."""

import math
import resource
from typing import Any

import ray.train
import torch
from torch import Tensor

from recranker.llm.checkpoints import TrainingState
from recranker.llm.hardware import GB
from recranker.llm.model import LanguageModel
from recranker.llm.settings import TuneSettings
from recranker.llm.training import trained_weights

BUCKET_NUMBERS = 1 << 25
"""Gradients exchanged at a time; DeepSpeed's own 5e8 would take 2 GB of every GPU for an adapter of a few million."""


class DeepSpeedEngine:
    """A ``llm.training.Engine`` over all workers of this Ray Train run."""

    def __init__(self, lm: LanguageModel, settings: TuneSettings) -> None:
        import deepspeed

        # DeepSpeed would compile a C++ extension in every worker for collectives that gloo does as well
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self._trained = trained_weights(lm)
        optimizer = torch.optim.AdamW(
            list(self._trained.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.forward, self._optimizer, *_ = deepspeed.initialize(
            model=lm.model,
            optimizer=optimizer,
            config=deepspeed_config(settings),
            dist_init_required=False,
        )
        self._device = lm.device
        self._zero_stage = settings.zero_stage

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of ``loss``; DeepSpeed averages over workers, hence the factor."""
        self.forward.set_gradient_accumulation_boundary(last)
        self.forward.backward(loss * self.workers, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Clip, update the adapter, forget the gradients; the norm is that before clipping.

        Where it is no finite number ZeRO leaves the adapter as it was and gives infinity; without ZeRO we do so.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        whole = self._zero_stage == 0  # DeepSpeed keeps no norm there
        if whole:
            norm = float(torch.nn.utils.get_total_norm([w.grad for w in self._trained.values() if w.grad is not None]))
            if not math.isfinite(norm):
                return norm
        self.forward.step()
        return norm if whole else float(self.forward.get_global_grad_norm())

    def total(self, values: Tensor) -> Tensor:
        """``values`` summed over all workers."""
        summed = values.to(self._device)
        torch.distributed.all_reduce(summed)
        return summed.cpu()

    def memory_gb(self) -> float:
        """Most that this worker has held so far: on a GPU of its memory, otherwise of the machine's."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / GB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB

    def state(self) -> TrainingState:
        """What a checkpoint must hold, whole; every worker must ask, and the first one gets it.

        The others' tensors are empty: kept on all of them it would be many times the model in the memory of a machine.
        """
        parts = [{name: self._whole(name, key) for name in self._trained} for key in (None, "exp_avg", "exp_avg_sq")]
        return TrainingState(*parts)

    def restore(self, state: TrainingState, steps: int, nothing: Tensor) -> None:
        """Give AdamW the moments it had after ``steps`` steps; the weights must have been set before this engine was.

        Args:
            state: From ``state``, of any number of workers.
            steps: Updates made so far.
            nothing: A loss of 0 over all trained weights: AdamW and ZeRO make their state while they step.
        """
        self.backward(nothing, last=True)
        self.step(0.0)
        for key, moments in (("exp_avg", state.first_moments), ("exp_avg_sq", state.second_moments)):
            for name, moment in moments.items():
                self._set_moment(name, key, moment.to(self._device))
        for kept in self._adamw.state.values():
            kept["step"].fill_(steps)

    @property
    def _adamw(self) -> Any:
        """torch's own, inside what DeepSpeed wraps round it."""
        return getattr(self._optimizer, "optimizer", self._optimizer)

    def _whole(self, name: str, key: str | None) -> Tensor:
        """A weight (``key`` None) or one of its moments, put together from all workers."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        weight = self._trained[name]
        if self._zero_stage == 0:
            found = weight.detach() if key is None else self._adamw.state[weight][key]
        else:
            found = safe_get_full_fp32_param(weight) if key is None else safe_get_full_optimizer_state(weight, key)
        return found.float().to("cpu", copy=True) if self.rank == 0 else torch.empty(0)

    def _set_moment(self, name: str, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        weight = self._trained[name]
        if self._zero_stage == 0:
            self._adamw.state[weight][key].copy_(value)
        else:
            safe_set_full_optimizer_state(weight, value, key)


def deepspeed_config(settings: TuneSettings) -> dict[str, Any]:
    """DeepSpeed's own settings; no compiled operator, so that nothing is built on workers.

    Its ``bf16`` mode stays off even where the base model is bfloat16: it would round the adapter, which peft keeps
    in float32, and the frequencies of the position embedding, and the model saved would not be the one trained.
    The trainer itself says which micro-batch is a step's last, so to DeepSpeed a worker's share is one of them.
    """
    zero: dict[str, Any] = {"stage": settings.zero_stage, "reduce_bucket_size": BUCKET_NUMBERS}
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if settings.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_batch_size": settings.batch_prompts,
        "train_micro_batch_size_per_gpu": settings.batch_prompts // settings.workers,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its operator would be compiled on every worker
        "steps_per_print": 1_000_000,
    }
