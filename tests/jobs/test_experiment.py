"""Experiments over stages made by hand, which publish in no time; once over the real ones."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs import experiment
from jobs.cells import jobs_of, stages_of
from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext
from recranker.errors import DataError, SettingsError
from recranker.experiments import ExperimentSettings
from recranker.schema import INTERACTIONS, RESULTS, USER_RESULTS
from recranker.settings import check_settings, load_settings
from recranker.store import locked
from tests.jobs.small import ROOT, environment, job, write_config
from tests.tables import interactions

BASE = """
name = "base"
[store]
home = "{home}"
[data]
like_at_least = 4
[data.source]
kind = "movielens-100k"
[llm]
model = "none"
[tracking]
uri = "{tracking}"
"""
GRID = """
name = "grid"
base = "base.toml"
seeds = [0, 1]
stages = ["prepare", "backbone", "evaluate"]
[axes.dataset.toy]
[axes.dataset.strict]
"data.like_at_least" = 5
[axes.backbone.narrow]
"backbone.retriever" = { kind = "mf", dim = 8 }
[axes.backbone.wide]
"backbone.retriever" = { kind = "mf", dim = 16 }
[grid]
"evaluation.bootstrap_samples" = [100, 200]
"""
NOBODY = "http://127.0.0.1:9"
RAN: list[str] = []
"""Names of the stages that have run, in order."""


def prepare(settings: JobSettings, stage: StageContext) -> None:
    """Two test users."""
    RAN.append("prepare")
    stage.write(INTERACTIONS, interactions(("u1", "b", 3, "like", "test"), ("u2", "x", 3, "like", "test")))
    stage.facts["strict"] = settings.data.like_at_least == 5


def backbone(settings: JobSettings, stage: StageContext) -> None:
    """No candidates, but what ``judge`` needs; fails, or is stopped, where the test says so."""
    RAN.append("backbone")
    trap = Path(settings.store.home) / "trap"
    retriever = settings.backbone.retriever.model_dump()
    if trap.exists() and retriever["dim"] == 16:
        raise {"error": DataError, "interrupt": KeyboardInterrupt}[trap.read_text()]("no likes left")
    facts = {"validation_hits": 1, "validation_lists": 2, "test_hits": 1, "test_lists": 4}
    stage.facts.update(facts | {"dim": retriever["dim"], "seed": settings.seed})


def judge(settings: JobSettings, stage: StageContext) -> None:
    """User u1 gets dim / 100 (and 0.1 more under seed 1) in every metric, u2 is a miss."""
    RAN.append("evaluate")
    facts = stage.facts_of("backbone")
    value = facts["dim"] / 100 + 0.1 * facts["seed"]
    metrics = ("hr_at_3", "ndcg_at_3", "hr_at_5", "ndcg_at_5")
    row = dict.fromkeys(metrics, value / 2) | {"difference_low": 0.0, "difference_high": 0.0}
    row |= {"row": "backbone", "users": 2, "users_with_hit": 1}
    user = {"row": "backbone", "user_id": "u1"} | dict.fromkeys(metrics, value)
    stage.write(RESULTS, pa.Table.from_pylist([row], schema=RESULTS.schema))
    stage.write(USER_RESULTS, pa.Table.from_pylist([user], schema=USER_RESULTS.schema))


STAGES = [
    Stage(
        "prepare",
        prepare,
        sections=("data",),
        outside=lambda settings: settings.data.source.model_dump(include={"path", "interactions"}),
    ),
    Stage("backbone", backbone, reads=("prepare",), sections=("backbone",)),
    Stage("evaluate", judge, reads=("prepare", "backbone"), sections=("evaluation",)),
]


@pytest.fixture(autouse=True)
def _stages_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "stages_of", lambda _: STAGES)
    RAN.clear()


def write_grid(folder: Path, *, text: str = GRID, tracking: str = NOBODY) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "base.toml").write_text(BASE.format(home=folder / "home", tracking=tracking))
    (folder / "grid.toml").write_text(text)
    return str(folder / "grid.toml")


def outputs(folder: Path) -> dict[str, int]:
    """How many outputs of each stage are published."""
    found = (folder / "home/runs/experiments/grid").glob("*/*/_manifest.json")
    return dict(Counter(path.parent.parent.name for path in found))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an experiment of 16 cells, recorded with MLflow."""
    folder = tmp_path_factory.mktemp("experiment")
    grid = write_grid(folder, tracking=f"sqlite:///{folder}/mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "stages_of", lambda _: STAGES)
        assert experiment.main([grid, "--json", str(folder / "out.json")]) == 0
    return folder


def test_stages_that_cells_share_run_once(finished: Path) -> None:
    assert outputs(finished) == {"prepare": 4, "backbone": 8, "evaluate": 16}  # of 16 cells


def test_the_table_holds_means_over_seeds_and_paired_differences(finished: Path) -> None:
    rows = json.loads((finished / "out.json").read_text())["rows"]
    assert [(row["dataset"], row["row"]) for row in rows[:4]] == [
        ("toy", "narrow bootstrap_samples=100"),
        ("toy", "narrow bootstrap_samples=200"),
        ("toy", "wide bootstrap_samples=100"),
        ("toy", "wide bootstrap_samples=200"),
    ]
    assert [row["dataset"] for row in rows] == ["toy"] * 4 + ["strict"] * 4
    assert [row["ndcg_at_3"] for row in rows[:4]] == pytest.approx([0.065, 0.065, 0.105, 0.105])
    wide = rows[2]
    assert (wide["seeds"], wide["users"], wide["against"]) == (2, 2, "narrow bootstrap_samples=100")
    assert wide["ndcg_at_3_difference"] == pytest.approx(0.04)
    assert wide["ndcg_at_3_std"] == pytest.approx(0.05 / 2**0.5)
    assert {"hr_at_3", "ndcg_at_3", "hr_at_5", "ndcg_at_5", "ndcg_at_3_low", "ndcg_at_3_high"} <= set(wide)


def test_table_and_plot_lie_beside_the_stages(finished: Path) -> None:
    folder = finished / "home/runs/experiments/grid/summary"
    assert json.loads((folder / "table.json").read_text()) == json.loads((finished / "out.json").read_text())
    assert (folder / "table.csv").read_text().count("\n") == 9
    assert (
        (folder / "table.md")
        .read_text()
        .splitlines()[4]
        .startswith("| toy | 2 | wide bootstrap_samples=100 | 0.1050 |")
    )
    assert (folder / "ndcg_at_3.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (folder / "ndcg_at_3.svg").read_text()


def runs_of(folder: Path) -> tuple[Any, list[Any], list[Any]]:
    """The experiment's MLflow run, those of its cells, those of their stages."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("recranker").experiment_id], order_by=["start_time"])
    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in runs}
    top = next(run for run in runs if parents[run.info.run_id] is None)
    cells = [run for run in runs if parents[run.info.run_id] == top.info.run_id]
    below = [run for run in runs if parents[run.info.run_id] in {cell.info.run_id for cell in cells}]
    assert len(runs) == 1 + len(cells) + len(below)
    top.artifacts = [one.path for one in client.list_artifacts(top.info.run_id, "summary")]
    return top, cells, below


def test_every_cell_has_all_settings_under_the_same_names(finished: Path) -> None:
    top, cells, below = runs_of(finished)
    assert len(cells) == 16
    assert {frozenset(cell.data.params) for cell in cells} == {frozenset(cells[0].data.params)}
    params = cells[0].data.params
    assert params["axis.backbone"] in ("narrow", "wide")
    assert {"axis.dataset", "axis.evaluation.bootstrap_samples", "seed", "backbone.retriever.dim"} <= set(params)
    assert (top.data.params["llm.model"], "seed" in top.data.params) == ("none", False)
    assert len(below) == 4 + 8 + 16  # only stages that ran


def test_every_cell_and_the_experiment_have_numbers_to_compare(finished: Path) -> None:
    top, cells, _ = runs_of(finished)
    wide = next(
        one for one in cells if one.info.run_name.endswith("backbone=wide evaluation.bootstrap_samples=100 seed=1")
    )
    assert wide.data.metrics["eval/ndcg_at_3"] == pytest.approx(0.13)
    assert wide.data.metrics["backbone/test_hr_at_10"] == 0.25
    assert {"time/seconds", "stages/run"} <= set(wide.data.metrics)
    assert top.data.metrics["summary/toy/wide bootstrap_samples_100/ndcg_at_3"] == pytest.approx(0.105)
    assert sorted(Path(path).suffix for path in top.artifacts) == [".csv", ".json", ".md", ".png", ".svg"]
    assert {one.info.status for one in (top, *cells)} == {"FINISHED"}


def test_a_second_run_skips_all_stages_and_prints_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path)
    assert experiment.main([grid]) == 0
    first = capsys.readouterr()
    assert "cell 3 of 16, dataset=toy backbone=narrow evaluation.bootstrap_samples=200 seed=0, about " in first.err
    RAN.clear()
    assert experiment.main([grid]) == 0
    again = capsys.readouterr()
    assert RAN == []
    assert again.out == first.out
    assert "left" not in again.err


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path)
    assert experiment.main([grid, "seeds=[0]", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("seed=0: prepare run, backbone run, evaluate run")
    assert lines[1].endswith("samples=200 seed=0: prepare shared, backbone shared, evaluate run")
    assert lines[-1] == "8 cells; to run: 2 prepare, 4 backbone, 8 evaluate"
    assert (RAN, outputs(tmp_path)) == ([], {})
    assert experiment.main([grid, "seeds=[0]", "grid={}", "settings.evaluation.bootstrap_samples=100"]) == 0
    capsys.readouterr()
    assert experiment.main([grid, "seeds=[0]", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("prepare skipped, backbone skipped, evaluate skipped")
    assert lines[-1] == "8 cells; to run: 0 prepare, 0 backbone, 4 evaluate"


def set_trap(folder: Path, kind: str) -> Path:
    (folder / "home").mkdir(exist_ok=True)
    (folder / "home" / "trap").write_text(kind)
    return folder / "home" / "trap"


def test_a_failing_cell_is_named_and_what_is_finished_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, trap = write_grid(tmp_path), set_trap(tmp_path, "error")
    assert experiment.main([grid, "grid={}"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: cell dataset=toy backbone=wide seed=0: no likes left"
    trap.unlink()
    RAN.clear()
    assert experiment.main([grid, "grid={}"]) == 0
    assert Counter(RAN) == {"prepare": 2, "backbone": 6, "evaluate": 6}  # all but the two narrow cells on toy


def test_an_interrupted_experiment_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, trap = write_grid(tmp_path), set_trap(tmp_path, "interrupt")
    assert experiment.main([grid, "grid={}"]) == 130
    assert outputs(tmp_path) == {"prepare": 2, "backbone": 2, "evaluate": 2}
    assert list((tmp_path / "home/runs/experiments/grid/backbone").glob(".*.partial"))
    trap.unlink()
    assert experiment.main([grid, "grid={}"]) == 0
    assert outputs(tmp_path) == {"prepare": 4, "backbone": 8, "evaluate": 8}
    whole = capsys.readouterr().out
    write_grid(tmp_path / "other")
    assert experiment.main([str(tmp_path / "other" / "grid.toml"), "grid={}"]) == 0
    assert capsys.readouterr().out == whole


def test_with_keep_going_the_other_cells_are_run_and_the_failed_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path)
    set_trap(tmp_path, "error")
    assert experiment.main([grid, "grid={}", "--keep-going"]) == 2
    said = capsys.readouterr()
    assert "narrow" in said.out
    assert "wide" not in said.out
    assert "4 of 8 cells failed: dataset=toy backbone=wide seed=0: no likes left; dataset=toy" in said.err


def test_cells_without_their_files_are_left_out_only_where_the_user_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path)
    arguments = [grid, "grid={}", "seeds=[0]", "axes.dataset.strict.data.source.path=$NOWHERE/data"]
    assert experiment.main(arguments) == 2
    error = capsys.readouterr().err
    assert "cell dataset=strict backbone=narrow seed=0: path '$NOWHERE/data' not there" in error
    assert RAN == []
    assert experiment.main([*arguments, "--skip-missing", "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "strict" not in planned
    assert planned.strip().splitlines()[-1].startswith("2 cells; to run: ")
    assert RAN == []
    assert experiment.main([*arguments, "--skip-missing"]) == 0
    said = capsys.readouterr()
    assert "left out: cell dataset=strict backbone=wide seed=0" in said.err
    assert "grid: toy" in said.out
    assert "strict" not in said.out


def test_two_at_once_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path)
    with locked(tmp_path / "home/runs/experiments/grid"):
        assert experiment.main([grid]) == 2
    assert re.search(rf"grid is in use by process {os.getpid()} on \S+; wait for it", capsys.readouterr().err)
    assert RAN == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "axes.backbone.wide.backbone.rolled=1",
            "cell dataset=toy backbone=wide evaluation.bootstrap_samples=100 seed=0: ",
        ),
        ("axes.backbone.wide.backbone.rolled=1", "unknown setting 'backbone.rolled'"),
        ("axes.backbone.wide.store.home=x", "store and tracking must be those of all cells"),
        ("tune.rate=1", "unknown setting 'tune.rate'"),
        ("rows=['lambdamart']", "rows names 'lambdamart'; the results have backbone"),
        ("base=none.toml", "none.toml' cannot be read"),
    ],
)
def test_a_wrong_experiment_is_one_line(
    tmp_path: Path, override: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment.main([write_grid(tmp_path), override]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_cell_that_cannot_run_here_is_refused_before_the_first_one_and_once_it_is_made_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(settings: JobSettings) -> None:
        if settings.backbone.retriever.model_dump()["dim"] == 16:
            raise SettingsError("needs a GPU")

    grid = [write_grid(tmp_path), "grid={}", "seeds=[0]", "exclude=[{dataset='strict'}]"]
    checked = [replace(stage, check=check) if stage.name == "backbone" else stage for stage in STAGES]
    monkeypatch.setattr(experiment, "stages_of", lambda _: checked)
    assert experiment.main(grid) == 2
    assert "cell dataset=toy backbone=wide seed=0: needs a GPU" in capsys.readouterr().err
    assert RAN == []
    monkeypatch.setattr(experiment, "stages_of", lambda _: STAGES)
    assert experiment.main(grid) == 0
    monkeypatch.setattr(experiment, "stages_of", lambda _: checked)
    assert experiment.main(grid) == 0


def test_a_row_that_no_stage_makes_is_refused_before_the_first_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment.main([write_grid(tmp_path), "rows=['backbone', 'hybird']"]) == 2
    assert "rows names 'hybird'; these stages can have backbone, random, oracle" in capsys.readouterr().err
    assert RAN == []


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        (["prepare", "backbones", "evaluate"], "got prepare, backbones, evaluate"),
        (["prepare", "backbone"], "hold evaluate"),
        (["backbone", "evaluate"], "'backbone' reads 'prepare', which is not listed"),
    ],
)
def test_stages_that_do_not_follow_are_refused(stages: list[str], says: str) -> None:
    values = {"name": "x", "base": "x", "stages": stages}
    with pytest.raises(SettingsError, match=says):
        stages_of(check_settings(ExperimentSettings, values, where="here"))


def test_without_ranking_backbones_alone_are_evaluated() -> None:
    backbones = {"name": "x", "base": "x", "stages": ["evaluate", "prepare", "backbone"]}
    stages = stages_of(check_settings(ExperimentSettings, backbones, where="here"))
    assert [(stage.name, stage.reads) for stage in stages] == [
        ("prepare", ()),
        ("backbone", ("prepare",)),
        ("evaluate", ("prepare", "backbone")),
    ]
    whole = stages_of(check_settings(ExperimentSettings, {"name": "x", "base": "x"}, where="here"))
    assert [stage.name for stage in whole][-2:] == ["rank", "evaluate"]
    assert "rank" in whole[-1].reads


def test_every_experiment_file_gives_cells() -> None:
    for path in (ROOT / "jobs/configs").glob("*.toml"):
        if "\nbase = " in path.read_text():
            settings = load_settings(ExperimentSettings, str(path), [])
            jobs = jobs_of(settings, str(path))
            assert len({one.settings.name for one in jobs}) == len(jobs) > 1
            assert stages_of(settings)


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        experiment.main(["--help"])
    text = capsys.readouterr().out
    assert "python -m jobs.experiment jobs/configs/backbones.toml" in text
    assert "[axes.backbone.mf]" in text


REAL = """
name = "grid"
base = "small.toml"
seeds = [0, 1]
stages = ["prepare", "backbone", "evaluate"]
[axes.backbone.mf]
[axes.backbone.lightgcn]
"backbone.retriever" = { kind = "lightgcn", dim = 8, epochs = 20, learning_rate = 0.05, batch_size = 256 }
[grid]
"evaluation.bootstrap_samples" = [100, 200]
"""


@pytest.mark.ray
@pytest.mark.slow
def test_the_real_stages_killed_and_started_again(tmp_path: Path) -> None:
    write_config(tmp_path)
    grid = tmp_path / "grid.toml"
    grid.write_text(REAL)
    command = [sys.executable, "-m", "jobs.experiment", str(grid)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = subprocess.Popen(command, cwd=ROOT, env=environment(), **quiet)
    deadline = time.monotonic() + 300
    while outputs(tmp_path).get("evaluate", 0) < 1:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    done = job("experiment", str(grid), "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "backbone: unchanged, skipped" in done.stderr
    assert outputs(tmp_path) == {"prepare": 2, "backbone": 4, "evaluate": 8}
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["row"].split()[0] for row in rows] == ["mf", "mf", "lightgcn", "lightgcn"]
    assert all(row["dataset"] == "files" and row["seeds"] == 2 and row["users"] == 60 for row in rows)
