import sys
from pathlib import Path

import pytest

from recranker.errors import SettingsError
from recranker.llm.limits import check_runnable, cpu_flags
from recranker.llm.settings import LLMSettings, TuneSettings

OLD_CPU = frozenset({"fma", "avx2", "avx512f", "amx_tile", "amx_int8"})
NEW_CPUS = [OLD_CPU | {flag} for flag in ("amx_bf16", "avx512_bf16", "bf16")]


def llm(device: str = "auto", dtype: str = "auto") -> LLMSettings:
    return LLMSettings.model_validate({"model": "tiny", "device": device, "dtype": dtype})


def tune(**values: object) -> TuneSettings:
    return TuneSettings.model_validate(values)


@pytest.fixture
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)


@pytest.fixture
def with_bitsandbytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    (tmp_path / "bitsandbytes.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(("device", "cuda"), [("cpu", True), ("cpu", False), ("auto", False)])
def test_bfloat16_is_refused_on_a_cpu_without_instructions_for_it(device: str, cuda: bool) -> None:
    with pytest.raises(SettingsError, match=rf"llm\.dtype='bfloat16' .* llm\.device='{device}' there is neither"):
        check_runnable(llm(device, "bfloat16"), tune(), cuda=cuda, flags=OLD_CPU)


def test_bfloat16_runs_on_cuda_and_on_cpus_that_multiply_it() -> None:
    check_runnable(llm("auto", "bfloat16"), tune(), cuda=True, flags=OLD_CPU)
    for flags in NEW_CPUS:
        check_runnable(llm("cpu", "bfloat16"), tune(), cuda=False, flags=flags)
    for dtype in ("auto", "float32"):
        check_runnable(llm("cpu", dtype), tune(), cuda=False, flags=OLD_CPU)


@pytest.mark.usefixtures("with_bitsandbytes")
@pytest.mark.parametrize(("device", "cuda"), [("cpu", True), ("auto", False), ("cuda", False)])
def test_four_bits_are_refused_without_cuda(device: str, cuda: bool) -> None:
    with pytest.raises(SettingsError, match=rf"tune\.quantization='nf4' .* llm\.device='{device}' there is none"):
        check_runnable(llm(device), tune(quantization="nf4"), cuda=cuda, flags=OLD_CPU)


@pytest.mark.usefixtures("without_bitsandbytes")
def test_four_bits_are_refused_without_their_library() -> None:
    with pytest.raises(SettingsError, match=r"tune\.quantization='nf4' .* pip install bitsandbytes"):
        check_runnable(llm(), tune(quantization="nf4"), cuda=True)
    check_runnable(llm(), tune(), cuda=True)


@pytest.mark.usefixtures("with_bitsandbytes")
def test_four_bits_run_on_cuda_with_their_library() -> None:
    check_runnable(llm(), tune(quantization="nf4"), cuda=True)


@pytest.mark.parametrize("offload", ["optimizer", "parameters"])
def test_offload_is_refused_where_all_memory_is_the_hosts(offload: str) -> None:
    settings = tune(offload=offload, zero_stage=3)
    with pytest.raises(SettingsError, match=rf"tune\.offload='{offload}' .* llm\.device='auto' there is none"):
        check_runnable(llm(), settings, cuda=False)
    check_runnable(llm(), settings, cuda=True)


@pytest.mark.usefixtures("without_bitsandbytes")
def test_all_that_cannot_run_is_said_at_once_in_one_line() -> None:
    settings = tune(offload="optimizer", quantization="nf4")
    with pytest.raises(SettingsError) as refusal:
        check_runnable(llm("cpu", "bfloat16"), settings, cuda=True, flags=())
    said = str(refusal.value)
    assert all(name in said for name in ("llm.dtype=", "tune.quantization=", "tune.offload=", "llm.device='cpu'"))
    assert "\n" not in said


def test_flags_are_those_of_the_first_cpu(tmp_path: Path) -> None:
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("model name\t: X\nflags\t\t: fma amx_bf16\nvmx flags\t: ept\n\nmodel name\t: X\nflags\t\t: fma\n")
    arm.write_text("BogoMIPS\t: 50.00\nFeatures\t: fp asimd bf16\n")
    assert cpu_flags(x86) == {"fma", "amx_bf16"}
    assert cpu_flags(arm) == {"fp", "asimd", "bf16"}
    assert cpu_flags(tmp_path / "nowhere") == set()


def test_the_flags_of_this_machine_decide_where_none_are_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fma\n")
    monkeypatch.setattr("recranker.llm.limits.CPU_INFO", tmp_path / "cpuinfo")
    with pytest.raises(SettingsError, match=r"llm\.dtype='bfloat16'"):
        check_runnable(llm("cpu", "bfloat16"), tune(), cuda=False)
    (tmp_path / "cpuinfo").write_text("flags\t\t: fma avx512_bf16\n")
    check_runnable(llm("cpu", "bfloat16"), tune(), cuda=False)


@pytest.mark.parametrize(("device", "dtype", "cuda"), [("cpu", "bfloat16", False), ("auto", "auto", True)])
def test_every_weight_is_trained_in_float32_only(device: str, dtype: str, cuda: bool) -> None:
    with pytest.raises(SettingsError, match=rf"tune\.method='full' needs llm\.dtype='float32', got '{dtype}'"):
        check_runnable(llm(device, dtype), tune(method="full"), cuda=cuda, flags=NEW_CPUS[0])
    check_runnable(llm(device, "float32"), tune(method="full"), cuda=cuda)
    check_runnable(llm("cpu", "auto"), tune(method="full"), cuda=False)
