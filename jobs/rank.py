"""Order the candidates of validation and test users with the tuned model, and with the untuned one beside it.

python -m jobs.rank jobs/configs/quickstart.toml ranking.workers=1
"""

import json
import sys
import time

import pyarrow as pa

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main, model_folder
from recranker.distributed.ranking import answer_prompts
from recranker.llm.model import resolve_model
from recranker.ranking.fusion import PAPER_WEIGHTS
from recranker.ranking.rankings import choose_lists, rank_all, weights_from_validation
from recranker.schema import ANSWERS, CANDIDATES, PROMPTS, RANKINGS
from recranker.tasks.protocol import RatingScale


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish the model's answers, every ranker's orders, and the fusion that serving uses."""
    lists, prompts = stage.read("backbone", CANDIDATES), stage.read("instruct", PROMPTS)
    ranking = settings.ranking
    chosen = choose_lists(
        lists, only_hits=ranking.only_hits, max_validation=ranking.max_validation_lists, seed=settings.seed
    )
    asked, models = _to_ask(prompts, chosen, untuned=ranking.untuned)
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


def _to_ask(prompts: pa.Table, chosen: set[str], *, untuned: bool) -> tuple[pa.Table, list[str]]:
    """Prompts of the chosen lists for the tuned model, then those of test lists for the untuned one."""
    ids, splits = prompts["prompt_id"].to_pylist(), prompts["split"].to_pylist()
    tuned = [index for index, prompt_id in enumerate(ids) if prompt_id in chosen]
    plain = [index for index in tuned if splits[index] == "test"] if untuned else []
    return prompts.take(tuned + plain), ["tuned"] * len(tuned) + ["untuned"] * len(plain)


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
    sections=("llm", "ranking"),
    outside=model_folder,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
