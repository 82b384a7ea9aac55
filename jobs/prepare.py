"""Read a data set, order and split every user's history, clean the titles.

python -m jobs.prepare jobs/configs/quickstart.toml data.like_at_least=4
"""

import sys

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main
from recranker.data.prepare import prepare
from recranker.schema import INTERACTIONS, ITEMS


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish interactions and items."""
    interactions, items, facts = prepare(settings.data, settings.seed, stage.cache)
    stage.write(INTERACTIONS, interactions)
    stage.write(ITEMS, items)
    stage.facts.update(facts)
    stage.log_metrics({f"prepare/{name}": float(count) for name, count in facts["counts"].items()})


def outside(settings: JobSettings) -> dict[str, str | None]:
    """The files of the source, where they are the user's own."""
    return settings.data.source.model_dump(include={"path", "interactions", "items"})


STAGE = Stage("prepare", run, sections=("data",), outside=outside)

if __name__ == "__main__":
    sys.exit(main(STAGE))
