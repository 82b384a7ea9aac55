import ast
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from jobs import benchmark
from jobs.benchmarks import of_recranker, workers
from jobs.benchmarks.backbones import Outcome, write_search
from jobs.benchmarks.contestants import OURS, OWN, RECBOLE, SAME, Contestant, contestants
from jobs.benchmarks.results import Training, ratios, read_training, top_k_row, training_rows
from jobs.benchmarks.settings import BackbonesBenchmark
from jobs.benchmarks.split import Split, hr_at, ndcg_at
from jobs.benchmarks.task import FOUND_FILE, LAPS_FILE, SPLIT_FILE, TOP_K_FILE, Task, Watch, work
from jobs.benchmarks.workers import python_of, run_worker
from jobs.output import write_json
from jobs.sources import ROOT, imports_of
from recranker.backbones.fit import FactorFit
from recranker.backbones.folds import FoldData
from recranker.errors import RecrankerError, SettingsError
from recranker.settings import load_settings

NONE = np.empty(0, np.int64)


def small_settings(**values: object) -> BackbonesBenchmark:
    return BackbonesBenchmark.model_validate({"data": {"source": {"kind": "movielens-100k"}}, **values})


def who(system: str, settings: str = SAME, model: str = "lightgcn") -> Contestant:
    return Contestant(system, model, settings, {}, epochs=4, threads=1)


def training(system: str, cpu_seconds: float, validation: dict[int, float], settings: str = SAME) -> Training:
    test = {"hr_at_3": 0.1, "ndcg_at_3": 0.1, "hr_at_5": 0.1, "ndcg_at_5": 0.1}
    return Training(who(system, settings), [2 * cpu_seconds] * 4, [cpu_seconds] * 4, validation, test)


def search(system: str) -> dict[str, object]:
    return {"system": system, "threads": 1, "topk_seconds": 0.5}


def random_split(num_users: int = 30, num_items: int = 20, likes: int = 6) -> Split:
    """Each user likes ``likes + 2`` items; the last two are validation and test."""
    random = np.random.default_rng(0)
    items = random.random((num_users, num_items)).argsort(axis=1)[:, : likes + 2]
    users = np.arange(num_users)
    liked = np.repeat(users, likes), items[:, :likes].reshape(-1)
    fold = FoldData(
        name="full",
        num_users=num_users,
        num_items=num_items,
        like_users=liked[0],
        like_items=liked[1],
        rated_users=NONE,
        rated_items=NONE,
        ratings=np.empty(0, np.float32),
        validation_users=users,
        validation_items=items[:, likes],
    )
    return Split(fold, users, items[:, likes + 1])


def test_the_target_is_set_by_the_weaker_of_both_and_each_is_charged_for_its_epochs_until_there() -> None:
    mine = training(OURS, 1.0, {2: 0.040, 4: 0.050})
    theirs = training(RECBOLE, 3.0, {2: 0.039, 4: 0.040})
    own = training(OURS, 1.0, {2: 0.010, 4: 0.020}, OWN)
    rows = training_rows([mine, theirs, own], target_share=0.98)
    assert rows[0]["target_ndcg_at_10"] == pytest.approx(0.98 * 0.040)
    assert [row["epochs_to_target"] for row in rows] == [2, 4, None]
    assert [row["cpu_seconds_to_target"] for row in rows] == [2.0, 12.0, None]
    assert [row["best_epoch"] for row in rows] == [4, 4, 4]


def test_ratios_compare_the_same_settings_alone() -> None:
    mine, theirs = training(OURS, 1.0, {2: 0.04, 4: 0.05}), training(RECBOLE, 3.0, {2: 0.01, 4: 0.04})
    own = training(OURS, 0.1, {2: 0.04, 4: 0.05}, OWN)
    rows = training_rows([own, mine, theirs], target_share=0.98)
    (ratio,) = ratios(rows, [search(RECBOLE), search(OURS)])
    assert ratio["lightgcn_cpu_share_of_recbole"] == pytest.approx(2 / 12)
    assert ratio["lightgcn_cpu_share_of_recbole_per_epoch"] == pytest.approx(1 / 3)
    assert ratio["topk_seconds"] == 0.5
    assert not [name for name in ratio if name.startswith("mf")]


def test_metrics_of_ranks() -> None:
    ranks = np.array([1, 3, 4, 11])
    assert hr_at(3)(ranks) == 0.5
    assert ndcg_at(10)(ranks) == pytest.approx((1 + 1 / np.log2(4) + 1 / np.log2(5)) / 4)


