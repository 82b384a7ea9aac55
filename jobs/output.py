"""What jobs show and write for people: a console of a sensible width, results as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from recranker.errors import OutputError


def console(width: int) -> Console:
    """The terminal, or ``width`` characters where the output is none that has a width of its own."""
    return Console() if sys.stdout.isatty() else Console(width=width)


def write_json(path: Path | None, values: dict[str, Any]) -> None:
    """Write what ``--json FILE`` asks for; nothing without a file.

    Raises:
        OutputError: If the file cannot be written.
    """
    if path is None:
        return
    try:
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--json {str(path)!r} cannot be written: {error.strerror}; name another file") from None
