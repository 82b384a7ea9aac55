"""Batch ranking: a pool of actors per model, each of which loads it once; every finished batch is kept on disk.

First the work is planned: which model is asked about which lists, in which batches, and what an earlier, killed run
has answered already. Then the rest is asked, and at last all answers are collected. Batches depend on the lists and
the settings alone, so a run that goes on from an earlier one computes what that one would have.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy

from recranker.distributed.answer_parts import AnswerParts, answers_to, is_answered
from recranker.distributed.cluster import check_workers
from recranker.errors import DataError, OutputError
from recranker.llm.adapter import load_tuned
from recranker.llm.model import load_model, merge_adapter
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings
from recranker.llm.tuned import adapter_for
from recranker.schema import ANSWERS
from recranker.tasks.instructions import to_prompts
from recranker.tasks.protocol import Prompt
from recranker.tasks.questions import ALL_TASKS
from recranker.tasks.rounds import Asked, ask_in_rounds
from recranker.tasks.settings import TaskName

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]

SHARED = ["list_id", "user_id", "split", "model"]
"""Columns that prompts asked and their answers have in common."""
BASE = "base"
"""Name of the pool without an adapter."""


@dataclass(frozen=True)
class Pool:
    """What one model, with one adapter or none, is asked, and what of it has been."""

    name: str
    adapter: Path | None
    tasks: tuple[TaskName, ...]
    """Whose questions it answers."""
    prompts: pa.Table
    """PROMPTS rows with a column ``model``, all that it is asked."""
    missing: tuple[pa.Table, ...]
    """Those not answered yet, in batches, the longest prompts first."""
    parts: AnswerParts

    @property
    def num_missing(self) -> int:
        """Prompts not answered yet."""
        return sum(batch.num_rows for batch in self.missing)


@dataclass(frozen=True)
class Spent:
    """What a run has asked since it started; answers found from an earlier one are not in it."""

    lists: int = 0
    """Each once per model and adapter."""
    tokens: int = 0
    """Tokens computed."""
    seconds: float = 0.0
    """Since the start, loading of models included."""

    @property
    def lists_per_second(self) -> float:
        return self.lists / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def plus(self, lists: int, tokens: int, *, seconds: float) -> "Spent":
        """With a finished batch, ``seconds`` after the start."""
        return Spent(self.lists + lists, self.tokens + tokens, seconds)


class RankActor:
    """Holds one model and answers batches of prompts with it."""

    def __init__(
        self, model: str, adapter: str | None, tasks: tuple[TaskName, ...], folder: str, settings: dict[str, Any]
    ) -> None:
        llm = LLMSettings.model_validate(settings)
        lm = load_model(Path(model), llm) if adapter is None else load_tuned(Path(model), Path(adapter), llm)
        merge_adapter(lm)
        self.scorer = make_scorer(lm, llm)
        self.tasks = tasks
        self.parts = AnswerParts(Path(folder))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answers PROMPTS rows with a column ``model``, keeps the ANSWERS rows, and returns how much that was."""
        prompts = [self._own(prompt) for prompt in to_prompts(batch)]
        with self.scorer.keeping_prefixes():  # for the later rounds
            asked = ask_in_rounds(self.scorer.score_with_cost, prompts)
        rows = [_row(*one) for one in zip(batch.select(SHARED).to_pylist(), asked, strict=True)]
        self.parts.write(pa.Table.from_pylist(rows, schema=ANSWERS.schema))
        return pa.table({"lists": [len(rows)], "tokens": [sum(one.tokens for one in asked)]})

    def _own(self, prompt: Prompt) -> Prompt:
        return replace(prompt, questions=tuple(one for one in prompt.questions if one.task in self.tasks))


