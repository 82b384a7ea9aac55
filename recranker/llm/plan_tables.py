"""A plan of a tuning for a person: three tables."""

from collections.abc import Callable, Mapping

from rich.markup import escape
from rich.table import Table

from recranker.llm.hardware import GB
from recranker.llm.plan import STAGES, Amount, Memory, Place, Times, Tuning, Work, fits, memory_of, needed
from recranker.llm.settings import TuneSettings
from recranker.progress import duration

MIN_WIDTH = 100
"""Characters; captions are as wide as their table."""


def memory_table(tuning: Tuning, amount: Amount, place: Place, *, model: str) -> Table:
    """Memory of a worker under each ZeRO stage.

    Args:
        tuning: What is tuned.
        amount: How much; its longest pass counts.
        place: Where.
        model: Its name.
    """
    lines = {stage: memory_of(tuning, amount.largest, stage) for stage in STAGES}
    host = place.on_gpu and any(line is not None and line.host for line in lines.values())
    table = _table(_memory_title(tuning, place, model), _memory_caption(tuning, amount))
    table.add_column("ZeRO", no_wrap=True)
    trained = "gradients, AdamW" if tuning.is_full else "adapter, gradients, AdamW"
    parts = ("base weights", trained, "activations", "working space", "total")
    limit = "of" if place.on_gpu else f"{plural(tuning.tune.workers, 'worker')}, of"
    for heading in (*parts, *(["on the host"] if host else []), f"{limit} {gigabytes(place.capacity)} GB"):
        table.add_column(heading, justify="right")
    for stage, line in lines.items():
        chosen = stage == tuning.tune.zero_stage
        name = f"{stage} (chosen)" if chosen else str(stage)
        table.add_row(name, *_memory_cells(line, tuning, place, host=host), style="bold" if chosen else "")
    return table


def _memory_title(tuning: Tuning, place: Place, model: str) -> str:
    trained = "all trained" if tuning.is_full else f"{millions(tuning.adapter)} in the adapter"
    sizes = f"{millions(tuning.shape.parameters)} parameters, {trained}"
    return f"Memory of a worker in GB: {model} ({sizes}), {plural(tuning.tune.workers, 'worker')} {place.name}"


def _memory_caption(tuning: Tuning, amount: Amount) -> str:
    with_or_without = "with" if tuning.tune.gradient_checkpointing else "without"
    return (
        f"Base weights in {tuning.number_format}. Activations: of the longest pass, {amount.largest.tokens:,} tokens, "
        f"{with_or_without} gradient checkpointing. Working space: weights gathered for a layer, buckets of gradients, "
        "and what a process takes by itself. Where the last column has a larger number, it is that of loading: every "
        "worker reads the whole model before it is cut or offloaded."
    )


def _memory_cells(line: Memory | None, tuning: Tuning, place: Place, *, host: bool) -> list[str]:
    if line is None:
        return ["-"] * (6 if host else 5) + [_impossible(tuning.tune)]
    sizes = [line.base, line.adapter, line.activations, line.working, line.total, *([line.host] if host else [])]
    verdict = "fits" if fits(line, tuning, place) else "does not fit"
    most = needed(line, tuning, place)
    shown = "" if place.on_gpu and most == line.total else f"{gigabytes(most)}: "
    return [*map(gigabytes, sizes), shown + verdict]


def _impossible(tune: TuneSettings) -> str:
    """Why a stage is out of the question, in a few words."""
    if tune.quantization != "none":
        return f"{tune.quantization} up to 2"
    return {"optimizer": "offload from 2 on", "parameters": "offload in 3 only", "none": "-"}[tune.offload]


def work_table(amount: Amount, tune: TuneSettings, *, source: str) -> Table:
    """Prompts, steps and tokens of each adapter; ``source`` says where the numbers come from."""
    table = _table("What is computed", source)
    table.add_column("adapter", no_wrap=True)
    for work in amount.works:
        table.add_column(work.adapter, justify="right")
    long_ones = {"cut": "cut", "drop": "left out"}[tune.long_prompts]
    lines: Mapping[str, Callable[[Work], str]] = {
        "training prompts": lambda work: f"{work.prompts:,}",
        f"longer than llm.max_prompt_tokens, {long_ones}": lambda work: f"{work.too_long:,}",
        "questions": lambda work: f"{work.questions:,}",
        "tokens of the longest prompt, with all its questions": lambda work: f"{work.longest:,}",
        "optimizer steps": lambda work: f"{work.steps:,}",
        "passes of a worker per step": lambda work: f"{work.passes / work.steps:,.1f}",
        "tokens per step, all workers": lambda work: f"{work.tokens / work.steps:,.0f}",
        "tokens in all": lambda work: f"{work.tokens:,}",
    }
    for name, cell in lines.items():
        table.add_row(name, *map(cell, amount.works))
    return table


def time_table(
    columns: Mapping[str, Times], amount: Amount, tune: TuneSettings, *, title: str, caption: str, total: str
) -> Table:
    """Time of a step and of all steps.

    Args:
        columns: By heading; wall clock, CPU time.
        amount: What is computed.
        tune: How it is trained.
        title: Of the table.
        caption: What the numbers rest on.
        total: Name of the last line.
    """
    table = _table(title, caption)
    for heading in ("", *columns):
        table.add_column(heading, justify="right" if heading else "left")

    def add(name: str, seconds: Callable[[Times], float], style: str = "") -> None:
        table.add_row(name, *(short(seconds(times)) for times in columns.values()), style=style)

    add("a step, computing", lambda times: times.computing / amount.steps)
    if any(times.exchanging for times in columns.values()):
        add("a step, exchanging weights and gradients", lambda times: times.exchanging / amount.steps)
    add(f"{plural(amount.steps, 'step')}", lambda times: times.computing + times.exchanging)
    if looks := amount.looks(tune):
        add(f"{plural(looks, 'look')} at validation lists", lambda times: times.looking)
    add(total, lambda times: times.total, "bold")
    return table


def _table(title: str, caption: str) -> Table:
    return Table(
        title=escape(title),
        caption=escape(caption) + "\n",
        title_justify="left",
        caption_justify="left",
        min_width=MIN_WIDTH,
    )


def gigabytes(size: float) -> str:
    """Bytes in GB, to two digits behind the point where they say anything."""
    return f"{size / GB:.2f}" if size < 10 * GB else f"{size / GB:,.1f}"


def millions(count: float) -> str:
    """A count in millions, or in billions."""
    return f"{count / 1e9:,.2f} billion" if count >= 1e9 else f"{count / 1e6:,.1f} million"


def plural(count: int, name: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


def short(seconds: float) -> str:
    """Seconds in words, with digits behind the point where there are few."""
    return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
