"""Measure recranker beside other systems on this machine; `make benchmark-env` installs those, once.

python -m jobs.benchmark backbones jobs/benchmarks/backbones.toml epochs=100 'threads=[1, 2]' --json FILE
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jobs.benchmarks.backbones import Outcome, measure
from jobs.benchmarks.results import top_k_table, training_table
from jobs.benchmarks.settings import BackbonesBenchmark
from jobs.output import console, write_json
from jobs.sources import ROOT
from jobs.stage import guarded
from recranker.settings import load_settings

CONFIG = ROOT / "jobs" / "benchmarks" / "backbones.toml"
TABLE_WIDTH = 150
"""Characters, where the output is no terminal that has a width of its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["backbones"], help="what is measured")
    parser.add_argument(
        "arguments", nargs="*", metavar="CONFIG or field=value", help=f"TOML file, otherwise {CONFIG}; then settings"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings, then stop")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write all rows to FILE")
    parsed = parser.parse_intermixed_args(arguments)
    return guarded(lambda: _main(parsed))


def _main(parsed: argparse.Namespace) -> None:
    overrides = [one for one in parsed.arguments if "=" in one]
    config = next((one for one in parsed.arguments if "=" not in one), str(CONFIG))
    settings = load_settings(BackbonesBenchmark, config, overrides)
    if parsed.dry_run:
        print(settings.model_dump_json(indent=2))
        return
    outcome = measure(settings)
    show(outcome, settings)
    write_json(parsed.json, asdict(outcome))


def show(outcome: Outcome, settings: BackbonesBenchmark) -> None:
    """Print the tables and the ratios."""
    shown = console(TABLE_WIDTH)
    if outcome.rows:
        shown.print(training_table(outcome.rows, title=f"training on {outcome.data}"))
    searched = f"top 10 of {settings.top_k_users} users among {settings.top_k_items} items"
    shown.print(top_k_table(outcome.top_k, title=searched))
    for ratio in outcome.ratios:
        shown.print(", ".join(f"{name} {value:.3g}" for name, value in ratio.items()))


if __name__ == "__main__":
    sys.exit(main())
