"""Turn histories and candidate lists into prompts for the three tasks.

python -m jobs.instruct jobs/configs/quickstart.toml --show 3
"""

import argparse
import sys
import time

import pyarrow as pa
import pyarrow.compute as pc

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main, model_folder
from recranker.data.facts import require_ratings
from recranker.distributed.instructions import Maker, Parts, published_source, write_prompts
from recranker.llm.model import resolve_model
from recranker.llm.token_counts import token_counter
from recranker.schema import ITEMS, PROMPTS, QUARANTINE
from recranker.tasks.protocol import RatingScale
from recranker.tasks.wording import load_templates


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish a prompt per draw and per validation or test list, or the reason why there is none."""
    data, instruct = stage.facts_of("prepare"), settings.instruct
    if instruct.pointwise_answer == "rating":
        require_ratings(data, "instruct.pointwise_answer='rating'")
    templates, scale = load_templates(instruct.templates), RatingScale(data["rating_min"], data["rating_max"])
    counter = token_counter(resolve_model(settings.llm.model, stage.cache))
    items = stage.store.read("prepare", ITEMS, ["item_id", "title"])
    maker = Maker(items, instruct, scale, settings.seed, templates, counter)
    stage.connect()
    source, parts = published_source(stage.store), _parts(stage)
    started = time.perf_counter()
    with stage.progress("instruct", source.rows) as bar:
        made = write_prompts(source, maker, parts, at_least=settings.ray.blocks, on_rows=bar.advance)
    stage.facts.update(made.facts() | {"hints": instruct.hints, "templates": templates.model_dump()})
    seconds = time.perf_counter() - started
    speeds = {"prompts_per_second": made.prompts / seconds, "tokens_per_second": made.tokens / seconds}
    stage.log_metrics({f"instruct/{name}": speed for name, speed in speeds.items()})


def _parts(stage: StageContext) -> Parts:
    """Where the workers write."""
    assert stage.writer is not None, "only a running stage writes"
    return Parts(stage.writer.filesystem, stage.writer.folder(PROMPTS), stage.writer.folder(QUARANTINE))


def outside(settings: JobSettings) -> dict[str, str | None]:
    """A user's own templates, and a local model's tokenizer."""
    return {"instruct.templates": settings.instruct.templates, **model_folder(settings)}


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
    sections=("instruct", "tokenizer"),
    outside=outside,
    options=options,
    show=show,
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
