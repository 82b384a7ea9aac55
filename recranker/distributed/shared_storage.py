"""Whether driver and workers see the same folder, tried by writing and reading before anything is trained."""

from pathlib import Path

import ray
import torch

from recranker.errors import OutputError

PROBES = ".shared"
WAY_OUT = "set store.home to a folder that all nodes share"


def mark_shared(folder: Path) -> None:
    """Leave a file in ``folder`` that every worker must find; those of workers before are removed.

    Raises:
        OutputError: If it cannot be written.
    """
    probes = folder / PROBES
    try:
        probes.mkdir(parents=True, exist_ok=True)
        for path in probes.iterdir():
            path.unlink()
        (probes / "driver").touch()
    except OSError as error:
        raise OutputError(
            f"cannot write {str(probes)!r}: {error.strerror}; set store.home to a writable place"
        ) from None


def check_shared(folder: Path) -> None:
    """Every worker writes a file and must find those of all others and of the driver; all workers call this.

    Raises:
        OutputError: Naming the node that does not see them.
    """
    rank, workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
    here = f"node {ray.util.get_node_ip_address()} (training worker {rank})"
    if not (folder / PROBES / "driver").is_file():
        raise OutputError(f"{here} does not see what the driver wrote into {folder}; {WAY_OUT}")
    try:
        (folder / PROBES / f"worker-{rank}").touch()
    except OSError as error:
        raise OutputError(f"{here} cannot write into {folder}: {error.strerror}; {WAY_OUT}") from None
    torch.distributed.barrier()
    missing = [other for other in range(workers) if not (folder / PROBES / f"worker-{other}").is_file()]
    if missing:
        raise OutputError(f"{here} does not see what workers {missing} wrote into {folder}; {WAY_OUT}")
