"""One piece of work on a run's tables, as a program of its own, so that what it takes can be watched.

python -m jobs.benchmarks.scale_work scan|assemble|tokenise STORE [MODEL_FOLDER]
"""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from recranker.llm.token_counts import TokenCounter, token_counter
from recranker.sampling.users import LIKE_COLUMNS, LIST_COLUMNS
from recranker.schema import CANDIDATES, INTERACTIONS, PROMPTS, USER_FACTORS
from recranker.store import Store

FEW_BLOCKS = 8


def scan(store: Store) -> None:
    """Read what sampling reads, and do nothing with it."""
    for stage, table, columns in (
        ("prepare", INTERACTIONS, LIKE_COLUMNS),
        ("backbone", CANDIDATES, LIST_COLUMNS),
        ("backbone", USER_FACTORS, None),
    ):
        found = ds.dataset(store.files(stage, table), format="parquet", filesystem=store.filesystem)
        for _ in found.to_batches(columns=columns):
            pass


def assemble(store: Store) -> None:
    """Histories of all users, counted and thrown away."""
    from recranker.distributed import cluster
    from recranker.distributed.datasets import from_store
    from recranker.distributed.histories import EVENT_COLUMNS, assemble, num_buckets

    cluster.connect(None, 512)
    events = store.require("prepare").tables[INTERACTIONS.name]["rows"]
    interactions = from_store(store, "prepare", INTERACTIONS, EVENT_COLUMNS)
    users = assemble(interactions, num_buckets(events, at_least=FEW_BLOCKS)).count()
    print(f"{users} histories of {events} events")


def tokenise(store: Store, folder: Path) -> None:
    """The texts of all prompts through the tokenizer, a process per core."""
    counter = token_counter(folder)
    files = store.files("instruct", PROMPTS)
    with ProcessPoolExecutor(cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(_tokenise_file, [counter] * len(files), files))


def _tokenise_file(counter: TokenCounter, file: str) -> None:
    for batch in pq.ParquetFile(file).iter_batches(columns=["prefix", "questions"]):
        counter.tokens_of(batch["prefix"].to_pylist())
        questions = pa.array(batch["questions"]).flatten()
        counter.tokens_of(questions.field("text").to_pylist())


if __name__ == "__main__":
    works: dict[str, Callable[..., None]] = {"scan": scan, "assemble": assemble, "tokenise": tokenise}
    works[sys.argv[1]](Store(sys.argv[2]), *map(Path, sys.argv[3:]))
