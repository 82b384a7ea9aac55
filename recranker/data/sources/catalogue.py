"""What is known about a source before anything is read of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class SourceFacts:
    """A line of ``python -m jobs.prepare --list``."""

    kind: str
    """What data.source.kind says."""
    users: int | None
    """None: depends on the files."""
    items: int | None
    events: int | None
    ratings: str
    """The scale, or that there is none."""
    order: str
    """What the order of a history comes from."""
    terms: str
    """The owner's licence terms, in a line."""
    download: str
    """Size of what is fetched."""
    where: str
    """Fetched by itself from where, and the setting that names files already there."""


def listing(catalogue: Sequence[SourceFacts]) -> Table:
    """The catalogue for people."""
    table = Table("kind", "data", "terms and where", title="data.source.kind", title_justify="left", show_lines=True)
    table.columns[0].no_wrap = True
    table.columns[2].overflow = "fold"
    for facts in catalogue:
        data = f"{_size(facts)}\nratings: {facts.ratings}\norder: {facts.order}\ndownload: {facts.download}"
        table.add_row(facts.kind, data, f"{facts.terms}\n{facts.where}")
    return table


def _size(facts: SourceFacts) -> str:
    if facts.users is None:
        return "users x items x events: as in the files"
    return f"{facts.users:,} users x {facts.items:,} items x {facts.events:,} events"


def counted(title: str, counts: Mapping[str, float]) -> Table:
    """Counts per step, in their order, for people."""
    table = Table("step", "count", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for name, count in counts.items():
        table.add_row(name.replace("_", " "), f"{count:,}" if float(count).is_integer() else f"{count:.4f}")
    return table
