"""Compare every ranker with the retriever's order and the other baselines, over all test users.

python -m jobs.evaluate jobs/configs/quickstart.toml evaluation.bootstrap_samples=10000 --json results.json
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main
from recranker.errors import OutputError
from recranker.evaluation.plots import plot_results
from recranker.evaluation.position_bias import position_bias
from recranker.evaluation.report import among_hits, build_results, format_table, metrics_of, results_json
from recranker.schema import ANSWERS, CANDIDATES, INTERACTIONS, RANKINGS, RESULTS

TABLE_WIDTH = 110
"""Characters, where the output is no terminal that has a width of its own."""


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish the results table, its plot and the model's position bias."""
    results = build_results(
        stage.read("prepare", INTERACTIONS),
        stage.read("backbone", CANDIDATES),
        stage.read("rank", RANKINGS),
        samples=settings.evaluation.bootstrap_samples,
        seed=settings.seed,
    )
    stage.write(RESULTS, results)
    bias = position_bias(stage.read("rank", ANSWERS))
    stage.facts["position_bias"] = {model: one.metrics() for model, one in bias.items()}
    plots = stage.files("plots")
    plot_results(results, plots / "ndcg_at_3.png", data=stage.facts_of("prepare")["source"])
    stage.log_artifact(plots)
    stage.log_metrics(metrics_of(results, served=_served(settings)))
    for model, values in stage.facts["position_bias"].items():
        stage.log_metrics({f"bias/{model}/{name}": value for name, value in values.items()})


def options(parser: argparse.ArgumentParser) -> None:
    """The options of this job, which the pipeline takes too."""
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the results table to FILE")


def show(stage: StageContext, parsed: argparse.Namespace) -> None:
    """Print the published results and write them as JSON where asked.

    Raises:
        OutputError: If the file cannot be written.
    """
    results = stage.read("evaluate", RESULTS)
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    console.print(format_table(results, title=f"{stage.settings.name}: all test users"))
    console.print(format_table(among_hits(results), title="users whose target is among the candidates"))
    for model, values in stage.facts_of("evaluate")["position_bias"].items():
        console.print(f"position bias, {model}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
    if parsed.json:
        try:
            parsed.json.write_text(json.dumps(results_json(results), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"--json {str(parsed.json)!r} cannot be written: {error.strerror}") from None


def log_results(stage: StageContext) -> None:
    """Record the published results with another run too, so that pipelines can be compared at their own level."""
    stage.log_metrics(metrics_of(stage.read("evaluate", RESULTS), served=_served(stage.settings)))


def _served(settings: JobSettings) -> str:
    return "hybrid" if settings.ranking.preset == "recranker" else "hybrid_paper"


STAGE = Stage(
    "evaluate",
    run,
    reads=("prepare", "backbone", "rank"),
    sections=("evaluation",),
    options=options,
    show=show,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
