"""The texts of prompts: versioned files that a user can replace, checked before anything is made of them.

What must not change with the words is kept out of the files: labels, hints and the line a title stands on are what the
leakage gate reads.
"""

from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from string import Formatter

from pydantic import field_validator
from pydantic_core.core_schema import ValidationInfo

from recranker.errors import SettingsError
from recranker.settings import Settings, check_settings, read_toml
from recranker.tasks import templates

PLACEHOLDERS = {
    "like": ("title",),
    "rating": ("title", "lowest", "highest"),
    "pair": ("first", "second"),
    "list": ("items",),
}
"""What each question's text must hold, each once."""


class PrefixTexts(Settings):
    """What all questions about a user share, the titles left out."""

    instructions: str
    """What questions have in common; one line or more."""
    disliked: str
    """The line above disliked titles; left out where there are none."""
    liked: str
    """The line above liked titles."""
    nothing_liked: str
    """The line in their place where there are none."""

    @field_validator("*")
    @classmethod
    def _plain(cls, text: str, info: ValidationInfo) -> str:
        if not text.strip():
            raise ValueError("must not be empty")
        if "{" in text or "}" in text:
            raise ValueError("takes no placeholders, so no braces either")
        if info.field_name != "instructions" and "\n" in text:
            raise ValueError("must be one line")
        return text


class QuestionTexts(Settings):
    """What each kind of question asks, with placeholders for what differs from one to the next."""

    like: str
    """Pointwise, answered by Yes or No: {title}."""
    rating: str
    """Pointwise, answered by a rating: {title}, {lowest} and {highest}."""
    pair: str
    """Pairwise, Yes where the first is preferred: {first} and {second}."""
    list: str
    """Listwise, answered by a letter: {items}, on lines of their own."""

    @field_validator("*")
    @classmethod
    def _with_placeholders(cls, text: str, info: ValidationInfo) -> str:
        needed = PLACEHOLDERS[str(info.field_name)]
        found = _placeholders(text)
        complaints = [f"lacks placeholder {{{name}}}" for name in needed if name not in found]
        complaints += [f"has unknown placeholder {{{name}}}" for name in sorted(set(found) - set(needed))]
        complaints += [f"has {{{name}}} {found.count(name)} times" for name in needed if found.count(name) > 1]
        if not complaints and info.field_name == "list" and "{items}" not in text.split("\n"):
            complaints.append("must have {items} on a line of its own")
        if complaints:
            raise ValueError(" and ".join(complaints))
        return text


class Templates(Settings):
    """All texts of one version."""

    version: str
    """Said in the facts of the stage that makes prompts."""
    prefix: PrefixTexts
    questions: QuestionTexts


def load_templates(path: str | None) -> Templates:
    """The texts in ``path``, or this version's own.

    Args:
        path: A TOML file, or a folder that holds just one.

    Raises:
        SettingsError: If there is no such file, or a text is missing, unknown or lacks a placeholder; all complaints
            in one line.
    """
    if path is None:
        return default_templates()
    file = Path(path).expanduser()
    if file.is_dir():
        found = sorted(file.glob("*.toml"))
        if len(found) != 1:
            names = [one.name for one in found]
            raise SettingsError(f"instruct.templates: needed one *.toml in {path!r}, found {names}; name the file")
        file = found[0]
    return check_settings(Templates, read_toml(str(file)), where=f"instruct.templates: {str(file)!r}")


@lru_cache(maxsize=1)
def default_templates() -> Templates:
    """The texts that are used where none are named."""
    return load_templates(str(files(templates) / "default.toml"))


def _placeholders(text: str) -> list[str]:
    """Names of the placeholders as they come; whatever else stands in their braces is part of the name."""
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"has braces that do not pair up ({error}); write a brace itself as {{{{ or }}}}") from None
    return [
        f"{name}{'!' + turned if turned else ''}{':' + form if form else ''}"
        for _, name, form, turned in parsed
        if name is not None
    ]
