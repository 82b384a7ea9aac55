"""Fit the retriever and the rating predictor, and let them propose candidates with honest signals.

python -m jobs.backbone jobs/configs/quickstart.toml backbone.retriever.kind=mf
"""

import sys
import time

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main
from recranker.backbones.candidates import (
    Scale,
    candidate_lists,
    count_lists,
    fit_events,
    fold_fits,
    popularity_hits,
    user_factors,
)
from recranker.backbones.events import index_interactions
from recranker.backbones.fits import FitJob
from recranker.backbones.folds import data_of, make_folds
from recranker.backbones.reranker import with_reranker
from recranker.data.leakage import check_candidates
from recranker.distributed.backbones import fit_backbones
from recranker.schema import CANDIDATES, FIT_EVENTS, INTERACTIONS, USER_FACTORS


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish candidate lists, user factors and the events each fit saw."""
    table, facts = stage.read("prepare", INTERACTIONS), stage.facts_of("prepare")
    interactions = index_interactions(table)
    folds = make_folds(interactions, settings.backbone)
    job = FitJob(*(data_of(interactions, fold) for fold in folds), settings.backbone, settings.seed)
    stage.connect()
    started = time.perf_counter()
    with stage.progress("backbone", job.epochs) as bar:
        work = stage.cache / "training" / f"{settings.name}-backbone"
        fits = fit_backbones(job, work=work, on_epochs=bar.advance)
    stage.log_metrics({"backbone/fit_seconds": time.perf_counter() - started})

    scale = Scale(facts["rating_min"], facts["rating_max"], facts["like_at_least"])
    full, rolled_back = (fold_fits(interactions, fold, fits, scale) for fold in folds)
    lists = candidate_lists(interactions, full, rolled_back, settings.backbone, scale)
    both = {"full": full, "rolled_back": rolled_back}
    lists, weights = with_reranker(interactions, both, lists, settings.seed)
    seen = fit_events(interactions, folds)
    check_candidates(table, lists, seen, facts)
    stage.write(CANDIDATES, lists)
    stage.write(USER_FACTORS, user_factors(interactions, full.retriever))
    stage.write(FIT_EVENTS, seen)
    counts = count_lists(lists) | {"epochs": full.retriever.epochs}
    counts["test_hits_of_popularity"] = popularity_hits(interactions, full, settings.backbone, scale)
    stage.facts.update(counts | {"reranker_weights": weights})
    stage.log_metrics({f"backbone/{name}": float(count) for name, count in counts.items()})
    stage.log_metrics(hit_rates(counts, settings.backbone.num_candidates))


def hit_rates(counts: dict[str, int], k: int) -> dict[str, float]:
    """Share of validation and of test users with their target among the ``k`` candidates."""
    return {
        f"backbone/{split}_hr_at_{k}": counts[f"{split}_hits"] / max(counts[f"{split}_lists"], 1)
        for split in ("validation", "test")
    }


STAGE = Stage(
    "backbone",
    run,
    reads=("prepare",),
    sections=("backbone",),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
