"""Read a data set, order and split every user's history, clean the titles.

python -m jobs.prepare jobs/configs/quickstart.toml data.like_at_least=4
python -m jobs.prepare --list
"""

import argparse
import logging
import sys

from jobs.output import console
from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main
from recranker.data.prepare import prepare
from recranker.data.sources.catalogue import counted, listing
from recranker.data.sources.registry import CATALOGUE
from recranker.schema import INTERACTIONS, ITEMS

logger = logging.getLogger("recranker.jobs")

WIDTH = 120
"""Characters, where the output is no terminal that has a width of its own."""


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish interactions and items."""
    interactions, items, facts = prepare(settings.data, settings.seed, stage.cache)
    stage.write(INTERACTIONS, interactions)
    stage.write(ITEMS, items)
    stage.facts.update(facts | {"steps": list(facts["counts"])})
    stage.log_metrics({f"prepare/{name}": float(count) for name, count in facts["counts"].items()})
    logger.info("%s: %s; %s", facts["source"], facts["like_means"], facts["order_means"])


def outside(settings: JobSettings) -> dict[str, str | None]:
    """The files of the source, where they are the user's own."""
    files = settings.data.source.model_dump(include={"path", "interactions", "items", "reviews", "metadata"})
    return files | {"split": getattr(settings.data.split, "path", None)}


def options(parser: argparse.ArgumentParser) -> None:
    """The list of sources needs no CONFIG, so it is looked for before all else."""
    parser.add_argument("--list", action="store_true", help="show all sources and where to get them, then stop")


def show(stage: StageContext, parsed: argparse.Namespace) -> None:
    """What became of the rows, step by step."""
    facts = stage.facts_of("prepare")
    console(WIDTH).print(counted(facts["source"], {name: facts["counts"][name] for name in facts["steps"]}))
    for number, left in enumerate(facts["k_core"], start=1):
        print(f"k-core, round {number}: " + ", ".join(f"{count} {what}" for what, count in left.items()))
    print(facts["denominator"])


STAGE = Stage("prepare", run, sections=("data",), outside=outside, options=options, show=show)

if __name__ == "__main__":
    if "--list" in sys.argv[1:]:
        console(WIDTH).print(listing(CATALOGUE))
        sys.exit()
    sys.exit(main(STAGE))
