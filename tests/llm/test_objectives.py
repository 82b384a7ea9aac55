from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recranker.errors import ModelError
from recranker.llm.encoding import Branch, Tree
from recranker.llm.objectives import answer_losses, check_labels, losses, ordinal, ranknet, softmax
from recranker.llm.packing import Packed, label_logits, pack
from recranker.llm.settings import ObjectiveSettings
from recranker.tasks.pointwise import LIKE_LABELS
from recranker.tasks.protocol import Question, RatingScale
from recranker.tasks.settings import TaskName

LABELS = ObjectiveSettings(distillation=0.0)
VOCABULARY = ObjectiveSettings(over="vocabulary", distillation=0.0)
ORDINAL = ObjectiveSettings(pointwise="ordinal", distillation=0.0)
RANKNET = ObjectiveSettings(listwise="ranknet", distillation=0.0)


def logs(*probabilities: float) -> Tensor:
    return torch.log(torch.tensor(probabilities))


def packed_of(*branches: Branch) -> Packed:
    return pack([Tree("t", [1], list(branches))])


def one(task: TaskName, answer: int, labels: int, soft: tuple[float, ...] | None = None) -> Branch:
    return Branch([1], list(range(3, 3 + labels)), answer, task, soft)


MIXED = (
    one("listwise", 2, 3),
    one("pointwise", 1, 2, (0.5, 0.5)),
    one("pairwise", 0, 2),
    one("listwise", 0, 3, (0.5, 0.25, 0.25)),
    one("pointwise", 0, 2),
)


def test_the_losses_of_mixed_questions_stand_in_their_own_places() -> None:
    logits = [logs(0.2, 0.5, 0.3), logs(0.2, 0.8), logs(0.4, 0.6), logs(0.6, 0.3, 0.1), logs(0.9, 0.1)]
    found = answer_losses(logits, packed_of(*MIXED), LABELS)
    np.testing.assert_allclose(found, -np.log([0.3, 0.8, 0.4, 0.6, 0.9]), rtol=1e-5)


def test_a_pairs_loss_is_the_logistic_loss_of_its_margin() -> None:
    found = answer_losses(
        [torch.tensor([0.5, 2.0])] * 2, packed_of(one("pairwise", 1, 2), one("pairwise", 0, 2)), LABELS
    )
    np.testing.assert_allclose(found, [np.log1p(np.exp(-1.5)), np.log1p(np.exp(1.5))], rtol=1e-5)


def test_an_ordinal_loss_by_hand() -> None:
    found = answer_losses([logs(0.1, 0.2, 0.3, 0.4)], packed_of(one("pointwise", 1, 4)), ORDINAL)
    above = [0.9, 0.7, 0.4]  # P(label > first), P(label > second), P(label > third); the answer is the second
    np.testing.assert_allclose(found, [-np.log(above[0]) - np.log(1 - above[1]) - np.log(1 - above[2])], rtol=1e-5)


def test_an_ordinal_loss_charges_for_the_distance() -> None:
    near, far = logs(0.04, 0.9, 0.03, 0.03), logs(0.04, 0.03, 0.03, 0.9)
    answer = torch.tensor([0])
    assert softmax(near[None], answer).item() == pytest.approx(softmax(far[None], answer).item(), abs=1e-6)
    assert ordinal(near[None], answer).item() == pytest.approx(-np.log(0.04) - np.log(0.94) - np.log(0.97), abs=1e-5)
    assert ordinal(far[None], answer).item() == pytest.approx(-np.log(0.04) - np.log(0.07) - np.log(0.1), abs=1e-5)


def test_of_two_labels_the_ordinal_loss_is_the_cross_entropy() -> None:
    logits = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) * 4
    answers = torch.arange(20) % 2
    torch.testing.assert_close(ordinal(logits, answers), softmax(logits, answers), atol=1e-6, rtol=1e-5)


def test_likes_and_ratings_run_from_worst_to_best_as_the_ordinal_loss_reads_them() -> None:
    assert LIKE_LABELS == ("No", "Yes")
    assert RatingScale(1, 5).labels == ("1", "2", "3", "4", "5")


