"""Several trees in one row: every prefix is computed once, and nothing sees another tree or branch.

Shapes: T tokens of the row, Q questions of all trees, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from recranker.errors import ModelError
from recranker.llm.attention import Layout, PrefixState, Span, needs_mask
from recranker.llm.decoder import decoder_of
from recranker.llm.encoding import Branch, Tree, encode_all
from recranker.llm.model import LanguageModel, answering, is_sharded
from recranker.tasks.protocol import Prompt, Question
from recranker.tasks.settings import TaskName


@dataclass(frozen=True)
class Part:
    """Some branches of one tree, computed in one pass."""

    tree: Tree
    index: int
    """Of the tree among those asked."""
    first: int
    """The first branch, counted from 0."""
    last: int
    """One behind the last branch."""
    with_prefix: bool = True
    """Whether the prefix is computed here; otherwise ``state`` holds it."""
    state: PrefixState | None = None
    """Where the prefix is kept for other passes."""

    @property
    def branches(self) -> list[Branch]:
        return self.tree.branches[self.first : self.last]

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        own = sum(len(branch.token_ids) for branch in self.branches)
        return own + len(self.tree.prefix_ids) if self.with_prefix else own


@dataclass(frozen=True)
class Packed:
    """One row for the model, and where the answers stand in it; questions in the order of trees and branches."""

    input_ids: Tensor
    """``(1, T)``."""
    position_ids: Tensor
    """``(1, T)``; every branch goes on from the end of its prefix."""
    mask: Tensor
    """``(1, 1, T, T)`` bool: True where the row's token sees the column's; of size 1 where the layout is enough."""
    layout: Layout
    """Which tokens are prefixes and branches; for ``attention_over_trees``."""
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
    numbers: list[int]
    """Per question: which of its tree's questions it is, from 0."""

    @property
    def num_tokens(self) -> int:
        """T, the tokens computed."""
        return self.input_ids.shape[1]


def pack(trees: Sequence[Tree], device: torch.device | str = "cpu") -> Packed:
    """``trees`` as one row on ``device``, without a single padding token."""
    return pack_parts([Part(tree, index, 0, len(tree.branches)) for index, tree in enumerate(trees)], device)


