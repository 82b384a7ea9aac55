"""Which sources shape a stage's output: everything of recranker/ and serve/ that its job file reaches by imports.

The TOML files beside a package's ``__init__.py`` are part of it.
"""

import ast
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ("recranker", "serve")
NEUTRAL = {"errors", "settings", "store", "progress", "tracking", "registry", "cluster"}
"""Modules that cannot change what a stage writes; the values of settings are compared by themselves."""


def code_hash(job: Path) -> str:
    """Digest of a job's file and of all library files behind it."""
    digest = hashlib.sha256()
    files = reachable(job)
    files |= {data for file in files if file.name == "__init__.py" for data in file.parent.glob("*.toml")}
    for file in sorted(files):
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def reachable(start: Path) -> set[Path]:
    """``start`` and every file of the library it imports, directly or through others."""
    found: set[Path] = set()
    waiting = [start]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += [path for module in imports_of(file) if (path := _file_of(module)) is not None]
    return found


def imports_of(file: Path) -> set[str]:
    """Dotted names of all modules, and of names that may be modules, that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _file_of(module: str) -> Path | None:
    parts = module.split(".")
    if parts[0] not in LIBRARY or parts[-1] in NEUTRAL:
        return None
    path = ROOT.joinpath(*parts)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None
