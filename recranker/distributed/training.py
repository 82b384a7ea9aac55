"""Tuning on a cluster: Ray Train starts the workers, DeepSpeed shares the step, our own loop decides what it is.

Paths (base model, output, checkpoints) must be on a filesystem that every node sees, which is tried before anything
is trained. Workers report over a small actor, so that the driver's bar and MLflow follow training and a user's error
arrives as it was raised. When workers, or the controller over them, are lost, the driver starts anew from the newest
checkpoint; when the driver itself is lost, the same command does.
"""

import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.util.placement_group import PlacementGroup

from recranker.distributed.background import BackgroundFit
from recranker.distributed.channel import Channel
from recranker.distributed.cluster import beside_driver, check_workers
from recranker.distributed.engine import DeepSpeedEngine
from recranker.distributed.shared_storage import check_shared, mark_shared
from recranker.distributed.validation import ValidationList, looker
from recranker.errors import ModelError, RecrankerError, first_line
from recranker.llm.adapter import RECORD, golden_of, golden_prompts, record_of, reload_and_check, save_adapter
from recranker.llm.checkpoints import Checkpoints, TrainingState
from recranker.llm.limits import check_runnable
from recranker.llm.model import LanguageModel, load_model
from recranker.llm.packing import check_packing
from recranker.llm.reports import Look, Progress, StepReport
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.llm.training import AdapterPlan, Trainer, make_trainable, trained_weights
from recranker.llm.training_layers import quicken
from recranker.schema import TRAINING_LOG
from recranker.settings import Settings
from recranker.tasks.protocol import Prompt

logger = logging.getLogger(__name__)

POLL_S = 0.5
COLLECTIVE_TIMEOUT_S = 600
"""A worker that hears nothing from the others for so long gives up."""

Tell = Callable[[str, StepReport | Look], None]
"""Takes the adapter's name and what happened."""


class TuneJob(Settings):
    """All that a worker needs to know but the prompts."""

    name: str
    """Of the adapter."""
    model: str
    """Folder of the base model."""
    folder: str
    """Where the adapter is written."""
    start: str | None = None
    """Folder of the adapter it starts from; None: from the seed."""
    checkpoints: str
    """Folder of this training's checkpoints."""
    llm: LLMSettings
    """How the model is run; the device is resolved."""
    tune: TuneSettings
    """How it is trained."""
    seed: int
    """Of this training."""


@dataclass(frozen=True)
class Given:
    """What workers train and look at."""

    prompts: list[Prompt]
    validation: list[ValidationList]


def tune_adapters(
    plans: Sequence[AdapterPlan],
    *,
    model: Path,
    folder: Path,
    work: Path,
    llm: LLMSettings,
    tune: TuneSettings,
    seed: int,
    tell: Tell,
    validation: Sequence[ValidationList] = (),
) -> tuple[pa.Table, dict[str, Progress]]:
    """Train every planned adapter, one after the other, and check each in a fresh process.

    Args:
        plans: From ``llm.training.plan_adapters``.
        model: Folder of the base model.
        folder: Gets a folder per adapter, named after it.
        work: Keeps checkpoints; trainings of other prompts or settings must never find it.
        llm: How the model is run.
        tune: How it is trained.
        seed: Keys the adapter's start and the order of prompts.
        tell: Told the adapter's name and each step and look, in this thread.
        validation: Lists looked at while training, where ``tune.validation`` says so.

    Returns:
        The TRAINING_LOG table, and by adapter all that was reported.

    Raises:
        SettingsError: If the cluster cannot hold the workers, or the machine does not do what settings ask for.
        ModelError: If a loss is no number, or the saved adapter does not answer as the trained one did.
        OutputError: If workers do not share the folders.
    """
    use_gpu = check_workers("tune.workers", tune.workers, device=llm.device)
    check_runnable(llm, tune, cuda=use_gpu)
    llm = llm.model_copy(update={"device": "cuda" if use_gpu else "cpu"})
    done: dict[str, Progress] = {}
    for plan in plans:
        job = TuneJob(
            name=plan.name,
            model=str(model.resolve()),
            folder=str((folder / plan.name).resolve()),
            start=None if plan.start is None else str((folder / plan.start).resolve()),
            checkpoints=str((work / "checkpoints" / plan.name).resolve()),
            llm=llm,
            tune=tune,
            seed=tune.seed_in(seed),
        )
        done[plan.name] = _tune(job, Given(plan.prompts, list(validation)), work / "ray", tell)
        difference = check_in_fresh_process(job)
        logger.info("adapter %s: reloaded in a fresh process, answers differ by %.1g nats", plan.name, difference)
    rows = [_log_row(name, report) for name, progress in done.items() for report in progress.reports]
    return pa.Table.from_pylist(rows, schema=TRAINING_LOG.schema), done


