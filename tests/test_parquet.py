"""Parquet files at the door: what is let in, and what is refused before it is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from recranker.errors import DataError
from recranker.parquet import Door, ParquetLimits, Section, parquet_files
from recranker.parquet_format import Broken, footer_of
from recranker.store import MANIFEST
from tests import bombs

MB = 1 << 20


def admit(*files: Path, columns: list[str] | None = None, **limits: float) -> list[Section]:
    door = Door(fs.LocalFileSystem(), ParquetLimits.model_validate(limits), "raise {}")
    return door.admit([str(file) for file in files], columns)


def refused(*files: Path, **limits: float) -> str:
    with pytest.raises(DataError) as caught:
        admit(*files, **limits)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_table_is_let_in_however_it_is_written(tmp_path: Path, codec: str, version: str) -> None:
    texts = [f"title {number}" for number in range(3000)]
    columns = {"n": np.arange(3000), "text": texts, "lists": [["a", "bb"], []] * 1500, "flag": [True, None] * 1500}
    options = {"compression": codec, "data_page_version": version, "data_page_size": 1000, "row_group_size": 1000}
    for number, extra in enumerate(({}, {"use_dictionary": False}, {"write_page_checksum": True})):
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet", **options, **extra)
        found = admit(tmp_path / f"{number}.parquet")
        assert found == [Section(str(tmp_path / f"{number}.parquet"), group, 1000) for group in range(3)]


def test_memory_is_bounded_by_the_longest_text_of_a_dictionary(tmp_path: Path) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 999 + [1], pa.int8()), pa.array(["a", "x" * 4996]))
    path = tmp_path / "x.parquet"
    for codec in ("none", "snappy", "gzip", "brotli", "zstd", "lz4"):
        pq.write_table(pa.table({"text": text}), path, store_schema=False, compression=codec)
        assert "5 MB in memory" in refused(path, max_column_mb=1)  # 1000 values of 4 + 4996 bytes: 4.8 MB


def test_only_texts_that_a_dictionary_stands_for_count_as_long_as_its_longest(tmp_path: Path) -> None:
    texts = [f"{number:04d}" + "x" * 5000 for number in range(1000)]  # 5 MB, the dictionary ends at 50 kB
    path, options = tmp_path / "x.parquet", {"dictionary_pagesize_limit": 50_000, "write_batch_size": 10}
    pq.write_table(pa.table({"text": texts}), path, compression="none", **options)
    assert admit(path, max_column_mb=6)[0].rows == 1000


def test_text_that_repeats_what_came_before_is_bounded_too(tmp_path: Path) -> None:
    path, texts = tmp_path / "x.parquet", ["x" * 10_000 + str(number) for number in range(1000)]
    options = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    pq.write_table(pa.table({"text": texts}), path, **options)
    assert path.stat().st_size < MB  # but 10 MB in memory
    assert "column 'text'" in refused(path, max_column_mb=9)


def test_limits_hold_for_all_files_together(tmp_path: Path) -> None:
    for name in "ab":
        pq.write_table(pa.table({"n": range(100)}), tmp_path / f"{name}.parquet", row_group_size=50)
    both = tmp_path / "a.parquet", tmp_path / "b.parquet"
    assert len(admit(*both, max_rows=200, max_row_groups=4)) == 4
    assert "b.parquet': 200 rows so far, allowed are 199; raise max_rows" in refused(*both, max_rows=199)
    assert "b.parquet': 4 row groups so far, allowed are 3" in refused(*both, max_row_groups=3)


def test_only_columns_that_are_read_count(tmp_path: Path) -> None:
    path, wide = tmp_path / "x.parquet", ["x" * 1000 + str(number) for number in range(3000)]
    pq.write_table(pa.table({"n": range(3000), "wide": wide, "n.b": wide}), path)
    assert admit(path, columns=["n"], max_table_mb=1)[0].rows == 3000
    with pytest.raises(DataError, match="MB in memory at most, all so far, allowed are 1; raise max_table_mb"):
        admit(path, columns=["wide"], max_table_mb=1)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every bomb, by the name of what makes it."""
    folder = tmp_path_factory.mktemp("bombs")
    makers = (bombs.claims_billions, bombs.expands, bombs.long_text, bombs.lying_pages, bombs.deep)
    for make in makers:
        make(folder / f"{make.__name__}.parquet")
    return {make.__name__: folder / f"{make.__name__}.parquet" for make in makers}


