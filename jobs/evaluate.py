"""Compare every ranker with the retriever's order and the other baselines, over all test users.

python -m jobs.evaluate jobs/configs/quickstart.toml evaluation.bootstrap_samples=10000 --json results.json
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.output import console, write_json
from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main
from recranker.evaluation.evaluate import evaluate
from recranker.evaluation.plots import plot_results
from recranker.evaluation.position_bias import position_bias
from recranker.evaluation.report import Background, build_report
from recranker.evaluation.results import among_hits, format_table, metrics_of, results_json, with_bar
from recranker.evaluation.rows import BAR
from recranker.schema import ANSWERS, CANDIDATES, INTERACTIONS, ITEMS, RANKINGS, RESULTS, SIGNALS, USER_RESULTS

TABLE_WIDTH = 124
"""Characters, where the output is no terminal that has a width of its own."""
REPORT = "report.html"
LEARNED = "learned_weights"
"""How stage rank names the weights of row hybrid among its facts; those of hybrid_X are LEARNED_X."""
PLACES = {"store", "tracking", "ray"}
"""Sections of the settings that say where things are and change no result; the report leaves them out."""


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish the results of all rankers, their plot and their report."""
    served = "hybrid" if settings.ranking.preset == "recranker" else "hybrid_paper"
    bias = {model: one.metrics() for model, one in position_bias(stage.read("rank", ANSWERS)).items()}
    facts = stage.facts_of("rank").items()
    weights = {name.replace(LEARNED, "hybrid"): one for name, one in facts if name.startswith(LEARNED)}
    _publish(stage, stage.read("rank", RANKINGS), _background(stage, served, bias=bias, weights=weights))
    for model, values in bias.items():
        stage.log_metrics({f"bias/{model}/{name}": value for name, value in values.items()})


def run_backbones(settings: JobSettings, stage: StageContext) -> None:
    """The same for a run without a model: the retriever and the conventional re-rankers alone."""
    _publish(stage, RANKINGS.schema.empty_table(), _background(stage, BAR))


def _background(stage: StageContext, served: str, **of_model: Any) -> Background:
    settings = stage.settings.model_dump(mode="json", exclude=PLACES)
    return Background(stage.settings.name, served, stage.facts_of("prepare"), settings, **of_model)


def _publish(stage: StageContext, rankings: pa.Table, background: Background) -> None:
    found = evaluate(
        interactions=stage.read("prepare", INTERACTIONS),
        items=stage.read("prepare", ITEMS),
        candidates=stage.read("backbone", CANDIDATES),
        signals=stage.read("backbone", SIGNALS),
        rankings=rankings,
        samples=stage.settings.evaluation.bootstrap_samples,
        seed=stage.settings.seed,
    )
    stage.write(RESULTS, found.results)
    stage.write(USER_RESULTS, found.user_results)
    served, bias = background.served, background.bias
    stage.facts.update({"position_bias": bias, "against_conventional": found.bar, "served": served})
    plots, report = stage.files("plots"), stage.files("report")
    plot_results(found.results, plots / "ndcg_at_3.png", data=background.facts["source"])
    (report / REPORT).write_text(build_report(found, background), encoding="utf-8")
    for folder in (plots, report):
        stage.log_artifact(folder)
    stage.log_metrics(metrics_of(found.results, served=served) | found.reliability_metrics)


def options(parser: argparse.ArgumentParser) -> None:
    """The options of this job, which the pipeline takes too."""
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the results table to FILE")


def show(stage: StageContext, parsed: argparse.Namespace) -> None:
    """Print the published results and write them as JSON where asked.

    Raises:
        OutputError: If the file cannot be written.
    """
    facts = stage.facts_of("evaluate")
    results = with_bar(stage.read("evaluate", RESULTS), facts["against_conventional"])
    shown = console(TABLE_WIDTH)
    shown.print(format_table(results, title=f"{stage.settings.name}: all test users"))
    shown.print(format_table(among_hits(results), title="users whose target is among the candidates"))
    for model, values in facts["position_bias"].items():
        shown.print(f"position bias, {model}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
    print(f"report: {stage.published('evaluate') / 'report' / REPORT}")
    write_json(parsed.json, results_json(results))


def log_results(stage: StageContext) -> None:
    """Record the published results with another run too, so that pipelines can be compared at their own level."""
    served = stage.facts_of("evaluate")["served"]
    stage.log_metrics(metrics_of(stage.read("evaluate", RESULTS), served=served))


STAGE = Stage(
    "evaluate",
    run,
    reads=("prepare", "backbone", "rank"),
    sections=("evaluation",),
    options=options,
    show=show,
)
BACKBONES = Stage(
    "evaluate",
    run_backbones,
    reads=("prepare", "backbone"),
    sections=("evaluation",),
    options=options,
    show=show,
)
"""A comparison of retrievers and conventional re-rankers, without the stages of the model."""

if __name__ == "__main__":
    sys.exit(main(STAGE))
