"""Draw the users worth learning from: adaptive user sampling, the paper's numbers by name, or uniform.

python -m jobs.sample jobs/configs/quickstart.toml sampling.num_draws=1000
"""

import argparse
import sys

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main
from recranker.distributed.sampling import draw_from_store
from recranker.schema import DRAWS


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish the table of draws."""
    draws, facts = draw_from_store(
        stage.store, settings.sampling, settings.seed, blocks=settings.ray.blocks, connect=stage.connect
    )
    stage.write(DRAWS, draws)
    stage.facts.update(facts)
    stage.log_metrics({f"sample/{name}": float(value) for name, value in facts.items()})


def show(stage: StageContext, parsed: argparse.Namespace) -> None:
    """Print how many draws there are, and of how many users."""
    facts = stage.facts_of("sample")
    print(
        f"{facts['draws']} draws of {facts['distinct_users']} users, of {facts['eligible_users']} eligible; "
        f"{facts['rows_in']} rows looked at"
    )


STAGE = Stage(
    "sample",
    run,
    reads=("prepare", "backbone"),
    sections=("sampling",),
    show=show,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
