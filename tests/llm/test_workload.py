from dataclasses import replace
from typing import Any

import pytest

from recranker.llm.plan import PromptTokens, Row
from recranker.llm.settings import TuneSettings
from recranker.llm.training import Trainer, micro_batches, plan_adapters
from recranker.llm.workload import Supposed, counted
from recranker.tasks.settings import InstructSettings
from tests.llm.prompts import toy_prompts

EVEN, ODD = PromptTokens(30, (20, 20)), PromptTokens(30, (20, 20, 40))
"""The lengths of toy prompts."""


def supposed(prompts: int = 100, tokens: int | None = None, **instruct: int) -> Supposed:
    return Supposed(prompts, tokens, InstructSettings.model_validate(instruct), candidates=10)


def test_passes_are_those_that_training_makes() -> None:
    tune = TuneSettings.model_validate(
        {"workers": 2, "batch_prompts": 4, "micro_batch_tokens": 150, "epochs": 3, "lora": {"rank": 2}}
    )
    plans = plan_adapters(toy_prompts(6), tune, 4096)
    work = counted(plans, [], tune, limit=4096, seed=5).works[0]
    trainer: Any = Trainer(None, None, plans[0].prompts, tune, 4096, 5)  # batches need neither engine nor model
    lengths = [[110 if int(one.prompt_id[6:]) % 2 else 70 for one in batch] for _, batch in trainer._batches(0)]
    assert work.tokens == sum(map(sum, lengths))
    assert work.passes == sum(len(micro_batches(step, 150, 0, 2)) for step in lengths)
    assert work.steps == len(lengths) == 5  # 18 prompts, the last step filled up


def test_counts_are_those_of_the_prompts() -> None:
    tune = TuneSettings(batch_prompts=4, micro_batch_tokens=450)
    work = counted(plan_adapters(toy_prompts(8), tune, 4096), [], tune, limit=4096, seed=0).works[0]
    assert (work.adapter, work.prompts, work.questions, work.longest) == ("joint", 8, 4 * 2 + 4 * 3, 110)
    assert (work.steps, work.passes, work.tokens) == (2, 2, 4 * 70 + 4 * 110)
    assert set(work.largest.prompts) <= {EVEN, ODD}
    assert work.largest.tokens >= work.typical.tokens


def test_each_adapter_is_counted_by_its_own_questions() -> None:
    tune = TuneSettings(batch_prompts=2, adapters="per_task", tasks=("pointwise", "listwise"))
    pointwise, listwise = counted(plan_adapters(toy_prompts(4), tune, 4096), [], tune, limit=4096, seed=0).works
    assert (pointwise.prompts, pointwise.tokens) == (4, 4 * (30 + 20))
    assert (listwise.prompts, listwise.tokens) == (2, 2 * (30 + 40))


def test_prefixes_are_cut_to_what_fits() -> None:
    tune = TuneSettings(batch_prompts=4)
    work = counted(plan_adapters(toy_prompts(4), tune, 64), [], tune, limit=64, seed=0).works[0]
    assert work.too_long == 2  # 30 + 40 for those with a list
    assert work.tokens == 2 * 70 + 2 * (24 + 80)


def test_a_look_asks_as_many_lists_as_there_are_or_may_be() -> None:
    tune = TuneSettings.model_validate({"batch_prompts": 4, "validation": {"max_lists": 3}})
    plans, lists = plan_adapters(toy_prompts(4), tune, 4096), toy_prompts(8)
    later = [replace(one, questions=(*one.questions, replace(one.questions[0], round=1))) for one in lists]
    assert counted(plans, later, tune, limit=4096, seed=0).look_tokens == 3 * (70 + 110) / 2
    assert counted(plans, later[:2], tune, limit=4096, seed=0).look_tokens == 70 + 110
    assert counted(plans, later, TuneSettings(batch_prompts=4), limit=4096, seed=0).look_tokens == 0


def test_supposed_prompts_are_about_as_long_as_real_ones() -> None:
    quickstart = supposed(max_liked=10, max_disliked=3, pointwise_negatives=4)
    prompt = quickstart.training(("pointwise", "pairwise", "listwise"))
    assert prompt.tokens == pytest.approx(602, rel=0.1)  # MovieLens-100K, SmolLM2's tokenizer
    assert quickstart.ranking(("pointwise", "pairwise", "listwise")).tokens == pytest.approx(1345, rel=0.25)
    assert len(prompt.questions) == 5 + 2 + 1


def test_supposed_lengths_follow_what_is_said() -> None:
    tune = TuneSettings(batch_prompts=10, micro_batch_tokens=1000, epochs=2)
    work = supposed(prompts=25, tokens=500).amount(tune, limit=4096).works[0]
    assert (work.prompts, work.steps, work.tokens) == (25, 5, 50 * 500)
    assert work.passes == 5 * 5
    assert work.longest == 500


def test_supposed_prompts_end_at_the_limit() -> None:
    tune = TuneSettings(batch_prompts=1)
    row = supposed(prompts=1, max_liked=500).amount(tune, limit=2048).works[0].largest
    assert row.prompts[0].prefix + max(row.prompts[0].questions) == 2048
    assert isinstance(row, Row)


def test_supposed_prompts_respect_max_prompts_and_adapters() -> None:
    tune = TuneSettings(
        batch_prompts=5, max_prompts=15, adapters="joint_then_per_task", tasks=("pointwise", "pairwise")
    )
    works = supposed(prompts=100).amount(tune, limit=4096).works
    assert [work.adapter for work in works] == ["joint", "pointwise", "pairwise"]
    assert [work.steps for work in works] == [3, 3, 3]
    assert works[0].tokens > works[1].tokens
