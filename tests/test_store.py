import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.sources import ROOT
from recranker.errors import DataError, OutputError
from recranker.row_hash import RowHash
from recranker.schema import DRAWS, QUARANTINE, TABLES_OF
from recranker.store import LOCK, MANIFEST, Origin, Store, locked, logical_hash, outside_fingerprint
from tests import bombs

ORIGIN = Origin("settings", "code", {})


def draws(*rows: tuple[int, str]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"draw_id": number, "user_id": user, "repeat": 0} for number, user in rows], schema=DRAWS.schema
    )


def publish(store: Store, table: pa.Table) -> None:
    with store.publish("sample", ORIGIN) as writer:
        writer.write(DRAWS, table)
        writer.facts["draws"] = table.num_rows


def test_what_is_published_is_read_back_in_key_order(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    publish(store, draws((1, "b"), (0, "a")))
    assert store.read("sample", DRAWS)["user_id"].to_pylist() == ["a", "b"]
    assert store.require("sample").facts == {"draws": 2}
    assert store.require("sample").tables["draws"]["rows"] == 2


def failing_publish(store: Store) -> None:
    with store.publish("sample", ORIGIN) as writer:
        writer.write(DRAWS, draws((0, "new")))
        raise RuntimeError


def test_an_error_inside_publishes_nothing_and_keeps_the_old_output(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    publish(store, draws((0, "old")))
    with pytest.raises(RuntimeError):
        failing_publish(store)
    assert store.read("sample", DRAWS)["user_id"].to_pylist() == ["old"]


def test_a_folder_without_manifest_is_not_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    publish(store, draws((0, "a")))
    (tmp_path / "sample" / MANIFEST).unlink()
    assert store.manifest("sample") is None
    with pytest.raises(DataError, match=r"run it first: python -m jobs\.sample"):
        store.read("sample", DRAWS)


def test_rows_lost_after_publishing_are_noticed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    publish(store, draws((0, "a"), (1, "b")))
    pq.write_table(draws((0, "a")), tmp_path / "sample" / "draws" / "part-00000.parquet")
    with pytest.raises(DataError, match="promises 2 rows, found 1"):
        store.read("sample", DRAWS)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (pa.table({"draw_id": [1], "user_id": ["a"]}), "lacks column 'repeat'"),
        (pa.table({"draw_id": [1], "user_id": ["a"], "repeat": ["x"]}), "'repeat' of table 'draws' must be int32"),
        (draws((0, "a")).append_column("more", pa.array([1])), "unknown columns"),
        (
            pa.table({"draw_id": [1], "user_id": pa.array([None], pa.string()), "repeat": pa.array([0], pa.int32())}),
            "1 nulls",
        ),
    ],
)
def test_a_table_that_breaks_its_schema_is_refused(tmp_path: Path, table: pa.Table, says: str) -> None:
    with pytest.raises(DataError, match=says):
        publish(Store(str(tmp_path)), table)
    assert not (tmp_path / "sample").exists()


def test_the_hash_sees_rows_and_nothing_else() -> None:
    whole = draws((0, "a"), (1, "b"), (2, "c"))
    pieces = pa.concat_tables([whole.slice(2, 1), whole.slice(0, 2)])
    assert logical_hash(whole, DRAWS) == logical_hash(pieces, DRAWS)
    assert logical_hash(whole, DRAWS) != logical_hash(draws((0, "a"), (1, "b"), (2, "d")), DRAWS)


def test_files_count_into_the_fingerprint(tmp_path: Path) -> None:
    store, prints = Store(str(tmp_path)), []
    for text in ("one", "two"):
        with store.publish("tune", ORIGIN) as writer:
            (writer.files("adapter") / "weights").write_text(text)
        prints.append(store.require("tune").fingerprint)
    assert prints[0] != prints[1]


def test_a_shared_store_keeps_an_output_per_origin(tmp_path: Path) -> None:
    other = Origin("other settings", "code", {})
    for origin, user in ((ORIGIN, "a"), (other, "b")):
        with Store(str(tmp_path), shared=True).publish("sample", origin) as writer:
            writer.write(DRAWS, draws((0, user)))
    store = Store(str(tmp_path), shared=True)
    assert store.manifest("sample") is None  # of no origin in particular there is nothing
    for origin, user in ((ORIGIN, "a"), (other, "b")):
        store.locate("sample", origin)
        assert store.read("sample", DRAWS)["user_id"].to_pylist() == [user]
    assert sorted(path.name for path in (tmp_path / "sample").iterdir()) == sorted([ORIGIN.key, other.key])


def test_a_leftover_in_a_shared_store_is_not_there_and_does_not_leak(tmp_path: Path) -> None:
    store = Store(str(tmp_path), shared=True)
    torn = tmp_path / "sample" / f".{ORIGIN.key}.partial" / "draws"
    torn.mkdir(parents=True)
    pq.write_table(draws((9, "ghost")), torn / "part-99999.parquet")
    store.locate("sample", ORIGIN)
    assert store.manifest("sample") is None
    publish(store, draws((0, "a")))
    assert store.read("sample", DRAWS)["user_id"].to_pylist() == ["a"]


def test_the_key_of_an_origin_follows_all_it_holds() -> None:
    assert ORIGIN.key == Origin("settings", "code", {}).key
    others = [Origin("x", "code", {}), Origin("settings", "x", {}), Origin("settings", "code", {"prepare": "x"})]
    assert len({ORIGIN.key, *(one.key for one in others)}) == 4


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from recranker.store import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "new")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=f"new is in use by process {holder.pid} on "), locked(tmp_path / "new"):
            pass
        holder.kill()
    with locked(tmp_path / "new"):
        assert (tmp_path / "new" / LOCK).read_text().startswith(f"process {os.getpid()} ")


