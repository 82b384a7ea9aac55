"""All checks in order, and the three doors through which stages pass their tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from recranker.data.leakage import candidates as candidate_checks
from recranker.data.leakage import hints as hint_checks
from recranker.data.leakage import interactions as interaction_checks
from recranker.data.leakage import prefixes, signals
from recranker.data.leakage import prompts as prompt_checks
from recranker.data.leakage.gate import Check
from recranker.data.leakage.tables import GateTables
from recranker.errors import LeakageError

OF_INTERACTIONS = interaction_checks.CHECKS
OF_CANDIDATES = candidate_checks.CHECKS + signals.CHECKS
OF_PROMPTS = prompt_checks.CHECKS + hint_checks.CHECKS + prefixes.CHECKS
CHECKS: tuple[Check, ...] = OF_INTERACTIONS + OF_CANDIDATES + OF_PROMPTS


@dataclass(frozen=True)
class Finding:
    """What one check made of one run."""

    check: str
    rows: int
    """Rows looked at; 0 where it had nothing to look at."""
    complaint: str | None
    """None: nothing to complain of."""


def run_checks(tables: GateTables, checks: Sequence[Check] = CHECKS) -> None:
    """Run the checks that have something to look at, in order.

    Raises:
        LeakageError: The first complaint: the trap, a user and an item, and the way out.
    """
    for check in checks:
        if check.can_run(tables):
            check.run(tables)


def audit(tables: GateTables, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """What each check finds, whatever the others found."""
    findings = []
    for check in checks:
        able = check.can_run(tables)
        rows = getattr(tables, check.table).num_rows if able else 0
        findings.append(Finding(check.name, rows, complaint_of(tables, [check])))
    return findings


def complaint_of(tables: GateTables, checks: Sequence[Check] = CHECKS) -> str | None:
    """The first complaint, None where there is none."""
    try:
        run_checks(tables, checks)
    except LeakageError as error:
        return str(error)
    return None


def check_interactions(interactions: pa.Table, facts: Mapping[str, Any]) -> None:
    """Order, scale, feedback and split of the table agree with one another and with the facts.

    Args:
        interactions: Rows of ``schema.INTERACTIONS`` in any order.
        facts: Of stage 'prepare'.

    Raises:
        LeakageError: Naming the trap, a user and an item, and the way out.
    """
    run_checks(GateTables(interactions, facts), OF_INTERACTIONS)


def check_candidates(
    interactions: pa.Table,
    candidates: pa.Table,
    fit_events: pa.Table,
    facts: Mapping[str, Any],
    *,
    signals: pa.Table | None = None,
) -> None:
    """No fit saw what its lists ask for, no list gives its target away, and every number belongs to its candidate.

    Args:
        interactions: Rows of ``schema.INTERACTIONS``.
        candidates: Rows of ``schema.CANDIDATES``.
        fit_events: Rows of ``schema.FIT_EVENTS``.
        facts: Of stage 'prepare'.
        signals: Rows of ``schema.SIGNALS``.

    Raises:
        LeakageError: Naming the trap, a user and an item, and the way out.
    """
    tables = GateTables(interactions, facts, candidates=candidates, fit_events=fit_events, signals=signals)
    run_checks(tables, OF_CANDIDATES)


def check_prompts(
    interactions: pa.Table,
    candidates: pa.Table,
    prompts: pa.Table,
    *,
    items: pa.Table | None = None,
    signals: pa.Table | None = None,
    hints: str | None = None,
    template_hashes: Mapping[str, str] | None = None,
) -> None:
    """Prompts ask about their own list, know no answer and no future, and quote only what the signals say.

    Args:
        interactions: Rows of ``schema.INTERACTIONS``.
        candidates: Rows of ``schema.CANDIDATES``.
        prompts: Rows of ``schema.PROMPTS``.
        items: Rows of ``schema.ITEMS``; without them prefixes are not looked at.
        signals: Rows of ``schema.SIGNALS``, where a hint quotes one.
        hints: What the questions quote ('reranker', 'backbone', a signal's name, 'none'); without it, not looked at.
        template_hashes: Split -> digest of the template its prompts were made with.

    Raises:
        LeakageError: Naming the trap, a user and an item, and the way out.
    """
    tables = GateTables(
        interactions,
        {},
        items=items,
        candidates=candidates,
        signals=signals,
        prompts=prompts,
        hints=hints,
        template_hashes=template_hashes or {},
    )
    run_checks(tables, OF_PROMPTS)
