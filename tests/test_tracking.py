import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recranker import tracking
from recranker.errors import SettingsError
from recranker.tracking import MAX_PARAM_CHARACTERS, Tracker, metric_name


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests of this file, made in a process of its own: making one takes seconds."""
    path = tmp_path_factory.mktemp("a home") / "kept" / "mlflow.db"
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO); from recranker.tracking import Tracker\n"
        "with Tracker(sys.argv[1], 'first').pipeline_run('one', {}): pass"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, f"sqlite:///{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    (path.parent / "said.txt").write_text(done.stdout + done.stderr)
    return f"sqlite:///{path}"


@pytest.fixture
def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@pytest.fixture
def nobody() -> Iterator[str]:
    """URI of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_parent_and_child_are_read_back_with_all_they_hold(uri: str, client: Any, tmp_path: Path) -> None:
    folder = tmp_path / "plots"
    folder.mkdir()
    (folder / "one.txt").write_text("1")
    tracker = Tracker(uri, "read back")
    with tracker.pipeline_run("whole", {"seed": 0}, {"commit": "abc123"}) as parent:
        with tracker.stage_run("whole/tune", parent.run_id, {"tune.epochs": 2}, {"prepare": "f" * 16}) as child:
            child.log_metrics({"train/loss": 0.7}, step=1)
            child.log_metrics({"train/loss": 0.5}, step=2)
            child.log_artifact(folder / "one.txt")
            child.log_artifacts(folder)
        assert client.get_run(parent.run_id).info.status == "RUNNING"
    outer, inner = client.get_run(parent.run_id), client.get_run(child.run_id)
    assert (outer.info.status, inner.info.status) == ("FINISHED", "FINISHED")
    assert (outer.info.run_name, inner.info.run_name) == ("whole", "whole/tune")
    assert outer.data.tags["commit"] == "abc123"
    assert inner.data.tags["mlflow.parentRunId"] == parent.run_id
    assert (outer.data.params, inner.data.params) == ({"seed": "0"}, {"tune.epochs": "2"})
    assert [(one.step, one.value) for one in client.get_metric_history(child.run_id, "train/loss")] == [
        (1, 0.7),
        (2, 0.5),
    ]
    assert [(one.dataset.name, one.dataset.digest) for one in inner.inputs.dataset_inputs] == [("prepare", "f" * 16)]
    assert sorted(one.path for one in client.list_artifacts(child.run_id)) == ["one.txt", "plots"]
    assert [one.path for one in client.list_artifacts(child.run_id, "plots")] == ["plots/one.txt"]


def test_a_whole_run_may_itself_be_one_of_many(uri: str, client: Any) -> None:
    tracker = Tracker(uri, "many")
    with (
        tracker.pipeline_run("experiment", {}) as outer,
        tracker.pipeline_run("cell", {"seed": 0}, {"a": "b"}, parent_id=outer.run_id) as cell,
        tracker.stage_run("stage", cell.run_id, {}, {}) as stage,
    ):
        pass
    parents = [client.get_run(run.run_id).data.tags.get("mlflow.parentRunId") for run in (outer, cell, stage)]
    assert parents == [None, outer.run_id, cell.run_id]
    assert client.get_run(cell.run_id).data.tags["a"] == "b"


def test_names_mlflow_refuses_are_made_ones_it_takes(uri: str, client: Any) -> None:
    name = metric_name("summary/ml-100k/mf lr=0.1, ü/ndcg_at_3")
    with Tracker(uri, "metric names").pipeline_run("one", {}) as run:
        run.log_metrics({name: 0.5})
    assert client.get_run(run.run_id).data.metrics == {"summary/ml-100k/mf lr_0.1_ _/ndcg_at_3": 0.5}


def test_files_of_a_local_database_lie_beside_it(uri: str, client: Any) -> None:
    with Tracker(uri, "beside").pipeline_run("one", {}):
        pass
    home = Path(uri.removeprefix("sqlite:///")).parent
    assert client.get_experiment_by_name("beside").artifact_location == (home / "mlflow-artifacts").as_uri()


def test_two_runs_open_at_once_keep_their_numbers_apart(uri: str, client: Any) -> None:
    tracker = Tracker(uri, "two")
    with tracker.stage_run("a", None, {}, {}) as first, Tracker(uri, "two").stage_run("b", None, {}, {}) as second:
        first.log_metrics({"x": 1.0})
        second.log_metrics({"x": 2.0})
    assert client.get_run(first.run_id).data.metrics == {"x": 1.0}
    assert client.get_run(second.run_id).data.metrics == {"x": 2.0}


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_status_tells_how_the_run_ended(error: type[BaseException], status: str, uri: str, client: Any) -> None:
    with pytest.raises(error), Tracker(uri, "status").pipeline_run("one", {}) as run:
        raise error
    assert client.get_run(run.run_id).info.status == status


