from pathlib import Path

import pytest

from recranker.errors import DataError, SettingsError
from recranker.store import Store
from serve.settings import ServeSettings
from serve.source import read_run, run_uri
from tests.serve.runs import CALIBRATIONS, ORIGIN, WEIGHTS, job_settings, publish_rank


def published(home: Path) -> Store:
    store = Store(str(home / "runs" / "toy"))
    with store.publish("tune", ORIGIN) as writer:
        writer.facts["loss"] = 1
    publish_rank(store, job_settings())
    return store


def test_a_run_is_read_as_the_pipeline_left_it(tmp_path: Path) -> None:
    store = published(tmp_path)
    run = read_run(ServeSettings(run="toy", home=str(tmp_path)))
    assert (run.name, run.seed, run.weights, run.preset) == ("toy", 3, WEIGHTS, "recranker")
    assert run.calibrations == CALIBRATIONS
    assert run.adapters == Path(store.folder("tune")) / "adapter"


def test_a_run_whose_served_row_has_no_calibration_is_refused(tmp_path: Path) -> None:
    file = Path(published(tmp_path).folder("rank")) / "fusion" / "calibration.json"
    file.write_text('{"rows": {}}')
    with pytest.raises(DataError, match=r"calibration\.json: needed a calibration of row 'hybrid'; run jobs\.rank"):
        read_run(ServeSettings(run="toy", home=str(tmp_path)))


def test_a_run_is_named_by_name_folder_or_uri() -> None:
    assert run_uri("toy", "/home") == "/home/runs/toy"
    assert run_uri("~/runs/toy", "/home") == "~/runs/toy"
    assert run_uri("file:///runs/toy", "/home") == "file:///runs/toy"


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stage 'rank' has no finished output.*python -m jobs\.rank"):
        read_run(ServeSettings(run="toy", home=str(tmp_path)))


def test_broken_files_are_named(tmp_path: Path) -> None:
    rank = Path(published(tmp_path).folder("rank"))
    settings = ServeSettings(run="toy", home=str(tmp_path))
    (rank / "fusion" / "weights.json").write_text("[1")
    with pytest.raises(DataError, match=r"weights\.json: not readable"):
        read_run(settings)
    (rank / "settings.json").write_text('{"name": "toy", "unheard_of": 1}')
    with pytest.raises(SettingsError, match=r"settings\.json: .*unheard_of"):
        read_run(settings)


def test_a_run_without_its_texts_is_refused(tmp_path: Path) -> None:
    store = published(tmp_path)
    with store.publish("instruct", ORIGIN) as writer:
        writer.facts["hints"] = "reranker"
    with pytest.raises(SettingsError, match=r"instruct \(run it again\): setting 'version' is missing"):
        read_run(ServeSettings(run="toy", home=str(tmp_path)))


def test_a_run_tuned_again_is_not_mixed_with_the_old_one(tmp_path: Path) -> None:
    store = published(tmp_path)
    run = read_run(ServeSettings(run="toy", home=str(tmp_path)))
    with store.publish("tune", ORIGIN) as writer:
        writer.facts["loss"] = 2
    with pytest.raises(DataError, match="tuned again"):
        _ = run.adapters
