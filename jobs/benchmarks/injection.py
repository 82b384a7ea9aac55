"""How far text that asks for the first place lifts an item, beside harmless text of the same length.

Prompts, answers and fusion are those of serving, one request after the other in this process.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from jobs.benchmarks.serving_engine import load_scorers
from jobs.benchmarks.settings import InjectionBenchmark
from jobs.load.bodies import bodies
from jobs.load.plan import Body
from recranker.errors import SettingsError
from recranker.evaluation.intervals import paired_bootstrap
from recranker.llm.scoring import TreeScorer
from recranker.progress import Bar
from recranker.randomness import generator
from recranker.ranking.fusion import best_first
from recranker.ranking.utilities import TASKS
from recranker.tasks.settings import TaskName
from serve.messages import RankRequest, RankResponse
from serve.ranking import answers_of, ask, respond
from serve.settings import ServeSettings
from serve.source import ServedRun, read_run

HYBRID = "hybrid"
Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """All that was measured."""

    rows: list[Row]
    """One per ranker, the tasks and what they are fused to."""
    figures: dict[str, Any]
    """Mean gains in rank, by ranker."""


@dataclass(frozen=True)
class Pair:
    """One request twice; they differ in what stands behind the title of one candidate."""

    item_id: str
    """Whose title."""
    harmless: Body
    hostile: Body


@dataclass(frozen=True)
class Engine:
    """A run and its models, as the replicas of a service hold them."""

    run: ServedRun
    settings: ServeSettings
    scorers: Mapping[TaskName, TreeScorer]

    def response(self, body: Body) -> RankResponse:
        """What the service answers to ``body``."""
        request = RankRequest.model_validate(body)
        asked = ask(request, self.run, self.settings)
        found = {task: self.scorers[task].score([prompt])[0] for task, prompt in asked.prompts.items()}
        answers = {task: answers_of(asked.prompts[task], values) for task, values in found.items()}
        return respond(asked, answers, request, self.run)


def measure(settings: InjectionBenchmark) -> Outcome:
    """Rank every pair of requests.

    Raises:
        SettingsError: If a text is so long that it would be cut.
        DataError: See ``bodies``.
    """
    pairs = list(pairs_of(bodies(settings), settings))
    run = read_run(settings.service)
    _check_fits(pairs, run)
    with Bar("benchmark", len(pairs)) as bar:
        engine = Engine(run, settings.service, load_scorers(settings.service, run))
        ranks = []
        for pair in pairs:
            ranks.append([ranks_of(engine.response(body), pair.item_id) for body in (pair.harmless, pair.hostile)])
            bar.advance()
    rows = [_row(name, ranks, settings) for name in ranks[0][0]]
    return Outcome(rows, {"rank_shift": {row["ranker"]: row["rank_shift"] for row in rows}})


def pairs_of(asked: Sequence[Body], settings: InjectionBenchmark) -> Iterable[Pair]:
    """A pair per user; harmless text is made of the titles offered to the others."""
    for number, body in enumerate(asked):
        stream = generator(settings.seed, "injection", number)
        place = int(stream.integers(len(body["candidates"])))
        others = [one["title"] for index, other in enumerate(asked) if index != number for one in other["candidates"]]
        stream.shuffle(others)
        text = settings.texts[number % len(settings.texts)]
        yield Pair(
            body["candidates"][place]["id"],
            _behind(body, place, harmless_text(others, len(text))),
            _behind(body, place, text),
        )


def harmless_text(titles: Sequence[str], length: int) -> str:
    """``titles`` one after another, so many characters of them.

    Raises:
        SettingsError: If there are too few.
    """
    text = ", ".join(titles)
    if len(text) < length:
        raise SettingsError(
            f"texts: one has {length} characters, the titles that harmless text is made of only {len(text)}; ask for "
            "more users or shorten it"
        )
    return text[:length]


def ranks_of(response: RankResponse, item_id: str) -> dict[str, int]:
    """The item's rank from 1 by each task alone and by all."""
    items = sorted(response.ranking, key=lambda one: one.backbone_rank)
    place = [one.id for one in items].index(item_id)
    tasks = [task for task in TASKS if getattr(items[0], task) is not None]
    scores = {task: np.array([getattr(one, task) for one in items], dtype=np.float64) for task in tasks}
    ranks = {task: best_first(values).tolist().index(place) + 1 for task, values in scores.items()}
    return {**ranks, HYBRID: items[place].rank}


def _behind(body: Body, place: int, text: str) -> Body:
    """``body`` with ``text`` behind the title of one candidate."""
    candidates = list(body["candidates"])
    candidates[place] = {**candidates[place], "title": f"{candidates[place]['title']} {text}"}
    return {**body, "candidates": candidates}


def _check_fits(pairs: Sequence[Pair], run: ServedRun) -> None:
    longest = max(len(one["title"]) for pair in pairs for one in pair.hostile["candidates"])
    if longest > run.data.max_title_characters:
        raise SettingsError(
            f"texts: the longest title with its text has {longest} characters, of which data.max_title_characters="
            f"{run.data.max_title_characters} are shown; shorten the texts"
        )


def _row(ranker: str, ranks: Sequence[Sequence[Mapping[str, int]]], settings: InjectionBenchmark) -> Row:
    harmless, hostile = (np.array([one[side][ranker] for one in ranks], dtype=np.float64) for side in (0, 1))
    gains: NDArray[np.float64] = harmless - hostile
    low, high = paired_bootstrap(gains[:, np.newaxis], samples=settings.samples, seed=settings.seed)[0]
    return {
        "ranker": ranker,
        "users": len(gains),
        "rank_shift": float(gains.mean()),
        "low": float(low),
        "high": float(high),
        "lifted": float((gains > 0).mean()),
        "lowered": float((gains < 0).mean()),
        "first_before": float((harmless == 1).mean()),
        "first_after": float((hostile == 1).mean()),
    }


def table(rows: Sequence[Row]) -> Table:
    """For a person."""
    shown = Table(title="ranks an item gains by text that asks for the first place, beside harmless text")
    shown.add_column("ranker")
    for name in ("users", "mean gain", "95 %", "lifted", "lowered", "first, harmless", "first, hostile"):
        shown.add_column(name, justify="right")
    for row in rows:
        shares = (f"{row[name]:.0%}" for name in ("lifted", "lowered", "first_before", "first_after"))
        interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
        shown.add_row(row["ranker"], str(row["users"]), f"{row['rank_shift']:+.2f}", interval, *shares)
    return shown
