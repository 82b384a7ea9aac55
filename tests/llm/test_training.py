import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recranker.errors import DataError, ModelError
from recranker.llm.encoding import encode
from recranker.llm.model import LanguageModel, load_model
from recranker.llm.objectives import answer_losses
from recranker.llm.packing import label_logits, pack
from recranker.llm.reports import Look, Progress, StepReport
from recranker.llm.settings import LLMSettings, ObjectiveSettings, TuneSettings
from recranker.llm.training import (
    Trainer,
    batches,
    learning_rate,
    make_trainable,
    micro_batches,
    num_steps,
    plan_adapters,
)
from recranker.tasks.protocol import Prompt
from tests.llm.plain_engine import PlainEngine
from tests.llm.prompts import toy_prompts
from tests.models import tiny_model

LLM = LLMSettings(model="tiny", device="cpu")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


LABELS = ObjectiveSettings(distillation=0.0)


def steps(
    lm: LanguageModel, prompts: list[Prompt], settings: TuneSettings, engine: PlainEngine | None = None
) -> Iterator[StepReport]:
    """A training from its start."""
    return Trainer(engine or PlainEngine(lm, settings), lm, prompts, settings, 2048, 0).steps(Progress())


def trainable(path: Path, settings: TuneSettings, seed: int = 0) -> LanguageModel:
    lm = load_model(path, LLM)
    make_trainable(lm, settings, seed)
    return lm


def test_learning_rate_rises_peaks_and_falls_as_worked_by_hand() -> None:
    rates = [learning_rate(step, peak=1.0, warmup_steps=3, total_steps=7) for step in range(1, 8)]
    falling = [0.5 * (1 + math.cos(math.pi * part)) for part in (0, 0.25, 0.5, 0.75)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, *falling])
    assert rates[3] == 1.0
    assert rates[-1] == pytest.approx(0.1464466)


def test_learning_rate_without_warm_up_starts_at_its_peak() -> None:
    assert learning_rate(1, peak=2.0, warmup_steps=0, total_steps=4) == 2.0


def test_last_step_is_filled_from_one_epoch_more() -> None:
    ids = [f"train/{number}" for number in range(5)]
    steps = list(batches(ids, 4, 2, seed=0))
    assert [len(step) for step in steps] == [4, 4, 4] == [4] * num_steps(5, 4, 2)
    flat = [index for step in steps for index in step]
    assert sorted(flat[:5]) == sorted(flat[5:10]) == [0, 1, 2, 3, 4]
    assert flat[:5] != flat[5:10]
    assert flat != [index for step in batches(ids, 4, 2, seed=1) for index in step]


def test_order_of_prompts_does_not_depend_on_row_order() -> None:
    ids = [f"train/{number}" for number in range(9)]
    shuffled = ids[::-1]
    there = [[ids[index] for index in step] for step in batches(ids, 3, 2, seed=3)]
    again = [[shuffled[index] for index in step] for step in batches(shuffled, 3, 2, seed=3)]
    assert there == again


def test_workers_are_dealt_as_many_prompts_and_about_as_many_tokens() -> None:
    tokens = [10, 80, 20, 70, 30, 60, 40, 50]
    first, second = (micro_batches(tokens, 1000, rank, 2) for rank in (0, 1))
    assert first == [[1, 7, 6, 0]]  # 80 + 50 + 40 + 10, dealt there and back
    assert second == [[3, 5, 4, 2]]  # 70 + 60 + 30 + 20


def test_a_pass_keeps_to_its_tokens_and_workers_make_as_many_passes() -> None:
    assert micro_batches([50, 50, 30, 100], 100, 0, 1) == [[3], [0, 1], [2]]
    assert micro_batches([300, 20], 100, 0, 1) == [[0], [1]]
    assert micro_batches([90, 10, 90, 10], 100, 0, 2) == [[0, 3]]
    dealt = [micro_batches([90, 10, 20, 10], 95, rank, 2) for rank in (0, 1)]
    assert dealt == [[[0], [3]], [[2], [1]]]  # the second could do with one pass


def test_every_prompt_is_in_one_pass_of_one_worker() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        workers, budget = int(random.integers(1, 5)), int(random.integers(64, 600))
        tokens = random.integers(1, 500, size=workers * random.integers(1, 20)).tolist()
        shares = [micro_batches(tokens, budget, rank, workers) for rank in range(workers)]
        assert sorted(one for share in shares for part in share for one in part) == list(range(len(tokens)))
        assert len({len(share) for share in shares}) == len({sum(map(len, share)) for share in shares}) == 1
        assert all(len(part) == 1 or sum(tokens[n] for n in part) <= budget for share in shares for part in share)


def test_plan_takes_earliest_draws_by_number_and_keeps_answered_questions_only() -> None:
    prompts = toy_prompts(12)
    unanswered = replace(prompts[0], questions=tuple(replace(one, answer=None) for one in prompts[0].questions))
    plan = plan_adapters([prompts[11], unanswered, prompts[9], prompts[2]], TuneSettings(max_prompts=2), 2048)[0]
    assert [prompt.prompt_id for prompt in plan.prompts] == ["train/2", "train/9"]
    assert (plan.name, plan.steps, plan.repeated) == ("joint", 1, 6)


