"""Tuning on a cluster: Ray Train starts the workers, DeepSpeed shares the step, our own loop decides what it is.

Paths (base model, output) must be on a filesystem that every node sees. Workers report over a small
actor, so that the driver's bar and MLflow follow training and a user's error arrives as it was raised.
"""

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from torch import Tensor

from recranker.distributed.background import BackgroundFit
from recranker.distributed.channel import Channel
from recranker.distributed.cluster import check_workers
from recranker.errors import ModelError, OutputError, RecrankerError
from recranker.llm.adapter import golden_of, golden_prompts, record_of, reload_and_check, save_adapter
from recranker.llm.model import LanguageModel, load_model
from recranker.llm.packing import check_packing
from recranker.llm.reports import StepReport
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.llm.training import AdapterPlan, make_trainable, train
from recranker.randomness import key_of
from recranker.schema import TRAINING_LOG
from recranker.settings import Settings
from recranker.tasks.protocol import Prompt

logger = logging.getLogger(__name__)

POLL_S = 0.5
COLLECTIVE_TIMEOUT_S = 600
"""A worker that hears nothing from the others for so long gives up."""
ALL_FAILED_WAIT_S = 5.0
"""Within such a time all workers have met an error that none of them is spared."""


class TuneJob(Settings):
    """All that a worker needs to know but the prompts."""

    name: str
    """Of the adapter."""
    model: str
    """Folder of the base model."""
    folder: str
    """Where the adapter is written."""
    llm: LLMSettings
    """How the model is run; the device is resolved."""
    tune: TuneSettings
    """How it is trained."""
    seed: int
    """Of the run."""


