"""Several trees in one row: every prefix is computed once, and nothing sees another tree or branch.

Shapes: T tokens of the row, Q questions of all trees, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recranker.llm.encoding import Tree
from recranker.tasks.settings import TaskName


@dataclass(frozen=True)
class Packed:
    """One row for the model, and where the answers stand in it; questions in the order of trees and branches."""

    input_ids: Tensor
    """``(1, T)``."""
    position_ids: Tensor
    """``(1, T)``; every branch goes on from the end of its prefix."""
    mask: Tensor
    """``(1, 1, T, T)`` bool: True where the row's token sees the column's."""
    answer_positions: Tensor
    """``(Q,)`` place of each branch's last token, whose logits are the answer."""
    label_ids: list[Tensor]
    """Per question: ``(labels,)``."""
    answers: list[int | None]
    """Per question: index of the right label, where known."""
    tasks: list[TaskName]
    """Per question."""
    trees: list[int]
    """Per question: index of the tree it belongs to."""

    @property
    def num_tokens(self) -> int:
        """T, the tokens computed."""
        return self.input_ids.shape[1]


def pack(trees: Sequence[Tree], device: torch.device | str = "cpu") -> Packed:
    """``trees`` as one row on ``device``, without a single padding token."""
    input_ids: list[int] = []
    positions: list[int] = []
    segments: list[tuple[int, int, int]] = []  # tree, branch (-1 for the prefix), length
    ends: list[int] = []
    for index, tree in enumerate(trees):
        start = len(tree.prefix_ids)
        input_ids += tree.prefix_ids
        positions += range(start)
        segments.append((index, -1, start))
        for number, branch in enumerate(tree.branches):
            input_ids += branch.token_ids
            positions += range(start, start + len(branch.token_ids))
            segments.append((index, number, len(branch.token_ids)))
            ends.append(len(input_ids) - 1)
    branches = [(index, branch) for index, tree in enumerate(trees) for branch in tree.branches]
    return Packed(
        input_ids=torch.tensor([input_ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        mask=_mask(segments, device),
        answer_positions=torch.tensor(ends, device=device, dtype=torch.long),
        label_ids=[torch.tensor(branch.label_ids, device=device) for _, branch in branches],
        answers=[branch.answer for _, branch in branches],
        tasks=[branch.task for _, branch in branches],
        trees=[index for index, _ in branches],
    )


def _mask(segments: list[tuple[int, int, int]], device: torch.device | str) -> Tensor:
    """``(1, 1, T, T)``: own tree's prefix and own branch, up to and including oneself."""
    lengths = torch.tensor([length for _, _, length in segments], device=device)
    tree_T = torch.tensor([tree for tree, _, _ in segments], device=device).repeat_interleave(lengths)
    branch_T = torch.tensor([branch for _, branch, _ in segments], device=device).repeat_interleave(lengths)
    same_tree = tree_T[:, None] == tree_T[None, :]
    visible = (branch_T[None, :] == -1) | (branch_T[None, :] == branch_T[:, None])
    return (same_tree & visible).tril()[None, None]


def label_logits(forward: Callable[..., Any], packed: Packed) -> list[Tensor]:
    """Per question: ``(labels,)`` float32 logits of its labels at its answer position; differentiable.

    The output head runs inside the model's own forward, at the answer positions only, so that this holds
    for a plain model, a ``PeftModel`` and a DeepSpeed engine whose head is partitioned (ZeRO-3) alike.

    Args:
        forward: The model, or whatever wraps it; called exactly once.
        packed: A row from ``pack``, on the model's device.
    """
    output = forward(
        input_ids=packed.input_ids,
        attention_mask=packed.mask,
        position_ids=packed.position_ids,
        use_cache=False,
        logits_to_keep=packed.answer_positions,
    )
    logits_QV = output.logits[0].float()
    return [logits_V[labels] for logits_V, labels in zip(logits_QV, packed.label_ids, strict=True)]
