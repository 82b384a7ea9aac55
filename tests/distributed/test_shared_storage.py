from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from recranker.distributed.shared_storage import PROBES, check_shared, mark_shared
from recranker.errors import OutputError


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is the second of two workers; what the first one does is up to the test."""
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    return


@pytest.mark.usefixtures("two_workers")
def test_a_folder_that_all_see_passes(tmp_path: Path) -> None:
    mark_shared(tmp_path / "new")
    (tmp_path / "new" / PROBES / "worker-0").touch()
    check_shared(tmp_path / "new")


@pytest.mark.usefixtures("two_workers")
def test_a_worker_that_does_not_see_the_drivers_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"node [\d.]+ \(training worker 1\) does not see what the driver wrote into"):
        check_shared(tmp_path)


@pytest.mark.usefixtures("two_workers")
def test_a_worker_that_does_not_see_anothers_file_says_so(tmp_path: Path) -> None:
    mark_shared(tmp_path)
    with pytest.raises(
        OutputError, match=r"does not see what workers \[0\] wrote into .*; set store\.home to a folder"
    ):
        check_shared(tmp_path)


@pytest.mark.usefixtures("two_workers")
def test_files_of_workers_before_prove_nothing(tmp_path: Path) -> None:
    mark_shared(tmp_path)
    (tmp_path / PROBES / "worker-0").touch()
    mark_shared(tmp_path)
    with pytest.raises(OutputError, match=r"does not see what workers \[0\] wrote"):
        check_shared(tmp_path)