def _tune(job: TuneJob, given: Given, work: Path, tell: Tell) -> Progress:
    """Run one training to its end, however often it is lost on the way, while ``tell`` hears of every step."""
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    heard = Heard(job.name, tell)
    lost, kept = 0, 0
    while True:
        error = _attempt(job, ray.put(given), work, heard)
        if error is None:
            return heard.progress
        now = Checkpoints(Path(job.checkpoints)).latest_step
        lost, kept = (1 if now > kept else lost + 1), now
        if lost > job.tune.max_failures:
            raise error
        logger.warning(
            "training was lost after step %d, it goes on behind step %d: %s",
            *(heard.progress.step, now, first_line(error)),
        )


@dataclass
class Heard:
    """What the driver has heard of one training; a step that was repeated is told of once."""

    name: str
    tell: Tell

    _last: dict[tuple[type, int], StepReport | Look] = field(default_factory=dict)
    """By kind and step: what was heard last."""

    def hear(self, report: StepReport | Look) -> None:
        """Take a report, which may have come before."""
        key = type(report), report.step
        if key not in self._last:
            self.tell(self.name, report)
        self._last[key] = report

    @property
    def progress(self) -> Progress:
        """All steps and looks."""
        in_order = sorted(self._last.values(), key=lambda report: report.step)
        return Progress(
            reports=tuple(one for one in in_order if isinstance(one, StepReport)),
            looks=tuple(one for one in in_order if isinstance(one, Look)),
        )


def _attempt(job: TuneJob, given: Any, work: Path, heard: Heard) -> Exception | None:
    """Train from the newest checkpoint on; the error with which workers or their controller were lost, if they were.

    Raises:
        RecrankerError: What trying again would not mend.
    """
    shutil.rmtree(work, ignore_errors=True)  # what a killed run of Ray's left there would be taken up, or be broken
    channel = ray.remote(Channel).options(**beside_driver()).remote()
    run = BackgroundFit(_trainer(job, given, channel, work))
    try:
        running = True
        while running:
            running = run.wait(POLL_S)
            for report in ray.get(channel.take.remote()):
                heard.hear(report)
            for note in ray.get(channel.notes.remote()):
                logger.warning("adapter %s: %s", job.name, note)
        ours: RecrankerError | None = ray.get(channel.error.remote())
        _release(ray.get(channel.occupied.remote()))
    finally:
        if run.wait(0):
            channel.stop.remote()
        shutil.rmtree(work, ignore_errors=True)
    if ours is not None:
        raise ours
    return run.error


def _release(group: PlacementGroup | None) -> None:
    """Give back the CPUs or GPUs of a controller that was killed, and end its workers.

    Ray does so by itself only when the job ends, or where the cluster has a dashboard, and the next workers wait.
    """
    if group is not None:
        ray.util.remove_placement_group(group)


