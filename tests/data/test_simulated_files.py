"""A simulated service on disk, and the run that is published of it."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recranker.data.leakage import check_candidates, check_interactions
from recranker.data.prepare import prepare
from recranker.data.settings import DataSettings
from recranker.data.simulated_files import MARKER, _each, publish_service, write_service
from recranker.data.simulated_lists import Popularity, candidates_table, shard_of
from recranker.data.simulated_service import ServiceSettings
from recranker.errors import OutputError
from recranker.schema import CANDIDATES, FIT_EVENTS, INTERACTIONS, ITEMS, SIGNALS, USER_FACTORS
from recranker.store import Store, logical_hash

SERVICE = ServiceSettings(users=230, items=400, events_per_user=20, shard_users=100, train_share=0.5)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, and a published run under 'run'."""
    out = tmp_path_factory.mktemp("service") / "out"
    tally = write_service(SERVICE, out, workers=1)
    publish_service(SERVICE, Store(str(out / "run")), tally, workers=1, code="code")
    return out


@pytest.fixture(scope="module")
def store(written: Path) -> Store:
    return Store(str(written / "run"))


def test_files_are_the_same_bytes_for_any_number_of_processes(written: Path, tmp_path: Path) -> None:
    tally = write_service(SERVICE, tmp_path / "out", workers=2)
    publish_service(SERVICE, Store(str(tmp_path / "out" / "run")), tally, workers=2, code="code")
    assert files(tmp_path / "out") == files(written)
    assert len(files(written / "interactions")) == 3


def test_rows_are_the_same_for_any_size_of_shards(store: Store, tmp_path: Path) -> None:
    service, other = SERVICE.model_copy(update={"shard_users": 37}), Store(str(tmp_path / "run"))
    publish_service(service, other, write_service(service, tmp_path / "out", workers=1), workers=1, code="code")
    for stage, table in (("prepare", INTERACTIONS), ("backbone", CANDIDATES), ("backbone", USER_FACTORS)):
        assert len(other.files(stage, table)) == 7
        assert other.require(stage).tables[table.name] == store.require(stage).tables[table.name]


def test_a_stopped_run_goes_on_with_what_is_missing(written: Path, tmp_path: Path) -> None:
    write_service(SERVICE, tmp_path, workers=1)
    (tmp_path / "interactions" / "part-00001.parquet").unlink()
    kept = tmp_path / "interactions" / "part-00002.parquet"
    before, seen = kept.stat().st_mtime_ns, []
    write_service(SERVICE, tmp_path, workers=1, on_file=lambda: seen.append(1))
    assert (kept.stat().st_mtime_ns, len(seen)) == (before, 4)  # three shards and a file of items
    assert files(tmp_path / "interactions") == files(written / "interactions")


def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(OutputError, match="was killed, most likely for its memory; run again with fewer --workers"):
        list(_each(os._exit, range(1, 9), workers=2))


