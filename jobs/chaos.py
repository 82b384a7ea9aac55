"""Kill processes of a service of its own while requests come in, and count what clients notice.

python -m jobs.chaos serving --kills 100 --json FILE    (first, once: make quickstart, jobs.publish)

The next process is killed when the one before is replaced and serving. Exit code 1: a request failed that must not.
"""

import argparse
import sys
from collections.abc import Sequence

from jobs.drills import serving
from jobs.drills.results import table
from jobs.drills.settings import ServingDrill
from jobs.measured import add_arguments, parse, settings_of
from jobs.output import console, write_json
from jobs.sources import ROOT
from jobs.stage import guarded

CONFIG = ROOT / "jobs" / "drills" / "serving.toml"
TABLE_WIDTH = 150
"""Characters, where the output is no terminal that has a width of its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True, help="serving")
    about = "the ranking service: replicas, router, controller, proxy; a replica that hangs"
    command = commands.add_parser("serving", help=about, description=about)
    add_arguments(command, CONFIG)
    command.add_argument("--kills", type=int, metavar="N", help="kills of task replicas (30 where nothing is said)")
    parsed = parse(parser, arguments)
    held: list[bool] = []
    code = guarded(lambda: held.append(_main(parsed)))
    return code or int(not all(held))


def _main(parsed: argparse.Namespace) -> bool:
    """Whether no request failed that must not."""
    settings = settings_of(ServingDrill, parsed, CONFIG, {"kills": parsed.kills})
    if parsed.dry_run:
        print(settings.model_dump_json(indent=2))
        return True
    outcome = serving.run(settings)
    show(outcome)
    write_json(parsed.json, {**outcome.figures, "held": outcome.held, "rows": outcome.rows})
    return outcome.held


def show(outcome: serving.Outcome) -> None:
    """Print the table and the verdict."""
    console(TABLE_WIDTH).print(table(outcome.rows))
    found = outcome.figures
    print(
        f"{found['kills']} kills of task replicas, routers and controllers: {found['failed']} of {found['requests']} "
        f"requests failed, {found['degraded']} were degraded"
    )


if __name__ == "__main__":
    sys.exit(main())
