"""Tune the language model's adapter on the training prompts: Ray Train workers, DeepSpeed, LoRA.

python -m jobs.tune jobs/configs/quickstart.toml tune.epochs=2 tune.workers=2
python -m jobs.tune jobs/configs/quickstart.toml --plan       what it will cost, before anything is spent
"""

import os
import sys
import time

import pyarrow.compute as pc

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main, model_folder
from jobs.tuning_plan import options, show_plan
from recranker.distributed.training import tune_adapters
from recranker.distributed.validation import ValidationList, validation_lists
from recranker.errors import DataError
from recranker.llm.limits import check_runnable
from recranker.llm.model import resolve_model
from recranker.llm.probe import cuda_memory
from recranker.llm.reports import Look, StepReport
from recranker.llm.training import plan_adapters
from recranker.schema import CANDIDATES, PROMPTS, TRAINING_LOG
from recranker.tasks.instructions import to_prompts


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish the adapter, or one per task, and the log of its training."""
    check(settings)
    prompts = stage.read("instruct", PROMPTS)
    trained = to_prompts(prompts.filter(pc.field("split") == "train"))
    plans = plan_adapters(trained, settings.tune, settings.llm.max_prompt_tokens)
    validation = _looked_at(settings, stage)
    model = resolve_model(settings.llm.model, stage.cache)
    stage.connect()
    started = time.perf_counter()
    with stage.progress("tune", sum(plan.steps for plan in plans)) as bar:

        def tell(adapter: str, report: StepReport | Look) -> None:
            if isinstance(report, StepReport):
                bar.set_text(f"{adapter} loss {report.loss:.3f}")
                bar.advance()
            stage.log_metrics(metrics_of(adapter, report), step=report.step)

        log, done = tune_adapters(
            plans,
            model=model,
            folder=stage.files("adapter"),
            work=stage.scratch,
            llm=settings.llm,
            tune=settings.tune,
            seed=settings.seed,
            tell=tell,
            validation=validation,
        )
    prompts_seen = log.num_rows * settings.tune.batch_prompts
    stage.log_metrics({"tune/prompts_per_second": prompts_seen / (time.perf_counter() - started)})
    stage.write(TRAINING_LOG, log)
    stage.facts["adapters"] = {
        plan.name: {
            "prompts": len(plan.prompts),
            "steps": done[plan.name].step,
            "prompts_repeated": plan.repeated,
            "prompts_too_long": plan.too_long,
            "validation_ndcg_at_3": {str(look.step): look.ndcg_at_3 for look in done[plan.name].looks},
        }
        for plan in plans
    }
    stage.log_artifact(stage.files("adapter"))


def metrics_of(adapter: str, report: StepReport | Look) -> dict[str, float]:
    """What MLflow gets to see of a step or a look."""
    if isinstance(report, Look):
        return {f"tune/{adapter}/validation_ndcg_at_3": report.ndcg_at_3}
    metrics = {
        "loss": report.loss,
        "learning_rate": report.learning_rate,
        "tokens": float(report.tokens),
        "gradient_norm": report.gradient_norm,
        "tokens_per_second": report.step_tokens / report.seconds,
        "instructions_per_second": report.questions / report.seconds,
        "seconds_per_step": report.seconds,
        "memory_gb": report.memory_gb,
    }
    metrics |= {f"loss_{task}": loss for task, loss in report.task_losses.items()}
    return {f"tune/{adapter}/{name}": value for name, value in metrics.items()}


def _looked_at(settings: JobSettings, stage: StageContext) -> list[ValidationList]:
    if settings.tune.validation is None:
        return []
    found = validation_lists(
        stage.read("instruct", PROMPTS),
        stage.read("backbone", CANDIDATES),
        tasks=settings.tune.tasks,
        max_lists=settings.tune.validation.max_lists,
        seed=settings.seed,
    )
    if not found:
        raise DataError(
            f"tune.validation looks at validation lists that hold their target, and run '{settings.name}' has none; "
            "leave tune.validation out, or raise backbone.num_candidates"
        )
    return found


def check(settings: JobSettings) -> None:
    """Refuse what this machine cannot run, before the model is fetched and Ray is started.

    Where workers run on a cluster that is there already, and may have GPUs, that is left to ``tune_adapters``.

    Raises:
        SettingsError: With every combination that cannot run.
    """
    if settings.llm.device == "cpu" or not os.environ.get("RAY_ADDRESS"):
        check_runnable(settings.llm, settings.tune, cuda=cuda_memory(settings.llm) is not None)


def resumes(settings: JobSettings) -> object:
    """What shapes the adapter: a stopped tuning goes on under other workers, or with less memory."""
    return [settings.llm.shaping(), settings.tune.shaping()]


STAGE = Stage(
    "tune",
    run,
    reads=("backbone", "instruct"),
    sections=("llm", "tune"),
    outside=model_folder,
    options=options,
    instead=show_plan,
    check=check,
    resumes=resumes,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
