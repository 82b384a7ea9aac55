"""The command line of jobs that measure: a settings file or changes to one, ``--dry-run``, ``--json FILE``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recranker.settings import AnySettings, load_settings


def add_arguments(command: argparse.ArgumentParser, config: Path) -> None:
    """What each of them takes; ``config`` is measured unless another file is named."""
    command.add_argument(
        "arguments", nargs="*", metavar="CONFIG or field=value", help=f"TOML file, otherwise {config}; then settings"
    )
    command.add_argument("--dry-run", action="store_true", help="print the resolved settings, then stop")
    command.add_argument("--json", metavar="FILE", type=Path, help="also write all rows to FILE")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with settings that stand behind an option too."""
    parsed, further = parser.parse_known_args(arguments)
    parsed.arguments += [one for one in further if not one.startswith("-")]
    if unknown := [one for one in further if one.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return parsed


def settings_of(
    kind: type[AnySettings], parsed: argparse.Namespace, config: Path, options: dict[str, Any]
) -> AnySettings:
    """The settings asked for; ``options`` that were given go before all else.

    Raises:
        SettingsError: If the file or a value is refused.
    """
    overrides = [one for one in parsed.arguments if "=" in one]
    overrides += [f"{name}={value}" for name, value in options.items() if value is not None]
    path = next((one for one in parsed.arguments if "=" not in one), str(config))
    return load_settings(kind, path, overrides)
