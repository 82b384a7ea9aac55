"""Turn histories and candidate lists into prompts for the three tasks.

python -m jobs.instruct jobs/configs/quickstart.toml --show 3
"""

import argparse
import sys
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main
from recranker.data.facts import require_ratings
from recranker.data.leakage import check_prompts
from recranker.distributed.instructions import build_prompts
from recranker.schema import CANDIDATES, DRAWS, INTERACTIONS, ITEMS, PROMPTS, QUARANTINE, SIGNALS
from recranker.tasks.instructions import PromptBuilder
from recranker.tasks.protocol import RatingScale


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish a prompt per draw and per validation or test list, or the reason why there is none."""
    interactions, items = stage.read("prepare", INTERACTIONS), stage.read("prepare", ITEMS)
    lists, draws = stage.read("backbone", CANDIDATES), stage.read("sample", DRAWS)
    data = stage.facts_of("prepare")
    if settings.instruct.pointwise_answer == "rating":
        require_ratings(data, "instruct.pointwise_answer='rating'")
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    scale = RatingScale(data["rating_min"], data["rating_max"])
    builder = PromptBuilder(titles, settings.instruct, scale, settings.seed)
    stage.connect()
    prompts, quarantined = build_prompts(interactions, lists, draws, builder, settings.ray.blocks)
    hints, signals = settings.instruct.hints, stage.read("backbone", SIGNALS)
    check_prompts(interactions, lists, prompts, items=items, signals=signals, hints=hints)
    stage.write(PROMPTS, prompts)
    stage.write(QUARANTINE, quarantined)
    stage.facts.update(_counts(lists, draws, prompts, quarantined) | {"hints": hints})


def _counts(lists: pa.Table, draws: pa.Table, prompts: pa.Table, quarantined: pa.Table) -> dict[str, Any]:
    ranked = sum(split != "train" for split in lists["split"].to_pylist())
    counts = {"rows_in": draws.num_rows + ranked, "prompts": prompts.num_rows, "quarantined": quarantined.num_rows}
    assert counts["rows_in"] == counts["prompts"] + counts["quarantined"], counts
    return counts


def options(parser: argparse.ArgumentParser) -> None:
    """``--show N``."""
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N prompts as the model will see them")


def show(stage: StageContext, parsed: argparse.Namespace) -> None:
    """Print the first prompts, training prompts before others, with one question of each task and its answer."""
    prompts = stage.read("instruct", PROMPTS)
    training = pc.equal(prompts["split"], "train")
    prompts = pa.concat_tables([prompts.filter(training), prompts.filter(pc.invert(training))])
    for row in prompts.slice(0, parsed.show).to_pylist():
        print(f"=== {row['prompt_id']} (list {row['list_id']})\n{row['prefix']}")
        for question in {one["task"]: one for one in row["questions"]}.values():
            print(f"--- {question['task']}{question['text']} [{' '.join(question['labels'])}] -> {question['answer']}")


STAGE = Stage(
    "instruct",
    run,
    reads=("prepare", "backbone", "sample"),
    sections=("instruct",),
    options=options,
    show=show,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
