import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recranker.errors import DataError, OutputError
from recranker.schema import DRAWS, QUARANTINE, TABLES_OF
from recranker.store import LOCK, MANIFEST, Origin, Store, locked, logical_hash, outside_fingerprint

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
    with pytest.raises(DataError, match="not readable as Parquet"):
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