@pytest.mark.parametrize(
    ("bomb", "says"),
    [
        ("claims_billions", "4,000,000,000 rows, allowed are 1,000,000,000; raise max_rows"),
        ("expands", "times the size of the files, once in memory, allowed are 100; raise max_expansion"),
        ("long_text", "row group 0, column 'title': 100,001 MB in memory at most, allowed are 4,096"),
        ("lying_pages", "column 'rating': its pages hold 8388608 values, the footer says 20000"),
        ("deep", "its columns are nested 33 deep, needed at most 32"),
    ],
)
def test_a_bomb_is_refused(planted: dict[str, Path], bomb: str, says: str) -> None:
    assert planted[bomb].stat().st_size < MB
    assert says in refused(planted[bomb])


def test_row_groups_that_share_their_bytes_are_refused(planted: dict[str, Path]) -> None:
    assert "its columns overlap or lie outside it" in refused(planted["claims_billions"], max_rows=1e12)


def test_code_of_an_extension_type_is_never_run(tmp_path: Path) -> None:
    run: list[str] = []

    class Planted(pa.ExtensionType):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(pa.float64(), "recranker.planted")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Planted":
            run.append("code")
            return cls()

    planted = pa.ExtensionArray.from_storage(Planted(), pa.array([4.0]))
    pa.register_extension_type(Planted())
    try:
        for before in range(6):  # wherever in its base64 the name falls
            pq.write_table(pa.table({"a" * (before + 1): [1], "rating": planted}), tmp_path / "x.parquet")
            assert "a column of an extension type, which may run code" in refused(tmp_path / "x.parquet")
        assert run == []
        pq.read_schema(tmp_path / "x.parquet")
        assert "code" in run  # what the door has kept out
    finally:
        pa.unregister_extension_type("recranker.planted")


def test_what_is_no_footer_is_said_to_be_none() -> None:
    for text in (b"", b"\x00", b"\x15", b"\x19\xfc\xff\xff\xff\xff\x7f", b"\x1c" * 100, b"\x15" + b"\xff" * 20):
        with pytest.raises(Broken):
            footer_of(text)


def test_mutated_files_are_let_in_or_refused_and_nothing_else(tmp_path: Path) -> None:
    """Some of these footers end the process when Arrow's own metadata is looked at."""
    path, random, complaints = tmp_path / "x.parquet", np.random.default_rng(0), []
    pq.write_table(pa.table({"user_id": [f"u{n % 7}" for n in range(99)], "genres": [["a"]] * 99}), path)
    good = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    for _ in range(300):
        mutant = good.copy()
        mutant[random.integers(0, len(good), size=2)] = random.integers(0, 256, size=2)
        path.write_bytes(mutant.tobytes())
        try:
            admit(path)
        except DataError as error:
            complaints.append(str(error))
    assert 50 < len(complaints) < 300
    assert all(one.isprintable() for one in complaints)


@pytest.mark.parametrize("kept", [0, 3, 11, 40, -9, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"n": [1]}), path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "cannot be read: it does not end as a Parquet file does" in refused(path)


def test_hidden_files_are_no_data(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "_SUCCESS", ".a.crc", "_old/c.parquet", "day=1/d.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = parquet_files(fs.LocalFileSystem(), str(tmp_path))
    assert [Path(one).name for one in found] == ["a.parquet", "b.parquet", "d.parquet"]


WATCHED = """
import sys
from pathlib import Path
from recranker.data.sources.registry import read_source
from recranker.data.sources.settings import FilesSource
from recranker.errors import DataError
from recranker.schema import RESULTS
from recranker.store import Store

def peak_mb():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024

before = peak_mb()
for bomb in sys.argv[2:]:
    source = FilesSource(kind="files", interactions=bomb, items=bomb, rating_column="rating", time_column="timestamp")
    for read in (lambda: read_source(source, Path()), lambda: Store(sys.argv[1]).read(Path(bomb).stem, RESULTS)):
        try:
            read()
            print("let in", bomb)
        except DataError:
            print("refused")
print(peak_mb() - before)
"""


def test_a_refused_bomb_takes_no_memory(tmp_path: Path, planted: dict[str, Path]) -> None:
    for path in planted.values():
        publish_as_it_is(tmp_path / "run", path)
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "run"), *map(str, planted.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *outcomes, peak = done.stdout.split("\n")[:-1]
    assert outcomes == ["refused"] * 2 * len(planted)
    assert int(peak) < 500


def publish_as_it_is(home: Path, path: Path) -> None:
    """A stage whose table 'results' is the bomb; its manifest promises what the bomb's footer does."""
    folder = home / path.stem / "results"
    folder.mkdir(parents=True)
    (folder / "part-00000.parquet").write_bytes(path.read_bytes())
    promised = {"results": {"rows": pq.read_metadata(path).num_rows, "hash": ""}}
    origin = {"settings": "", "code": "", "inputs": {}}
    manifest = {"stage": path.stem, "origin": origin, "tables": promised}
    (folder.parent / MANIFEST).write_text(json.dumps(manifest))