def test_ranknet_by_hand() -> None:
    found = answer_losses([torch.tensor([1.0, 3.0, 0.0])], packed_of(one("listwise", 0, 3)), RANKNET)
    np.testing.assert_allclose(found, [(np.log1p(np.exp(2.0)) + np.log1p(np.exp(-1.0))) / 2], rtol=1e-5)


def test_an_objective_of_one_task_leaves_the_others_alone() -> None:
    random = torch.Generator().manual_seed(0)
    logits = [torch.randn(len(branch.label_ids), generator=random) for branch in MIXED]
    everywhere = answer_losses(logits, packed_of(*MIXED), LABELS)
    changed = answer_losses(logits, packed_of(*MIXED), RANKNET) - everywhere
    assert (changed.abs() > 1e-3).tolist() == [True, False, False, True, False]
    three = (one("listwise", 2, 3), one("pointwise", 2, 3))
    pair = [torch.tensor([0.1, 0.9, 0.4])] * 2
    changed = answer_losses(pair, packed_of(*three), ORDINAL) - answer_losses(pair, packed_of(*three), LABELS)
    assert (changed.abs() > 1e-3).tolist() == [False, True]


@pytest.mark.parametrize("objective", [LABELS, ORDINAL, RANKNET])
def test_a_teacher_adds_its_divergence_to_every_objective(objective: ObjectiveSettings) -> None:
    logits = [logs(0.2, 0.5, 0.3), logs(0.2, 0.8), logs(0.4, 0.6), logs(0.6, 0.3, 0.1), logs(0.9, 0.1)]
    taught = objective.model_copy(update={"distillation": 2.0})
    added = answer_losses(logits, packed_of(*MIXED), taught) - answer_losses(logits, packed_of(*MIXED), objective)
    like = 0.5 * np.log(0.5 / 0.2) + 0.5 * np.log(0.5 / 0.8)
    best = 0.5 * np.log(0.5 / 0.6) + 0.25 * np.log(0.25 / 0.3) + 0.25 * np.log(0.25 / 0.1)
    np.testing.assert_allclose(added, [0.0, 2 * like, 0.0, 2 * best, 0.0], atol=1e-5)


def test_a_teacher_that_rules_a_label_out_adds_no_more_than_the_rest() -> None:
    taught = LABELS.model_copy(update={"distillation": 1.0})
    found = answer_losses([logs(0.2, 0.8)], packed_of(one("pointwise", 1, 2, (0.0, 1.0))), taught)
    np.testing.assert_allclose(found, [-2 * np.log(0.8)], rtol=1e-5)


def test_over_the_vocabulary_the_answer_competes_with_every_token() -> None:
    branches = (Branch([1], [1, 3], 1, "pointwise"), Branch([1], [0, 2], 0, "pairwise"))
    logits_QV = torch.stack([logs(0.1, 0.2, 0.3, 0.4), logs(0.1, 0.2, 0.3, 0.4)])
    found = answer_losses(logits_QV, packed_of(*branches), VOCABULARY)
    np.testing.assert_allclose(found, -np.log([0.4, 0.1]), rtol=1e-5)


def test_over_the_vocabulary_a_teacher_still_speaks_of_the_labels_alone() -> None:
    taught = VOCABULARY.model_copy(update={"distillation": 2.0})
    packed = packed_of(Branch([1], [0, 3], 1, "pointwise", (0.5, 0.5)))
    divergence = 0.5 * np.log(0.5 / 0.2) + 0.5 * np.log(0.5 / 0.8)  # 0.1 and 0.4 are 0.2 and 0.8 of the labels
    found = answer_losses(logs(0.1, 0.2, 0.3, 0.4)[None], packed, taught)
    np.testing.assert_allclose(found, [-np.log(0.4) + 2 * divergence], rtol=1e-5)


@pytest.mark.parametrize("loss", [softmax, ordinal, ranknet])
def test_extreme_logits_give_finite_losses_and_gradients(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, -3e4]], requires_grad=True)
    found = loss(logits, torch.tensor([1, 0, 2]))
    found.sum().backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(found).all())
    assert bool(torch.isfinite(logits.grad).all())
    assert bool((found > 9e3).all())  # every answer is as wrong as can be


