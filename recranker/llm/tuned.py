"""Where the adapters of a tuned model are: one for all tasks, or one for each."""

from pathlib import Path

from recranker.errors import ModelError
from recranker.tasks.settings import TaskName

JOINT = "joint"


def adapter_for(folder: Path, task: TaskName) -> Path:
    """The adapter that answers ``task``: the joint one, or the task's own.

    Raises:
        ModelError: If the folder holds neither.
    """
    for name in (JOINT, task):
        if (folder / name).is_dir():
            return folder / name
    raise ModelError(f"{folder}: no adapter for task '{task}'; needed a folder '{JOINT}' or '{task}', run jobs.tune")