def plan_pools(
    prompts: pa.Table, models: Sequence[str], *, adapters: Path, scratch: Path, token_budget: int
) -> list[Pool]:
    """Who is asked what, without that which ``scratch`` holds from an earlier run.

    The tuned model is one pool with the adapter of all tasks, merged, or a pool per task with the task's own; all
    untuned models are one pool.

    Args:
        prompts: PROMPTS rows; a prompt may stand several times, once per model.
        models: Per row 'tuned', or an untuned model's name: 'untuned' or 'untuned_no_hint'.
        adapters: Folder of the adapter or adapters.
        scratch: Keeps answers, a folder per pool; all nodes must see it, and other prompts, models or settings must
            never find it.
        token_budget: Tokens of a batch, at the most.

    Raises:
        ModelError: If a task has no adapter.
        DataError: If the prompts' tokens were not counted.
        OutputError: If ``scratch`` cannot be made.
    """
    marked = prompts.append_column("model", pa.array(models, pa.string()))
    is_tuned = pc.equal(marked["model"], "tuned")
    tuned, untuned = marked.filter(is_tuned), marked.filter(pc.invert(is_tuned))
    asked: list[tuple[str, Path | None, tuple[TaskName, ...], pa.Table]] = [
        (path.name, path, tasks, tuned) for path, tasks in _adapters(adapters, tuned).items()
    ]
    asked.append((BASE, None, ALL_TASKS, untuned))
    pools = [pool for one in asked if (pool := _pool(*one, scratch, token_budget)).prompts.num_rows]
    total, missing = sum(pool.prompts.num_rows for pool in pools), sum(pool.num_missing for pool in pools)
    if missing < total:
        logger.info("rank: %d of %d lists were answered before", total - missing, total)
    return pools


def answer_missing(
    pools: Sequence[Pool], *, model: Path, settings: LLMSettings, workers: int, on_batch: Callable[[Spent], None]
) -> Spent:
    """Ask all that is missing, one pool after another, and keep it.

    Args:
        pools: From ``plan_pools``.
        model: Folder of the base model.
        settings: How it is run.
        workers: Actors, each with a CPU and, on CUDA, a GPU.
        on_batch: Told after each batch what has been spent so far.

    Raises:
        SettingsError: If the cluster has too few CPUs or GPUs for the workers.
        ModelError: If a prompt cannot be encoded, or an answer is not a number.
        OutputError: If answers cannot be kept.
    """
    use_gpu = check_workers("ranking.workers", workers, device=settings.device)
    started, spent = time.perf_counter(), Spent()
    for pool in pools:
        if not pool.missing:
            continue
        adapter = None if pool.adapter is None else str(pool.adapter)
        answered = ray.data.from_arrow(list(pool.missing)).map_batches(
            RankActor,
            fn_constructor_args=(str(model), adapter, pool.tasks, str(pool.parts.folder), settings.model_dump()),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(workers, len(pool.missing))),
            num_cpus=1,
            num_gpus=int(use_gpu),
        )
        for done in answered.iter_rows():
            spent = spent.plus(done["lists"], done["tokens"], seconds=time.perf_counter() - started)
            on_batch(spent)
    if spent.lists:
        logger.info(
            "ranked %d lists in %.1f s: %.2f lists/s, %.0f tokens/s",
            *(spent.lists, spent.seconds, spent.lists_per_second, spent.tokens_per_second),
        )
    return spent


def collect_answers(pools: Sequence[Pool]) -> pa.Table:
    """The ANSWERS table: a row per list and model, the answers of a list from several adapters put together.

    By key, whatever batches they came in: what is learned from them must not depend on that.

    Raises:
        OutputError: If answers are missing.
    """
    tuned = [pool for pool in pools if pool.adapter is not None]
    found = [_complete(pool) for pool in pools if pool.adapter is None or len(tuned) == 1]
    if len(tuned) > 1:
        found.append(_together(tuned))
    everything = pa.concat_tables([ANSWERS.schema.empty_table(), *found])
    return everything.sort_by([(name, "ascending") for name in ANSWERS.key])


def answer_facts(answers: pa.Table) -> dict[str, int]:
    """How many lists were asked about, and how many lines of their histories did not fit, under the model that lost
    most of each."""
    lines = answers.group_by("list_id").aggregate([("cut_lines", "max")])["cut_lines_max"].to_numpy()
    facts = {"lists": len(lines), "cut_history_lines": int(lines.sum())}
    if facts["cut_history_lines"]:
        logger.info(
            "rank: %d lines of history, the oldest likes of %d of %d lists, did not fit into llm.max_prompt_tokens",
            facts["cut_history_lines"],
            (lines > 0).sum(),
            facts["lists"],
        )
    return facts


def tokens_to_ask(prompts: pa.Table, tasks: Sequence[TaskName]) -> Ints:
    """``(prompts,)`` tokens of the prefix and of the questions of ``tasks`` in round 0, as counted; 0: no question.

    Later rounds are left out, as most lists do not come to them. Prefixes count whole, although some will be cut.

    Raises:
        DataError: If nobody has counted them.
    """
    column = prompts["questions"].combine_chunks()
    owners, questions = pc.list_parent_indices(column), column.flatten()
    asked = pc.and_(pc.is_in(questions.field("task"), pa.array(tasks)), pc.equal(questions.field("round"), 0))
    owners = owners.filter(asked).to_numpy()
    in_prefix, sizes = prompts["prefix_tokens"], questions.field("tokens").filter(asked)
    if in_prefix.null_count or sizes.null_count:
        raise DataError("prompts without token counts cannot be put into batches; run jobs.instruct again")
    in_questions = np.bincount(owners, sizes.to_numpy(), minlength=prompts.num_rows).astype(np.int64)
    return np.where(in_questions > 0, in_questions + in_prefix.to_numpy(), 0)


