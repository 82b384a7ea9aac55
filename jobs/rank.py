"""Order the candidates of validation and test users with the tuned model, and with the untuned one beside it.

python -m jobs.rank jobs/configs/quickstart.toml ranking.workers=1
"""

import json
import sys

import pyarrow as pa
import pyarrow.compute as pc

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main, model_folder
from recranker.distributed.instructions import Maker, build_prompts, source_of
from recranker.distributed.ranking import Spent, answer_facts, answer_missing, collect_answers, plan_pools
from recranker.llm.model import resolve_model
from recranker.llm.token_counts import token_counter
from recranker.ranking.calibration import calibration_errors, fit_calibrations, with_probabilities
from recranker.ranking.fusion import PAPER_WEIGHTS
from recranker.ranking.rankings import choose_lists, rank_all, weights_from_validation
from recranker.schema import ANSWERS, CANDIDATES, DRAWS, INTERACTIONS, ITEMS, PROMPTS, RANKINGS
from recranker.tasks.protocol import RatingScale
from recranker.tasks.wording import Templates


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish the model's answers, every ranker's orders, and the fusion that serving uses, and calibrations."""
    lists, ranking = stage.read("backbone", CANDIDATES), settings.ranking
    chosen = choose_lists(
        lists, only_hits=ranking.only_hits, max_validation=ranking.max_validation_lists, seed=settings.seed
    )
    answers = _answer(settings, stage, *_to_ask(settings, stage, lists, chosen))
    weights, num_lists = weights_from_validation(answers, lists)
    data = stage.facts_of("prepare")
    rankings = rank_all(answers, lists, RatingScale(data["rating_min"], data["rating_max"]), weights)
    calibrations = fit_calibrations(rankings, lists, ranking.calibration)
    stage.write(ANSWERS, answers)
    stage.write(RANKINGS, with_probabilities(rankings, calibrations))
    served, fusion = weights["hybrid"], stage.files("fusion")
    fused = {"preset": ranking.preset, "weights": served if ranking.preset == "recranker" else PAPER_WEIGHTS}
    (fusion / "weights.json").write_text(json.dumps(fused, indent=2) + "\n", encoding="utf-8")
    (fusion / "calibration.json").write_text(calibrations.model_dump_json(indent=2) + "\n", encoding="utf-8")
    learned = {"learned_weights": served, "learned_weights_conventional": weights["hybrid_conventional"]}
    errors = {
        f"ece_{row}_{when}": error
        for row, found in calibration_errors(rankings, lists, ranking.calibration).items()
        for when, error in zip(("before", "after"), found, strict=True)
    }
    stage.facts.update(learned | {"validation_lists": num_lists, "calibration": errors} | answer_facts(answers))
    shown = {f"weight_{name}": weight for name, weight in served.items()} | errors
    stage.log_metrics({f"rank/{name}": value for name, value in shown.items()})


def _to_ask(
    settings: JobSettings, stage: StageContext, lists: pa.Table, chosen: set[str]
) -> tuple[pa.Table, list[str]]:
    """Prompts of the chosen lists for the tuned model, then those of test lists for the untuned one, with and without
    hints."""
    prompts = stage.read("instruct", PROMPTS)
    prompts = prompts.filter(pc.is_in(prompts["prompt_id"], value_set=pa.array(sorted(chosen))))
    tests = prompts.filter(pc.equal(prompts["split"], "test"))
    asked = {"tuned": prompts}
    if settings.ranking.untuned:
        asked["untuned"] = tests
    if settings.ranking.untuned_without_hints and settings.instruct.hints != "none":
        asked["untuned_no_hint"] = _without_hints(settings, stage, lists, tests)
    models = [model for model, table in asked.items() for _ in range(table.num_rows)]
    return pa.concat_tables(asked.values()), models


def _without_hints(settings: JobSettings, stage: StageContext, lists: pa.Table, tests: pa.Table) -> pa.Table:
    """The same prompts with questions that quote nobody."""
    data = stage.facts_of("prepare")
    lists = lists.filter(pc.is_in(lists["list_id"], value_set=tests["list_id"].combine_chunks()))
    maker = Maker(
        items=stage.read("prepare", ITEMS),
        settings=settings.instruct.model_copy(update={"hints": "none"}),
        scale=RatingScale(data["rating_min"], data["rating_max"]),
        seed=settings.seed,
        templates=Templates.model_validate(stage.facts_of("instruct")["templates"]),
        counter=token_counter(resolve_model(settings.llm.model, stage.cache)),
    )
    interactions = stage.read("prepare", INTERACTIONS)
    interactions = interactions.filter(pc.is_in(interactions["user_id"], value_set=pc.unique(lists["user_id"])))
    stage.connect()
    source = source_of(interactions, lists, DRAWS.schema.empty_table(), settings.ray.blocks)
    return build_prompts(source, maker, at_least=settings.ray.blocks)[0]


def _answer(settings: JobSettings, stage: StageContext, asked: pa.Table, models: list[str]) -> pa.Table:
    """Ask what an earlier run that was killed has not asked yet."""
    pools = plan_pools(
        asked,
        models,
        adapters=stage.published("tune") / "adapter",
        scratch=stage.scratch,
        token_budget=settings.llm.token_budget,
    )
    model = resolve_model(settings.llm.model, stage.cache)
    stage.connect()
    with stage.progress("rank", sum(pool.num_missing for pool in pools)) as bar:

        def on_batch(spent: Spent) -> None:
            bar.set_text(f"{spent.lists_per_second:.2f} users/s")
            bar.advance(spent.lists - bar.done)

        spent = answer_missing(
            pools, model=model, settings=settings.llm, workers=settings.ranking.workers, on_batch=on_batch
        )
    speeds = {"lists_per_second": spent.lists_per_second, "tokens_per_second": spent.tokens_per_second}
    if spent.lists:
        stage.log_metrics({f"rank/{name}": value for name, value in speeds.items()})
    return collect_answers(pools)


STAGE = Stage(
    "rank",
    run,
    reads=("prepare", "backbone", "instruct", "tune"),
    sections=("instruct", "llm", "ranking"),
    outside=model_folder,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