class DeepSpeedEngine:
    """A ``llm.training.Engine`` over all workers of this Ray Train run."""

    def __init__(self, lm: LanguageModel, settings: TuneSettings) -> None:
        import deepspeed

        # DeepSpeed would compile a C++ extension in every worker for collectives that gloo does as well
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        trained = [weight for weight in lm.model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.forward, self._optimizer, *_ = deepspeed.initialize(
            model=lm.model,
            optimizer=optimizer,
            config=deepspeed_config(settings),
            dist_init_required=False,
        )
        self._device = lm.device

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``; DeepSpeed averages over workers, hence the factor."""
        self.forward.backward(loss * self.workers, scale_wrt_gas=False)
        if not self.forward.is_gradient_accumulation_boundary():
            self.forward.step()  # counts the micro-batch, changes no weight

    def step(self, learning_rate: float) -> None:
        """Clip, update the adapter, forget the gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self.forward.step()

    def total(self, values: Tensor) -> Tensor:
        """``values`` summed over all workers."""
        summed = values.to(self._device)
        torch.distributed.all_reduce(summed)
        return summed.cpu()


def deepspeed_config(settings: TuneSettings) -> dict[str, Any]:
    """DeepSpeed's own settings; no compiled operator, so that nothing is built on workers.

    Its ``bf16`` mode stays off even where the base model is bfloat16: it would round the adapter, which peft keeps
    in float32, and the frequencies of the position embedding, and the model saved would not be the one trained.
    """
    return {
        "train_batch_size": settings.batch_prompts,
        "train_micro_batch_size_per_gpu": settings.micro_batch_prompts,
        "gradient_accumulation_steps": settings.batch_prompts // (settings.workers * settings.micro_batch_prompts),
        "gradient_clipping": settings.max_grad_norm,
        "zero_optimization": {"stage": settings.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000,
    }


def tune_adapters(
    plans: Sequence[AdapterPlan],
    *,
    model: Path,
    folder: Path,
    work: Path,
    llm: LLMSettings,
    tune: TuneSettings,
    seed: int,
    on_step: Callable[[str, StepReport], None],
) -> pa.Table:
    """Train every planned adapter, one after the other, and check each in a fresh process.

    Args:
        plans: From ``llm.training.plan_adapters``.
        model: Folder of the base model.
        folder: Gets a folder per adapter, named after it.
        work: Scratch folder; emptied at the end.
        llm: How the model is run.
        tune: How it is trained.
        seed: Keys the adapter's start and the order of prompts.
        on_step: Told the adapter's name and each step, in this thread.

    Returns:
        The TRAINING_LOG table.

    Raises:
        SettingsError: If the cluster cannot hold the workers.
        ModelError: If a loss is no number, or the saved adapter does not answer as the trained one did.
    """
    use_gpu = check_workers("tune.workers", tune.workers, device=llm.device)
    llm = llm.model_copy(update={"device": "cuda" if use_gpu else "cpu"})
    rows: list[dict[str, Any]] = []
    for plan in plans:
        job = TuneJob(
            name=plan.name,
            model=str(model.resolve()),
            folder=str((folder / plan.name).resolve()),
            llm=llm,
            tune=tune,
            seed=seed,
        )
        reports = _tune(job, plan.prompts, work, on_step)
        difference = check_in_fresh_process(job)
        logger.info("adapter %s: reloaded in a fresh process, answers differ by %.1g nats", plan.name, difference)
        rows += [_log_row(plan.name, report) for report in reports]
    return pa.Table.from_pylist(rows, schema=TRAINING_LOG.schema)


def _tune(
    job: TuneJob, prompts: list[Prompt], work: Path, on_step: Callable[[str, StepReport], None]
) -> list[StepReport]:
    """Run one training to its end while ``on_step`` hears of every step."""
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    channel = ray.remote(Channel).options(num_cpus=0).remote()
    run = BackgroundFit(_trainer(job, ray.put(prompts), channel, work))
    reports: dict[int, StepReport] = {}
    try:
        running = True
        while running:
            running = run.wait(POLL_S)
            for report in ray.get(channel.take.remote()):
                if report.step not in reports:  # a restarted run goes over its first steps again
                    on_step(job.name, report)
                reports[report.step] = report
        _raise_failure(run, ray.get(channel.error.remote()))
    finally:
        if run.wait(0):
            channel.stop.remote()
        shutil.rmtree(work, ignore_errors=True)
    return [reports[step] for step in sorted(reports)]


def _raise_failure(run: BackgroundFit, ours: RecrankerError | None) -> None:
    if ours is not None:
        raise ours
    run.result()


def _trainer(job: TuneJob, prompts: Any, channel: Any, work: Path) -> TorchTrainer:
    use_gpu = job.llm.device == "cuda"
    env_vars = {"OMP_NUM_THREADS": str(job.llm.threads), "DS_ACCELERATOR": job.llm.device}
    return TorchTrainer(
        _worker,
        train_loop_config={"job": job.model_dump(mode="json"), "prompts": prompts, "channel": channel},
        scaling_config=ScalingConfig(num_workers=job.tune.workers, use_gpu=use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=RunConfig(
            name=job.name,
            storage_path=str(work.resolve()),
            failure_config=FailureConfig(max_failures=2),
            worker_runtime_env={"env_vars": env_vars},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    """One worker from start to saved adapter.

    An error that a restart would not mend is told to the driver. The worker then returns as if all were
    well, which ends the run at once, where every other worker has failed too; otherwise it raises, since the
    others wait for it, and the restarted workers find the error here.
    """
    channel, context = config["channel"], ray.train.get_context()
    if ray.get(channel.error.remote()) is not None:
        return
    try:
        _train_and_save(TuneJob.model_validate(config["job"]), ray.get(config["prompts"]), channel)
    except RecrankerError as error:
        ray.get(channel.fail.remote(context.get_world_rank(), error))
        if not _all_failed(channel, context.get_world_size()):
            raise


def _all_failed(channel: Any, workers: int) -> bool:
    deadline = time.monotonic() + ALL_FAILED_WAIT_S
    while time.monotonic() < deadline:
        if ray.get(channel.num_failed.remote()) == workers:
            return True
        time.sleep(0.1)
    return False


def _train_and_save(job: TuneJob, prompts: list[Prompt], channel: Any) -> None:
    folder = Path(job.folder)
    if not folder.is_dir():
        raise OutputError(f"a training worker does not see {folder}; set store.home to a folder shared by all nodes")
    lm = load_model(Path(job.model), job.llm)
    way_out = "tuning packs every prompt into one row, so it needs another base model"
    check_packing(lm, max_prompt_tokens=job.llm.max_prompt_tokens, way_out=way_out)
    make_trainable(lm, job.tune, job.seed)
    engine = DeepSpeedEngine(lm, job.tune)
    torch.manual_seed(key_of(job.seed, "dropout", engine.rank) >> 1)
    for report in train(engine, lm, prompts, job.tune, job.llm, job.seed):
        if engine.rank == 0 and not ray.get(channel.report.remote(report)):
            raise RuntimeError("stopped: the driver does not wait for this training any more")
    _save(job, lm, engine, prompts)


def _save(job: TuneJob, lm: LanguageModel, engine: DeepSpeedEngine, prompts: list[Prompt]) -> None:
    """All workers answer the golden prompts and give their shard of the adapter; the first one writes."""
    chosen = golden_prompts(prompts)
    answers = make_scorer(lm, job.llm).score(chosen)
    record = record_of(lm, prompts, job.llm, job.tune, job.seed)
    with _gathered(lm, job.tune.zero_stage):
        if engine.rank == 0:
            save_adapter(lm, Path(job.folder), record, golden_of(lm, chosen, answers))
    torch.distributed.barrier()


def _gathered(lm: LanguageModel, zero_stage: int) -> AbstractContextManager[Any]:
    """Under ZeRO-3 every worker holds a shard of the adapter; inside this block each holds all of it."""
    if zero_stage < 3:
        return nullcontext()
    import deepspeed

    trained = [weight for weight in lm.model.parameters() if weight.requires_grad]
    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(trained)
    return gathered


def check_in_fresh_process(job: TuneJob) -> float:
    """Reload base and adapter where nothing of the training is in memory; see ``llm.adapter.check_adapter``."""
    if not (Path(job.folder) / "adapter_config.json").is_file():
        raise ModelError(f"training wrote no adapter into {job.folder}; set store.home to a folder shared by all nodes")
    # an environment of its own keeps Ray from giving the task to a process that has done other work
    fresh = {"env_vars": {"RECRANKER_FRESH_PROCESS": uuid.uuid4().hex, "OMP_NUM_THREADS": str(job.llm.threads)}}
    check = ray.remote(num_cpus=1, num_gpus=int(job.llm.device == "cuda"), max_calls=1, runtime_env=fresh)(
        reload_and_check
    )
    try:
        difference: float = ray.get(check.remote(Path(job.model), Path(job.folder), job.llm))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, RecrankerError) else error) from None
    return difference


def _log_row(name: str, report: StepReport) -> dict[str, Any]:
    return {
        "adapter": name,
        "step": report.step,
        "loss": report.loss,
        "learning_rate": report.learning_rate,
        "tokens": report.tokens,
    }
