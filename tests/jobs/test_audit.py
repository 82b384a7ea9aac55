"""The audit's command line: canaries, a clean run, a leak."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import audit
from recranker.data.leakage.canaries import CANARIES
from recranker.data.leakage.checks import CHECKS
from recranker.evaluation.made_up import made_up_run
from recranker.schema import CANDIDATES, FIT_EVENTS, INTERACTIONS, ITEMS, PROMPTS, SIGNALS
from recranker.store import Origin, Store


def _published(folder: Path, *, leak: bool) -> str:
    """A made-up run as its stages would have published it; returns its settings file."""
    run = made_up_run()
    store = Store(str(folder / "home" / "runs" / "small"))
    fits = run.fit_events
    if leak:
        target = next(row for row in run.interactions.to_pylist() if row["split"] == "test")
        row = {"fold": "full", "user_id": target["user_id"], "item_id": target["item_id"]}
        fits = pa.concat_tables([fits, pa.Table.from_pylist([row], schema=fits.schema)])
    stages = {
        "prepare": {INTERACTIONS: run.interactions, ITEMS: run.items},
        "backbone": {CANDIDATES: run.candidates, SIGNALS: run.signals, FIT_EVENTS: fits},
        "instruct": {PROMPTS: run.prompts},
    }
    for name, tables in stages.items():
        with store.publish(name, Origin("settings", "code", {})) as writer:
            for schema, table in tables.items():
                writer.write(schema, table)
            writer.facts.update(run.facts if name == "prepare" else {})
    config = folder / "small.toml"
    config.write_text(
        f'name = "small"\n[store]\nhome = "{folder / "home"}"\n[data.source]\nkind = "files"\n'
        'interactions = "made-up.csv"\nitems = "made-up.csv"\n[llm]\nmodel = "smollm2-135m-instruct"\n'
    )
    return str(config)


def test_all_canaries_of_the_made_up_runs_are_caught(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "canaries.json"
    assert audit.main(["--canaries", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["planted"] == result["caught"] == len(result["canaries"]) == len(CANARIES) >= 14
    assert set(result["canaries"][0]) >= {"name", "trap", "caught", "message"}
    assert f"{len(CANARIES)} canaries planted, {len(CANARIES)} caught" in capsys.readouterr().out


def test_a_canary_that_goes_through_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recranker.data.leakage.canaries.complaint_of", lambda tables, checks: None)
    assert audit.main(["--canaries"]) == 2
    assert "canaries went through the leakage gate" in capsys.readouterr().err


def test_a_clean_run_is_ok_check_by_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, file = _published(tmp_path, leak=False), tmp_path / "audit.json"
    assert audit.main([config, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert (result["checks"], result["leaks"]) == (len(CHECKS) + 1, 0)  # and the labels shuffled
    assert result["findings"][-1]["check"] == "shuffled-labels"
    assert sum(one["rows"] > 0 for one in result["findings"]) >= len(CHECKS) - 2  # time split, stated templates
    assert "hints-quoted" in capsys.readouterr().out


def test_a_leak_in_a_published_run_ends_with_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main([_published(tmp_path, leak=True)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "the first: a fit saw an event that is not a training event" in said[0]


def test_canaries_are_planted_in_copies_of_a_published_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main([_published(tmp_path, leak=False), "--canaries"]) == 0
    assert f"{len(CANARIES) - 1} canaries planted, {len(CANARIES) - 1} caught" in capsys.readouterr().out


def test_nothing_to_look_at_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main([]) == 2
    assert "needs the CONFIG of a run to audit, or --canaries" in capsys.readouterr().err
