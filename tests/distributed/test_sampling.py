import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recranker.distributed.datasets import from_table
from recranker.distributed.sampling import draw_from_store, draw_users
from recranker.errors import DataError
from recranker.sampling import draws
from recranker.sampling.settings import AdaptiveSampling, PaperSampling, UniformSampling
from recranker.schema import CANDIDATES, DRAWS, INTERACTIONS, USER_FACTORS, TableSchema
from recranker.store import Origin, Store, logical_hash
from tests.tables import candidate_list, candidates, factors, interactions

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

Sampling = AdaptiveSampling | PaperSampling | UniformSampling

USERS = [f"u{n}" for n in range(40)]
EVENTS = interactions(
    *((user, f"i{k}", k, "like", "train") for n, user in enumerate(USERS) for k in range(4 + n % 5)),
    *((user, "t", 20, "like", "test") for user in USERS),
)
LISTS = candidates(
    *(candidate_list(user, "train", "i3", ["i3", "i10", "i11"], before=3) for user in USERS[:30]),
    *(candidate_list(user, "test", "t", ["i12", "t", "i13"], before=20) for user in USERS),
)
FACTORS = factors(**{user: [float(n % 4), float(n // 20), 1.0] for n, user in enumerate(USERS)})


def sampled(
    settings: Sampling, blocks: int, events: pa.Table = EVENTS, lists: pa.Table = LISTS, vectors: pa.Table = FACTORS
) -> tuple[pa.Table, dict[str, int]]:
    """Draws from these tables cut into ``blocks``, in as many partitions."""
    parts = (from_table(table, blocks) for table in (events, lists, vectors))
    return draw_users(*parts, settings, 0, num_factors=vectors.num_rows, partitions=blocks)


def in_one_place(settings: Sampling) -> pa.Table:
    """The same draws without a cluster."""
    return draws.draw_in_one_place([EVENTS], [LISTS], [FACTORS], settings, 0, num_factors=40)[0]


def shuffled(table: pa.Table) -> pa.Table:
    return table.take(np.random.default_rng(1).permutation(table.num_rows))


@pytest.mark.parametrize("blocks", [1, 7])
def test_draws_on_a_cluster_are_those_in_one_place_for_any_blocks_and_row_order(blocks: int) -> None:
    settings = AdaptiveSampling(num_draws=60, num_clusters=4)
    found, counts = sampled(settings, blocks, *(shuffled(table) for table in (EVENTS, LISTS, FACTORS)))
    assert logical_hash(found, DRAWS) == logical_hash(in_one_place(settings), DRAWS)
    assert counts == {"eligible_users": 30, "draws": 60, "distinct_users": len(set(found["user_id"].to_pylist()))}


def test_uniform_sampling_on_a_cluster_is_that_in_one_place_and_needs_no_embeddings() -> None:
    settings = UniformSampling(num_draws=50)
    found, _ = sampled(settings, 2, vectors=FACTORS.slice(0, 0))
    assert logical_hash(found, DRAWS) == logical_hash(in_one_place(settings), DRAWS)


def publish(folder: Path, stage: str, tables: dict[TableSchema, pa.Table], files: int) -> None:
    """A finished stage whose tables lie in several files, rows in no order."""
    with Store(str(folder)).publish(stage, Origin("settings", "code", {})) as writer:
        for table, rows in tables.items():
            where, order = writer.folder(table), random.Random(files).sample(range(rows.num_rows), rows.num_rows)
            for number, some in enumerate(np.array_split(np.array(order), files)):
                pq.write_table(rows.take(pa.array(some)), f"{where}/part-{number}.parquet", row_group_size=7)


@pytest.mark.parametrize("rows_in_one_place", [0, 10**6], ids=["on the cluster", "in one place"])
def test_files_and_the_rows_order_in_them_do_not_matter(tmp_path: Path, rows_in_one_place: int) -> None:
    publish(tmp_path, "prepare", {INTERACTIONS: EVENTS}, 5)
    publish(tmp_path, "backbone", {CANDIDATES: LISTS, USER_FACTORS: FACTORS}, 3)
    settings, connected = AdaptiveSampling(num_draws=60, num_clusters=4), []
    found, facts = draw_from_store(
        Store(str(tmp_path)),
        settings,
        0,
        blocks=3,
        connect=lambda: connected.append(True),
        rows_in_one_place=rows_in_one_place,
    )
    assert logical_hash(found, DRAWS) == logical_hash(in_one_place(settings), DRAWS)
    assert connected == ([] if rows_in_one_place else [True])
    assert facts["rows_in"] == EVENTS.num_rows + LISTS.num_rows + 40
    assert (facts["rows_out"], facts["eligible_users"]) == (60, 30)


def test_nobody_to_draw_and_too_few_to_cluster_are_said_as_in_one_place() -> None:
    with pytest.raises(DataError, match="nobody to learn from"):
        sampled(UniformSampling(num_draws=5), 2, EVENTS.slice(0, 0), LISTS.slice(0, 0))
    with pytest.raises(DataError, match=r"50 clusters need as many users, got 40; lower sampling\.num_clusters"):
        sampled(AdaptiveSampling(num_draws=5, num_clusters=50), 2)
