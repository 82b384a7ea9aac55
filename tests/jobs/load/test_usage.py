import subprocess
import sys

import psutil
import pytest

from jobs.load.usage import cpu_between, memory_bytes, tree_of


def test_cpu_between_two_looks_by_hand() -> None:
    before = {(1, 0.0): 5.0, (2, 0.0): 3.0}
    after = {(1, 0.0): 6.5, (2, 9.0): 0.25}  # 2 is gone, and its number given to another process
    assert cpu_between(before, after) == pytest.approx(1.75)


def test_the_tree_is_what_a_process_started_and_its_memory_counts() -> None:
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'input()']); print(); p.wait()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        tree = tree_of(process.pid)
        assert len(tree) == 2
        assert psutil.Process() not in tree
        assert memory_bytes(tree) > memory_bytes(tree[:1]) > 1e6
        process.communicate(b"\n")
    assert tree_of(process.pid) == []
