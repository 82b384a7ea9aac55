"""Batch ranking: an actor pool in which every actor loads the model once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from ray.data import ActorPoolStrategy

from recranker.distributed.cluster import check_workers
from recranker.distributed.datasets import from_table
from recranker.llm.model import adapter_disabled, load_adapter, load_model
from recranker.llm.scoring import Scored, make_scorer
from recranker.llm.settings import LLMSettings
from recranker.llm.tuned import JOINT, score_tuned
from recranker.schema import ANSWERS
from recranker.tasks.instructions import to_prompts
from recranker.tasks.protocol import Prompt
from recranker.tasks.settings import TaskName

BATCH_LISTS = 4
"""Lists per call of an actor: small, so that progress is visible and the last actor does not lag."""


class RankActor:
    """Holds the model; answers batches of prompts, tuned and, where asked, untuned."""

    def __init__(self, model: str, adapters: str, settings: dict[str, Any]) -> None:
        self.settings = LLMSettings.model_validate(settings)
        self.lm = load_model(Path(model), self.settings)
        self.adapters = Path(adapters)
        if (self.adapters / JOINT).is_dir():
            load_adapter(self.lm, self.adapters / JOINT)
        self.scorer = make_scorer(self.lm, self.settings)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """ANSWERS rows of PROMPTS rows with an extra column ``model``."""
        prompts = to_prompts(batch)
        rows: list[dict[str, Any]] = []
        for model in dict.fromkeys(batch["model"].to_pylist()):
            asked = [index for index, name in enumerate(batch["model"].to_pylist()) if name == model]
            chosen = [prompts[index] for index in asked]
            scored = self._tuned(chosen) if model == "tuned" else self._untuned(chosen)
            rows += list(map(_row, batch.take(asked).to_pylist(), chosen, scored))
        return pa.Table.from_pylist(rows, schema=ANSWERS.schema)

    def _tuned(self, prompts: Sequence[Prompt]) -> list[Scored]:
        tasks: list[TaskName] = sorted({question.task for prompt in prompts for question in prompt.questions})
        return score_tuned(self.lm, self.scorer, self.adapters, prompts, tasks)

    def _untuned(self, prompts: Sequence[Prompt]) -> list[Scored]:
        with adapter_disabled(self.lm):
            return self.scorer.score_with_cost(prompts)


def answer_prompts(
    prompts: pa.Table,
    models: Sequence[str],
    *,
    model: Path,
    adapters: Path,
    settings: LLMSettings,
    workers: int,
    advance: Callable[[int], None],
) -> pa.Table:
    """The ANSWERS table: every prompt answered by the model its row names.

    Args:
        prompts: PROMPTS rows; a prompt may stand several times, once per model.
        models: Per row 'tuned', or an untuned model's name: 'untuned' or 'untuned_no_hint'.
        model: Folder of the base model.
        adapters: Folder of the adapter or adapters.
        settings: How the model is run.
        workers: Actors, each with a CPU and, on CUDA, a GPU.
        advance: Told the number of rows answered since the last call.

    Raises:
        SettingsError: If the cluster has too few CPUs or GPUs for the workers.
    """
    use_gpu = check_workers("ranking.workers", workers, device=settings.device)
    marked = prompts.append_column("model", pa.array(models, pa.string()))
    answered = from_table(marked, max(workers, -(-marked.num_rows // BATCH_LISTS))).map_batches(
        RankActor,
        fn_constructor_args=(str(model), str(adapters), settings.model_dump()),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=int(use_gpu),
    )
    parts = []
    for part in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
        parts.append(part)
        advance(part.num_rows)
    return pa.concat_tables(parts).cast(ANSWERS.schema) if parts else ANSWERS.schema.empty_table()


def _row(prompt: dict[str, Any], asked: Prompt, scored: Scored) -> dict[str, Any]:
    answers = [
        {"task": question.task, "item_ids": list(question.item_ids), "log_probabilities": found.tolist()}
        for question, found in zip(asked.questions, scored.log_probabilities, strict=True)
    ]
    shared = {name: prompt[name] for name in ("list_id", "user_id", "split", "model")}
    return {**shared, "answers": answers, "prompt_tokens": scored.tokens}
