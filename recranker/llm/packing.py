"""Several trees in one row: every prefix is computed once, and nothing sees another tree or branch.

Shapes: T tokens of the row, Q questions of all trees, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recranker.errors import ModelError
from recranker.llm.attention import Block, blocks_of
from recranker.llm.encoding import Branch, Tree, encode_all
from recranker.llm.model import LanguageModel
from recranker.tasks.protocol import Prompt, Question
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
    blocks: tuple[Block, ...]
    """Where the mask is not False throughout; for ``attention_by_blocks``."""
    answer_positions: Tensor
    """``(Q,)`` place of each branch's last token, whose logits are the answer."""
    label_ids: list[Tensor]
    """Per question: ``(labels,)``."""
    answers: list[int | None]
    """Per question: index of the right label, where known."""
    soft_labels: list[Tensor | None]
    """Per question: ``(labels,)`` probabilities of a teacher, where known."""
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
    blocks: list[Block] = []
    ends: list[int] = []
    for index, tree in enumerate(trees):
        start = len(tree.prefix_ids)
        lengths = [len(branch.token_ids) for branch in tree.branches]
        blocks += blocks_of((len(input_ids), len(input_ids) + start), lengths)
        input_ids += tree.prefix_ids
        positions += range(start)
        segments.append((index, -1, start))
        for number, branch in enumerate(tree.branches):
            input_ids += branch.token_ids
            positions += range(start, start + lengths[number])
            segments.append((index, number, lengths[number]))
            ends.append(len(input_ids) - 1)
    branches = [(index, branch) for index, tree in enumerate(trees) for branch in tree.branches]
    return Packed(
        input_ids=torch.tensor([input_ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        mask=_mask(segments, device),
        blocks=tuple(blocks),
        answer_positions=torch.tensor(ends, device=device, dtype=torch.long),
        label_ids=[torch.tensor(branch.label_ids, device=device) for _, branch in branches],
        answers=[branch.answer for _, branch in branches],
        soft_labels=[
            None if branch.soft_labels is None else torch.tensor(branch.soft_labels, device=device)
            for _, branch in branches
        ],
        tasks=[branch.task for _, branch in branches],
        trees=[index for index, _ in branches],
    )


def _mask(segments: list[tuple[int, int, int]], device: torch.device | str) -> Tensor:
    """``(1, 1, T, T)``: own tree's prefix and own branch, up to and including oneself."""
    lengths = torch.tensor([length for _, _, length in segments], device=device)
    tree_T = torch.tensor([tree for tree, _, _ in segments], device=device).repeat_interleave(lengths)
    branch_T = torch.tensor([branch for _, branch, _ in segments], device=device).repeat_interleave(lengths)
    same_tree_TT = tree_T[:, None] == tree_T[None, :]
    visible_TT = (branch_T[None, :] == -1) | (branch_T[None, :] == branch_T[:, None])
    return (same_tree_TT & visible_TT).tril()[None, None]


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
        blocks=packed.blocks,
        use_cache=False,
        logits_to_keep=packed.answer_positions,
    )
    logits_QV = output.logits[0].float()
    return [logits_V[labels] for logits_V, labels in zip(logits_QV, packed.label_ids, strict=True)]


def check_packing(lm: LanguageModel, *, max_prompt_tokens: int, way_out: str) -> None:
    """Make sure that ``lm`` obeys the mask: two small trees must give the logits of their questions asked one by one.

    Raises:
        ModelError: If they do not, or attention over a sliding window would end within a prompt.
    """
    lm.model.eval()
    window = getattr(lm.model.config, "sliding_window", None)
    if window and window < max_prompt_tokens and getattr(lm.model.config, "use_sliding_window", True):
        raise ModelError(
            f"this model sees {window} tokens back, llm.max_prompt_tokens is {max_prompt_tokens}; {way_out}"
        )
    trees = encode_all(PROBE, lm, max_prompt_tokens)
    with torch.inference_mode():
        try:
            packed = torch.stack(label_logits(lm.model, pack(trees, lm.device)))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"this model refuses a packed row: {str(error).splitlines()[0]}; {way_out}") from None
        alone = torch.stack([_alone(lm, tree.prefix_ids, branch) for tree in trees for branch in tree.branches])
    if not torch.isfinite(alone).all():
        raise ModelError("this model's answers are no finite numbers; its weights are damaged, get them again")
    difference = float((packed - alone.float()).abs().max())
    allowed = max(1.0, float(alone.abs().max())) * (1e-3 if lm.dtype == torch.float32 else 5e-2)
    if not difference <= allowed:
        raise ModelError(f"this model ignores the mask of a packed row (logits differ by {difference:.2g}); {way_out}")


def _alone(lm: LanguageModel, prefix_ids: list[int], branch: Branch) -> Tensor:
    input_ids = torch.tensor([prefix_ids + branch.token_ids], device=lm.device)
    logits: Tensor = lm.model(input_ids=input_ids, use_cache=False).logits
    return logits[0, -1, branch.label_ids]


def _probe(text: str, *questions: str) -> Prompt:
    return Prompt(text, text, tuple(Question("pointwise", one, ("No", "Yes"), (one,)) for one in questions))


PROBE = (
    _probe("Liked:\nAlien", "\nLike Heat?", "\nLike the long summer of last year?"),
    _probe("Liked:\nThe quiet river\nA second letter", "\nLike Ran?", "\nLike Jaws?"),
)
"""Two prompts of ordinary words: rarely trained tokens give logits that say little, above all in bfloat16."""