def test_another_service_or_other_files_are_not_touched(tmp_path: Path) -> None:
    write_service(SERVICE, tmp_path / "a", workers=1)
    write_service(SERVICE.model_copy(update={"train_share": 0.1}), tmp_path / "a", workers=1)  # lists are elsewhere
    with pytest.raises(OutputError, match=r"holds another service \(see service.json\); name a new folder"):
        write_service(SERVICE.model_copy(update={"seed": 1}), tmp_path / "a", workers=1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds other files; name a new folder"):
        write_service(SERVICE, tmp_path / "b", workers=1)
    assert json.loads((tmp_path / "a" / MARKER).read_text())["seed"] == 0


def test_what_is_published_is_what_stage_prepare_makes_of_the_files(written: Path, store: Store) -> None:
    source = {"kind": "files", "interactions": str(written / "interactions"), "items": str(written / "items")}
    source |= {"rating_column": "rating", "time_column": "timestamp", "genres_column": "genres"}
    scale = {"rating_min": 1, "rating_max": 5, "like_at_least": 4, "dislike_below": 3}
    settings = DataSettings.model_validate({"source": source, **scale})
    interactions, items, facts = prepare(settings, 0, written)
    published = store.require("prepare")
    assert published.tables["interactions"]["hash"] == logical_hash(interactions, INTERACTIONS)
    assert published.tables["items"]["hash"] == logical_hash(items, ITEMS)
    assert {name: facts["counts"][name] for name in published.facts["counts"] if name in facts["counts"]} == {
        name: count for name, count in published.facts["counts"].items() if name in facts["counts"]
    }
    same = set(facts) - {"source", "counts", "denominator"}
    assert {name: published.facts[name] for name in same} == {name: facts[name] for name in same}


def test_nobody_takes_it_for_real(store: Store) -> None:
    assert store.require("prepare").facts["source"] == "simulated"
    assert store.require("backbone").facts["retriever"].startswith("simulated: candidates drawn by popularity")


def fit_events(interactions: pa.Table, lists: pa.Table) -> pa.Table:
    """What honest fits would have seen: all training events; in the rolled-back fold none from a target on."""
    training = interactions.filter(pc.equal(interactions["split"], "train"))
    asked = lists.filter(pc.equal(lists["split"], "train"))
    ends = dict(zip(asked["user_id"].to_pylist(), asked["before"].to_pylist(), strict=True))
    early = [
        sequence < ends.get(user, 10_000)
        for user, sequence in zip(training["user_id"].to_pylist(), training["sequence"].to_pylist(), strict=True)
    ]
    parts = []
    for fold, seen in (("full", training), ("rolled_back", training.filter(pa.array(early)))):
        names = pa.array([fold] * seen.num_rows)
        parts.append(pa.table([names, seen["user_id"], seen["item_id"]], schema=FIT_EVENTS.schema))
    return pa.concat_tables(parts)


def test_lists_pass_the_leakage_gate(store: Store) -> None:
    interactions, lists = store.read("prepare", INTERACTIONS), store.read("backbone", CANDIDATES)
    facts = store.require("prepare").facts
    check_interactions(interactions, facts)
    check_candidates(
        interactions, lists, fit_events(interactions, lists), facts, signals=store.read("backbone", SIGNALS)
    )


def test_every_target_has_a_list_of_ten_and_some_hold_it(store: Store) -> None:
    interactions, lists = store.read("prepare", INTERACTIONS), store.read("backbone", CANDIDATES)
    facts = store.require("backbone").facts
    assert set(pc.list_value_length(lists["candidate_ids"]).to_pylist()) == {10}
    for split in ("validation", "test"):
        targets = interactions.filter(pc.equal(interactions["split"], split)).num_rows
        assert facts[f"{split}_lists"] == targets > 150
        assert 0.05 * targets < facts[f"{split}_hits"] < 0.5 * targets
    assert 50 < facts["train_lists"] < 140  # half of the users with 5 training likes
    assert facts["train_hits"] > 3


def test_embeddings_are_there_for_every_user(store: Store) -> None:
    factors = store.read("backbone", USER_FACTORS)
    assert factors["user_id"].to_pylist() == [f"u{number:08d}" for number in range(230)]
    assert np.stack(factors["factors"].to_numpy()).shape == (230, 16)


def test_a_published_run_is_not_made_again(written: Path, store: Store) -> None:
    path, seen = written / "run" / "prepare" / "_manifest.json", []
    before = path.stat().st_mtime_ns
    tally = write_service(SERVICE, written, workers=1)
    publish_service(SERVICE, store, tally, workers=1, on_file=lambda: seen.append(1), code="code")
    assert (path.stat().st_mtime_ns, seen) == (before, [])


def test_only_a_share_of_users_has_lists_to_rank_where_that_is_asked_for() -> None:
    popularity = Popularity(np.ones(SERVICE.items, np.int32), np.ones(SERVICE.items, np.int32))
    some = SERVICE.model_copy(update={"ranked_share": 0.3})
    whole, part = (candidates_table(shard_of(one, range(200), popularity)) for one in (SERVICE, some))
    for split in ("validation", "test"):
        of_all, of_some = (set(one.filter(pc.field("split") == split)["list_id"].to_pylist()) for one in (whole, part))
        assert of_some < of_all
        assert 0.2 < len(of_some) / len(of_all) < 0.4
    training = [one.filter(pc.field("split") == "train") for one in (whole, part)]
    assert training[0].equals(training[1])
