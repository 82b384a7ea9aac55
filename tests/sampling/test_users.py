from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recranker.sampling.clusters import Centres
from recranker.sampling.users import (
    LIKE_COLUMNS,
    LIST_COLUMNS,
    USER_PARTS,
    USERS,
    RowGroups,
    count_likes,
    mark_eligible,
    merge,
    put_into_clusters,
)
from recranker.schema import CANDIDATES, INTERACTIONS
from recranker.store import Origin, Store
from tests.tables import candidate_list, candidates, factors, interactions

EVENTS = interactions(
    ("a", "i1", 0, "like", "train"),
    ("a", "i2", 1, "like", "train"),
    ("a", "i3", 2, "dislike", "train"),
    ("a", "i4", 3, "like", "validation"),
    ("b", "i1", 0, "like", "train"),
    ("c", "i1", 0, "like", "train"),
    ("c", "i2", 1, "like", "test"),
)
LISTS = candidates(
    candidate_list("a", "train", "i2", ["i2", "i9"]),
    candidate_list("b", "train", "i1", ["i8", "i9"]),
    candidate_list("b", "test", "i1", ["i1", "i9"]),
    candidate_list("c", "train", "i1", ["i9", "i1"]),
    candidate_list("c", "train", "i2", ["i8", "i9"]),
    candidate_list("ghost", "train", "i1", ["i1"]),
)
CENTRES = Centres(np.array([[0.0, 0.0], [4.0, 0.0]]))
FACTORS = factors(a=[3.0, 0.0], b=[0.0, 1.0], c=[-1.0, 0.0])


def test_only_likes_of_the_training_split_are_counted() -> None:
    rows = sorted(count_likes(EVENTS).to_pylist(), key=lambda row: row["user_id"])
    assert [(row["user_id"], row["num_likes"]) for row in rows] == [("a", 2), ("b", 1), ("c", 1)]
    assert not any(row["eligible"] for row in rows)


def test_a_user_is_eligible_by_a_training_list_that_holds_its_target() -> None:
    assert sorted(mark_eligible(LISTS)["user_id"].to_pylist()) == ["a", "c", "ghost"]


def test_users_are_put_into_the_nearest_cluster() -> None:
    assert put_into_clusters(FACTORS, CENTRES)["cluster"].to_pylist() == [1, 0, 0]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_parts_merge_to_the_same_users_however_the_tables_are_cut(size: int) -> None:
    parts = [
        work(table.slice(start, size))
        for table, work in ((EVENTS, count_likes), (LISTS, mark_eligible))
        for start in range(0, table.num_rows, size)
    ]
    parts.append(put_into_clusters(FACTORS, CENTRES))
    merged = merge(pa.concat_tables(parts[::-1]))
    assert merged.schema == USERS
    assert merged.sort_by("user_id").to_pylist() == [
        {"user_id": "a", "num_likes": 2, "cluster": 1},
        {"user_id": "c", "num_likes": 1, "cluster": 0},
    ]


def test_without_embeddings_no_user_has_a_cluster() -> None:
    merged = merge(pa.concat_tables([count_likes(EVENTS), mark_eligible(LISTS)]))
    assert merged["cluster"].null_count == merged.num_rows == 2


def test_published_tables_are_read_a_row_group_at_a_time_as_often_as_asked(tmp_path: Path) -> None:
    with Store(str(tmp_path)).publish("made", Origin("settings", "code", {})) as writer:
        for number, some in enumerate((EVENTS.slice(0, 5), EVENTS.slice(5))):
            pq.write_table(some, f"{writer.folder(INTERACTIONS)}/{number}.parquet", row_group_size=2)
        pq.write_table(LISTS, f"{writer.folder(CANDIDATES)}/0.parquet")
    store = Store(str(tmp_path))
    events = RowGroups(store, "made", INTERACTIONS, LIKE_COLUMNS)
    for _ in range(2):
        assert [part.num_rows for part in events] == [2, 2, 1, 2]
        counted = pa.concat_tables(map(count_likes, events)).group_by("user_id").aggregate([("num_likes", "sum")])
        assert sorted(counted["num_likes_sum"].to_pylist()) == [1, 1, 2]
    (lists,) = RowGroups(store, "made", CANDIDATES, LIST_COLUMNS)
    assert lists.schema.names == LIST_COLUMNS
    assert mark_eligible(lists).sort_by("user_id")["user_id"].to_pylist() == ["a", "c", "ghost"]


def test_nothing_merges_to_nobody() -> None:
    assert merge(USER_PARTS.empty_table()).num_rows == 0
    assert count_likes(EVENTS.slice(0, 0)).schema == USER_PARTS
