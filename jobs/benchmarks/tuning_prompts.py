"""The prompts to train on, made by the pipeline's own stages; a second run skips what is there."""

import pyarrow.compute as pc

from jobs import backbone, instruct, prepare, sample
from jobs.benchmarks.settings import TuningBenchmark
from jobs.sources import ROOT
from jobs.stage import Stage, commit_of, flattened, run_stages, store_of, tracker_of
from recranker.distributed import cluster
from recranker.errors import DataError
from recranker.llm.training import plan_adapters
from recranker.schema import PROMPTS
from recranker.tasks.instructions import to_prompts
from recranker.tasks.protocol import Prompt

STAGES: tuple[Stage, ...] = (prepare.STAGE, backbone.STAGE, sample.STAGE, instruct.STAGE)


def training_prompts(settings: TuningBenchmark) -> list[Prompt]:
    """The earliest ``settings.prompts`` draws, with answered questions only.

    Raises:
        DataError: If there are fewer.
    """
    job = settings.job
    tracker, store = tracker_of(job), store_of(job)
    params, tags = flattened(job.model_dump(mode="json")), {"commit": commit_of(ROOT)}
    with tracker.pipeline_run(job.name, params, tags) as parent:
        run_stages(STAGES, job, tracker, store, parent=parent.run_id)
    cluster.disconnect()  # it would take memory and time from what is measured
    made = store.read("instruct", PROMPTS)
    prompts = to_prompts(made.filter(pc.equal(made["split"], "train")))
    found = plan_adapters(prompts, job.tune, job.llm.max_prompt_tokens)[0].prompts
    if len(found) < settings.prompts:
        raise DataError(
            f"prompts={settings.prompts}, but the stages made {len(found)} to train on; raise sampling.num_draws"
        )
    return found
