"""The last job on tables made by hand: what it prints, writes and publishes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs import evaluate
from jobs.stage import main
from recranker.schema import (
    ANSWERS,
    CANDIDATES,
    INTERACTIONS,
    ITEMS,
    RANKINGS,
    SIGNALS,
    USER_RESULTS,
    TableSchema,
)
from recranker.store import Origin, Store
from tests.tables import candidate_list, candidates, interactions

BASELINES = ["backbone", "random", "oracle", "popularity", "trees", "conventional"]
CONFIG = """
name = "small"
[store]
home = "{home}"
[data.source]
kind = "movielens-100k"
[llm]
model = "none"
[evaluation]
bootstrap_samples = 100
[tracking]
uri = "http://127.0.0.1:9"
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Settings of a run whose earlier stages are published: two users, one with a hit that the ranker puts first."""
    events = interactions(("u1", "b", 3, "like", "test"), ("u2", "x", 3, "like", "test"))
    lists = candidates(
        candidate_list("u1", "test", "b", ["a", "b", "c"]), candidate_list("u2", "test", "x", ["a", "b", "c"])
    )
    list_of = {"list_id": "test/u1/b", "user_id": "u1", "split": "test"}
    ranking = {**list_of, "row": "hybrid", "item_ids": ["b", "a", "c"], "scores": [3.0, 2.0, 1.0]}
    pair = {"task": "pairwise", "item_ids": ["a", "b"], "log_probabilities": [-0.1, -2.4], "round": 0}
    answer = {**list_of, "model": "tuned", "answers": [pair], "prompt_tokens": 9, "cut_lines": 0}
    store = Store(str(tmp_path / "home" / "runs" / "small"))
    items = pa.Table.from_pylist(
        [{"item_id": item, "title": item, "genres": ["g"]} for item in "abcx"], schema=ITEMS.schema
    )
    signals = pa.Table.from_pylist(
        [{"list_id": f"test/{key}", "signal": "trees", "scores": [0.0, 1.0, 2.0]} for key in ("u1/b", "u2/x")],
        schema=SIGNALS.schema,
    )
    publish(store, "prepare", {"source": "toy"}, (INTERACTIONS, events), (ITEMS, items))
    publish(store, "backbone", {}, (CANDIDATES, lists), (SIGNALS, signals))
    rankings = pa.Table.from_pylist([ranking], schema=RANKINGS.schema)
    facts = {"learned_weights": {"pairwise": 1.0}}
    publish(
        store, "rank", facts, (RANKINGS, rankings), (ANSWERS, pa.Table.from_pylist([answer], schema=ANSWERS.schema))
    )
    (tmp_path / "small.toml").write_text(CONFIG.format(home=tmp_path / "home"))
    return str(tmp_path / "small.toml")


def publish(store: Store, stage: str, facts: dict[str, Any], *tables: tuple[TableSchema, pa.Table]) -> None:
    with store.publish(stage, Origin("", "", {})) as writer:
        writer.facts.update(facts)
        for schema, table in tables:
            writer.write(schema, table)


def test_the_table_is_printed_written_and_published(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(evaluate.STAGE, [config, "--json", str(tmp_path / "results.json")]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["row"] for row in rows] == [*BASELINES, "hybrid"]
    assert [rows[-1][name] for name in ("ndcg_at_3", "users", "users_with_hit")] == [0.5, 2, 1]
    printed = capsys.readouterr().out
    assert "2 users, 1 with their target among the candidates" in printed
    assert "1 users, 1 with their target among the candidates" in printed
    assert "position bias, tuned: pair_first_rate 0.000" in printed
    published = tmp_path / "home/runs/small/evaluate"
    assert (published / "plots/ndcg_at_3.png").exists()
    assert f"report: {published / 'report/report.html'}" in printed
    assert "<h3>hybrid</h3>" in (published / "report/report.html").read_text(encoding="utf-8")
    of_users = Store(str(published.parent)).read("evaluate", USER_RESULTS)
    assert set(of_users["user_id"].to_pylist()) == {"u1"}
    assert of_users["row"].to_pylist() == sorted([*BASELINES, "hybrid"])


def test_backbones_are_compared_without_any_stage_of_the_model(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "home/runs/small/rank")
    assert main(evaluate.STAGE, [config]) == 2
    assert "stage 'rank' has no finished output" in capsys.readouterr().err
    assert main(evaluate.BACKBONES, [config, "--json", str(tmp_path / "results.json")]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["row"] for row in rows] == BASELINES
    assert "position bias" not in capsys.readouterr().out


def test_the_report_names_no_place_of_this_machine(config: str, tmp_path: Path) -> None:
    assert main(evaluate.STAGE, [config]) == 0
    page = (tmp_path / "home/runs/small/evaluate/report/report.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in page
    assert "127.0.0.1" not in page


def test_a_skipped_stage_still_shows_its_results(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(evaluate.STAGE, [config]) == 0
    first = capsys.readouterr().out
    assert main(evaluate.STAGE, [config]) == 0
    assert capsys.readouterr().out == first


def test_a_json_path_that_cannot_be_written_is_one_line_and_exit_code_two(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(evaluate.STAGE, [config, "--json", str(tmp_path / "no" / "results.json")]) == 2
    assert "results.json' cannot be written: No such file or directory" in capsys.readouterr().err
