import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_tests_about_cpus_see_no_gpu() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("asked", "seen"),
    [("not slow and not gpu", ""), ("slow", ""), ("gpu", "3"), ("slow or gpu", "3"), ("ray and gpu", "3")],
)
def test_only_tests_marked_gpu_see_one(tmp_path: Path, asked: str, seen: str) -> None:
    conftest = Path(__file__).with_name("conftest.py").read_text()
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "conftest.py").write_text(
        "import os\nprint('seen:', os.environ['CUDA_VISIBLE_DEVICES'], end=';')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "--collect-only", "-p", "no:cacheprovider", "-m", asked, "nested"],
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "3"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"seen: {seen};" in done.stdout, done.stdout + done.stderr
