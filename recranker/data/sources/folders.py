"""Where the files of a known data set are."""

from collections.abc import Sequence
from pathlib import Path

from recranker.errors import DataError


def files_in(path: str, names: Sequence[str]) -> list[Path]:
    """The named files of a folder, each as it is or packed (``.gz``).

    Raises:
        DataError: If the folder or one of them is not there.
    """
    return [beside(Path(path).expanduser() / names[0], name, names) for name in names]


def beside(path: Path, name: str, names: Sequence[str]) -> Path:
    """The file ``name`` in the folder of ``path``, as it is or packed (``.gz``).

    Raises:
        DataError: If it is not there.
    """
    for one in (path.with_name(name), path.with_name(f"{name}.gz")):
        if one.is_file():
            return one
    needed = " and ".join(names)
    raise DataError(f"'{path.with_name(name)}' is not there; data.source.path must be the folder with {needed}")