def _trainer(job: TuneJob, given: Any, channel: Any, work: Path) -> TorchTrainer:
    use_gpu = job.llm.device == "cuda"
    mark_shared(Path(job.checkpoints))
    env_vars = {"OMP_NUM_THREADS": str(job.llm.threads), "DS_ACCELERATOR": job.llm.device}
    return TorchTrainer(
        _worker,
        train_loop_config={"job": job.model_dump(mode="json"), "given": given, "channel": channel},
        scaling_config=ScalingConfig(num_workers=job.tune.workers, use_gpu=use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=RunConfig(
            name=job.name,
            storage_path=str(work.resolve()),
            failure_config=FailureConfig(max_failures=0),  # the driver tries again: then a lost controller is no end
            worker_runtime_env={"env_vars": env_vars},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    """One worker from start to saved adapter; an error that trying again would not mend is told to the driver."""
    channel = config["channel"]
    if ray.train.get_context().get_world_rank() == 0:
        ray.get(channel.occupy.remote(ray.util.get_current_placement_group()))
    job = TuneJob.model_validate(config["job"])
    try:
        with memory_said(job.tune):
            _train_and_save(job, ray.get(config["given"]), channel)
    except RecrankerError as error:
        ray.get(channel.fail.remote(error))
        raise


@contextmanager
def memory_said(tune: TuneSettings) -> Iterator[None]:
    """Within this block a lack of memory, which trying again would not mend, is an error of the user's.

    Raises:
        ModelError: If there is too little; names the settings that need less.
    """
    try:
        yield
    except RuntimeError as error:
        # torch has an error of its own for CUDA, and a plain RuntimeError of its allocator for CPUs
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator: can't allocate" not in str(error):
            raise
        less = "" if tune.gradient_checkpointing else "set tune.gradient_checkpointing=true, "
        raise ModelError(
            f"a tuning worker ran out of memory: {first_line(error)}; lower tune.micro_batch_tokens, now "
            f"{tune.micro_batch_tokens}, {less}or see what fits: python -m jobs.tune CONFIG --plan"
        ) from None


def _train_and_save(job: TuneJob, given: Given, channel: Any) -> None:
    check_shared(Path(job.checkpoints))
    checkpoints = Checkpoints(Path(job.checkpoints))
    lm, progress = _trainable(job), _start(checkpoints, channel)
    state = checkpoints.at(progress.step) if progress.step else None
    if state is not None:
        _set_weights(lm, state)
    quicken(lm, zero_stage=job.tune.zero_stage)
    engine = DeepSpeedEngine(lm, job.tune)
    trainer = Trainer(engine, lm, given.prompts, job.tune, job.llm.max_prompt_tokens, job.seed)
    if state is not None:
        engine.restore(state, progress.step, trainer.nothing())
        if engine.rank == 0:
            ray.get(channel.note.remote(f"training goes on behind step {progress.step} of {trainer.num_steps}"))
    del state  # whole, on every worker: not to be held while training

    def tell(*reports: StepReport | Look) -> None:
        if engine.rank == 0 and not ray.get(channel.report.remote(*reports)):
            raise RuntimeError("stopped: the driver does not wait for this training any more")

    def keep(progress: Progress) -> None:
        state = engine.state()
        if engine.rank == 0:
            checkpoints.write(state, progress)

    tell(*progress.reports, *progress.looks)
    look = looker(lm, given.validation, job.llm, engine, job.tune) if job.tune.validation else None
    progress = trainer.fit(progress, tell=tell, keep=keep, look=look)
    torch.distributed.barrier()  # until the first worker has written the last checkpoint
    if progress.best is not None and progress.best.step < progress.step:
        with _gathered(lm, job.tune.zero_stage):
            _set_weights(lm, checkpoints.at(progress.best.step))
    _save(job, lm, engine, given.prompts)


def _trainable(job: TuneJob) -> LanguageModel:
    """What is trained, as it is before the first step."""
    start = None if job.start is None else Path(job.start)
    base = start if start is not None and job.tune.method == "full" else Path(job.model)
    lm = load_model(base, job.llm, job.tune.quantization)
    way_out = "tuning packs every prompt into one row, so it needs another base model"
    check_packing(lm, max_prompt_tokens=job.llm.max_prompt_tokens, way_out=way_out)
    make_trainable(lm, job.tune, job.seed, start)
    return lm


def _start(checkpoints: Checkpoints, channel: Any) -> Progress:
    """What has been done before, the same on every worker: the first one looks for it, and the driver hears of it."""
    if torch.distributed.get_rank() == 0:
        notes: list[str] = []
        found = checkpoints.newest(notes.append) or Progress()
        ray.get(channel.begin.remote(found, *notes))
    torch.distributed.barrier()
    progress: Progress = ray.get(channel.begun.remote())
    return progress


def _set_weights(lm: LanguageModel, state: TrainingState) -> None:
    """Give the adapter the weights of ``state``.

    Raises:
        ModelError: If the checkpoint is of another adapter.
    """
    weights = trained_weights(lm)
    if set(weights) != set(state.weights):
        raise ModelError("the checkpoint holds other weights than this adapter has; delete it to train from the start")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(state.weights[name])


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
    """Under ZeRO-3 every worker holds a shard of the adapter; inside this block each holds all of it.

    What the first worker changes there reaches all others.
    """
    if zero_stage < 3:
        return nullcontext()
    import deepspeed

    trained = list(trained_weights(lm).values())
    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(trained, modifier_rank=0)
    return gathered


def check_in_fresh_process(job: TuneJob) -> float:
    """Reload base and adapter where nothing of the training is in memory; see ``llm.adapter.check_adapter``."""
    if not (Path(job.folder) / RECORD).is_file():
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
    columns = ("step", "loss", "gradient_norm", "learning_rate", "tokens")
    return {
        "adapter": name,
        "prompt_ids": list(report.prompt_ids),
        **{column: getattr(report, column) for column in columns},
    }
