"""From what the workers left to rows, ratios and a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from jobs.benchmarks.contestants import OURS, RECBOLE, SAME, Contestant
from jobs.benchmarks.split import Split
from jobs.benchmarks.task import FOUND_FILE, LAPS_FILE, epoch_of, factors_file
from recranker.backbones.fit import FactorFit

Row = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """One finished training: what its epochs took, and how good the factors were at each check."""

    who: Contestant
    seconds: Sequence[float]
    """Per epoch."""
    cpu_seconds: Sequence[float]
    """Per epoch."""
    validation: Mapping[int, float]
    """Epochs done to NDCG@10."""
    test: Mapping[str, float]
    """Metrics of the best check."""

    @property
    def best(self) -> float:
        """NDCG@10 of the best check."""
        return max(self.validation.values())

    def epochs_to(self, target: float) -> int | None:
        """Epochs behind the first check that reaches ``target``; None where no check does."""
        return min((epoch for epoch, found in self.validation.items() if found >= target), default=None)

    def row(self, target: float) -> Row:
        """As it stands in the table and in the JSON file."""
        needed = self.epochs_to(target)
        return {
            "system": self.who.system,
            "model": self.who.model,
            "settings": self.who.settings,
            "threads": self.who.threads,
            "seconds_per_epoch": median(self.seconds),
            "cpu_seconds_per_epoch": median(self.cpu_seconds),
            "epochs_to_target": needed,
            "cpu_seconds_to_target": None if needed is None else sum(self.cpu_seconds[:needed]),
            "target_ndcg_at_10": target,
            "validation_ndcg_at_10": self.best,
            "best_epoch": max(self.validation, key=self.validation.__getitem__),
            **self.test,
        }


def read_training(who: Contestant, folder: Path, split: Split) -> Training:
    """What the worker left in ``folder``, judged on ``split``."""
    files = {epoch_of(file): file for file in sorted(folder.glob(factors_file("*")))}
    validation = {epoch: split.validation_ndcg_at_10(_fit(file)) for epoch, file in files.items()}
    best = max(validation, key=validation.__getitem__)
    with np.load(folder / LAPS_FILE) as laps:
        times = laps["seconds"].tolist(), laps["cpu_seconds"].tolist()
    return Training(who, *times, validation, split.test_metrics(_fit(files[best])))


def training_rows(trainings: Sequence[Training], target_share: float) -> list[Row]:
    """Rows of all trainings, each against the target of its model and number of threads."""
    return [
        training.row(target_of([one for one in trainings if _group(one) == _group(training)], target_share))
        for training in trainings
    ]


def target_of(trainings: Sequence[Training], share: float) -> float:
    """``share`` of the worst of the best NDCG@10 that those under the same settings have reached."""
    return share * min(one.best for one in trainings if one.who.settings == SAME)


def top_k_row(system: str, threads: int, folder: Path, reference: Path) -> Row:
    """The median search of one system, and how many of its lists are those of ``reference``."""
    laps = np.load(folder / LAPS_FILE)
    found, known = (np.load(one / FOUND_FILE)["items"] for one in (folder, reference))
    seconds = float(np.median(laps["seconds"]))
    return {
        "system": system,
        "threads": threads,
        "topk_seconds": seconds,
        "topk_cpu_seconds": float(np.median(laps["cpu_seconds"])),
        "topk_users_per_s": len(found) / seconds,
        "share_of_equal_lists": float((found == known).all(axis=1).mean()),
    }


def ratios(rows: Sequence[Row], top_k: Sequence[Row]) -> list[Row]:
    """Per number of threads, our share of RecBole's CPU time, and the seconds of our search."""
    found = []
    for search in (row for row in top_k if row["system"] == OURS):
        ratio: Row = {"threads": search["threads"], "topk_seconds": search["topk_seconds"]}
        for model in ("lightgcn", "mf"):
            pair = [_find(rows, system, model, search["threads"]) for system in (OURS, RECBOLE)]
            for key, name in (("cpu_seconds_to_target", ""), ("cpu_seconds_per_epoch", "_per_epoch")):
                mine, other = (row and row[key] for row in pair)
                if mine and other:
                    ratio[f"{model}_cpu_share_of_recbole{name}"] = mine / other
        found.append(ratio)
    return found


def training_table(rows: Sequence[Row], title: str) -> Table:
    """For a person."""
    table = Table(title=title)
    for name in ("system", "model", "settings"):
        table.add_column(name)
    numbers = ("threads", "s/epoch", "CPU s/epoch", "epochs to target", "CPU s to target", "validation NDCG@10")
    for name in (*numbers, "HR@3", "NDCG@3", "HR@5", "NDCG@5"):
        table.add_column(name, justify="right")
    for row in rows:
        needed, cpu = row["epochs_to_target"], row["cpu_seconds_to_target"]
        table.add_row(
            *(row[name] for name in ("system", "model", "settings")),
            str(row["threads"]),
            f"{row['seconds_per_epoch']:.3f}",
            f"{row['cpu_seconds_per_epoch']:.3f}",
            "not reached" if needed is None else str(needed),
            "" if cpu is None else f"{cpu:.1f}",
            f"{row['validation_ndcg_at_10']:.4f}",
            *(f"{row[name]:.4f}" for name in ("hr_at_3", "ndcg_at_3", "hr_at_5", "ndcg_at_5")),
        )
    return table


def top_k_table(rows: Sequence[Row], title: str) -> Table:
    """For a person."""
    table = Table(title=title)
    table.add_column("system")
    for name in ("threads", "seconds", "CPU seconds", "users/s", "lists equal to ours"):
        table.add_column(name, justify="right")
    for row in rows:
        times = f"{row['topk_seconds']:.3f}", f"{row['topk_cpu_seconds']:.3f}"
        share = f"{row['share_of_equal_lists']:.1%}"
        table.add_row(row["system"], str(row["threads"]), *times, f"{row['topk_users_per_s']:.0f}", share)
    return table


def _group(training: Training) -> tuple[str, int]:
    return training.who.model, training.who.threads


def _fit(file: Path) -> FactorFit:
    with np.load(file) as arrays:
        return FactorFit(arrays["users"], arrays["items"])


def _find(rows: Sequence[Row], system: str, model: str, threads: int) -> Row | None:
    wanted = (system, model, SAME, threads)
    keys = ("system", "model", "settings", "threads")
    return next((row for row in rows if tuple(row[key] for key in keys) == wanted), None)
