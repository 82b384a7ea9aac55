import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recranker.errors import DataError, ModelError
from recranker.llm.encoding import Branch, Tree, encode
from recranker.llm.model import LanguageModel, load_model
from recranker.llm.packing import label_logits, pack
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.llm.training import (
    answer_losses,
    batches,
    learning_rate,
    make_trainable,
    micro_batches,
    num_steps,
    plan_adapters,
    train,
)
from recranker.tasks.protocol import Prompt
from tests.llm.plain_engine import PlainEngine
from tests.llm.prompts import toy_prompts
from tests.models import tiny_model

LLM = LLMSettings(model="tiny", device="cpu")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


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


def test_workers_share_a_batch_without_gap_or_overlap() -> None:
    assert micro_batches(8, 2, rank=0, workers=2) == [[0, 1], [2, 3]]
    assert micro_batches(8, 2, rank=1, workers=2) == [[4, 5], [6, 7]]
    assert micro_batches(8, 4, rank=0, workers=1) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_plan_takes_earliest_draws_by_number_and_keeps_answered_questions_only() -> None:
    prompts = toy_prompts(12)
    unanswered = replace(prompts[0], questions=tuple(replace(one, answer=None) for one in prompts[0].questions))
    plan = plan_adapters([prompts[11], unanswered, prompts[9], prompts[2]], TuneSettings(max_prompts=2))[0]
    assert [prompt.prompt_id for prompt in plan.prompts] == ["train/2", "train/9"]
    assert (plan.name, plan.steps, plan.repeated) == ("joint", 1, 6)


def test_per_task_adapters_see_their_own_questions() -> None:
    plans = plan_adapters(toy_prompts(6), TuneSettings(adapters="per_task"))
    assert [plan.name for plan in plans] == ["pointwise", "pairwise", "listwise"]
    assert [len(plan.prompts) for plan in plans] == [6, 6, 3]
    for plan in plans:
        assert {one.task for prompt in plan.prompts for one in prompt.questions} == {plan.name}


def test_nothing_to_train_on_is_a_data_error() -> None:
    with pytest.raises(DataError, match="adapter 'joint' needs training prompts"):
        plan_adapters([], TuneSettings())


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
    losses = answer_losses(label_logits(lm.model, packed), packed, 0.0)
    assert losses.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_teachers_probabilities_add_their_divergence_by_hand() -> None:
    logits = [torch.log(torch.tensor([0.2, 0.8])), torch.log(torch.tensor([0.5, 0.3, 0.2]))]
    branches = [
        Branch([1], [1, 2], 1, "pointwise", (0.5, 0.5)),
        Branch([1], [1, 2, 3], 0, "listwise"),
    ]
    packed = pack([Tree("t", [1], branches)])
    divergence = 0.5 * np.log(0.5 / 0.2) + 0.5 * np.log(0.5 / 0.8)
    expected = [-np.log(0.8) + 2.0 * divergence, -np.log(0.5)]
    np.testing.assert_allclose(answer_losses(logits, packed, 2.0), expected, rtol=1e-5)
    np.testing.assert_allclose(answer_losses(logits, packed, 0.0), -np.log([0.8, 0.5]), rtol=1e-5)


def test_loss_falls_on_a_rule_that_can_be_learned(model_path: Path) -> None:
    settings = TuneSettings(learning_rate=2e-2, warmup_steps=2, epochs=8, batch_prompts=4, micro_batch_prompts=2)
    lm = trainable(model_path, settings)
    reports = list(train(PlainEngine(lm, settings), lm, toy_prompts(8), settings, LLM, 0))
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
        losses = answer_losses(label_logits(lm.model, packed), packed, 0.0)
    report = next(train(PlainEngine(lm, settings), lm, prompts, settings, LLM, 0))
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
    next(train(engine, lm, prompts, settings, LLM, 0))
    return engine.gradients


def test_checkpointing_gives_the_same_gradients(model_path: Path) -> None:
    plain, saving = (TuneSettings(batch_prompts=2, gradient_checkpointing=flag) for flag in (False, True))
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
    reports = train(engine, lm, toy_prompts(4), settings, LLM, 0)
    next(reports)
    with torch.no_grad():
        lm.model.get_input_embeddings().weight.fill_(float("nan"))
    before = [weight.clone() for weight in engine.trained]
    with pytest.raises(
        ModelError, match=r"step 2: the loss is no finite number for prompts \['train/\d', 'train/\d'\]"
    ):
        next(reports)
    assert all(torch.equal(one, other) for one, other in zip(before, engine.trained, strict=True))
