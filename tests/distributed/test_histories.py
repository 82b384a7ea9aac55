from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from recranker.distributed.datasets import bucket_of, by_users, from_bytes, from_store, from_table, to_bytes
from recranker.distributed.histories import EVENT_COLUMNS, EVENTS, assemble, num_buckets
from recranker.errors import DataError
from recranker.schema import DRAWS, HISTORIES, INTERACTIONS
from recranker.store import Origin, Store
from recranker.tasks.histories import group_events
from tests.tables import draws, interactions
from tests.tasks.plain_instructions import made_up_service

EVENTS_OF_MANY = made_up_service(80, 3)[0]


def collected(histories: ray.data.Dataset) -> pa.Table:
    return pa.concat_tables([HISTORIES.schema.empty_table(), *ray.get(histories.to_arrow_refs())])


def test_a_row_per_user_oldest_event_first() -> None:
    rows = (("v", "b", 7, "like", "x"), ("u", "a", 3, "dislike", "x"), ("v", "c", 0, "neutral", "test"))
    assert group_events(interactions(*rows)).to_pylist() == [
        {"user_id": "u", "item_ids": ["a"], "feedback": ["dislike"], "sequences": [3]},
        {"user_id": "v", "item_ids": ["c", "b"], "feedback": ["neutral", "like"], "sequences": [0, 7]},
    ]
    assert group_events(interactions()).num_rows == 0


def test_buckets_follow_the_events() -> None:
    assert num_buckets(50_000_000, at_least=4) == 50
    assert num_buckets(1000, at_least=4) == 4


def test_a_packed_table_comes_back() -> None:
    part = EVENTS_OF_MANY.slice(5, 3)
    assert from_bytes(to_bytes(part)) == part


def test_an_event_that_came_twice_is_refused() -> None:
    rows = [("u", "a", 0, "like", "train"), ("v", "a", 0, "like", "train"), ("u", "b", 0, "like", "train")]
    with pytest.raises(DataError, match="user 'u' has two interactions with sequence 0"):
        group_events(interactions(*rows))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_histories_from_many_files_in_any_order_one_of_them_with_a_million_events(tmp_path: Path) -> None:
    count = 1_000_000
    hot = {
        "user_id": pa.repeat("hot", count),
        "item_id": pa.array(["a", "b"]).take(pa.array(np.arange(count) % 2)),
        "rating": pa.nulls(count, pa.float32()),
        "timestamp": pa.nulls(count, pa.int64()),
        "sequence": pa.array(np.random.default_rng(0).permutation(count).astype(np.int32)),
        "feedback": pa.repeat("like", count),
        "split": pa.repeat("train", count),
    }
    both = pa.concat_tables([EVENTS_OF_MANY, pa.table(hot, schema=INTERACTIONS.schema)]).combine_chunks()
    both = both.take(pa.array(np.random.default_rng(1).permutation(both.num_rows)))
    store = Store(str(tmp_path))
    with store.publish("prepare", Origin("s", "c", {})) as writer:
        for number in range(5):
            path = f"{writer.folder(INTERACTIONS)}/{number}.parquet"
            pq.write_table(both.slice(number * 250_000, 250_000), path, row_group_size=90_000)
    interactions_read = from_store(store, "prepare", INTERACTIONS, EVENT_COLUMNS)
    found = collected(assemble(interactions_read, 7)).sort_by("user_id").combine_chunks()
    assert found["user_id"][0].as_py() == "hot"
    judged = EVENTS_OF_MANY.filter(pa.compute.not_equal(EVENTS_OF_MANY["feedback"], "neutral"))
    assert found.slice(1).equals(group_events(judged))
    assert (found["sequences"][0].values.to_numpy() == np.arange(count)).all()
    items = np.asarray(found["item_ids"][0].values.to_numpy(zero_copy_only=False) == "b", dtype=int)
    assert (items == np.argsort(hot["sequence"].to_numpy()) % 2).all()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_only_events_of_those_asked_for_travel_and_a_held_out_event_always_does() -> None:
    rows = [("u", "a", 0, "neutral", "train"), ("u", "b", 1, "neutral", "test"), ("v", "a", 0, "like", "train")]
    found = collected(assemble(from_table(interactions(*rows), 2), 2, users=pa.array(["u", "w"])))
    assert found.to_pylist() == [{"user_id": "u", "item_ids": ["b"], "feedback": ["neutral"], "sequences": [1]}]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("buckets", [1, 20])
def test_all_rows_of_a_user_in_all_tables_meet_in_one_call(buckets: int) -> None:
    drawn = draws(*(f"u{number % 90}" for number in range(200)), "nobody")

    def count(tables: dict[str, pa.Table]) -> pa.Table:
        assert tables["events"].schema.equals(EVENTS)
        ids = {name: table["user_id"].to_pylist() for name, table in tables.items()}
        users = {*ids["events"], *ids["draws"]}
        counts = [{name: ids[name].count(user) for name in ids} | {"user_id": user} for user in users]
        assert len(set(bucket_of(pa.chunked_array([list(users)]), buckets))) == 1
        return pa.Table.from_pylist(counts)

    events = EVENTS_OF_MANY.select(EVENTS.names)
    tables = {"events": from_table(events, 3), "draws": from_table(drawn, 2)}
    rows = by_users(tables, {"events": EVENTS, "draws": DRAWS.schema}, count, buckets).take_all()
    found = {row["user_id"]: (row["events"], row["draws"]) for row in rows}
    users = {*events["user_id"].to_pylist(), *drawn["user_id"].to_pylist()}
    assert len(rows) == len(users)
    lists = [table["user_id"].to_pylist() for table in (events, drawn)]
    assert found == {user: (lists[0].count(user), lists[1].count(user)) for user in users}
