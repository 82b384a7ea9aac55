"""Fixtures shared by all tests."""

import os
import re
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch or numpy count the cores
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Hide GPUs from tests that are not marked ``gpu``: those are about CPUs, two workers want two of them.

    A GPU is chosen as soon as something looks for one, as imports do, hence the first hook there is.
    """
    asked = pluginmanager.getplugin("pytestconfig").known_args_namespace.markexpr
    if not re.search(r"(?<!not )\bgpu\b", asked):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's own results."""
    monkeypatch.setenv("RECRANKER_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small Ray cluster for all tests that need one."""
    from recranker.distributed import cluster

    cluster.connect(cpus=2, object_store_mb=200)
    yield
    cluster.disconnect()
