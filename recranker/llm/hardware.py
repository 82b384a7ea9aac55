"""Machines to plan for: memory, speed and links of GPUs, and the memory of this machine.

Source: the vendors' data sheets, dense rates without sparsity: NVIDIA A100 (us-1758950), H100 and H200 (nvidia.com/
data-center, SXM), L4, L40S, A10, GeForce RTX 4090 (Ada architecture white paper, with accumulation in float32).
"""

import os
from dataclasses import dataclass
from pathlib import Path

from recranker.errors import SettingsError

GB = 1_000_000_000
CGROUP = Path("/sys/fs/cgroup/memory.max")
"""The limit of a container, bytes, or 'max'."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as its data sheet describes it."""

    title: str
    memory_gb: float
    bf16_tflops: float
    """Dense matrix products, 10^12 operations per second at the most."""
    fp32_tflops: float
    """The same in float32, not rounded to TF32."""
    memory_gb_s: float
    """Bandwidth of its memory, GB per second."""
    link_gb_s: float
    """To other GPUs of the machine, one direction, GB per second: NVLink, or PCIe where there is none."""
    pcie_gb_s: float
    """To the memory of the host, one direction, GB per second."""


GPUS: dict[str, Gpu] = {
    "a10-24gb": Gpu("A10 24 GB", 24, 125, 31.2, 600, 32, 32),
    "l4-24gb": Gpu("L4 24 GB", 24, 121, 30.3, 300, 32, 32),
    "rtx4090-24gb": Gpu("RTX 4090 24 GB", 24, 165, 82.6, 1008, 32, 32),
    "l40s-48gb": Gpu("L40S 48 GB", 48, 362, 91.6, 864, 32, 32),
    "a100-40gb": Gpu("A100 40 GB", 40, 312, 19.5, 1555, 300, 32),
    "a100-80gb": Gpu("A100 80 GB", 80, 312, 19.5, 2039, 300, 32),
    "h100-80gb": Gpu("H100 80 GB", 80, 989, 67, 3350, 450, 64),
    "h200-141gb": Gpu("H200 141 GB", 141, 989, 67, 4800, 450, 64),
}
"""By the name that ``--gpu`` takes."""

GPUS_PER_MACHINE = 8
"""As in the machines these GPUs are sold in; more workers than that talk over the network too."""


def gpu_named(name: str) -> Gpu:
    """The GPU called ``name``.

    Raises:
        SettingsError: If none is.
    """
    if name not in GPUS:
        raise SettingsError(f"--gpu must be one of {', '.join(GPUS)}, got {name!r}")
    return GPUS[name]


def machine_memory_gb() -> float:
    """Memory of this machine, or of the container this process is in, GB."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = CGROUP.read_text(encoding="ascii").strip()
    except OSError:
        limit = "max"
    return min(installed, int(limit) if limit.isdecimal() else installed) / GB


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
