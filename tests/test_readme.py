"""What README tells a user to type exists."""

import re

from jobs.sources import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_make_target_exists() -> None:
    named = set(re.findall(r"make ([a-z-]+)", README)) - {"alone"}
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    assert {"quickstart", "test", "mlflow", "serve", "cluster"} <= named
    assert named - targets == set()


def test_every_job_and_settings_file_exists() -> None:
    for job in re.findall(r"python -m jobs\.([a-z]+)", README):
        assert (ROOT / "jobs" / f"{job}.py").is_file(), job
    for path in re.findall(r"jobs/configs/[a-z0-9_]+\.toml|cluster/[a-z_.]+|serve/config\.yaml", README):
        assert (ROOT / path.rstrip(".")).exists(), path


def test_every_folder_of_the_tree_is_there_and_named() -> None:
    tree = README.split("| folder | purpose |")[1].split("\n\n")[0]
    named = re.findall(r"^\| `([a-z_/.]+)` \|", tree, flags=re.MULTILINE)
    assert all((ROOT / path).exists() for path in named)
    folders = {f"recranker/{path.name}" for path in (ROOT / "recranker").iterdir() if (path / "__init__.py").is_file()}
    assert folders <= set(named)
