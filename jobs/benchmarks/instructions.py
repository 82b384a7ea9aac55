"""Sampling and instructions on a made-up service of growing size, beside two floors on the same files.

The floors: reading with Arrow what sampling reads, and the tokenizer alone on the texts of all prompts, a process per
core. Every stage is run as a user runs it, and watched with all the processes it starts.
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table

from jobs.benchmarks.processes import Cost, run_measured
from jobs.benchmarks.settings import InstructionsBenchmark
from jobs.sources import ROOT
from recranker.data.simulated_files import CONFIG
from recranker.llm.model import resolve_model
from recranker.progress import Bar
from recranker.sampling.adaptive import importance
from recranker.sampling.races import Field, draw
from recranker.schema import INTERACTIONS, PROMPTS
from recranker.store import Store

logger = logging.getLogger("recranker.jobs")

NAME = "scale"
STEPS = ("scan", "sample", "assemble", "instruct", "tokenise")
"""What is watched for each number of users, in order."""
FIXED_S = 20.0
"""Seconds of a sampling stage that do not grow with the users: starting Ray above all."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """All that was measured."""

    rows: list[Row]
    """One per number of users and step."""
    figures: dict[str, Any]
    """The ratios that the stages are judged by."""


def measure(settings: InstructionsBenchmark) -> Outcome:
    """Simulate, then watch every step, for each number of users."""
    home = Path(settings.store.home).expanduser().resolve()
    model = resolve_model(settings.model, home / "cache")
    scratch = tempfile.TemporaryDirectory(prefix="recranker-benchmark-", dir=settings.scratch)
    with scratch as folder, Bar("benchmark", len(settings.users) * (1 + len(STEPS)) + 1) as bar:
        rows = [
            row
            for users in settings.users
            for row in _watched(settings, users, Path(folder) / str(users), home, model, bar)
        ]
        bar.set_text("the sampler alone")
        speed = sampler_speed(max(settings.users), settings.num_draws, settings.seed)
        bar.advance()
    return Outcome(rows, figures(rows, speed))


def _watched(
    settings: InstructionsBenchmark, users: int, folder: Path, home: Path, model: Path, bar: Bar
) -> Iterator[Row]:
    """A row per step, on a service of so many users made in ``folder``."""
    bar.set_text(f"simulating {users:,} users")
    run_measured(_simulation(settings, users, folder), {})
    bar.advance()
    for step in STEPS:
        bar.set_text(f"{step}, {users:,} users")
        cost = run_measured(_command(settings, step, folder, model), _environment(home))
        logger.info("%s, %d users: %.1f s, %.1f CPU s", step, users, cost.wall_s, cost.cpu_s)
        bar.advance()
        yield _row(users, step, cost, Store(str(folder / "runs" / NAME)))


def _simulation(settings: InstructionsBenchmark, users: int, folder: Path) -> list[str]:
    options = {"users": users, "events-per-user": settings.events_per_user, "items": settings.items, "out": folder}
    options |= {"prepared": NAME, "seed": settings.seed, "ranked-share": settings.ranked_share}
    return ["jobs.simulate", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def _command(settings: InstructionsBenchmark, step: str, folder: Path, model: Path) -> list[str]:
    if step in ("sample", "instruct"):
        overrides = [f"sampling.num_draws={settings.num_draws}", f"llm.model={settings.model}"]
        return [f"jobs.{step}", str(folder / CONFIG), *overrides]
    more = [str(model)] if step == "tokenise" else []
    return ["jobs.benchmarks.scale_work", step, str(folder / "runs" / NAME), *more]


def _environment(home: Path) -> dict[str, str]:
    return {"RECRANKER_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def _row(users: int, step: str, cost: Cost, store: Store) -> Row:
    events = store.require("prepare").tables[INTERACTIONS.name]["rows"]
    handled = {"instruct": PROMPTS, "tokenise": PROMPTS}.get(step)
    rows = store.require("instruct").tables[handled.name]["rows"] if handled else events
    return {
        "users": users,
        "step": step,
        "events": events,
        "rows": rows,
        "rows_per_s": rows / cost.wall_s,
        **asdict(cost),
    }


def sampler_speed(num_users: int, num_draws: int, seed: int) -> float:
    """Users per CPU second of weights and race on one core, keys included, with ids already in memory."""
    ids = pa.array(np.char.add("u", np.arange(num_users).astype("U")))
    likes = 1 + np.arange(num_users) % 97
    started = time.process_time()
    field = Field(ids, importance(likes), np.zeros(num_users, dtype=np.int64))
    draw(field, np.array([num_draws]), seed, "benchmark")
    return num_users / (time.process_time() - started)


def figures(rows: list[Row], sampler: float) -> dict[str, Any]:
    """What the stages are judged by; growth is from the fewest users to the most."""
    by = {(row["users"], row["step"]): row for row in rows}
    fewest, most = min(row["users"] for row in rows), max(row["users"] for row in rows)
    stages = ("sample", "instruct")
    seconds = {users: sum(by[users, step]["wall_s"] for step in stages) for users in (fewest, most)}
    memory = {users: max(by[users, step]["peak_memory_gb"] for step in stages) for users in (fewest, most)}
    return {
        "sampler_users_per_s_per_core": sampler,
        "sample_over_scan": max(by[most, "sample"]["wall_s"] - FIXED_S, 0.0) / by[most, "scan"]["wall_s"],
        "assembly_s": by[most, "assemble"]["wall_s"],
        "instruct_over_tokenizer": by[most, "tokenise"]["wall_s"] / by[most, "instruct"]["wall_s"],
        "peak_rss_gb": max(row["peak_memory_gb"] for row in rows if row["step"] in (*stages, "assemble")),
        "growth_users": most / fewest,
        "growth_time_10x": seconds[most] / seconds[fewest],
        "growth_rss_10x": memory[most] / memory[fewest],
    }


def table(rows: list[Row]) -> Table:
    """For a person."""
    shown = Table(title="sampling and instructions on a made-up service")
    for name in ("users", "events"):
        shown.add_column(name, justify="right")
    shown.add_column("step")
    for name in ("rows", "rows/s", "wall s", "CPU s", "peak memory GB", "object store GB"):
        shown.add_column(name, justify="right")
    for row in rows:
        numbers = (f"{row[name]:.1f}" for name in ("wall_s", "cpu_s"))
        sizes = (f"{row[name]:.2f}" for name in ("peak_memory_gb", "peak_shared_gb"))
        counts = f"{row['users']:,}", f"{row['events']:,}"
        shown.add_row(*counts, row["step"], f"{row['rows']:,}", f"{row['rows_per_s']:,.0f}", *numbers, *sizes)
    return shown