def test_a_run_that_did_not_finish_is_gone_on_with_and_holds_every_step_once(uri: str, client: Any) -> None:
    killed = """
import os, sys
from recranker.tracking import Tracker
with Tracker(sys.argv[1], "killed").stage_run("a", None, {"x": 1}, {"prepare": "0"}, key="k") as run:
    run.log_metrics({"loss": 3.0}, step=1)
    run.log_metrics({"loss": 2.0}, step=2)
    print(run.run_id, flush=True)
    os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-W", "ignore", "-c", killed, uri]
    left = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout.strip()
    assert client.get_run(left).info.status == "RUNNING"
    tracker = Tracker(uri, "killed")
    with tracker.stage_run("a", None, {"x": 1}, {"prepare": "0"}, key="other") as other:
        pass
    failed = tracker.stage_run("a", None, {"x": 1}, {"prepare": "0"}, key="k")
    with pytest.raises(ZeroDivisionError), failed as run:
        raise ZeroDivisionError
    assert (run.run_id, client.get_run(left).info.status) == (left, "FAILED")
    with tracker.stage_run("a", None, {"x": 1}, {"prepare": "0"}, {"commit": "new"}, key="k") as run:
        for step, loss in ((2, 2.0), (3, 1.0)):
            run.log_metrics({"loss": loss}, step=step)
    assert (run.run_id, other.run_id == left) == (left, False)
    with tracker.stage_run("a", None, {"x": 1}, {"prepare": "0"}, key="k") as again:
        pass
    assert again.run_id != left  # that one has ended
    assert client.get_run(left).info.status == "FINISHED"
    assert client.get_run(left).data.tags["commit"] == "new"
    history = [(one.step, one.value) for one in client.get_metric_history(left, "loss")]
    assert history == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_long_values_are_cut_and_many_settings_go_in_batches(uri: str, client: Any) -> None:
    params = {"long": "x" * 9000} | {f"p{number}": number for number in range(250)}
    with Tracker(uri, "long").pipeline_run("one", params, {"note": "y" * 9000}) as run:
        pass
    kept = client.get_run(run.run_id).data
    assert len(kept.params) == 251
    assert kept.params["long"] == "x" * (MAX_PARAM_CHARACTERS - 3) + "..."
    assert kept.tags["note"].endswith("y...")


def test_a_metric_name_with_an_at_sign_is_refused_with_the_way_out(uri: str) -> None:
    with Tracker(uri, "names").pipeline_run("one", {}) as run, pytest.raises(ValueError, match="write 'ndcg_at_3'"):
        run.log_metrics({"ndcg@3": 0.1})


def test_a_new_database_is_announced_in_one_line(uri: str) -> None:
    path = Path(uri.removeprefix("sqlite:///"))
    said = (path.parent / "said.txt").read_text().splitlines()
    assert said == [f"INFO:recranker.tracking:creating the MLflow database {path}, once; this takes some seconds"]


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, recranker.tracking; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_server_that_never_answers_costs_seconds_and_one_warning(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert 2 * int(tracking.ENVIRONMENT["MLFLOW_HTTP_REQUEST_TIMEOUT"]) < 15  # it is tried at the start and at the end
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    started = time.monotonic()
    tracker = Tracker(nobody, "lost")
    with (
        tracker.pipeline_run("one", {"seed": 0}) as parent,
        tracker.stage_run("one/rank", parent.run_id, {"seed": 0}, {"prepare": "0"}) as run,
    ):
        for step in range(20):
            run.log_metrics({"loss": 1.0}, step=step)
        run.log_artifact(tmp_path / "none.txt")
    assert time.monotonic() - started < 2 * 1 + 4
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2
    assert "cannot be used, going on without it" in warnings[0]
    assert "28 entries were not recorded" in warnings[1]  # 2 runs, 2 settings, 1 input, 20 numbers, 1 file, 2 ends


def test_a_refused_connection_costs_next_to_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with Tracker(f"http://127.0.0.1:{port}", "lost").pipeline_run("one", {}) as run:
        run.log_metrics({"loss": 1.0})
    assert "Connection refused" in caplog.text


def test_what_waited_is_delivered_when_the_store_comes_back(
    uri: str, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = tracking._client_for
    monkeypatch.setattr(tracking, "_client_for", lambda _: (_ for _ in ()).throw(ConnectionError("away")))
    tracker = Tracker(uri, "back")
    with tracker.pipeline_run("one", {"seed": 3}) as parent:
        handle = parent.run_id
        with tracker.stage_run("one/rank", handle, {}, {}) as child:
            child.log_metrics({"x": 1.0}, step=4)
            monkeypatch.setattr(tracking, "_client_for", real)
    assert client.get_run(parent.run_id).data.params == {"seed": "3"}
    found = client.get_run(child.run_id)
    assert found.data.metrics == {"x": 1.0}
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id != handle
    assert found.info.status == "FINISHED"
    assert "not recorded" not in caplog.text


def test_an_entry_the_store_refuses_is_counted_and_the_rest_goes_on(
    uri: str, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker(uri, "refused").pipeline_run("one", {}) as run:
        run.log_artifact(tmp_path / "gone.txt")
        run.log_metrics({"x": 1.0})
    assert client.get_run(run.run_id).data.metrics == {"x": 1.0}
    assert "did not take file gone.txt" in caplog.text
    assert "1 entries were not recorded" in caplog.text


def test_an_unknown_kind_of_store_is_refused_at_once() -> None:
    with pytest.raises(
        SettingsError, match=r"tracking.uri must begin with one of http, https, sqlite, got '/tmp/runs'"
    ):
        Tracker("/tmp/runs", "x")