def cut_batches(prompts: pa.Table, tokens: Ints, token_budget: int) -> list[pa.Table]:
    """``prompts`` in batches of at most ``token_budget`` tokens, or of one prompt; the longest come first.

    So a batch is a forward pass or two, whatever the lengths, its prompts are of about the same length, and at the
    end, when actors wait for each other, nobody has just begun with the longest.

    Args:
        prompts: PROMPTS rows with a column ``model``, in any order.
        tokens: ``(prompts,)`` of each; those of 0 are left out.
        token_budget: At most, of one batch.
    """
    lists, models = prompts["list_id"].to_pylist(), prompts["model"].to_pylist()
    order = sorted(np.flatnonzero(tokens).tolist(), key=lambda row: (-tokens[row], lists[row], models[row]))
    batches: list[list[int]] = []
    room = 0
    for row in order:
        if not batches or tokens[row] > room:
            batches.append([])
            room = token_budget
        batches[-1].append(row)
        room -= int(tokens[row])
    return [prompts.take(rows) for rows in batches]


def _adapters(folder: Path, prompts: pa.Table) -> dict[Path, tuple[TaskName, ...]]:
    """Which adapter answers which of the tasks that occur in ``prompts``."""
    asked = set(pc.unique(prompts["questions"].combine_chunks().flatten().field("task")).to_pylist())
    tasks_of: dict[Path, tuple[TaskName, ...]] = {}
    for task in ALL_TASKS:
        if task in asked:
            path = adapter_for(folder, task)
            tasks_of[path] = (*tasks_of.get(path, ()), task)
    return tasks_of


def _pool(
    name: str, adapter: Path | None, tasks: tuple[TaskName, ...], prompts: pa.Table, scratch: Path, token_budget: int
) -> Pool:
    parts = AnswerParts(scratch / name)
    parts.create()
    tokens = tokens_to_ask(prompts, tasks)
    marked = prompts.append_column("missing", pc.invert(is_answered(prompts, parts.read()))).combine_chunks()
    batches = [batch.filter(batch["missing"]) for batch in cut_batches(marked, tokens, token_budget)]
    missing = tuple(batch.drop_columns("missing") for batch in batches if batch.num_rows)
    return Pool(name, adapter, tasks, prompts.filter(pa.array(tokens > 0)), missing, parts)


def _complete(pool: Pool) -> pa.Table:
    answers = pool.parts.read()
    lost = pc.invert(is_answered(pool.prompts, answers))
    if pc.any(lost).as_py():
        raise OutputError(
            f"{pool.parts.folder}: {pc.sum(lost).as_py()} of {pool.prompts.num_rows} lists have no answer there, for "
            f"instance {pool.prompts.filter(lost)['list_id'][0].as_py()!r}; set store.home to a folder that all nodes "
            "share, and run it again"
        )
    return answers_to(pool.prompts, answers)


def _together(pools: Sequence[Pool]) -> pa.Table:
    """The answers of pools that were asked different questions about the same lists.

    They stand in the order of the prompts, as pools are made and questions asked task by task in the same order.
    """
    rows: dict[str, dict[str, Any]] = {}
    for pool in pools:
        for row in _complete(pool).to_pylist():
            whole = rows.setdefault(row["list_id"], {**row, "answers": [], "prompt_tokens": 0})
            whole["answers"] += row["answers"]
            whole["prompt_tokens"] += row["prompt_tokens"]
            whole["cut_lines"] = max(whole["cut_lines"], row["cut_lines"])
    return pa.Table.from_pylist(list(rows.values()), schema=ANSWERS.schema)


def _row(prompt: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """An ANSWERS row; ``prompt`` holds the columns ``SHARED``."""
    answers = [
        {
            "task": one.task,
            "item_ids": list(one.item_ids),
            "log_probabilities": one.log_probabilities.tolist(),
            "round": one.round,
        }
        for one in asked.answers
    ]
    return {**prompt, "answers": answers, "prompt_tokens": asked.tokens, "cut_lines": asked.cut_lines}
