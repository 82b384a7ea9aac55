"""What a tuning will cost, printed before anything is spent.

python -m jobs.tune jobs/configs/quickstart.toml --plan                        measured on this machine
python -m jobs.tune jobs/configs/cluster_7b.toml --plan --gpu h100-80gb        by arithmetic, without the model
"""

import argparse
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from rich.table import Table

from jobs.output import console
from jobs.settings import JobSettings
from jobs.stage import StageContext, store_of
from recranker.distributed.engine import deepspeed_config
from recranker.errors import ModelError, SettingsError
from recranker.llm.hardware import GB, GPUS, Gpu, cores, gpu_named, machine_memory_gb
from recranker.llm.limits import check_runnable
from recranker.llm.model import resolve_model
from recranker.llm.plan import (
    UTILISATION,
    Amount,
    Place,
    Tuning,
    activation_bytes,
    fits,
    gpu_speed,
    link_gb_s,
    memory_of,
    tflops,
    times_of,
    way_out,
)
from recranker.llm.plan_tables import gigabytes, memory_table, time_table, work_table
from recranker.llm.probe import Measured, cuda_memory, measure
from recranker.llm.settings import TuneSettings
from recranker.llm.shapes import NAMED, ModelShape, shape_of
from recranker.llm.training import plan_adapters
from recranker.llm.workload import Supposed, counted
from recranker.progress import Bar
from recranker.schema import PROMPTS
from recranker.settings import check_settings
from recranker.tasks.instructions import to_prompts

WIDTH = 120
SUPPOSITIONS = ("model_shape", "gpu", "workers", "prompts", "tokens_per_prompt", "utilisation", "interconnect")


def options(parser: argparse.ArgumentParser) -> None:
    """``--plan``, and what it may suppose."""
    shapes = f"plan for another model: {', '.join(NAMED)}, or the path of a config.json"
    parser.add_argument("--plan", action="store_true", help="print memory, steps, tokens and time, then stop")
    parser.add_argument("--gpu", metavar="NAME", help=f"plan for workers with such a GPU: {', '.join(GPUS)}")
    parser.add_argument("--model-shape", metavar="NAME", help=shapes)
    counts = {
        "workers": "in place of tune.workers",
        "prompts": "training prompts, in place of those made",
        "tokens-per-prompt": "of a prompt with all its questions, in place of those made",
    }
    for name, text in counts.items():
        parser.add_argument(f"--{name}", type=partial(_above_zero, int), metavar="N", help=text)
    amounts = {
        "utilisation": f"share of the GPU's peak that training reaches, {UTILISATION} unless said otherwise",
        "interconnect": "GB per second between two workers, in place of the GPU's own link or the network's",
    }
    for name, text in amounts.items():
        parser.add_argument(f"--{name}", type=partial(_above_zero, float), metavar="X", help=text)


