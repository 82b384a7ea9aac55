"""Instruction generation over shards of users."""

from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import ray

from recranker.distributed.datasets import by_user
from recranker.schema import PROMPTS, QUARANTINE
from recranker.tasks.instructions import WITH_REASON, PromptBuilder


def build_prompts(
    interactions: pa.Table, lists: pa.Table, draws: pa.Table, builder: PromptBuilder, blocks: int
) -> tuple[pa.Table, pa.Table]:
    """The PROMPTS and QUARANTINE tables; the same rows for any number of blocks.

    Every draw and every validation or test list becomes exactly one row of either table.

    Args:
        interactions: INTERACTIONS.
        lists: CANDIDATES.
        draws: DRAWS.
        builder: Titles, settings, scale and seed, sent to the workers once.
        blocks: Blocks of Ray Data.
    """
    shared = ray.put(builder)

    def work(tables: dict[str, pa.Table]) -> pa.Table:
        return _fetched(shared).prompts(tables["interactions"], tables["lists"], tables["draws"])

    tables = {"interactions": interactions, "lists": lists, "draws": draws}
    parts = ray.get(by_user(tables, work, blocks).to_arrow_refs())
    rows = pa.concat_tables([part.cast(WITH_REASON) for part in parts if part.num_rows])
    good, bad = rows.filter(pc.is_null(rows["reason"])), rows.filter(pc.is_valid(rows["reason"]))
    quarantined = pa.table({"row_id": bad["prompt_id"], "reason": bad["reason"]})
    return good.select(PROMPTS.schema.names), quarantined.cast(QUARANTINE.schema)


@lru_cache(maxsize=1)
def _fetched(reference: "ray.ObjectRef[PromptBuilder]") -> PromptBuilder:
    """The builder, unpacked once per worker rather than once per user."""
    builder: PromptBuilder = ray.get(reference)
    return builder