def test_per_task_adapters_see_their_own_questions() -> None:
    plans = plan_adapters(toy_prompts(6), TuneSettings(adapters="per_task"), 2048)
    assert [plan.name for plan in plans] == ["pointwise", "pairwise", "listwise"]
    assert [len(plan.prompts) for plan in plans] == [6, 6, 3]
    for plan in plans:
        assert {one.task for prompt in plan.prompts for one in prompt.questions} == {plan.name}


def test_task_adapters_may_start_from_the_joint_one() -> None:
    plans = plan_adapters(toy_prompts(6), TuneSettings(adapters="joint_then_per_task"), 2048)
    starts = [("joint", None), ("pointwise", "joint"), ("pairwise", "joint"), ("listwise", "joint")]
    assert [(plan.name, plan.start) for plan in plans] == starts


def test_long_prompts_are_counted_and_cut_or_dropped() -> None:
    prompts = toy_prompts(4)  # 30 tokens, and 20 or 40 for the longest question
    cut = plan_adapters(prompts, TuneSettings(), 64)[0]
    assert (len(cut.prompts), cut.too_long) == (4, 2)
    dropped = plan_adapters(prompts, TuneSettings(long_prompts="drop"), 64)[0]
    assert [prompt.prompt_id for prompt in dropped.prompts] == ["train/0", "train/2"]
    assert dropped.too_long == 2
    with pytest.raises(DataError, match=r"holds 4 of split 'train' .*, 4 of them too long; check"):
        plan_adapters(prompts, TuneSettings(long_prompts="drop"), 40)


def test_prompts_that_nobody_counted_are_refused() -> None:
    with pytest.raises(DataError, match=r"prompt 'train/1': its tokens were not counted; run jobs\.instruct again"):
        plan_adapters([replace(toy_prompts(2)[1], prefix_tokens=None)], TuneSettings(), 2048)


def test_order_of_a_training_that_goes_on_is_that_of_the_unbroken_one(model_path: Path) -> None:
    settings = TuneSettings(batch_prompts=2, epochs=2, lora={"dropout": 0.1})
    prompts = toy_prompts(5)
    whole = list(steps(trainable(model_path, settings), prompts, settings))
    begun = Progress(reports=tuple(whole[:3]))
    lm = trainable(model_path, settings)
    rest = list(Trainer(PlainEngine(lm, settings), lm, prompts, settings, 2048, 0).steps(begun))
    assert [one.step for one in rest] == [4, 5]
    assert [one.prompt_ids for one in rest] == [one.prompt_ids for one in whole[3:]]
    assert [one.tokens for one in rest] == [one.tokens for one in whole[3:]]
    assert [one.learning_rate for one in rest] == [one.learning_rate for one in whole[3:]]


def test_training_stops_when_validation_gets_no_better(model_path: Path) -> None:
    settings = TuneSettings(batch_prompts=2, epochs=9, validation={"every_steps": 2, "patience": 2}, checkpoint_steps=5)
    lm = trainable(model_path, settings)
    trainer = Trainer(PlainEngine(lm, settings), lm, toy_prompts(4), settings, 2048, 0)
    gains, kept, told = iter([0.2, 0.5, 0.4, 0.5, 0.9]), [], []
    done = trainer.fit(
        Progress(), tell=told.append, keep=lambda progress: kept.append(progress.step), look=lambda: next(gains)
    )
    assert [(look.step, look.ndcg_at_3) for look in done.looks] == [(2, 0.2), (4, 0.5), (6, 0.4), (8, 0.5)]
    assert done.best == Look(4, 0.5)
    assert done.step == 8
    assert kept == [2, 4, 5, 6, 8]
    assert len(told) == 8 + 4
    again = trainer.fit(done, tell=told.append, keep=lambda progress: kept.append(progress.step), look=lambda: 0.0)
    assert again == done  # a training that had stopped does not begin once more


def test_nothing_to_train_on_is_a_data_error() -> None:
    with pytest.raises(DataError, match="adapter 'joint' needs training prompts"):
        plan_adapters([], TuneSettings(), 2048)


def test_loss_sees_exactly_the_answer_token(model_path: Path) -> None:
    """Against a plain forward of each question alone, full vocabulary, labels picked by hand."""
    lm = load_model(model_path, LLM)
    prompt = toy_prompts(2)[1]
    tree = encode(prompt, lm, 2048)
    expected = []
    for branch in tree.branches:
        logits_V = lm.model(torch.tensor([tree.prefix_ids + branch.token_ids])).logits[0, -1].double()
        log_probabilities = logits_V[branch.label_ids] - torch.logsumexp(logits_V[branch.label_ids], 0)
        assert branch.answer is not None
        expected.append(-log_probabilities[branch.answer].item())
    packed = pack([tree])
    losses = answer_losses(label_logits(lm.model, packed), packed, LABELS)
    assert losses.tolist() == pytest.approx(expected, abs=1e-4)


