"""A whole pipeline in small: toy data, a random two-layer model, settings that fit both."""

import importlib
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from jobs.stage import main
from tests.models import tiny_model
from tests.toy import toy_interactions

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
name = "small"
[store]
home = "{home}"
[data]
rating_min = 1
rating_max = 5
like_at_least = 4
dislike_below = 3
[data.source]
kind = "files"
interactions = "{interactions}"
items = "{items}"
rating_column = "rating"
time_column = "timestamp"
genres_column = "genres"
[backbone]
retriever = {{ kind = "mf", dim = 8, epochs = 20, learning_rate = 0.05, batch_size = 256 }}
rating_predictor = {{ dim = 4, epochs = 5 }}
[sampling]
kind = "adaptive"
num_draws = 24
num_clusters = 3
[llm]
model = "{model}"
max_prompt_tokens = 4096
token_budget = 4096
[tune]
batch_prompts = 8
lora = {{ rank = 2 }}
[ranking]
workers = 1
max_validation_lists = 10
[evaluation]
bootstrap_samples = 200
[ray]
cpus = 2
object_store_mb = 100
"""


def write_config(folder: Path, *, num_users: int = 60) -> Path:
    """Data, model and settings under ``folder``; returns the settings file."""
    interactions, items = toy_interactions(folder / "data", num_users=num_users)
    model = tiny_model(folder / "model")
    config = folder / "small.toml"
    config.write_text(CONFIG.format(home=folder / "home", interactions=interactions, items=items, model=model))
    return config


def environment() -> dict[str, str]:
    """Of a job started by hand: no cluster to join."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}


def job(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m jobs.NAME arguments`` as a user runs it."""
    command = [sys.executable, "-m", f"jobs.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)


def job_here(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same without a process of its own, whose imports take most of the time where a job only says something."""
    module = importlib.import_module(f"jobs.{name}")
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(module.STAGE, arguments) if hasattr(module, "STAGE") else module.main(arguments)
    return subprocess.CompletedProcess([name, *arguments], code, out.getvalue(), err.getvalue())


def hashes(home: Path) -> dict[str, dict[str, str]]:
    """Logical hash of every table published so far."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted((home / "runs" / "small").glob("*/_manifest.json")):
        manifest: dict[str, Any] = json.loads(path.read_text())
        found[path.parent.name] = {name: table["hash"] for name, table in manifest["tables"].items()}
    return found
