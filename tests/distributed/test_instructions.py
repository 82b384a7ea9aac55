"""Prompts made by workers are those made in one place, for any files, blocks and buckets; none is lost unseen."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from jobs.stage import users_error
from recranker.data.leakage.checks import OF_PROMPTS
from recranker.distributed.instructions import (
    OVER_ALL,
    Made,
    Maker,
    Parts,
    build_prompts,
    prompts_in,
    published_source,
    source_of,
    write_prompts,
)
from recranker.errors import DataError, LeakageError, OutputError
from recranker.llm.token_counts import TokenCounter
from recranker.schema import CANDIDATES, DRAWS, INTERACTIONS, ITEMS, PROMPTS, QUARANTINE
from recranker.store import Origin, Store, logical_hash
from recranker.tasks.instructions import PromptBuilder
from recranker.tasks.protocol import RatingScale
from recranker.tasks.settings import InstructSettings
from recranker.tasks.wording import default_templates
from tests.models import tiny_tokenizer
from tests.tables import candidate_list, candidates, draws, interactions
from tests.tasks.plain_instructions import made_up_service, plain_rows

TITLES = {f"i{n}": f"Film {n}" for n in range(20)}
ITEM_ROWS = [{"item_id": item_id, "title": title, "genres": []} for item_id, title in TITLES.items()]
SCALE = RatingScale(1, 5)
SETTINGS = InstructSettings(max_liked=5)
COUNTER = TokenCounter(tiny_tokenizer().backend_tokenizer.to_str(), 5, 3)
MAKER = Maker(pa.Table.from_pylist(ITEM_ROWS, ITEMS.schema), SETTINGS, SCALE, 7, default_templates(), COUNTER)
BUILDER = PromptBuilder(TITLES, SETTINGS, SCALE, 7)
SERVICE = made_up_service(100, 5)


def expected() -> tuple[pa.Table, pa.Table]:
    """PROMPTS and QUARANTINE, made one by one."""
    rows = plain_rows(BUILDER, *SERVICE)
    good = pa.Table.from_pylist([row for row in rows if row["reason"] is None], schema=PROMPTS.schema)
    bad = [{"row_id": row["prompt_id"], "reason": row["reason"]} for row in rows if row["reason"] is not None]
    return COUNTER.count(good), pa.Table.from_pylist(bad, schema=QUARANTINE.schema)


def published(folder: Path) -> Store:
    """The stages before, in several files each, rows in any order."""
    store = Store(str(folder))
    stages = {
        "prepare": (INTERACTIONS, SERVICE[0]),
        "backbone": (CANDIDATES, SERVICE[1]),
        "sample": (DRAWS, SERVICE[2]),
    }
    for stage, (schema, table) in stages.items():
        with store.publish(stage, Origin("s", "c", {})) as writer:
            for number in range(3):
                part = table.slice(number * 300, 300) if number < 2 else table.slice(600)
                pq.write_table(part.cast(schema.schema), f"{writer.folder(schema)}/{number}.parquet")
    return store


def test_the_gates_checks_are_split_without_losing_one() -> None:
    assert set(OVER_ALL) <= {check.name for check in OF_PROMPTS}


def test_a_worker_refuses_a_prompt_that_knows_too_much() -> None:
    events = interactions(
        ("u", "i0", 0, "like", "train"), ("u", "i1", 1, "like", "train"), ("u", "i2", 2, "like", "test")
    )
    lists = candidates(candidate_list("u", "train", "i1", ["i1", "i2"], before=1))
    with pytest.raises(LeakageError, match="a training prompt shows the user's own validation or test target"):
        MAKER.make({"events": events, "lists": lists, "draws": draws("u")})


def test_a_bucket_with_nothing_to_compare_passes_the_gate() -> None:
    events, alone = interactions(("u", "i0", 0, "like", "train")), candidate_list("u", "test", "i1", ["i1"], before=1)
    for lists in (candidates(), candidates(alone)):
        rows = MAKER.make({"events": events, "lists": lists, "draws": draws("u")})
        assert rows["reason"].to_pylist()[0] == "no training list holds its target"
        MAKER.check_over_all(lists, prompts_in(rows))


def test_what_one_user_cannot_show_is_checked_over_all() -> None:
    lists = [candidate_list(f"u{n}", "test", "i1", [f"i{k}" for k in range(10)], before=1) for n in range(8)]
    rows = MAKER.make({"events": interactions(), "lists": candidates(*lists), "draws": draws()})
    prompts = prompts_in(rows)
    MAKER.check_over_all(candidates(*lists), prompts)
    plain = prompts.to_pylist()
    for row in plain:
        listed = row["questions"][-1]
        listed["item_ids"] = [f"i{k}" for k in range(10)]
        row["questions"] = [one for one in row["questions"] if one["task"] != "listwise"] + [listed]
    with pytest.raises(LeakageError, match="all lists stand in the retriever's order"):
        MAKER.check_over_all(candidates(*lists), pa.Table.from_pylist(plain, schema=PROMPTS.schema))


def test_a_part_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    parts = Parts(fs.LocalFileSystem(), str(tmp_path), str(tmp_path / "gone"))
    rows = MAKER.make({"events": interactions(), "lists": candidates(), "draws": draws("u")})
    with pytest.raises(OutputError, match=r"cannot write '.*gone/part-00003\.parquet'.*set store\.home"):
        parts.write(3, rows)


def test_rows_that_were_lost_on_the_way_are_noticed() -> None:
    made = Made(prompts=3, tokens=90, reasons=Counter({"the list has no candidates": 2}))
    facts = {"rows_in": 5, "prompts": 3, "quarantined": 2, "prompt_tokens": 90}
    assert made.facts() == {**facts, "quarantined_because": {"the list has no candidates": 2}}
    made.check(5, there=5)
    with pytest.raises(DataError, match="6 draws and lists to rank became 3 prompts and 2 quarantined"):
        made.check(6, there=5)
    with pytest.raises(OutputError, match="workers wrote 3 prompts and 2 quarantined, 4 rows are there"):
        made.check(5, there=4)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_written_prompts_are_those_made_one_by_one_and_every_row_is_accounted_for(tmp_path: Path) -> None:
    store, progress = published(tmp_path), []
    prompts, aside = expected()
    with store.publish("instruct", Origin("s", "c", {})) as writer:
        parts = Parts(writer.filesystem, writer.folder(PROMPTS), writer.folder(QUARANTINE))
        made = write_prompts(published_source(store), MAKER, parts, at_least=5, on_rows=progress.append)
    tables = store.require("instruct").tables
    assert tables["prompts"] == {"rows": prompts.num_rows, "hash": logical_hash(prompts, PROMPTS)}
    assert tables["quarantine"] == {"rows": aside.num_rows, "hash": logical_hash(aside, QUARANTINE)}
    assert sum(progress) == prompts.num_rows + aside.num_rows == made.facts()["rows_in"]
    assert made.reasons == Counter(aside["reason"].to_pylist())
    of_questions = [one["tokens"] for asked in prompts["questions"].to_pylist() for one in asked]
    assert made.tokens == sum(of_questions) + sum(prompts["prefix_tokens"].to_pylist())
    assert len(list((tmp_path / "instruct" / "prompts").iterdir())) > 1


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_tables_in_memory_give_the_same_prompts() -> None:
    prompts, aside = build_prompts(source_of(*SERVICE, blocks=2), MAKER, at_least=2)
    assert [logical_hash(prompts, PROMPTS), logical_hash(aside, QUARANTINE)] == [
        logical_hash(table, schema) for table, schema in zip(expected(), (PROMPTS, QUARANTINE), strict=True)
    ]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_leak_seen_by_a_worker_ends_the_job_as_its_own_error(tmp_path: Path) -> None:
    events = interactions(
        ("u", "i0", 0, "like", "train"), ("u", "i1", 1, "like", "train"), ("u", "i2", 2, "like", "test")
    )
    lists = candidates(candidate_list("u", "train", "i1", ["i1", "i2"], before=1))
    with pytest.raises(Exception, match="test target") as error:
        build_prompts(source_of(events, lists, draws("u"), blocks=1), MAKER, at_least=1)
    line = str(users_error(error.value))
    assert line.startswith("a training prompt shows the user's own validation or test target: user 'u', item 'i2'")


@pytest.mark.ray
def test_two_nodes_make_the_prompts_of_one(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.two_nodes", str(tmp_path)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    hashes = [logical_hash(table, schema) for table, schema in zip(expected(), (PROMPTS, QUARANTINE), strict=True)]
    assert done.stdout.split()[-3:] == ["2", *hashes]
