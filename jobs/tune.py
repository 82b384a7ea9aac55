"""Tune the language model's adapter on the training prompts: Ray Train workers, DeepSpeed, LoRA.

python -m jobs.tune jobs/configs/quickstart.toml tune.epochs=2 tune.workers=2
"""

import sys
import time

import pyarrow.compute as pc

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main, model_folder
from recranker.distributed.training import tune_adapters
from recranker.llm.model import resolve_model
from recranker.llm.reports import StepReport
from recranker.llm.training import plan_adapters
from recranker.schema import PROMPTS, TRAINING_LOG
from recranker.tasks.instructions import to_prompts


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish the adapter, or one per task, and the log of its training."""
    prompts = stage.read("instruct", PROMPTS)
    plans = plan_adapters(to_prompts(prompts.filter(pc.field("split") == "train")), settings.tune)
    model = resolve_model(settings.llm.model, stage.cache)
    stage.connect()
    started = time.perf_counter()
    with stage.progress("tune", sum(plan.steps for plan in plans)) as bar:

        def on_step(adapter: str, report: StepReport) -> None:
            bar.set_text(f"{adapter} loss {report.loss:.3f}")
            bar.advance()
            metrics = {"loss": report.loss, "learning_rate": report.learning_rate, "tokens": float(report.tokens)}
            metrics |= {f"loss_{task}": loss for task, loss in report.task_losses.items()}
            stage.log_metrics({f"tune/{adapter}/{name}": value for name, value in metrics.items()}, step=report.step)

        log = tune_adapters(
            plans,
            model=model,
            folder=stage.files("adapter"),
            work=stage.scratch,
            llm=settings.llm,
            tune=settings.tune,
            seed=settings.seed,
            on_step=on_step,
        )
    prompts_seen = sum(plan.steps for plan in plans) * settings.tune.batch_prompts
    stage.log_metrics({"tune/prompts_per_second": prompts_seen / (time.perf_counter() - started)})
    stage.write(TRAINING_LOG, log)
    stage.facts["adapters"] = {
        plan.name: {"prompts": len(plan.prompts), "steps": plan.steps, "prompts_repeated": plan.repeated}
        for plan in plans
    }
    stage.log_artifact(stage.files("adapter"))


STAGE = Stage(
    "tune",
    run,
    reads=("instruct",),
    sections=("llm", "tune"),
    outside=model_folder,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
