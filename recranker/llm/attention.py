"""Attention that skips what a tree's mask forbids anyway, for CPUs.

In a row of several trees most pairs of tokens do not see each other, yet a dense mask computes them all.
Cutting the row into blocks of queries, each with the keys it can see at all, gives the same numbers for
about 40 % of the attention time (1,434 tokens, prefix 395). On CUDA one dense kernel is faster than many
small ones, so blocks are left aside there.
"""

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

Block = tuple[int, int, int, int]
"""Queries and own keys ``start:end``, further keys ``prefix_start:prefix_end``; the whole is (0, 0, 0, T).

Plain integers in tuples pass through every wrapper round a model.
"""


def blocks_of(prefix: tuple[int, int], branch_lengths: list[int]) -> list[Block]:
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
    blocks: tuple[Block, ...] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA attention, block by block where ``blocks`` are given; they must cover the row in order.

    Args:
        module: The attention layer.
        query: ``(1, heads, T, width)``; key and value have as many or fewer heads.
        key: See ``query``.
        value: See ``query``.
        attention_mask: ``(1, 1, T, T)`` bool, True = sees; it decides, blocks only say where it is False throughout.
        blocks: From ``blocks_of``, for all trees of the row.
        options: Scaling, dropout and the like, handed on.
    """
    if blocks is None or attention_mask is None or query.device.type != "cpu":
        found: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
        return found, None
    parts = []
    for prefix_start, prefix_end, start, end in blocks:
        keys, values, masks = (
            torch.cat(
                [one.narrow(axis, prefix_start, prefix_end - prefix_start), one.narrow(axis, start, end - start)], axis
            )
            for one, axis in ((key, 2), (value, 2), (attention_mask[:, :, start:end], 3))
        )
        parts.append(sdpa_attention_forward(module, query[:, :, start:end], keys, values, masks, **options)[0])
    return torch.cat(parts, dim=1), None


AttentionInterface.register(NAME, attention_by_blocks)
AttentionMaskInterface.register(NAME, sdpa_mask)