def pack_parts(parts: Sequence[Part], device: torch.device | str = "cpu") -> Packed:
    """``parts`` as one row on ``device``, without a single padding token."""
    device = torch.device(device)
    input_ids: list[int] = []
    positions: list[int] = []
    spans: list[Span] = []
    ends: list[int] = []
    for part in parts:
        known, start = len(part.tree.prefix_ids), len(input_ids)
        if part.with_prefix:
            input_ids += part.tree.prefix_ids
            positions += range(known)
        for branch in part.branches:
            input_ids += branch.token_ids
            positions += range(known, known + len(branch.token_ids))
            ends.append(len(input_ids) - 1)
        lengths = tuple(len(branch.token_ids) for branch in part.branches)
        spans.append(Span(start, known if part.with_prefix else 0, lengths, part.state))
    layout = Layout(tuple(spans))
    branches = [branch for part in parts for branch in part.branches]
    return Packed(
        input_ids=torch.tensor([input_ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        mask=layout.mask(device) if needs_mask(device) else torch.ones(1, 1, 1, 1, dtype=torch.bool),
        layout=layout,
        answer_positions=torch.tensor(ends, device=device, dtype=torch.long),
        label_ids=label_ids_of(branches, device),
        answers=[branch.answer for branch in branches],
        soft_labels=[
            None if branch.soft_labels is None else torch.tensor(branch.soft_labels, device=device)
            for branch in branches
        ],
        tasks=[branch.task for branch in branches],
        trees=[part.index for part in parts for _ in part.branches],
        numbers=[number for part in parts for number in range(part.first, part.last)],
    )


def label_ids_of(branches: Sequence[Branch], device: torch.device) -> list[Tensor]:
    """Per branch: ``(labels,)``; all of them are copied to ``device`` at once."""
    flat = [label for branch in branches for label in branch.label_ids]
    counts = [len(branch.label_ids) for branch in branches]
    return list(torch.tensor(flat, device=device, dtype=torch.long).split_with_sizes(counts))


def passes(
    trees: Sequence[Tree], token_budget: int, known: Mapping[int, PrefixState], *, can_keep: bool
) -> Iterator[list[Part]]:
    """All branches of ``trees`` in passes of at most ``token_budget`` tokens, the longest trees first.

    A tree longer than the budget is spread over several passes. Where states can be kept its prefix is computed in
    the first of them only, otherwise in each; a single branch that is longer still, with its prefix, goes alone.

    Args:
        trees: Those without branches are left out.
        token_budget: Tokens of a pass.
        known: By tree index, states to fill, or to read where they hold a prefix already.
        can_keep: Whether a pass can read the prefix of an earlier one.
    """
    waiting: list[Part] = []
    room = token_budget
    for index in sorted(range(len(trees)), key=lambda index: (-trees[index].num_tokens, index)):
        for part in _parts(trees[index], index, token_budget, known.get(index), can_keep):
            if waiting and part.num_tokens > room:
                yield waiting
                waiting, room = [], token_budget
            waiting.append(part)
            room -= part.num_tokens
    if waiting:
        yield waiting


def _parts(tree: Tree, index: int, token_budget: int, state: PrefixState | None, can_keep: bool) -> Iterator[Part]:
    prefix, first = len(tree.prefix_ids), 0
    with_prefix = state is None or not state.layers
    if state is None and can_keep and tree.num_tokens > token_budget:
        state = PrefixState()
    while first < len(tree.branches):
        room = token_budget - (prefix if with_prefix else 0) - len(tree.branches[first].token_ids)
        last = first + 1
        while last < len(tree.branches) and len(tree.branches[last].token_ids) <= room:
            room -= len(tree.branches[last].token_ids)
            last += 1
        yield Part(tree, index, first, last, with_prefix, state)
        first, with_prefix = last, not can_keep


def label_logits(forward: Callable[..., Any], packed: Packed) -> list[Tensor]:
    """Per question: ``(labels,)`` float32 logits of its labels at its answer position; see ``vocabulary_logits``."""
    with label_rows(forward, packed.label_ids) as places:
        return chosen(vocabulary_logits(forward, packed), places)


def vocabulary_logits(forward: Callable[..., Any], packed: Packed) -> Tensor:
    """``(Q, V)`` float32 logits of all tokens at each question's answer position; differentiable.

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
        layout=packed.layout,
        use_cache=False,
        logits_to_keep=packed.answer_positions,
    )
    logits_QV: Tensor = output.logits[0].float()
    return logits_QV


def answer_logits(lm: LanguageModel, packed: Packed) -> list[Tensor]:
    """As ``label_logits`` without gradients; of the output head only the rows of the labels are computed."""
    if not packed.label_ids:
        return []
    decoder = decoder_of(lm)
    if decoder is not None:
        used, places_of = _used(packed.label_ids)
        hidden_QE = decoder(packed.input_ids, packed.position_ids, packed.layout, packed.answer_positions)
        return chosen(_rows_in_float32(lm.model.get_output_embeddings(), used, hidden_QE), places_of)
    with label_rows(lm.model, packed.label_ids, always=not is_sharded(lm)) as places:
        return chosen(vocabulary_logits(lm.model, packed), places)


def chosen(logits_QV: Tensor, label_ids: Sequence[Tensor]) -> list[Tensor]:
    """Per question: ``(labels,)`` logits of its labels; all of them are read at once."""
    if not label_ids:
        return []
    counts = [len(labels) for labels in label_ids]
    questions = torch.tensor([place for place, count in enumerate(counts) for _ in range(count)])
    return list(logits_QV[questions.to(logits_QV.device), torch.cat(list(label_ids))].split_with_sizes(counts))


def _used(label_ids: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The tokens among the labels of all questions, and by question the places of its labels among them."""
    used, places = torch.unique(torch.cat(list(label_ids)), return_inverse=True)
    return used, list(places.split([len(labels) for labels in label_ids]))


_BY_HEAD: dict[nn.Linear, dict[int, Tensor]] = {}
"""Output heads that are narrowed, and by thread the rows it asks for."""
_ONE_AT_A_TIME = Lock()
"""Whoever changes that."""


@contextmanager
def label_rows(model: Any, label_ids: Sequence[Tensor], *, always: bool = False) -> Iterator[Sequence[Tensor]]:
    """Where the labels are among the logits of ``model`` within this block, for this thread.

    An output head coarser than float32 computes the labels' rows only, and those in float32: its own products would
    be rounded to steps of 0.06, and candidates would tie. Other threads, such as a health check beside a batch, see
    the whole vocabulary or rows of their own.

    Args:
        model: The model, or whatever wraps it; if its output head is no plain linear, the head stays as it is.
        label_ids: Per question: ``(labels,)``.
        always: Whether a head in float32 computes the labels' rows only, too.
    """
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if type(head) is not nn.Linear or not label_ids or not (always or head.weight.dtype != torch.float32):
        yield label_ids
        return
    rows, places = _used(label_ids)
    with _ONE_AT_A_TIME:
        by_thread = _BY_HEAD.setdefault(head, {})
        by_thread[get_ident()] = rows
        setattr(head, "forward", partial(_narrowed, head, by_thread))  # noqa: B010 - mypy takes it for a method
    try:
        yield places
    finally:
        with _ONE_AT_A_TIME:
            del by_thread[get_ident()]
            if not by_thread:
                del _BY_HEAD[head], head.forward  # the class's own shows again


def _narrowed(head: nn.Linear, by_thread: Mapping[int, Tensor], hidden: Tensor) -> Tensor:
    rows = by_thread.get(get_ident())
    return nn.Linear.forward(head, hidden) if rows is None else _rows_in_float32(head, rows, hidden)


def _rows_in_float32(head: nn.Linear, rows: Tensor, hidden: Tensor) -> Tensor:
    """Outputs ``rows`` of the head; a sharded one (ZeRO-3) must have been gathered, as within its own forward."""
    bias = None if head.bias is None else head.bias[rows].float()
    return linear(hidden.float(), head.weight[rows].float(), bias)


class PackingError(ModelError):
    """The model cannot compute a packed row as it should."""


def check_packing(lm: LanguageModel, *, max_prompt_tokens: int, way_out: str) -> None:
    """Make sure that ``lm`` obeys the mask: two small trees must give the logits of their questions asked one by one.

    Raises:
        PackingError: If they do not, or attention over a sliding window would end within a prompt.
        ModelError: If answers are no finite numbers even where questions are asked one by one.
    """
    window = getattr(lm.model.config, "sliding_window", None)
    if window and window < max_prompt_tokens and getattr(lm.model.config, "use_sliding_window", True):
        raise PackingError(
            f"this model sees {window} tokens back, llm.max_prompt_tokens is {max_prompt_tokens}; {way_out}"
        )
    trees = encode_all(PROBE, lm, max_prompt_tokens)
    with answering(lm):
        try:
            packed = torch.stack(answer_logits(lm, pack(trees, lm.device)))
        except (TypeError, ValueError, RuntimeError) as error:
            raise PackingError(f"this model refuses a packed row: {str(error).splitlines()[0]}; {way_out}") from None
        alone = torch.stack([alone_logits(lm, tree, branch) for tree in trees for branch in tree.branches])
    if not torch.isfinite(alone).all():
        raise ModelError("this model's answers are no finite numbers; its weights are damaged, get them again")
    difference = float((packed - alone).abs().max())
    allowed = max(1.0, float(alone.abs().max())) * (1e-3 if lm.dtype == torch.float32 else 5e-2)
    if not difference <= allowed:
        raise PackingError(
            f"this model ignores the mask of a packed row (logits differ by {difference:.2g}); {way_out}"
        )


def alone_logits(lm: LanguageModel, tree: Tree, branch: Branch) -> Tensor:
    """``(labels,)`` float32 logits of one question of ``tree`` asked by itself: what packed rows must agree with."""
    input_ids = torch.tensor([tree.prefix_ids + branch.token_ids], device=lm.device)
    with label_rows(lm.model, label_ids_of([branch], lm.device)) as places:
        logits: Tensor = lm.model(input_ids=input_ids, use_cache=False, logits_to_keep=1).logits
    return logits[0, -1, places[0]].float()


def _probe(text: str, *questions: str) -> Prompt:
    return Prompt(text, text, tuple(Question("pointwise", one, ("No", "Yes"), (one,)) for one in questions))


PROBE = (
    _probe("Liked:\nAlien", "\nLike Heat?", "\nLike the long summer of last year?"),
    _probe("Liked:\nThe quiet river\nA second letter", "\nLike Ran?", "\nLike Jaws?"),
)
"""Two prompts of ordinary words: rarely trained tokens give logits that say little, above all in bfloat16."""
