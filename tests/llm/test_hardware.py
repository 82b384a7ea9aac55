import os
from pathlib import Path

import pytest

from recranker.errors import SettingsError
from recranker.llm import hardware
from recranker.llm.hardware import GPUS, gpu_named, machine_memory_gb


def test_a_gpu_says_its_memory_in_its_name() -> None:
    assert all(f"-{gpu.memory_gb:g}gb" in name for name, gpu in GPUS.items())
    assert gpu_named("a100-80gb").bf16_tflops == 312  # data sheet, dense
    with pytest.raises(SettingsError, match=r"--gpu must be one of .*a100-80gb.*, got 'a100'"):
        gpu_named("a100")


def test_a_container_has_no_more_memory_than_it_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    monkeypatch.setattr(hardware, "CGROUP", tmp_path / "memory.max")
    assert machine_memory_gb() == pytest.approx(installed)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_memory_gb() == pytest.approx(installed)
    (tmp_path / "memory.max").write_text("1000000000\n")
    assert machine_memory_gb() == pytest.approx(1.0)
