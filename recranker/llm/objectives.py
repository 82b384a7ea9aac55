"""What a question's loss is: how far the model's answer is from the right one, and from a teacher's.

Every loss reads the logits at the one position where the model answers, so no other token counts, and there is one
loss per question, so that each weighs the same in a mean. Over the labels:

- cross-entropy, the logistic loss where there are two. Of a pair's No and Yes that is the logistic loss of the
  difference of their logits, the chance that the first item wins (Bradley & Terry 1952, doi:10.2307/2334029; as a
  loss of rankers: RankNet, Burges et al. 2005, doi:10.1145/1102351.1102363). Of a list's letters it is ListNet's
  top-one loss (Cao et al. 2007, doi:10.1145/1273496.1273513).
- ``ordinal`` for ratings and ``ranknet`` for lists, where ``ObjectiveSettings`` ask for them.

Over the vocabulary it is the cross-entropy of the answer among all tokens, as RecRanker trains (arXiv 2312.16018).
Beside either stands the divergence from a teacher's probabilities of the labels, where they are known.

Shapes: Q questions of one row, N of them that are alike, L labels, K = L - 1 thresholds, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softplus

from recranker.errors import ModelError
from recranker.llm.packing import Packed, label_logits, vocabulary_logits
from recranker.llm.settings import ObjectiveSettings
from recranker.tasks.protocol import Question
from recranker.tasks.settings import TaskName


def losses(forward: Callable[..., Any], packed: Packed, objective: ObjectiveSettings) -> Tensor:
    """``(Q,)`` loss of each question, nats; differentiable.

    Args:
        forward: The model, or whatever wraps it; called exactly once.
        packed: A row from ``pack``, on the model's device; every answer must be known.
        objective: Which loss; its labels must have passed ``check_labels``.
    """
    read = vocabulary_logits if objective.over == "vocabulary" else label_logits
    return answer_losses(read(forward, packed), packed, objective)


def answer_losses(logits: Sequence[Tensor] | Tensor, packed: Packed, objective: ObjectiveSettings) -> Tensor:
    """``(Q,)`` loss of each question, nats.

    Args:
        logits: Per question, float32: ``(labels,)``, or ``(V,)`` where ``objective.over`` is 'vocabulary'.
        packed: Where the logits are from; every answer must be known.
        objective: Which loss.
    """
    found, places = [], []
    for alike in _alike(packed):
        found.append(_losses(torch.stack([logits[place] for place in alike]), packed, alike, objective))
        places += alike
    return torch.cat(found)[torch.tensor(places).argsort().to(found[0].device)]


def _alike(packed: Packed) -> list[list[int]]:
    """Places of the questions in groups of one task, one number of labels, and a teacher or none."""
    groups: dict[tuple[TaskName, int, bool], list[int]] = {}
    questions = zip(packed.tasks, packed.label_ids, packed.soft_labels, strict=True)
    for place, (task, labels, soft) in enumerate(questions):
        groups.setdefault((task, len(labels), soft is not None), []).append(place)
    return list(groups.values())


def _losses(logits: Tensor, packed: Packed, alike: list[int], objective: ObjectiveSettings) -> Tensor:
    """``(N,)`` loss of the questions at the places ``alike``, whose ``logits`` are ``(N, L)`` or ``(N, V)``."""
    answers_N = torch.tensor([packed.answers[place] for place in alike], device=logits.device)
    if objective.over == "vocabulary":
        labels_NL = torch.stack([packed.label_ids[place] for place in alike])
        loss_N = cross_entropy(logits, labels_NL.gather(1, answers_N[:, None])[:, 0], reduction="none")
        logits_NL = logits.gather(1, labels_NL)
    else:
        loss_N, logits_NL = _loss_of(packed.tasks[alike[0]], objective)(logits, answers_N), logits
    teacher = [soft for place in alike if (soft := packed.soft_labels[place]) is not None]
    if teacher and objective.distillation > 0:
        loss_N = loss_N + objective.distillation * divergence(logits_NL, torch.stack(teacher))
    return loss_N


def _loss_of(task: TaskName, objective: ObjectiveSettings) -> Callable[[Tensor, Tensor], Tensor]:
    if task == "pointwise" and objective.pointwise == "ordinal":
        return ordinal
    if task == "listwise" and objective.listwise == "ranknet":
        return ranknet
    return softmax


def softmax(logits_NL: Tensor, answers_N: Tensor) -> Tensor:
    """``(N,)`` cross-entropy of the right label among the question's own."""
    return cross_entropy(logits_NL, answers_N, reduction="none")


def ordinal(logits_NL: Tensor, answers_N: Tensor) -> Tensor:
    """``(N,)`` cross-entropies of 'above this label', summed over all labels but the last; labels in ascending order.

    P(label > k) is a sum of the labels' probabilities, so a probability costs the more the farther it lies from the
    answer, and what ranking reads is trained as it stands. Of two labels this is the cross-entropy. Sums stay
    logarithms, so no probability is rounded to 0 or 1.

    Source: the thresholds of Frank & Hall 2001, doi:10.1007/3-540-44795-4_13, on one softmax.
    """
    labels_L = torch.arange(logits_NL.shape[1], device=logits_NL.device)
    thresholds_K = labels_L[:-1]
    above_KL = labels_L > thresholds_K[:, None]
    right_NKL = above_KL == (answers_N[:, None] > thresholds_K)[..., None]  # labels on the answer's side
    log_p_NKL = log_softmax(logits_NL, dim=-1)[:, None].masked_fill(~right_NKL, -torch.inf)
    return -log_p_NKL.logsumexp(dim=-1).sum(dim=-1)


def ranknet(logits_NL: Tensor, answers_N: Tensor) -> Tensor:
    """``(N,)`` mean over the other labels j of log(1 + exp(s_j - s_answer)).

    Source: Burges et al. 2005, doi:10.1145/1102351.1102363.
    """
    wanted_N1 = logits_NL.gather(1, answers_N[:, None])
    others_NL = torch.ones_like(logits_NL).scatter(1, answers_N[:, None], 0.0)
    return (softplus(logits_NL - wanted_N1) * others_NL).sum(dim=-1) / others_NL.sum(dim=-1)


def divergence(logits_NL: Tensor, teacher_NL: Tensor) -> Tensor:
    """``(N,)`` KL(teacher || model) over the labels.

    Source: Hinton, Vinyals & Dean 2015, arXiv 1503.02531, at temperature 1.
    """
    return kl_div(log_softmax(logits_NL, dim=-1), teacher_NL, reduction="none").sum(dim=-1)


def check_labels(questions: Iterable[Question], objective: ObjectiveSettings) -> None:
    """Make sure that the labels of ``questions`` have the order that ``objective`` reads from them.

    Raises:
        ModelError: If an ordinal loss meets more than two labels that are no ascending numbers.
    """
    if objective.pointwise != "ordinal":
        return
    for labels in {question.labels for question in questions if question.task == "pointwise"}:
        if len(labels) > 2 and not _ascending(labels):
            raise ModelError(
                "tune.objective.pointwise='ordinal' needs two labels or ascending numbers, a pointwise question has "
                f"{list(labels)}; set tune.objective.pointwise='cross_entropy'"
            )


def _ascending(labels: Sequence[str]) -> bool:
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return False
    return all(low < high for low, high in pairwise(numbers))
