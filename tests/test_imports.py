"""Imports point one way: a folder may use those above it, never those below."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.sources import ROOT, imports_of

BASE = ("errors", "schema", "settings", "randomness", "store", "progress", "experiments")
ORDER = (
    "data",
    "backbones",
    "sampling",
    "tasks",
    "llm",
    "ranking",
    "evaluation",
    "tracking",
    "registry",
    "distributed",
)
OWNERS = {"ray": ("distributed",), "mlflow": ("tracking",), "torch": ("backbones", "llm", "distributed")}
OWNERS |= {"transformers": ("llm",), "peft": ("llm",), "deepspeed": ("distributed",)}


def folder_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "recranker" and len(parts) > 1 else ""


def violations(files: list[Path], root: Path) -> list[str]:
    wrong = []
    for file in files:
        home = file.relative_to(root / "recranker").parts[0].removesuffix(".py")
        allowed = set(BASE) | set(ORDER[: ORDER.index(home) + 1] if home in ORDER else BASE)
        for module in imports_of(file):
            target, top = folder_of(module), module.split(".")[0]
            if target in ORDER and target not in allowed:
                wrong.append(f"{file.name} in {home} imports {module}")
            if top in ("jobs", "serve", "tests") or (top in OWNERS and home not in OWNERS[top]):
                wrong.append(f"{file.name} in {home} imports {module}")
    return wrong


def test_the_library_imports_upwards_only() -> None:
    assert violations(sorted((ROOT / "recranker").rglob("*.py")), ROOT) == []


def test_the_check_sees_a_planted_import(tmp_path: Path) -> None:
    planted = tmp_path / "recranker" / "tasks" / "planted.py"
    planted.parent.mkdir(parents=True)
    planted.write_text("def f():\n    import torch\n    from recranker.llm import model\n")
    assert len(violations([planted], tmp_path)) == 3  # torch, recranker.llm, recranker.llm.model


@pytest.mark.parametrize("package", ["tasks", "ranking", "sampling", "evaluation", "data"])
def test_light_packages_load_without_torch_ray_or_mlflow(package: str) -> None:
    files = sorted((ROOT / "recranker" / package).rglob("*.py"))
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    code = f"import sys, {', '.join(modules)}; print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