def test_training_likes_are_out_of_the_race_and_items_nobody_likes_too() -> None:
    fold = FoldData(
        name="full",
        num_users=2,
        num_items=4,
        like_users=np.array([0, 1, 1]),
        like_items=np.array([0, 1, 2]),
        rated_users=NONE,
        rated_items=NONE,
        ratings=np.empty(0, np.float32),
        validation_users=np.array([0]),
        validation_items=np.array([1]),
    )
    split = Split(fold, np.array([0]), np.array([2]))
    fit = FactorFit(np.ones((2, 1), np.float32), np.array([[9], [1], [2], [8]], np.float32))
    assert split.validation_ndcg_at_10(fit) == pytest.approx(1 / np.log2(3))  # item 2 alone stands before item 1
    assert split.test_metrics(fit)["ndcg_at_3"] == 1.0


def test_nobody_pays_for_being_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    factors = np.zeros((1, 1), np.float32)
    watch = Watch(Task("train", "", epochs=3, check_every=2))

    def slowly() -> tuple[np.ndarray, np.ndarray]:
        time.sleep(0.2)
        return factors, factors

    for _ in range(3):
        watch.epoch_done(slowly)
    assert max(watch.clock.seconds) < 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["factors-2.npz", "factors-3.npz"]


def work_here(task: Task, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the worker's own process would, without the seconds that process needs to start."""
    folder.mkdir()
    task.write(folder)
    monkeypatch.chdir(folder)
    work(of_recranker.train, of_recranker.top_k)


@pytest.mark.parametrize("model", ["lightgcn", "mf"])
def test_our_worker_trains_and_is_judged(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    split = random_split()
    split.write(tmp_path / "split")
    values = {"dim": 4, "batch_size": 64, "learning_rate": 0.05}
    task = Task("train", str(tmp_path / "split"), model, values, epochs=3, check_every=2)
    work_here(task, tmp_path / "out", monkeypatch)
    found = read_training(Contestant(OURS, model, SAME, values, 3, 1), tmp_path / "out", split)
    assert len(found.cpu_seconds) == 3
    assert list(found.validation) == [2, 3]
    assert 0 < found.best <= 1
    assert set(found.test) == {"hr_at_3", "ndcg_at_3", "hr_at_5", "ndcg_at_5"}


def test_our_search_finds_the_best_items_that_are_not_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_search(small_settings(dim=3, top_k_users=7, top_k_items=200), tmp_path / "in")
    work_here(Task("top_k", str(tmp_path / "in"), repeats=2), tmp_path / "out", monkeypatch)
    arrays, split = np.load(tmp_path / "in" / TOP_K_FILE), np.load(tmp_path / "in" / SPLIT_FILE)
    scores = arrays["users"].astype(np.float64) @ arrays["items"].T.astype(np.float64)
    scores[split["train_users"], split["train_items"]] = -np.inf
    scores[split["validation_users"], split["validation_items"]] = -np.inf
    assert np.isfinite(scores).sum(axis=1).tolist() == [100] * 7
    assert np.isfinite(scores[split["test_users"], split["test_items"]]).all()
    np.testing.assert_array_equal(np.load(tmp_path / "out" / FOUND_FILE)["items"], (-scores).argsort(axis=1)[:, :10])
    assert top_k_row(OURS, 1, tmp_path / "out", tmp_path / "out")["share_of_equal_lists"] == 1.0


def test_a_list_that_differs_is_counted(tmp_path: Path) -> None:
    for name, items in (("ours", [[1, 2], [3, 4]]), ("theirs", [[1, 2], [4, 3]])):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / FOUND_FILE, items=np.array(items))
        np.savez(tmp_path / name / LAPS_FILE, seconds=[1.0, 4.0, 2.0], cpu_seconds=[1.0, 1.0, 1.0])
    row = top_k_row(RECBOLE, 1, tmp_path / "theirs", tmp_path / "ours")
    assert (row["share_of_equal_lists"], row["topk_seconds"], row["topk_users_per_s"]) == (0.5, 2.0, 1.0)


def fake_python(folder: Path, script: str) -> Path:
    """An interpreter that does ``script`` whatever module it is asked for."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def test_epochs_are_followed_while_the_worker_runs(tmp_path: Path) -> None:
    seen: list[int] = []
    python = fake_python(tmp_path, "echo epoch; echo something else; echo epoch")
    run_worker("any", Task("train", ""), tmp_path / "out", threads=1, python=python, on_epoch=lambda: seen.append(1))
    assert len(seen) == 2
    assert json.loads((tmp_path / "out" / "task.json").read_text())["kind"] == "train"


def test_a_worker_that_dies_says_why_in_one_line(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "echo Traceback >&2; echo 'OSError: disk full' >&2; echo >&2; exit 1")
    with pytest.raises(RecrankerError, match=r"^worker of_x ended with code 1: OSError: disk full$"):
        run_worker("of_x", Task("train", ""), tmp_path / "out", threads=1, python=python)


def test_without_the_other_systems_one_line_names_the_make_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["backbones", f"environment={tmp_path}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "make benchmark-env" in said[0]
    assert "benchmark-env:" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_a_half_made_environment_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    with pytest.raises(SettingsError, match="not there or not finished"):
        python_of(str(tmp_path))
    (tmp_path / "ready").touch()
    assert python_of(str(tmp_path)) == tmp_path / "bin" / "python"


def test_the_others_workers_need_nothing_of_recranker() -> None:
    folder = ROOT / "jobs" / "benchmarks"
    for name in ("task", "of_recbole", "of_implicit"):
        imported = imports_of(folder / f"{name}.py")
        ours = {module for module in imported if module.startswith(("recranker", "jobs"))}
        assert {module for module in ours if not module.startswith("jobs.benchmarks.task")} == set(), name
    top = {module.split(".")[0] for module in imports_of(folder / "task.py")}
    assert top <= {"numpy", *sys.stdlib_module_names}


def test_both_are_told_the_same_and_mf_has_no_l2_because_theirs_has_none() -> None:
    everybody = contestants(small_settings(l2=0.5, epochs=7, learning_rate=0.02, layers=3), threads=2)
    for model, l2 in (("lightgcn", 0.5), ("mf", 0.0)):
        ours, theirs = (
            one for one in everybody if (one.model, one.settings) == (model, SAME) and one.system in (OURS, RECBOLE)
        )
        assert ours.values == theirs.values
        assert (ours.values["l2"], ours.values["learning_rate"], ours.epochs) == (l2, 0.02, 7)
    # RecBole's regulariser is half of ours for the same weight
    source = ast.unparse(ast.parse((ROOT / "jobs/benchmarks/of_recbole.py").read_text(encoding="utf-8")))
    assert "'reg_weight': 2 * settings['l2']" in source
    assert "'require_pow': True" in source


def test_the_settings_file_loads_and_can_be_overridden() -> None:
    settings = load_settings(
        BackbonesBenchmark, str(benchmark.config_of("backbones")), ["threads=[1, 2]", "data.like_at_least=5"]
    )
    assert settings.threads == (1, 2)
    assert settings.data.like_at_least == 5


def test_results_are_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = training_rows([training(OURS, 1.0, {4: 0.05}), training(RECBOLE, 3.0, {4: 0.04})], target_share=0.98)
    searches = [
        search(name) | {"topk_cpu_seconds": 0.4, "topk_users_per_s": 12000.0, "share_of_equal_lists": 1.0}
        for name in (OURS, RECBOLE)
    ]
    outcome = Outcome("made-up data", rows, searches, ratios(rows, searches))
    benchmark.show_backbones(outcome, small_settings())
    printed = capsys.readouterr().out
    assert "made-up data" in printed
    assert "lightgcn_cpu_share_of_recbole 0.333" in printed
    write_json(tmp_path / "found.json", asdict(outcome))
    assert json.loads((tmp_path / "found.json").read_text())["ratios"][0]["topk_seconds"] == 0.5


@pytest.mark.slow
def test_all_systems_learn_the_same_data_and_find_the_same_top_items(tmp_path: Path) -> None:
    try:
        python = python_of(".venv-benchmark")
    except SettingsError as error:
        pytest.skip(str(error))
    split = random_split(num_users=60, num_items=40)
    split.write(tmp_path / "split")
    write_search(small_settings(dim=8, top_k_users=50, top_k_items=220), tmp_path / "search")
    values = {"dim": 8, "layers": 2, "batch_size": 64, "learning_rate": 0.02, "l2": 1e-4}
    for system, models in (("recbole", ("lightgcn", "mf")), ("implicit", ("mf",))):
        for model in models:
            out = tmp_path / f"{system}-{model}"
            task = Task("train", str(tmp_path / "split"), model, values, epochs=30, check_every=30)
            run_worker(f"of_{system}", task, out, threads=1, python=python)
            with np.load(out / "factors-30.npz") as arrays:
                scores = arrays["users"] @ arrays["items"].T
            liked = np.zeros(scores.shape, dtype=np.bool_)
            liked[split.fold.like_users, split.fold.like_items] = True
            assert scores[liked].mean() > scores[~liked].mean(), (system, model)  # users and items are in our order
    reference = tmp_path / "of_recranker"
    for system, interpreter in (("recranker", Path(sys.executable)), ("recbole", python), ("implicit", python)):
        task = Task("top_k", str(tmp_path / "search"), "mf", values)
        run_worker(f"of_{system}", task, tmp_path / f"of_{system}", threads=1, python=interpreter)
        assert top_k_row(system, 1, tmp_path / f"of_{system}", reference)["share_of_equal_lists"] == 1.0, system


def test_threads_reach_every_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = fake_python(tmp_path, "echo $OMP_NUM_THREADS $MKL_NUM_THREADS $OPENBLAS_NUM_THREADS $PYTHONPATH > seen")
    monkeypatch.setattr(workers, "ROOT", Path("/root-of-the-checkout"))
    run_worker("any", Task("train", ""), tmp_path / "out", threads=3, python=python)
    assert (tmp_path / "out" / "seen").read_text().split() == ["3", "3", "3", "/root-of-the-checkout"]
