"""Order the candidates of validation and test users with the tuned model, and with the untuned one beside it.

python -m jobs.rank jobs/configs/quickstart.toml ranking.workers=1
"""

import json
import sys
import time

import pyarrow as pa
import pyarrow.compute as pc

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main, model_folder
from recranker.distributed.instructions import build_prompts
from recranker.distributed.ranking import answer_prompts
from recranker.llm.model import resolve_model
from recranker.ranking.fusion import PAPER_WEIGHTS
from recranker.ranking.rankings import choose_lists, rank_all, weights_from_validation
from recranker.schema import ANSWERS, CANDIDATES, DRAWS, INTERACTIONS, ITEMS, PROMPTS, RANKINGS
from recranker.tasks.instructions import PromptBuilder
from recranker.tasks.protocol import RatingScale


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish the model's answers, every ranker's orders, and the fusion that serving uses."""
    lists, ranking = stage.read("backbone", CANDIDATES), settings.ranking
    chosen = choose_lists(
        lists, only_hits=ranking.only_hits, max_validation=ranking.max_validation_lists, seed=settings.seed
    )
    asked, models = _to_ask(settings, stage, chosen)
    answers = _answer(settings, stage, asked, models)
    weights, num_lists = weights_from_validation(answers, lists)
    data = stage.facts_of("prepare")
    scale = RatingScale(data["rating_min"], data["rating_max"])
    stage.write(ANSWERS, answers)
    stage.write(RANKINGS, rank_all(answers, lists, scale, weights))
    served = weights["hybrid"]
    fusion = {"preset": ranking.preset, "weights": served if ranking.preset == "recranker" else PAPER_WEIGHTS}
    (stage.files("fusion") / "weights.json").write_text(json.dumps(fusion, indent=2) + "\n")
    learned = {"learned_weights": served, "learned_weights_conventional": weights["hybrid_conventional"]}
    stage.facts.update(learned | {"validation_lists": num_lists})
    stage.log_metrics({f"rank/weight_{name}": weight for name, weight in served.items()})


def _to_ask(settings: JobSettings, stage: StageContext, chosen: set[str]) -> tuple[pa.Table, list[str]]:
    """Prompts of the chosen lists for the tuned model, then those of test lists for the untuned one, with and without
    hints."""
    prompts = stage.read("instruct", PROMPTS)
    prompts = prompts.filter(pc.is_in(prompts["prompt_id"], value_set=pa.array(sorted(chosen))))
    tests = prompts.filter(pc.equal(prompts["split"], "test"))
    asked = {"tuned": prompts}
    if settings.ranking.untuned:
        asked["untuned"] = tests
    if settings.ranking.untuned_without_hints and settings.instruct.hints != "none":
        asked["untuned_no_hint"] = _without_hints(settings, stage, tests)
    models = [model for model, table in asked.items() for _ in range(table.num_rows)]
    return pa.concat_tables(asked.values()), models


def _without_hints(settings: JobSettings, stage: StageContext, tests: pa.Table) -> pa.Table:
    """The same prompts with questions that quote nobody."""
    lists, items, data = stage.read("backbone", CANDIDATES), stage.read("prepare", ITEMS), stage.facts_of("prepare")
    lists = lists.filter(pc.is_in(lists["list_id"], value_set=tests["list_id"].combine_chunks()))
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    plain = settings.instruct.model_copy(update={"hints": "none"})
    builder = PromptBuilder(titles, plain, RatingScale(data["rating_min"], data["rating_max"]), settings.seed)
    interactions = stage.read("prepare", INTERACTIONS)
    interactions = interactions.filter(pc.is_in(interactions["user_id"], value_set=pc.unique(lists["user_id"])))
    stage.connect()
    return build_prompts(interactions, lists, DRAWS.schema.empty_table(), builder, settings.ray.blocks)[0]


def _answer(settings: JobSettings, stage: StageContext, asked: pa.Table, models: list[str]) -> pa.Table:
    model = resolve_model(settings.llm.model, stage.cache)
    stage.connect()
    started = time.perf_counter()
    with stage.progress("rank", asked.num_rows) as bar:
        answers = answer_prompts(
            asked,
            models,
            model=model,
            adapters=stage.published("tune") / "adapter",
            settings=settings.llm,
            workers=settings.ranking.workers,
            advance=bar.advance,
        )
    seconds = time.perf_counter() - started
    tokens = sum(answers["prompt_tokens"].to_pylist())
    stage.log_metrics({"rank/lists_per_second": asked.num_rows / seconds, "rank/tokens_per_second": tokens / seconds})
    return answers


STAGE = Stage(
    "rank",
    run,
    reads=("prepare", "backbone", "instruct", "tune"),
    sections=("instruct", "llm", "ranking"),
    outside=model_folder,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
