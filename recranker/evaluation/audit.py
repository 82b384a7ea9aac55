"""What the leakage gate found, for people and machines."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from recranker.data.leakage.canaries import Caught
from recranker.data.leakage.checks import Finding


def findings_table(findings: Sequence[Finding]) -> Table:
    """A row per check: rows looked at, and the complaint."""
    table = Table("check", "rows looked at", "finding", title="leakage gate")
    for one in findings:
        said = one.complaint or ("ok" if one.rows else "nothing to look at")
        table.add_row(one.check, f"{one.rows:,}", Text(said, style="red" if one.complaint else ""))
    return table


def findings_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The same as plain values."""
    rows = [{"check": one.check, "rows": one.rows, "complaint": one.complaint} for one in findings]
    return {"checks": len(rows), "leaks": sum(row["complaint"] is not None for row in rows), "findings": rows}


def canaries_table(caught: Sequence[Caught]) -> Table:
    """A row per canary: what was planted, and which check caught it."""
    table = Table("canary", "trap", "caught by", title="canaries")
    for one in caught:
        by = one.canary.caught_by if one.message else "NOT CAUGHT" if one.planted else "no place to plant it"
        table.add_row(one.canary.name, one.canary.trap, Text(by, style="red" if by == "NOT CAUGHT" else ""))
    return table


def canaries_json(caught: Sequence[Caught]) -> dict[str, Any]:
    """The same as plain values; a canary without a place in this run is listed and not counted as planted."""
    rows = [
        {
            "name": one.canary.name,
            "trap": one.canary.trap,
            "planted": one.planted,
            "caught": one.message is not None,
            "check": one.canary.caught_by,
            "message": one.message,
        }
        for one in caught
    ]
    return {
        "planted": sum(row["planted"] for row in rows),
        "caught": sum(row["caught"] for row in rows),
        "canaries": rows,
    }
