"""Our LightGCN and MF beside RecBole's LightGCN and BPR and ``implicit``'s BPR: same machine, split and settings.

Each system trains in its own process with the same number of threads. Clocks run during training epochs alone:
reading, building graphs and every look at validation are not counted. Factors are kept every few epochs and judged
by one judge (ours), so that no system's metric code matters; the best check by validation is what is tested.
"""

import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.benchmarks.contestants import IMPLICIT, OURS, RECBOLE, contestants, shared_settings
from jobs.benchmarks.results import Row, Training, ratios, read_training, top_k_row, training_rows
from jobs.benchmarks.settings import BackbonesBenchmark
from jobs.benchmarks.split import Split
from jobs.benchmarks.task import SPLIT_FILE, TOP_K_FILE, Task
from jobs.benchmarks.workers import python_of, run_worker
from recranker.data.prepare import prepare
from recranker.progress import Bar

logger = logging.getLogger("recranker.jobs")

MASKED_PER_USER = 100


@dataclass(frozen=True)
class Outcome:
    """All that was measured."""

    data: str
    rows: list[Row]
    top_k: list[Row]
    ratios: list[Row]


def measure(settings: BackbonesBenchmark) -> Outcome:
    """Train and search with every system, one after the other.

    Raises:
        SettingsError: If the other systems' environment has not been made.
    """
    pythons = {OURS: Path(sys.executable)} | dict.fromkeys((RECBOLE, IMPLICIT), python_of(settings.environment))
    cache = Path(settings.store.home).expanduser().resolve() / "cache"
    interactions, _, facts = prepare(settings.data, settings.seed, cache)
    split = Split.of(interactions)
    with tempfile.TemporaryDirectory(prefix="recranker-benchmark-") as scratch:
        folder = Path(scratch)
        split.write(folder / "split")
        trainings = list(_trainings(settings, split, folder, pythons))
        top_k = list(_searches(settings, folder, pythons))
    rows = training_rows(trainings, settings.target_share)
    speed = {(row["system"], row["threads"]): row["topk_users_per_s"] for row in top_k}
    rows = [row | {"topk_users_per_s": speed[row["system"], row["threads"]]} for row in rows]
    return Outcome(f"{facts['source']}, {len(split.fold.like_users)} training likes", rows, top_k, ratios(rows, top_k))


def _trainings(
    settings: BackbonesBenchmark, split: Split, folder: Path, pythons: dict[str, Path]
) -> Iterator[Training]:
    everybody = [who for threads in settings.threads for who in contestants(settings, threads)]
    with Bar("benchmark epochs", sum(who.epochs for who in everybody)) as bar:
        for number, who in enumerate(everybody):
            bar.set_text(str(who))
            inputs, steps = str(folder / "split"), settings.check_every
            task = Task("train", inputs, who.model, who.values, who.epochs, steps, settings.seed)
            out, python = folder / f"training-{number}", pythons[who.system]
            run_worker(f"of_{who.system}", task, out, threads=who.threads, python=python, on_epoch=bar.advance)
            training = read_training(who, out, split)
            epoch_s = median(training.cpu_seconds)
            logger.info("%s: %.3f CPU s per epoch, best validation NDCG@10 %.4f", who, epoch_s, training.best)
            yield training


def _searches(settings: BackbonesBenchmark, folder: Path, pythons: dict[str, Path]) -> Iterator[Row]:
    write_search(settings, folder / "top_k")
    values, repeats = shared_settings(settings, "mf"), settings.top_k_repeats
    task = Task("top_k", str(folder / "top_k"), "mf", values, seed=settings.seed, repeats=repeats)
    for threads in settings.threads:
        for system, python in pythons.items():
            out = folder / f"top_k-{system}-{threads}"
            logger.info("searching top items: %s, %d thread(s)", system, threads)
            run_worker(f"of_{system}", task, out, threads=threads, python=python)
            yield top_k_row(system, threads, out, reference=folder / f"top_k-{OURS}-{threads}")


def write_search(settings: BackbonesBenchmark, folder: Path) -> None:
    """Random factors and masked items, as arrays and as the split that RecBole needs around them.

    RecBole masks training and validation items but not the test item, which is therefore one more.
    """
    random = np.random.default_rng(settings.seed)
    users, items = settings.top_k_users, settings.top_k_items
    drawn = random.random((users, items), dtype=np.float32).argpartition(MASKED_PER_USER, axis=1)
    masked, validation = drawn[:, :MASKED_PER_USER], drawn[:, MASKED_PER_USER - 1]
    parts = {"train": masked[:, :-1], "validation": validation[:, None], "test": drawn[:, MASKED_PER_USER, None]}
    columns = {name: pair for part, chosen in parts.items() for name, pair in _pairs(part, chosen).items()}
    factors = [random.standard_normal((count, settings.dim), dtype=np.float32) for count in (users, items)]
    folder.mkdir(parents=True)
    np.savez(folder / TOP_K_FILE, users=factors[0], items=factors[1], **_pairs("masked", masked))
    np.savez(folder / SPLIT_FILE, num_users=users, num_items=items, **columns)


def _pairs(name: str, items: NDArray[np.int64]) -> dict[str, Any]:
    """``NAME_users`` and ``NAME_items`` of a rectangle with a row per user."""
    users = np.repeat(np.arange(len(items)), items.shape[1])
    return {f"{name}_users": users, f"{name}_items": items.reshape(-1)}
