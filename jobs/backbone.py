"""Fit the backbones and the conventional re-rankers, and let them propose candidates with honest signals.

python -m jobs.backbone jobs/configs/quickstart.toml backbone.retriever.kind=mf

A team's own candidates take the place of a backbone of ours. First write the targets to make lists for, then name them:

python -m jobs.backbone CONFIG --targets targets.parquet
python -m jobs.backbone CONFIG 'backbone.retriever={kind="own", path="candidates.parquet"}'
"""

import argparse
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main, store_of
from recranker.backbones.assembly import fold_fits, item_vectors, lists_of, require_meaning
from recranker.backbones.candidates import (
    Scale,
    all_targets,
    count_lists,
    fit_events,
    popularity_hits,
    user_factors,
)
from recranker.backbones.events import index_interactions
from recranker.backbones.fits import FitJob, Fits
from recranker.backbones.folds import data_of, make_folds
from recranker.backbones.own import COLUMNS, wanted_targets
from recranker.backbones.settings import OwnCandidates
from recranker.backbones.signals import signal_rows
from recranker.data.leakage import check_candidates
from recranker.distributed.backbones import fit_backbones
from recranker.errors import OutputError
from recranker.ranking.conventional import conventional_scores
from recranker.ranking.evidence import FoldView
from recranker.schema import CANDIDATES, FIT_EVENTS, INTERACTIONS, ITEMS, SIGNALS, USER_FACTORS


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish candidate lists, signals, user factors and the events each fit saw."""
    table, facts = stage.read("prepare", INTERACTIONS), stage.facts_of("prepare")
    require_meaning(settings.backbone, facts)
    interactions = index_interactions(table)
    folds = make_folds(interactions, settings.backbone)
    job = FitJob(tuple(data_of(interactions, fold) for fold in folds), settings.backbone, settings.seed)
    trained = _train(job, stage)
    scale = Scale(facts["rating_min"], facts["rating_max"], facts["like_at_least"])
    fitted = fold_fits(list(zip(folds, job.folds, strict=True)), trained, settings.backbone, scale, settings.seed)
    lists, left_out = lists_of(interactions, fitted, settings.backbone, scale)
    rerankers, candidates, conventional = conventional_scores(
        interactions,
        {one.fold.name: FoldView(one.data, item_vectors(one)) for one in fitted},
        lists.table,
        lists.signals,
        stage.read("prepare", ITEMS),
        facts,
        settings.conventional,
        settings.seed,
    )
    seen = fit_events(interactions, folds)
    signals = pa.concat_tables([signal_rows(lists.table, lists.signals), rerankers])
    check_candidates(table, candidates, seen, facts, signals=signals)
    stage.write(CANDIDATES, candidates)
    stage.write(SIGNALS, signals)
    stage.write(USER_FACTORS, user_factors(interactions, fitted[0].retriever))
    stage.write(FIT_EVENTS, seen)
    counts = count_lists(candidates) | left_out | {"epochs": fitted[0].retriever.epochs, "folds": len(folds)}
    counts["test_hits_of_popularity"] = popularity_hits(interactions, fitted[0], settings.backbone)
    stage.facts.update(counts | {"conventional": conventional})
    stage.log_metrics({f"backbone/{name}": float(count) for name, count in counts.items()})
    stage.log_metrics(hit_rates(counts, settings.backbone.num_candidates))


def _train(job: FitJob, stage: StageContext) -> Fits:
    """The fits that need epochs, on the cluster; none where all are closed forms."""
    if not job.trained:
        return {}
    stage.connect()
    started = time.perf_counter()
    with stage.progress("backbone", job.epochs) as bar:
        fits = fit_backbones(job, work=stage.scratch, on_epochs=bar.advance)
    stage.log_metrics({"backbone/fit_seconds": time.perf_counter() - started, "backbone/fits": len(job.trained)})
    return fits


def hit_rates(counts: dict[str, int], k: int) -> dict[str, float]:
    """Share of validation and of test users with their target among the ``k`` candidates."""
    return {
        f"backbone/{split}_hr_at_{k}": counts[f"{split}_hits"] / max(counts[f"{split}_lists"], 1)
        for split in ("validation", "test")
    }


def outside(settings: JobSettings) -> dict[str, str | None]:
    """The candidates, where they are the user's own."""
    retriever = settings.backbone.retriever
    return {"backbone.retriever.path": retriever.path if isinstance(retriever, OwnCandidates) else None}


def options(parser: argparse.ArgumentParser) -> None:
    """What a team needs that brings its own candidates."""
    parser.add_argument("--targets", metavar="FILE", type=Path, help="write the targets to make lists for, then stop")


def write_targets(settings: JobSettings, parsed: argparse.Namespace) -> bool:
    """Write which lists a team's own retriever is asked for, where ``--targets`` is given.

    Raises:
        OutputError: If the file cannot be written.
    """
    if parsed.targets is None:
        return False
    interactions = index_interactions(StageContext(settings, store_of(settings)).read("prepare", INTERACTIONS))
    folds = make_folds(interactions, settings.backbone)
    targets = wanted_targets(interactions, all_targets(interactions, folds, settings.backbone))
    try:
        pq.write_table(targets, parsed.targets)
    except OSError as error:
        raise OutputError(f"--targets {str(parsed.targets)!r} cannot be written: {error.strerror}") from None
    print(f"{targets.num_rows} targets written to {parsed.targets}; bring {', '.join(COLUMNS)}, a row per candidate")
    return True


STAGE = Stage(
    "backbone",
    run,
    reads=("prepare",),
    sections=("backbone", "conventional"),
    outside=outside,
    options=options,
    instead=write_targets,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
