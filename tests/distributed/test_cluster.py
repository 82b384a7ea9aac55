import pytest

from recranker.distributed.cluster import check_workers, worker_environment
from recranker.errors import SettingsError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_more_workers_than_cpus_are_refused_where_the_cluster_cannot_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SettingsError, match=r"ranking\.workers=99 need a CPU each, the cluster has 2; lower ranking"):
        check_workers("ranking.workers", 99)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SettingsError, match=r"=1 need a GPU each, the cluster has 0; lower tune.workers, or run on"):
        check_workers("tune.workers", 1, device="cuda")


def test_a_cluster_that_may_grow_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6480")
    assert check_workers("backbone.workers", 99) is False
    assert "waiting for it to grow" in caplog.text


def test_workers_run_one_thread_and_find_the_library() -> None:
    environment = worker_environment()
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["PYTHONPATH"]
