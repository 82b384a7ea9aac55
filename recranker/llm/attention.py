"""Attention over trees: every branch sees its tree's prefix and itself, and nothing else is computed.

A dense mask over a row of trees computes every pair of tokens only to forbid most of them. Three parts are enough:
prefixes over themselves, branches over their prefix, branches over themselves. All are plain causal or plain full
attention, for which CPUs have a fast kernel, and a softmax over two sets of keys is the mean of the two softmaxes
weighted by their sums (Milakov & Gimelshein 2018, arXiv 1805.02867). That kernel's sums have no gradient, so tuning on
a CPU cuts the row into blocks instead: queries with all the keys they can see, under the mask. On CUDA one dense kernel
is faster than many small ones, and the mask alone decides.

Shapes: T tokens of the row, B branch tokens, H heads, G key-value heads, D width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_by_blocks"
"""As transformers knows it; a name with 'sdpa' in it is refused for models that have no such attention."""

BLOCK_TOKENS = 128
"""Queries per block of branches; the fastest of 64 to 512 seen."""

PADDING = 1.5
"""Branches share a padded batch as long as the longest has at most so many times the tokens of the shortest."""

Block = tuple[int, int, int, int]
"""Queries and own keys ``start:end``, further keys ``prefix_start:prefix_end``; the whole is (0, 0, 0, T)."""

KeysAndValues = tuple[Tensor, Tensor]
"""Each ``(1, G, prefix tokens, D)``."""


@dataclass
class PrefixState:
    """Keys and values of one prefix, by layer; the first pass over the prefix fills it, later ones read it."""

    layers: dict[int, KeysAndValues] = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """One tree, or part of one, in a row: its prefix, if it is computed here, then its branches."""

    start: int
    """Where it begins in the row."""
    prefix: int
    """Prefix tokens in the row; 0 where they are known already, or there are none."""
    branches: tuple[int, ...]
    """Tokens of each branch."""
    state: PrefixState | None = None
    """Where the prefix is kept for, or was kept by, another pass."""

    @property
    def branches_start(self) -> int:
        return self.start + self.prefix

    @property
    def end(self) -> int:
        return self.branches_start + sum(self.branches)


@dataclass(frozen=True)
class Bin:
    """Branches of about the same length as one batch, padded behind their ends, where nobody looks."""

    gather: Tensor
    """``(branches, longest)`` place in the row of each token; padding repeats a token of the branch."""
    keep: Tensor
    """``(branches, longest)`` bool, False on padding."""

    @cached_property
    def places(self) -> Tensor:
        """``(tokens,)`` place in the row of all that is no padding; the same in every layer."""
        return self.gather[self.keep]


@dataclass(frozen=True)
class Layout:
    """How a row is made of trees."""

    spans: tuple[Span, ...]

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The row in pieces of queries with all the keys they can see; for prefixes computed in the row."""
        found: list[Block] = []
        for span in self.spans:
            found += blocks_of((span.start, span.branches_start), span.branches)
        return tuple(found)

    @cached_property
    def bins(self) -> tuple[Bin, ...]:
        """All branches of the row, by length."""
        branches = []
        for span in self.spans:
            start = span.branches_start
            for length in span.branches:
                branches.append((length, start))
                start += length
        branches.sort()
        groups: list[list[tuple[int, int]]] = []
        for one in branches:
            if not groups or one[0] > groups[-1][0][0] * PADDING:
                groups.append([])
            groups[-1].append(one)
        return tuple(_bin(group) for group in groups)


def _bin(branches: Sequence[tuple[int, int]]) -> Bin:
    lengths, starts = torch.tensor(branches).T
    columns = torch.arange(int(lengths[-1]))
    inside = torch.minimum(columns[None, :], lengths[:, None] - 1)
    return Bin(starts[:, None] + inside, columns[None, :] < lengths[:, None])


def blocks_of(prefix: tuple[int, int], branch_lengths: Sequence[int]) -> list[Block]:
    """Blocks of one tree that starts with its prefix at ``prefix`` (start, end) of the row."""
    blocks: list[Block] = [(prefix[0], prefix[0], *prefix)] if prefix[1] > prefix[0] else []
    start = end = prefix[1]
    for length in branch_lengths:
        if end > start and end + length - start > BLOCK_TOKENS:
            blocks.append((*prefix, start, end))
            start = end
        end += length
    return [*blocks, (*prefix, start, end)] if end > start else blocks


