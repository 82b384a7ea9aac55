"""Where the adapters of a tuned model are: one for all tasks, or one for each, or both."""

from pathlib import Path

from recranker.errors import ModelError
from recranker.tasks.settings import TaskName

JOINT = "joint"


def adapter_for(folder: Path, task: TaskName) -> Path:
    """The adapter that answers ``task``: the task's own, or else the joint one.

    Raises:
        ModelError: If the folder holds neither.
    """
    for name in (task, JOINT):
        if (folder / name).is_dir():
            return folder / name
    raise ModelError(f"{folder}: no adapter for task '{task}'; needed a folder '{JOINT}' or '{task}', run jobs.tune")
