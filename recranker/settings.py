"""The base of all settings, and how they are read.

Order of precedence: defaults, the TOML file, then ``section.field=value`` on the command line.
Importing this module pulls in neither torch nor ray nor mlflow.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from recranker.errors import SettingsError


class Settings(BaseModel):
    """Frozen, refuses unknown keys, and takes each field's description from the line under it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


AnySettings = TypeVar("AnySettings", bound=Settings)


def load_settings(kind: type[AnySettings], path: str, overrides: list[str]) -> AnySettings:
    """Settings of ``kind`` from a TOML file with ``section.field=value`` overrides on top.

    Raises:
        SettingsError: If the file is missing or no TOML, a key is unknown, or a value is refused.
    """
    values = read_toml(path)
    for override in overrides:
        _apply(values, override)
    return check_settings(kind, values, where=", ".join([path, *overrides]))


def read_toml(path: str) -> dict[str, Any]:
    """The tables of a TOML file as they stand.

    Raises:
        SettingsError: If the file is missing or no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"settings file {path!r} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path!r} is not valid TOML: {error}") from None


def check_settings(kind: type[AnySettings], values: dict[str, Any], *, where: str) -> AnySettings:
    """``values`` as settings of ``kind``; every complaint in one line.

    Raises:
        SettingsError: With the path of each refused key, what came, and where.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise SettingsError(f"{where}: {_one_line(error, kind, values)}") from None


def settings_hash(*parts: object) -> str:
    """A short digest that changes when any setting in ``parts`` changes."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise SettingsError(f"an override must read section.field=value, got {override!r}")
    *sections, field = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise SettingsError(f"{override!r}: {section!r} is a value, not a section")
    values[field] = _parse(text)


def _parse(text: str) -> Any:
    """A TOML value where it is one, otherwise the text itself, so that paths need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _one_line(error: ValidationError, kind: type[Settings], values: dict[str, Any]) -> str:
    complaints = []
    for item in error.errors(include_url=False, include_context=False):
        name = ".".join(_as_written(item["loc"], values)) or "settings"
        why, came = item["msg"].removeprefix("Value error, "), item["input"]
        if item["type"] == "extra_forbidden":
            complaints.append(f"unknown setting {name!r}; {_way_out(name, sorted(set(_names(kind))))}")
        elif item["type"] == "missing":
            complaints.append(f"setting {name!r} is missing and has no default")
        elif item["type"] in ("model_type", "model_attributes_type", "dict_type"):
            complaints.append(
                f"setting {name!r} = {came!r} is refused: it is a section, so give its fields: {name}.FIELD="
            )
        elif isinstance(came, dict):  # of a section as a whole, whose values would hide what is wrong with it
            complaints.append(f"{name!r} is refused: {why}")
        else:
            complaints.append(f"setting {name!r} = {came!r} is refused: {why}")
    return "; ".join(complaints)


def _way_out(unknown: str, known: Sequence[str]) -> str:
    if unknown in known:
        return f"another kind of {unknown.rpartition('.')[0]!r} has it"
    near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.8)
    return f"did you mean {near[0]!r}?" if near else "see --dry-run for those that exist"


def _as_written(place: Sequence[int | str], values: Any) -> Iterator[str]:
    """The parts of a setting's name as the user has them: pydantic puts the kind of a section behind its name."""
    is_kind_said = False
    for part in place:
        if not is_kind_said and isinstance(values, dict) and values.get("kind") == part:
            is_kind_said = True
            continue
        is_kind_said = False
        try:
            values = values[part]
        except (LookupError, TypeError):
            values = None
        yield str(part)


def _names(kind: Any, prefix: str = "") -> Iterator[str]:
    """Every setting in ``kind``, a section or a union of them, by its dotted name."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield f"{prefix}{name}"
            yield from _names(field.annotation, f"{prefix}{name}.")
    else:
        for one in get_args(kind):
            yield from _names(one, prefix)