def test_an_empty_table_survives(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.publish("instruct", ORIGIN) as writer:
        writer.write(QUARANTINE, QUARANTINE.schema.empty_table())
    assert store.read("instruct", QUARANTINE).num_rows == 0


def test_an_unwritable_place_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"set store\.home"),
        Store(str(tmp_path / "file" / "run")).publish("x", ORIGIN),
    ):
        pass


def test_a_leftover_of_a_killed_run_does_not_leak_into_the_next(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    torn = tmp_path / ".sample.partial" / "draws"
    torn.mkdir(parents=True)
    pq.write_table(draws((9, "ghost")), torn / "part-99999.parquet")
    publish(store, draws((0, "a")))
    assert store.read("sample", DRAWS)["user_id"].to_pylist() == ["a"]


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    publish(store, draws((0, "a")))
    (tmp_path / "sample" / "draws" / "part-00000.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"part-00000\.parquet' cannot be read: it does not end as a Parquet file does"):
        store.read("sample", DRAWS)


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    publish(Store(str(tmp_path)), draws((0, "a")))
    assert json.loads((tmp_path / "sample" / MANIFEST).read_text())["stage"] == "sample"


def test_a_replaced_file_changes_the_outside_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one")
    before = outside_fingerprint(str(tmp_path))
    assert outside_fingerprint(str(tmp_path)) == before
    (tmp_path / "a.csv").write_text("other")
    assert outside_fingerprint(str(tmp_path)) != before
    assert outside_fingerprint(str(tmp_path / "none")) == "missing"


def test_every_column_has_a_sentence() -> None:
    for tables in TABLES_OF.values():
        for table in tables:
            for field in table.schema:
                assert field.metadata[b"description"].endswith(b"."), (table.name, field.name)


HASHES = """
import sys
from pathlib import Path
from recranker.schema import DRAWS
from recranker.store import StageWriter
from pyarrow import fs

def peak_mb():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024

writer = StageWriter(fs.LocalFileSystem(), sys.argv[1])
writer.folder(DRAWS)
before = peak_mb()
print(writer.describe()["draws"]["hash"], peak_mb() - before)
"""


def test_a_table_is_hashed_in_the_memory_of_a_batch(tmp_path: Path) -> None:
    folder = tmp_path / "draws"
    folder.mkdir()
    count, files = 200_000, 20  # 4 million rows of about 30 bytes: 120 MB
    rows, users = RowHash(DRAWS.schema), pa.array([f"user {n:06d}" for n in range(count)])
    for number in range(files):
        ids = pa.array(np.arange(number * count, (number + 1) * count))
        part = pa.table([ids, users, pa.array(np.zeros(count, np.int32))], schema=DRAWS.schema)
        pq.write_table(part, folder / f"{number}.parquet")
        rows.add(part)
    done = subprocess.run(
        [sys.executable, "-c", HASHES, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found, peak = done.stdout.split()
    assert found == rows.hexdigest()
    assert int(peak) < 60


def test_many_files_hash_and_read_as_one_table(tmp_path: Path) -> None:
    store, whole = Store(str(tmp_path)), draws(*((number, f"u{number % 3}") for number in range(10)))
    with store.publish("sample", ORIGIN) as writer:
        folder = Path(writer.folder(DRAWS))
        for start in (6, 0, 3):
            pq.write_table(whole.slice(start, 4 if start == 6 else 3), folder / f"part-{start}.parquet")
    assert store.require("sample").tables["draws"] == {"rows": 10, "hash": logical_hash(whole, DRAWS)}
    assert store.read("sample", DRAWS).equals(whole.combine_chunks())
    assert [Path(path).name for path in store.files("sample", DRAWS)] == [
        "part-0.parquet",
        "part-3.parquet",
        "part-6.parquet",
    ]


def test_an_own_file_that_breaks_its_schema_is_not_published(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(DataError, match="lacks column 'repeat'"), store.publish("sample", ORIGIN) as writer:
        pq.write_table(pa.table({"draw_id": [0], "user_id": ["a"]}), Path(writer.folder(DRAWS)) / "x.parquet")
    assert store.manifest("sample") is None


def test_published_files_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    publish(store, draws((0, "a"), (1, "b")))
    path = tmp_path / "sample" / "draws" / "part-00000.parquet"
    assert store.files("sample", DRAWS) == [str(path)]
    pq.write_table(draws((0, "a")), path)
    with pytest.raises(
        DataError, match="manifest promises 2 rows, found 1; delete the stage's folder and run it again"
    ):
        store.files("sample", DRAWS)
    pq.write_table(pa.table({"draw_id": [0, 1]}), path)
    with pytest.raises(DataError, match="lacks column 'user_id'"):
        store.files("sample", DRAWS)
    bombs.extension(path)
    with pytest.raises(DataError, match="which may run code"):
        store.files("sample", DRAWS)


def test_published_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    publish(store, draws((0, "a")))
    users = pa.array([b"Zo\xeb"]).view(pa.string())
    table = draws((0, "a")).set_column(1, DRAWS.schema.field("user_id"), users)
    pq.write_table(table, tmp_path / "sample" / "draws" / "part-00000.parquet")
    with pytest.raises(DataError, match="Invalid UTF8"):
        store.read("sample", DRAWS)
