"""A small batch ranking: prompts about lists and histories of many lengths, a random model, random adapters.

``python -m tests.distributed.rank_prompts FOLDER`` runs it on a cluster of its own and goes on from what FOLDER holds;
it prints how many lists it asked.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recranker.distributed import cluster
from recranker.distributed.ranking import Pool, answer_missing, collect_answers, plan_pools
from recranker.llm.adapter import RECORD, record_of
from recranker.llm.model import add_adapter, load_model
from recranker.llm.settings import LLMSettings, LoraSettings, TuneSettings
from recranker.llm.token_counts import TokenCounter
from recranker.schema import PROMPTS
from recranker.tasks.instructions import PromptBuilder
from recranker.tasks.protocol import RatingScale
from recranker.tasks.settings import InstructSettings
from tests.models import tiny_model, tiny_tokenizer
from tests.tables import candidate_list, candidates, draws, interactions

TITLES = {f"i{n}": f"Film {'of the long summer ' * (n % 3)}{n}" for n in range(40)}
SETTINGS = InstructSettings(list_permutations=4)
COUNTER = TokenCounter(tiny_tokenizer().backend_tokenizer.to_str(), 0, 0)
LLM = LLMSettings(model="tiny", device="cpu", token_budget=4096)


def make_prompts(num_users: int = 12) -> pa.Table:
    """PROMPTS of a validation list and a test list per user; user n knows 2 n films, the first list has one item."""
    tables = []
    for number in range(num_users):
        user, events = f"u{number}", 2 * number
        history = interactions(*((user, f"i{k}", k, "like", "train") for k in range(events)))
        items = [f"i{39 - k}" for k in range(1 + number % 5)]
        lists = [candidate_list(user, split, items[0], items, before=events) for split in ("validation", "test")]
        builder = PromptBuilder(TITLES, SETTINGS, RatingScale(1, 5), 0)
        rows = COUNTER.count(builder.prompts(history, candidates(*lists), draws()))
        tables.append(rows.select(PROMPTS.schema.names))
    return pa.concat_tables(tables).cast(PROMPTS.schema)


def work_of(prompts: pa.Table) -> tuple[pa.Table, list[str]]:
    """All lists for the tuned model, test lists for two untuned ones, and the model of each row."""
    tests = prompts.filter(pa.compute.equal(prompts["split"], "test"))
    asked = {"tuned": prompts, "untuned": tests, "untuned_no_hint": tests}
    return pa.concat_tables(asked.values()), [name for name, table in asked.items() for _ in range(table.num_rows)]


def make_models(folder: Path, names: Sequence[str] = ("joint",)) -> None:
    """A base model in ``folder/model``, and random adapters that change its answers in ``folder/adapter/NAME``."""
    model = tiny_model(folder / "model")
    for seed, name in enumerate(names):
        lm = load_model(model, LLM)
        add_adapter(lm, LoraSettings(rank=2))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for weight_name, weight in lm.model.named_parameters():
                if "lora_B" in weight_name:
                    weight.normal_(std=0.1)
        place = folder / "adapter" / name
        lm.model.save_pretrained(str(place), safe_serialization=True, save_embedding_layers=False)
        (place / RECORD).write_text(record_of(lm, [], LLM, TuneSettings(), 0).model_dump_json())


def planned(folder: Path, *, scratch: str = "scratch", token_budget: int = LLM.token_budget) -> list[Pool]:
    """The pools of a ranking with the models in ``folder``."""
    prompts, models = work_of(make_prompts())
    return plan_pools(prompts, models, adapters=folder / "adapter", scratch=folder / scratch, token_budget=token_budget)


def asked_on_cluster(folder: Path, pools: list[Pool], *, workers: int = 1, token_budget: int = LLM.token_budget) -> int:
    """Ask what is missing; returns how many lists that were."""
    settings = LLM.model_copy(update={"token_budget": token_budget})
    spent = answer_missing(
        pools, model=folder / "model", settings=settings, workers=workers, on_batch=lambda spent: None
    )
    return spent.lists


def main(folder: Path) -> None:
    pools = planned(folder, token_budget=64)[:1]  # the tuned model, a list per batch
    cluster.connect(cpus=1, object_store_mb=100)
    print(asked_on_cluster(folder, pools, token_budget=64))
    pq.write_table(collect_answers(pools), folder / "answers.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