@pytest.mark.parametrize("loss", [softmax, ordinal, ranknet])
def test_gradients_are_those_of_small_steps(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda one: loss(one, torch.tensor([0, 2, 4, 1])), [logits])


class Recorded:
    """Stands for a model: its logits, and how often it was run."""

    def __init__(self, num_tokens: int, vocabulary: int) -> None:
        random = torch.Generator().manual_seed(0)
        self.logits = torch.randn(1, num_tokens, vocabulary, generator=random, requires_grad=True)
        self.runs = 0

    def __call__(self, *, logits_to_keep: Tensor, **_: Any) -> SimpleNamespace:
        self.runs += 1
        return SimpleNamespace(logits=self.logits[:, logits_to_keep])


def gradients(objective: ObjectiveSettings) -> tuple[Packed, Tensor]:
    """``(T, V)`` of the summed losses of two trees."""
    trees = [
        Tree("a", [1, 2, 3], [Branch([4, 5], [6, 7], 1, "pointwise"), Branch([4], [6, 7, 8], 0, "listwise")]),
        Tree("b", [1, 2], [Branch([3, 4, 5], [7, 6], 0, "pairwise")]),
    ]
    packed = pack(trees)
    model = Recorded(packed.num_tokens, 10)
    losses(model, packed, objective).sum().backward()
    assert model.runs == 1
    assert model.logits.grad is not None
    return packed, model.logits.grad[0]


@pytest.mark.parametrize("objective", [LABELS, ORDINAL, RANKNET])
def test_only_the_labels_at_the_answer_positions_matter(objective: ObjectiveSettings) -> None:
    packed, gradient_TV = gradients(objective)
    wanted = {
        (place, label)
        for place, labels in zip(packed.answer_positions.tolist(), packed.label_ids, strict=True)
        for label in labels.tolist()
    }
    assert {(place, label) for place, label in gradient_TV.nonzero().tolist()} == wanted
    assert packed.answer_positions.tolist() == [4, 5, 10]


def test_over_the_vocabulary_all_tokens_matter_at_the_answer_positions_only() -> None:
    packed, gradient_TV = gradients(VOCABULARY)
    assert gradient_TV.ne(0).all(dim=1).nonzero()[:, 0].tolist() == packed.answer_positions.tolist()
    assert gradient_TV.ne(0).any(dim=1).nonzero()[:, 0].tolist() == packed.answer_positions.tolist()


def test_one_call_gives_the_losses_of_the_models_own_logits() -> None:
    packed = packed_of(*MIXED)
    model = Recorded(packed.num_tokens, 10)
    direct = answer_losses(label_logits(model, packed), packed, RANKNET)
    assert torch.equal(losses(model, packed, RANKNET), direct)
    wanted = torch.log_softmax(model.logits[0, 3], dim=-1)[3]  # MIXED[2] answers with its first label, token 3
    assert losses(model, packed, VOCABULARY)[2].item() == pytest.approx(-wanted.item(), abs=1e-6)


def rated(*labels: str) -> Question:
    return Question("pointwise", "?", labels, ("1",))


def test_an_ordinal_objective_takes_two_labels_or_ascending_numbers() -> None:
    ranked = Question("listwise", "?", ("C", "A", "B"), ("1", "2", "3"))
    check_labels([rated("No", "Yes"), rated("1", "2", "3"), rated("-1", "0.5", "10"), ranked], ORDINAL)
    check_labels([rated("3", "2", "1")], LABELS)


@pytest.mark.parametrize("labels", [("3", "2", "1"), ("bad", "fair", "good"), ("1", "2", "2"), ("8", "9", "10", "1")])
def test_an_ordinal_objective_refuses_labels_without_an_order(labels: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match=r"pointwise='ordinal' needs two labels or ascending numbers") as refusal:
        check_labels([rated("1", "2", "3"), rated(*labels)], ORDINAL)
    assert str(list(labels)) in str(refusal.value)
    assert "\n" not in str(refusal.value)
