"""The ranking engine without Ray or HTTP, on the prompts that a service's task replicas get."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from jobs.benchmarks.own_process import in_own_processes, wait_for_all
from jobs.load.plan import Body
from recranker.llm.scoring import TreeScorer, make_scorer
from recranker.tasks.protocol import Prompt
from recranker.tasks.settings import TaskName
from serve.messages import RankRequest
from serve.models import verified_model
from serve.ranking import ask
from serve.replica_sets import SHARED, Call, ReplicaSet, adapters_of
from serve.settings import ServeSettings
from serve.source import ServedRun, read_run

Prompts = dict[TaskName, Prompt]
"""Of one request, by task."""


@dataclass(frozen=True)
class Speed:
    """Of all processes together."""

    requests: int
    requests_per_s: float
    requests_per_cpu_s: float


def engine_speed(
    settings: ServeSettings, bodies: Sequence[Body], *, processes: int, batch: int, seconds: float, one_tree: bool
) -> Speed | None:
    """How many requests the engine answers on as many cores as ``processes``, each of one thread.

    Args:
        settings: Of the service whose run is taken.
        bodies: Requests, in turn.
        processes: How many, with a model each.
        batch: Requests given to the scorer at a time.
        seconds: Batches begin for so long.
        one_tree: Whether all questions of a request share one prefix, instead of one prefix for each task.

    Returns:
        None where tasks have adapters of their own, which no tree can share.
    """
    if one_tree and len(set(adapters_of(read_run(settings)).values())) > 1:
        return None
    found = in_own_processes(processes, _answer, settings, bodies, batch, seconds, one_tree)
    requests = sum(one[0] for one in found)
    return Speed(requests, sum(done / wall for done, wall, _ in found), requests / sum(cpu for *_, cpu in found))


def _answer(
    number: int, settings: ServeSettings, bodies: Sequence[Body], batch: int, seconds: float, one_tree: bool
) -> tuple[int, float, float]:
    """Requests answered, seconds and CPU seconds, in this process."""
    run = read_run(settings)
    scorers = load_scorers(settings, run)
    prompts = [prompts_of(body, run, settings) for body in bodies]
    score = _trees(scorers) if one_tree else _by_task(scorers)
    score(prompts[:1])
    wait_for_all()
    wall, cpu, done = time.perf_counter(), time.process_time(), 0
    for start in count(number * batch, batch):
        score([prompts[index % len(prompts)] for index in range(start, start + batch)])
        done += batch
        if time.perf_counter() - wall >= seconds:
            break
    return done, time.perf_counter() - wall, time.process_time() - cpu


def prompts_of(body: Body, run: ServedRun, settings: ServeSettings) -> Prompts:
    """What the router would ask the tasks."""
    return ask(RankRequest.model_validate(body), run, settings).prompts


def load_scorers(settings: ServeSettings, run: ServedRun) -> dict[TaskName, TreeScorer]:
    """By task; tasks that share an adapter share a scorer."""
    folders = adapters_of(run)
    one_task = {folder: task for task, folder in folders.items()}
    loaded = {
        folder: make_scorer(verified_model(task, run, settings.cache), run.llm) for folder, task in one_task.items()
    }
    return {task: loaded[folder] for task, folder in folders.items()}


def _by_task(scorers: dict[TaskName, TreeScorer]) -> Callable[[Sequence[Prompts]], None]:
    """Each task's prompts are scored by themselves, as each task's replica does."""

    def score(requests: Sequence[Prompts]) -> None:
        for task, scorer in scorers.items():
            scorer.score([prompts[task] for prompts in requests if task in prompts])

    return score


def _trees(scorers: dict[TaskName, TreeScorer]) -> Callable[[Sequence[Prompts]], None]:
    """A request's questions are scored under one prefix."""
    scorer = next(iter(scorers.values()))

    def score(requests: Sequence[Prompts]) -> None:
        scorer.score([one_tree_of(prompts) for prompts in requests])

    return score


def one_tree_of(prompts: Prompts) -> Prompt:
    """All questions of a request under the prefix that its tasks share, as shared replicas are asked."""
    return Call(ReplicaSet(SHARED, tuple(prompts)), prompts).prompt
