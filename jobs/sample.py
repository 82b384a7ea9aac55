"""Draw the users worth learning from: adaptive user sampling, or uniform.

python -m jobs.sample jobs/configs/quickstart.toml sampling.num_draws=1000
"""

import sys

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main
from recranker.distributed.sampling import draw_users
from recranker.schema import CANDIDATES, DRAWS, INTERACTIONS, USER_FACTORS


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish the table of draws."""
    interactions = stage.read("prepare", INTERACTIONS)
    lists = stage.read("backbone", CANDIDATES)
    factors = stage.read("backbone", USER_FACTORS)
    stage.connect()
    draws, facts = draw_users(interactions, lists, factors, settings.sampling, settings.seed, settings.ray.blocks)
    stage.write(DRAWS, draws)
    stage.facts.update(facts)
    stage.log_metrics({f"sample/{name}": float(value) for name, value in facts.items()})


STAGE = Stage(
    "sample",
    run,
    reads=("prepare", "backbone"),
    sections=("sampling",),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