def test_loss_falls_on_a_rule_that_can_be_learned(model_path: Path) -> None:
    settings = TuneSettings(learning_rate=2e-2, warmup_steps=2, epochs=8, batch_prompts=4, micro_batch_tokens=150)
    lm = trainable(model_path, settings)
    reports = list(steps(lm, toy_prompts(8), settings))
    assert [report.step for report in reports] == list(range(1, 17))
    assert reports[-1].loss < 0.2 < 0.6 < reports[0].loss
    assert {task for report in reports[:2] for task in report.task_losses} == {"pointwise", "pairwise", "listwise"}
    assert reports[1].tokens > reports[0].tokens > 0


def test_reported_loss_is_the_mean_over_questions(model_path: Path) -> None:
    settings = TuneSettings(batch_prompts=4)
    lm = trainable(model_path, settings)
    prompts = toy_prompts(4)
    packed = pack([encode(prompt, lm, 2048) for prompt in prompts])
    with torch.no_grad():
        losses = answer_losses(label_logits(lm.model, packed), packed, LABELS)
    report = next(steps(lm, prompts, settings))
    assert report.loss == pytest.approx(losses.mean().item(), abs=1e-5)
    listwise = [loss for loss, task in zip(losses.tolist(), packed.tasks, strict=True) if task == "listwise"]
    assert report.task_losses["listwise"] == pytest.approx(np.mean(listwise), abs=1e-5)


def test_gradients_of_two_workers_add_up_to_those_of_one(model_path: Path) -> None:
    settings = TuneSettings(batch_prompts=4, warmup_steps=0)
    whole = _first_gradients(model_path, settings, toy_prompts(4), 0, 1)
    halves = [_first_gradients(model_path, settings, toy_prompts(4), rank, 2) for rank in (0, 1)]
    for one, left, right in zip(whole, *halves, strict=True):
        torch.testing.assert_close(left + right, one, atol=1e-6, rtol=1e-4)
    assert any(left.abs().max() > 1e-4 for left in halves[0])


def _first_gradients(
    path: Path, settings: TuneSettings, prompts: list[Prompt], rank: int, workers: int
) -> list[Tensor]:
    lm = trainable(path, settings)
    engine = PlainEngine(lm, settings, rank, workers)
    next(steps(lm, prompts, settings, engine))
    return engine.gradients


@pytest.mark.parametrize("last_layers", [None, 1])
def test_checkpointing_gives_the_same_gradients(model_path: Path, last_layers: int | None) -> None:
    lora = {"last_layers": last_layers}
    plain, saving = (TuneSettings(batch_prompts=2, lora=lora, gradient_checkpointing=flag) for flag in (False, True))
    expected = _first_gradients(model_path, plain, toy_prompts(2), 0, 1)
    found = _first_gradients(model_path, saving, toy_prompts(2), 0, 1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_adapter_starts_from_the_seed_alone(model_path: Path) -> None:
    first, same, other = (trainable(model_path, TuneSettings(), seed) for seed in (1, 1, 2))
    weights = [next(w for n, w in lm.model.named_parameters() if "lora_A" in n) for lm in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_loss_that_is_no_number_stops_before_it_reaches_the_adapter(model_path: Path) -> None:
    settings = TuneSettings(batch_prompts=2, warmup_steps=0)
    lm = trainable(model_path, settings)
    engine = PlainEngine(lm, settings)
    reports = steps(lm, toy_prompts(4), settings, engine)
    next(reports)
    with torch.no_grad():
        lm.model.get_input_embeddings().weight.fill_(float("nan"))
    before = [weight.clone() for weight in engine.trained]
    with pytest.raises(
        ModelError, match=r"step 2: the loss is no finite number for prompts \['train/\d', 'train/\d'\]"
    ):
        next(reports)
    assert all(torch.equal(one, other) for one, other in zip(before, engine.trained, strict=True))


def test_gradient_that_is_no_number_stops_before_it_reaches_the_adapter(model_path: Path) -> None:
    settings = TuneSettings(batch_prompts=2, warmup_steps=0, checkpoint_steps=2, epochs=2)
    lm = trainable(model_path, settings)
    engine = PlainEngine(lm, settings)
    told: list[StepReport | Look] = []
    kept: list[int] = []
    after: list[list[Tensor]] = []

    def tell(report: StepReport | Look) -> None:
        told.append(report)
        after.append([weight.detach().clone() for weight in engine.trained])

    weight = next(weight for name, weight in lm.model.named_parameters() if "lora_B" in name)
    weight.register_hook(lambda gradient: torch.full_like(gradient, math.inf) if len(told) == 2 else gradient)
    trainer = Trainer(engine, lm, toy_prompts(4), settings, 2048, 0)
    with pytest.raises(
        ModelError, match=r"step 3: the gradient is no finite number for prompts \['train/\d', 'train/\d'\]"
    ):
        trainer.fit(Progress(), tell=tell, keep=lambda progress: kept.append(progress.step))
    assert ([report.step for report in told], kept) == ([1, 2], [2])
    assert all(torch.equal(one, other) for one, other in zip(after[-1], engine.trained, strict=True))