def _above_zero(kind: Callable[[str], Any], text: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def show_plan(settings: JobSettings, parsed: argparse.Namespace) -> bool:
    """Print the plan, where ``--plan`` is given.

    Raises:
        SettingsError: If an option contradicts another one or the settings.
        ModelError: If nothing is known of the model's shape.
        DataError: If the prompts' tokens were not counted.
    """
    if not parsed.plan:
        _refuse_suppositions(parsed)
        return False
    stage, tune, place = StageContext(settings, store_of(settings)), _tune(settings, parsed), _place(settings, parsed)
    tuning = _tuning(settings, parsed, tune, place, stage.cache)
    is_counted = _is_counted(parsed, stage)
    amount = _counted(settings, tune, stage) if is_counted else _supposed(settings, parsed, tune)
    out = console(WIDTH)
    out.print(memory_table(tuning, amount, place, model=parsed.model_shape or settings.llm.model))
    say = partial(out.print, markup=False, highlight=False, soft_wrap=True)
    say(_verdict(tuning, amount, place))
    out.print(work_table(amount, tune, source=_source(settings, parsed, is_counted)))
    if place.gpu is not None:
        out.print(_gpu_table(tuning, amount, place.gpu, parsed))
    elif (reason := _why_unmeasured(tuning, amount, place, parsed)) is not None:
        say(reason)
    else:
        out.print(_measured_table(tuning, amount, _measured(settings, tune, amount, stage.cache)))
    say(f"Next: {next_command(parsed, is_made=stage.store.manifest('instruct') is not None)}")
    return True


def _refuse_suppositions(parsed: argparse.Namespace) -> None:
    given = [f"--{name.replace('_', '-')}" for name in SUPPOSITIONS if getattr(parsed, name) is not None]
    if given:
        raise SettingsError(f"{', '.join(given)}: only a plan can suppose that; add --plan, or leave it out")


def _tune(settings: JobSettings, parsed: argparse.Namespace) -> TuneSettings:
    if parsed.workers is None:
        return settings.tune
    return check_settings(TuneSettings, settings.tune.model_dump() | {"workers": parsed.workers}, where="--workers")


def _place(settings: JobSettings, parsed: argparse.Namespace) -> Place:
    if parsed.gpu is not None:
        if settings.llm.device == "cpu":
            raise SettingsError(f"--gpu {parsed.gpu} plans for a GPU, llm.device='cpu' wants none; set llm.device=auto")
        gpu = gpu_named(parsed.gpu)
        return Place(f"with one {gpu.title} each", gpu.memory_gb * GB, on_gpu=True, gpu=gpu)
    if (memory := cuda_memory(settings.llm)) is not None:
        return Place("with a GPU of this machine each", memory, on_gpu=True)
    if settings.llm.device == "cuda":
        raise SettingsError("llm.device='cuda', but this machine has no CUDA device; name one to plan for: --gpu NAME")
    return Place("on this machine", machine_memory_gb() * GB, on_gpu=False)


def _tuning(settings: JobSettings, parsed: argparse.Namespace, tune: TuneSettings, place: Place, cache: Path) -> Tuning:
    there = tune if place.gpu is None else tune.model_copy(update={"quantization": "none"})  # its library is there
    check_runnable(settings.llm, there, cuda=place.on_gpu)
    zero = deepspeed_config(tune)["zero_optimization"]
    names = {"bucket": "reduce_bucket_size", "live": "stage3_max_live_parameters"}
    is_short = settings.llm.dtype == "bfloat16" or (settings.llm.dtype == "auto" and place.on_gpu)
    return Tuning(
        shape=_shape(settings, parsed, cache),
        tune=tune,
        value_bytes=2 if is_short else 4,
        on_gpu=place.on_gpu,
        **{ours: zero[theirs] for ours, theirs in names.items() if theirs in zero},
    )


def _shape(settings: JobSettings, parsed: argparse.Namespace, cache: Path) -> ModelShape:
    """Of ``--model-shape``, or of ``llm.model``, which is fetched only if time is to be measured with it."""
    if parsed.model_shape is not None:
        return shape_of(parsed.model_shape)
    try:
        return shape_of(settings.llm.model, hub=cache / "hub")
    except ModelError as error:
        if parsed.gpu is not None:
            raise ModelError(f"llm.model: {error}; give one as --model-shape") from None
    return shape_of(str(resolve_model(settings.llm.model, cache)))


def _is_counted(parsed: argparse.Namespace, stage: StageContext) -> bool:
    """Whether there are prompts, and no option takes their place."""
    return not (parsed.prompts or parsed.tokens_per_prompt) and stage.store.manifest("instruct") is not None


def _counted(settings: JobSettings, tune: TuneSettings, stage: StageContext) -> Amount:
    prompts, limit = stage.read("instruct", PROMPTS), settings.llm.max_prompt_tokens
    training, validation = (to_prompts(prompts.filter(pc.field("split") == split)) for split in ("train", "validation"))
    return counted(
        plan_adapters(training, tune, limit), validation, tune, limit=limit, seed=tune.seed_in(settings.seed)
    )


def _supposed(settings: JobSettings, parsed: argparse.Namespace, tune: TuneSettings) -> Amount:
    return Supposed(
        prompts=parsed.prompts or settings.sampling.num_draws,
        tokens_per_prompt=parsed.tokens_per_prompt,
        instruct=settings.instruct,
        candidates=settings.backbone.num_candidates,
    ).amount(tune, limit=settings.llm.max_prompt_tokens)


def _source(settings: JobSettings, parsed: argparse.Namespace, is_counted: bool) -> str:
    if is_counted:
        whose = f" with the tokenizer of {settings.llm.model}" if parsed.model_shape is not None else ""
        return f"Counted in the prompts that jobs.instruct has made{whose}."
    prompts = "--prompts" if parsed.prompts else "sampling.num_draws"
    tokens = "--tokens-per-prompt" if parsed.tokens_per_prompt else "histories of full length, of English film titles"
    return f"Supposed, not counted: number of prompts from {prompts}, lengths from {tokens}."


def _verdict(tuning: Tuning, amount: Amount, place: Place) -> str:
    """Whether the chosen settings fit, and what would."""
    memory = memory_of(tuning, amount.largest, tuning.tune.zero_stage)
    assert memory is not None, "settings that contradict one another were refused before"
    if fits(memory, tuning, place):
        return "The settings fit.\n"
    changes = way_out(tuning, amount.largest, place)
    if changes is None:
        return "The settings do not fit; lower tune.micro_batch_tokens, or take a smaller model or more memory.\n"
    return f"The settings do not fit; these do: {' '.join(_override(*change) for change in changes.items())}\n"


def _override(name: str, value: object) -> str:
    return f"tune.{name}={str(value).lower()}"


def _gpu_table(tuning: Tuning, amount: Amount, gpu: Gpu, parsed: argparse.Namespace) -> Table:
    """Time by arithmetic."""
    workers = tuning.tune.workers
    share, gb_s = parsed.utilisation or UTILISATION, parsed.interconnect or link_gb_s(gpu, workers)
    peak = f"{tflops(tuning, gpu):g} TFLOP/s"
    times = times_of(amount, tuning.tune, gpu_speed(tuning, amount.typical, gpu, utilisation=share, gb_s=gb_s))
    caption = (
        f"Supposed, not measured: {share:.0%} of {peak} (--utilisation), {gb_s:g} GB/s between "
        f"workers (--interconnect), who do not compute meanwhile. {times.total * workers / 3600:,.2f} GPU hours. "
        "Starting workers and checkpoints come on top."
    )
    title = f"Time on {workers} x {gpu.title}"
    return time_table({"wall clock": times}, amount, tuning.tune, title=title, caption=caption, total="in all")


def _why_unmeasured(tuning: Tuning, amount: Amount, place: Place, parsed: argparse.Namespace) -> str | None:
    if parsed.model_shape is not None:
        return "Time: not measured, as --model-shape brings no weights; leave it out, or name a GPU with --gpu.\n"
    if tuning.base_bytes + activation_bytes(tuning, amount.typical) > place.capacity:
        return "Time: not measured, as the model does not fit here; name the GPU that workers will have with --gpu.\n"
    return None


def _measured(settings: JobSettings, tune: TuneSettings, amount: Amount, cache: Path) -> Measured:
    model = resolve_model(settings.llm.model, cache)
    with Bar("probe", None) as bar:
        bar.set_text(f"passes of {amount.typical.tokens:,} tokens, forward and backward")
        return measure(model, settings.llm, tune, amount.typical, on_pass=bar.advance)


def _measured_table(tuning: Tuning, amount: Amount, measured: Measured) -> Table:
    """Time as measured here, if all workers run here."""
    tune = tuning.tune
    crowd = 1.0 if tuning.on_gpu else max(1.0, tune.workers / cores())
    columns = {
        "wall clock": times_of(amount, tune, measured.speed(crowd)),
        "CPU, all workers": times_of(amount, tune, measured.cpu_speed(tune.workers)),
    }
    return time_table(
        *(columns, amount, tune),
        title="Time on this machine, measured",
        caption=_measured_caption(tuning, amount, measured, crowd),
        total="in all",
    )


def _measured_caption(tuning: Tuning, amount: Amount, measured: Measured, crowd: float) -> str:
    shared = f"workers share cores, each {crowd:.1f} times slower; " if crowd > 1 else ""
    busy = "this machine had other work to do meanwhile; " if not tuning.on_gpu and measured.was_disturbed else ""
    held, expected = gigabytes(measured.activation_bytes), gigabytes(activation_bytes(tuning, amount.typical))
    return (
        f"One worker took {measured.forward_s:.2f} s forward and {measured.backward_s:.2f} s backward for "
        f"{measured.tokens:,} tokens, and held {held} GB of activations ({expected} by arithmetic); {busy}{shared}"
        "starting workers, exchanging gradients and checkpoints come on top."
    )


def next_command(parsed: argparse.Namespace, *, is_made: bool) -> str:
    """The command that starts the tuning planned, with the stages before it where there are no prompts yet."""
    job = "jobs.tune" if is_made else "jobs.pipeline"
    workers = [f"tune.workers={parsed.workers}"] if parsed.workers is not None else []
    command = shlex.join(["python", "-m", job, parsed.config, *parsed.overrides, *workers])
    return command if is_made else f"{command}    (all stages; prompts come before tuning)"