def attention_by_blocks(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA attention, computing only what ``layout`` leaves visible where that is faster.

    Args:
        module: The attention layer.
        query: ``(1, H, T, D)``.
        key: ``(1, G, T, D)``, G dividing H.
        value: See ``key``.
        attention_mask: ``(1, 1, T, T)`` bool, True = sees; not looked at where ``needs_mask`` says so.
        layout: How the row is made of trees; None: the mask alone decides.
        options: Scaling, dropout and the like, handed on.

    Returns:
        ``(1, T, H, D)``, and no weights.
    """
    if layout is None or query.device.type != "cpu":
        found: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
        return found, None
    if not needs_mask(query.device):
        return attention_by_parts(module.layer_idx, query, key, value, layout, options.get("scaling")), None
    assert attention_mask is not None
    parts = []
    for prefix_start, prefix_end, start, end in layout.blocks:
        keys, values, masks = (
            torch.cat(
                [one.narrow(axis, prefix_start, prefix_end - prefix_start), one.narrow(axis, start, end - start)], axis
            )
            for one, axis in ((key, 2), (value, 2), (attention_mask[:, :, start:end], 3))
        )
        parts.append(sdpa_attention_forward(module, query[:, :, start:end], keys, values, masks, **options)[0])
    return torch.cat(parts, dim=1), None


def needs_mask(device: torch.device) -> bool:
    """Whether a row on ``device`` must bring its mask; for inference on a CPU its layout is enough."""
    return device.type != "cpu" or torch.is_grad_enabled()


def attention_by_parts(
    layer: int, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None
) -> Tensor:
    """``(1, T, H, D)``: prefixes over themselves; branches over their prefix and over themselves, merged.

    Args:
        layer: Index of the layer, under which prefixes are kept.
        query: ``(1, H, T, D)``, on a CPU.
        key: ``(1, G, T, D)``, G dividing H.
        value: See ``key``.
        layout: How the row is made of trees.
        scale: Of the products; None: one over the root of D.
    """
    out_THD = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
    shared_THD = torch.empty_like(out_THD)
    sums_TH = query.new_empty(out_THD.shape[:2], dtype=torch.float32)
    for span in layout.spans:
        prefix, branches = slice(span.start, span.branches_start), slice(span.branches_start, span.end)
        keys, values = _prefix_of(span, layer, key[:, :, prefix], value[:, :, prefix])
        if span.prefix:
            out_THD[prefix] = _flash(query[:, :, prefix], keys, values, causal=True, scale=scale)[0][0]
        if span.branches and keys.shape[2]:
            seen, sums = _flash(query[:, :, branches], keys, values, causal=False, scale=scale)
            shared_THD[branches], sums_TH[branches] = seen[0], sums[0]
        else:  # without a prefix, branches are all they see
            shared_THD[branches], sums_TH[branches] = 0.0, float("-inf")
    rows = [part[0].transpose(0, 1) for part in (query, key, value)]
    for one in layout.bins:
        own, own_sums = _flash(*(part[one.gather].transpose(1, 2) for part in rows), causal=True, scale=scale)
        weights = torch.sigmoid(own_sums[one.keep] - sums_TH[one.places]).to(own.dtype)
        out_THD[one.places] = torch.lerp(shared_THD[one.places], own[one.keep], weights[..., None])
    return out_THD[None]


def _prefix_of(span: Span, layer: int, keys: Tensor, values: Tensor) -> KeysAndValues:
    """Keys and values of the prefix: those just computed, which may be wanted again, or those kept."""
    if span.state is None:
        return keys, values
    if span.prefix:
        span.state.layers[layer] = keys.clone(), values.clone()
    return span.state.layers[layer]


def _flash(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """``(n, T, H, D)`` attention, and ``(n, T, H)`` float32 logarithm of the sum each softmax divided by."""
    repeats = query.shape[1] // key.shape[1]
    single = query.shape[0] == 1
    if single:  # heads that share a key become a batch, and the key is not copied
        query = query[0].view(-1, repeats, *query.shape[2:])
        key, value = (one[0][:, None].expand(-1, repeats, -1, -1) for one in (key, value))
    elif repeats > 1:
        key, value = (one.repeat_interleave(repeats, dim=1) for one in (key, value))
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    if single:
        out, sums = out.flatten(0, 1)[None], sums.flatten(0, 1)[None]
    return out.transpose(1, 2), sums.transpose(1, 2)


AttentionInterface.register(NAME, attention_by_blocks)
AttentionMaskInterface.register(NAME, sdpa_mask)
