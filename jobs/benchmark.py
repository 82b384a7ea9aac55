"""Measure recranker beside other ways of doing the same, on this machine.

python -m jobs.benchmark ranking --users 8 --candidates 10 50 200 --json FILE
python -m jobs.benchmark instructions --users 100000 1000000 --json FILE
python -m jobs.benchmark tuning zero=false --json FILE
python -m jobs.benchmark serving soak_minutes=30 --json FILE              (first, once: make quickstart, jobs.publish)
python -m jobs.benchmark injection users=100 --json FILE                  (first, once: as above)
python -m jobs.benchmark backbones epochs=100 'threads=[1, 2]' --json FILE   (first, once: make benchmark-env)
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.benchmarks import backbones, injection, instructions, ranking, serving, tuning
from jobs.benchmarks.results import top_k_table, training_table
from jobs.benchmarks.settings import (
    BackbonesBenchmark,
    InjectionBenchmark,
    InstructionsBenchmark,
    RankingBenchmark,
    ServingBenchmark,
    TuningBenchmark,
)
from jobs.measured import add_arguments, parse, settings_of
from jobs.output import console, write_json
from jobs.sources import ROOT
from jobs.stage import flattened, guarded
from recranker.settings import Settings

TABLE_WIDTH = 150
"""Characters, where the output is no terminal that has a width of its own."""


@dataclass(frozen=True)
class Benchmark:
    """One thing that can be measured."""

    help: str
    settings: type[Settings]
    measure: Callable[[Any], Any]
    """From the settings to a dataclass of results."""
    show: Callable[[Any, Any], None]
    """Prints results and settings for a person."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True, help=", ".join(BENCHMARKS))
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, help=benchmark.help, description=benchmark.help)
        add_arguments(command, config_of(name))
    ranked = commands.choices["ranking"]
    ranked.add_argument("--users", type=int, metavar="N", help="users with a full history that are ranked")
    grown = commands.choices["instructions"]
    grown.add_argument("--users", type=int, nargs="+", metavar="N", help="how many users, a round for each")
    ranked.add_argument("--candidates", type=int, nargs="+", metavar="N", help="lengths of the lists")
    parsed = parse(parser, arguments)
    return guarded(lambda: _main(parsed))


def config_of(name: str) -> Path:
    """What is measured unless told otherwise."""
    return ROOT / "jobs" / "benchmarks" / f"{name}.toml"


def _main(parsed: argparse.Namespace) -> None:
    benchmark = BENCHMARKS[parsed.what]
    settings = settings_of(benchmark.settings, parsed, config_of(parsed.what), _options(parsed))
    if parsed.dry_run:
        print(settings.model_dump_json(indent=2))
        return
    outcome = benchmark.measure(settings)
    benchmark.show(outcome, settings)
    write_outcome(parsed.json, outcome)


def write_outcome(path: Path | None, outcome: Any) -> None:
    """All that was measured as JSON, single figures beside the rows."""
    values = asdict(outcome)
    write_json(path, values.pop("figures", {}) | values)


def _options(parsed: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(parsed, name, None) for name in ("users", "candidates")}


def show_backbones(outcome: backbones.Outcome, settings: BackbonesBenchmark) -> None:
    """Print the tables and the ratios."""
    shown = console(TABLE_WIDTH)
    if outcome.rows:
        shown.print(training_table(outcome.rows, title=f"training on {outcome.data}"))
    searched = f"top 10 of {settings.top_k_users} users among {settings.top_k_items} items"
    shown.print(top_k_table(outcome.top_k, title=searched))
    for ratio in outcome.ratios:
        shown.print(", ".join(f"{name} {value:.3g}" for name, value in ratio.items()))


def show_ranking(outcome: ranking.Outcome, settings: RankingBenchmark) -> None:
    """Print the table and what the engine is judged by."""
    shown = console(TABLE_WIDTH)
    shown.print(ranking.table(outcome.rows))
    for name, value in flattened(outcome.figures).items():
        shown.print(f"{name} {value:.4g}")


def show_instructions(outcome: instructions.Outcome, settings: InstructionsBenchmark) -> None:
    """Print the table and what the stages are judged by."""
    shown = console(TABLE_WIDTH)
    shown.print(instructions.table(outcome.rows))
    for name, value in outcome.figures.items():
        shown.print(f"{name} {value:.4g}")


def show_tuning(outcome: tuning.Outcome, settings: TuningBenchmark) -> None:
    """Print the tables and what the trainer is judged by."""
    shown = console(TABLE_WIDTH)
    shown.print(tuning.table(outcome.rows), tuning.loss_table(outcome.losses))
    if outcome.zero_step_seconds:
        shown.print(tuning.zero_table(outcome.zero_step_seconds))
    for name, value in outcome.figures.items():
        shown.print(f"{name} {value:.4g}")


def show_serving(outcome: serving.Outcome, settings: ServingBenchmark) -> None:
    """Print the table and what the service is judged by."""
    shown = console(TABLE_WIDTH)
    shown.print(serving.table(outcome.rows))
    for name, value in flattened(outcome.figures).items():
        if value is not None:
            shown.print(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")


def show_injection(outcome: injection.Outcome, settings: InjectionBenchmark) -> None:
    """Print the table."""
    console(TABLE_WIDTH).print(injection.table(outcome.rows))


BENCHMARKS = {
    "ranking": Benchmark(
        "the ranking engine beside full prompts and generated text, on real users with a real model",
        RankingBenchmark,
        ranking.measure,
        show_ranking,
    ),
    "tuning": Benchmark(
        "packed training beside padded prompts and transformers' Trainer, on real prompts; ZeRO stages",
        TuningBenchmark,
        tuning.measure,
        show_tuning,
    ),
    "instructions": Benchmark(
        "sampling and instructions on a made-up service of growing size, beside reading and tokenising alone",
        InstructionsBenchmark,
        instructions.measure,
        show_instructions,
    ),
    "serving": Benchmark(
        "the service under load, beside the engine alone and a service that generates text",
        ServingBenchmark,
        serving.measure,
        show_serving,
    ),
    "injection": Benchmark(
        "how far text in a title that asks for the first place lifts the item, beside harmless text of that length",
        InjectionBenchmark,
        injection.measure,
        show_injection,
    ),
    "backbones": Benchmark(
        "LightGCN and MF beside RecBole's and implicit's (make benchmark-env installs those)",
        BackbonesBenchmark,
        backbones.measure,
        show_backbones,
    ),
}

if __name__ == "__main__":
    sys.exit(main())
