"""Starting a worker, following its epochs, and saying in one line what went wrong in it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from jobs.benchmarks.task import EPOCH_LINE, Task
from jobs.sources import ROOT
from recranker.errors import RecrankerError, SettingsError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def python_of(environment: str) -> Path:
    """The interpreter of the environment that holds the other systems.

    Raises:
        SettingsError: If it has not been made.
    """
    python = ROOT / environment / "bin" / "python"
    if not (python.parent.parent / "ready").is_file():
        raise SettingsError(
            f"the systems to compare with need an environment of their own, '{environment}' is not there or not "
            "finished; make it with: make benchmark-env"
        )
    return python


def run_worker(
    module: str,
    task: Task,
    folder: Path,
    *,
    threads: int,
    python: Path = Path(sys.executable),
    on_epoch: Callable[[], None] = lambda: None,
) -> None:
    """Let ``module`` do ``task`` in ``folder``, with ``threads`` threads.

    Raises:
        RecrankerError: If it ends with anything but 0, with the last line it wrote.
    """
    folder.mkdir(parents=True)
    task.write(folder)
    variables = {"PYTHONPATH": str(ROOT), **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    with tempfile.TemporaryFile("w+") as complaints:
        command = [str(python), "-m", f"jobs.benchmarks.{module}"]
        with subprocess.Popen(
            command, cwd=folder, env=os.environ | variables, stdout=subprocess.PIPE, stderr=complaints, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip() == EPOCH_LINE:
                    on_epoch()
        complaints.seek(0)
        last = [line.strip() for line in complaints if line.strip()][-1:]
    if process.returncode != 0:
        raise RecrankerError(f"worker {module} ended with code {process.returncode}: {' '.join(last) or 'no message'}")
