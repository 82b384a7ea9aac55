"""Look for leaks: run every check of the leakage gate over a run's finished stages, or see that the gate catches all.

python -m jobs.audit jobs/configs/quickstart.toml
python -m jobs.audit --canaries --json canaries.json
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from jobs.output import console, write_json
from jobs.settings import JobSettings
from jobs.stage import StageContext, guarded, store_of
from recranker.data.leakage.canaries import Caught, try_canaries
from recranker.data.leakage.checks import Finding, audit
from recranker.data.leakage.tables import GateTables
from recranker.errors import LeakageError, SettingsError
from recranker.evaluation.audit import canaries_json, canaries_table, findings_json, findings_table
from recranker.evaluation.made_up import try_canaries_on_made_up_runs
from recranker.evaluation.shuffled_labels import MIN_LISTS, check_shuffled_labels
from recranker.ranking.refit import refitted
from recranker.schema import CANDIDATES, FIT_EVENTS, INTERACTIONS, ITEMS, PROMPTS, SIGNALS, TableSchema
from recranker.settings import load_settings

SHUFFLED = "shuffled-labels"
SPLITS = ("train", "test")
"""Fitted on, and ranked."""
WIDTH = 140
"""Characters, where the output is no terminal that has a width of its own."""


def tables_of(stage: StageContext) -> GateTables:
    """The run's tables as far as its stages are finished.

    Raises:
        DataError: If not even stage 'prepare' is.
    """

    def published(name: str, table: TableSchema) -> Any:
        manifest = stage.store.manifest(name)
        return stage.read(name, table) if manifest and table.name in manifest.tables else None

    instruct = stage.store.manifest("instruct")
    return GateTables(
        stage.read("prepare", INTERACTIONS),
        stage.facts_of("prepare"),
        items=stage.read("prepare", ITEMS),
        candidates=published("backbone", CANDIDATES),
        fit_events=published("backbone", FIT_EVENTS),
        signals=published("backbone", SIGNALS),
        prompts=published("instruct", PROMPTS),
        hints=instruct.facts.get("hints", stage.settings.instruct.hints) if instruct else None,
        template_hashes=instruct.facts.get("template_hashes", {}) if instruct else {},
    )


def run(parsed: argparse.Namespace) -> None:
    """Print what was found and write it as JSON where asked.

    Raises:
        LeakageError: If there is a leak, or a canary went through.
        SettingsError: If there is nothing to look at.
    """
    if parsed.config is None and not parsed.canaries:
        raise SettingsError("jobs.audit needs the CONFIG of a run to audit, or --canaries to try the gate itself")
    if parsed.config is None:
        _show_canaries(try_canaries_on_made_up_runs(), parsed.json)
        return
    settings = load_settings(JobSettings, parsed.config, parsed.overrides)
    tables = tables_of(StageContext(settings, store_of(settings)))
    _show_findings([*audit(tables), *_shuffled(settings, tables)], None if parsed.canaries else parsed.json)
    if parsed.canaries:  # on a run without leaks of its own
        _show_canaries(list(try_canaries(tables)), parsed.json)


def _shuffled(settings: JobSettings, tables: GateTables) -> list[Finding]:
    """Whether the conventional re-ranker falls to chance once labels are shuffled."""
    if tables.candidates is None or tables.signals is None or tables.items is None:
        return []
    lists = tables.candidates
    hits = {split: pc.sum(lists.filter(pc.equal(lists["split"], split))["hit"]).as_py() or 0 for split in SPLITS}
    if min(hits.values()) < MIN_LISTS:  # too few to fit on, or to tell anything
        return [Finding(SHUFFLED, 0, None)]
    ranker = refitted(tables.interactions, tables.items, tables.signals, tables.facts, settings.backbone, settings.seed)
    try:
        return [Finding(SHUFFLED, check_shuffled_labels(lists, ranker, seed=settings.seed).lists, None)]
    except LeakageError as error:
        return [Finding(SHUFFLED, hits["test"], str(error))]


def _show_findings(findings: list[Finding], path: Path | None) -> None:
    console(WIDTH).print(findings_table(findings))
    write_json(path, findings_json(findings))
    leaks = [one for one in findings if one.complaint]
    if leaks:
        raise LeakageError(f"{len(leaks)} of {len(findings)} checks complain, the first: {leaks[0].complaint}")


def _show_canaries(caught: list[Caught], path: Path | None) -> None:
    result = canaries_json(caught)
    console(WIDTH).print(canaries_table(caught))
    write_json(path, result)
    print(f"{result['planted']} canaries planted, {result['caught']} caught")
    if result["caught"] < result["planted"]:
        raise LeakageError(f"{result['planted'] - result['caught']} canaries went through the leakage gate")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 2 where there is a leak or a canary goes through."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="TOML file of the run; none: a small made-up run")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings that differ")
    parser.add_argument("--canaries", action="store_true", help="plant every trap in copies of the tables")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the result to FILE")
    parsed = parser.parse_intermixed_args(arguments)
    return guarded(lambda: run(parsed))


if __name__ == "__main__":
    sys.exit(main())
