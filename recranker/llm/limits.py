"""Settings that are right by themselves and that this machine cannot run; imports no torch."""

import importlib.util
from collections.abc import Collection, Iterator
from pathlib import Path

from recranker.errors import SettingsError
from recranker.llm.settings import LLMSettings, Quantization, TuneSettings

BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""As Linux names the instructions that multiply bfloat16: two of x86, one of ARM."""

CPU_INFO = Path("/proc/cpuinfo")


def check_runnable(llm: LLMSettings, tune: TuneSettings, *, cuda: bool, flags: Collection[str] | None = None) -> None:
    """Make sure that tuning can run as ``llm`` and ``tune`` say, before anything is started.

    Args:
        llm: How the model is run.
        tune: How it is trained.
        cuda: Whether the machines that train have CUDA devices.
        flags: Instructions of their CPUs as /proc/cpuinfo names them; None: those of the machine that asks.

    Raises:
        SettingsError: With every combination that cannot run, and the settings it is made of.
    """
    on_cuda = cuda and llm.device != "cpu"
    if on_cuda:
        complaints = [missing] if (missing := missing_library(tune.quantization)) else []
    else:
        complaints = list(_without_cuda(llm, tune, cpu_flags(CPU_INFO) if flags is None else flags))
    if tune.method == "full" and (llm.dtype == "bfloat16" or (on_cuda and llm.dtype == "auto")):
        complaints.append(
            f"tune.method='full' needs llm.dtype='float32', got {llm.dtype!r}: small steps would vanish in bfloat16"
        )
    if complaints:
        raise SettingsError("; ".join(complaints))


def _without_cuda(llm: LLMSettings, tune: TuneSettings, flags: Collection[str]) -> Iterator[str]:
    there = f"and with llm.device={llm.device!r} there is"
    if llm.dtype == "bfloat16" and BFLOAT16_FLAGS.isdisjoint(flags):
        yield (
            "llm.dtype='bfloat16' needs a CUDA device, or a CPU with AMX or AVX512_BF16 to be no slower than float32, "
            f"{there} neither; set llm.dtype='float32'"
        )
    if tune.quantization != "none":
        yield f"tune.quantization={tune.quantization!r} needs a CUDA device, {there} none; set tune.quantization='none'"
    if tune.offload != "none":
        yield (
            f"tune.offload={tune.offload!r} moves state from a CUDA device into its host's memory, {there} none; "
            "set tune.offload='none'"
        )


def missing_library(quantization: Quantization) -> str | None:
    """What to install for ``quantization``, in one line; None where nothing is missing."""
    if quantization == "none" or importlib.util.find_spec("bitsandbytes") is not None:
        return None
    return f"tune.quantization={quantization!r} needs bitsandbytes, which is not installed: pip install bitsandbytes"


def cpu_flags(path: Path) -> frozenset[str]:
    """The instructions of the first CPU in ``path``, as Linux names them; empty where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    values = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(values, "").split())
