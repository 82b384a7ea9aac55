"""Attention over trees: every branch sees its tree's prefix and itself, and nothing else is computed.

A dense mask over a row of trees computes every pair of tokens only to forbid most of them. Three parts are enough:
prefixes over themselves, branches over their prefix, branches over themselves. For such parts CPUs have a fast kernel,
and a softmax over two sets of keys is the mean of the two softmaxes weighted by their sums (Milakov & Gimelshein 2018,
arXiv 1805.02867). Backwards, what a part needs to know of the whole is the output and the sum of each query: with them
the kernel's own backward gives the share of every part, and the shares add up (Dao et al. 2022, arXiv 2205.14135,
appendix B.2). On CUDA one dense kernel is faster than many small ones, and the mask alone decides.

Shapes: T tokens of the row, H heads, G key-value heads, D width of a head; n rows of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_over_trees"
"""As transformers knows it; a name with 'sdpa' in it is refused for models that have no such attention."""

PIECE_TOKENS = 192
"""Of a prefix about so many tokens at a time look at those before; all at once would compute what they may not see."""

PADDING = 1.5
"""Branches share a padded batch as long as the longest has at most so many times the tokens of the shortest."""

CAUSAL: Literal["causal"] = "causal"
Seen = Tensor | Literal["causal"] | None
"""Keys that queries see: as many as a query's place says; by what is added to their products; all."""

KeysAndValues = tuple[Tensor, Tensor]
"""Each ``(prefix tokens, G, D)``."""


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

    @property
    def prefix_pieces(self) -> Iterator[tuple[slice, int]]:
        """Places of a piece of the prefix, and how much of the prefix is computed once it is."""
        count = max(1, round(self.prefix / PIECE_TOKENS)) if self.prefix else 0
        cuts = [self.prefix * number // max(1, count) for number in range(count + 1)]
        for start, end in pairwise(cuts):
            yield slice(self.start + start, self.start + end), end


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

    @cached_property
    def _kept(self) -> Tensor:
        return self.keep.flatten().nonzero()[:, 0]

    @cached_property
    def _padding(self) -> Tensor:
        return (~self.keep).flatten().nonzero()[:, 0]

    def batch(self, rows: Tensor) -> Tensor:
        """``(branches, longest, ...)`` of ``(T, ...)``."""
        return rows.index_select(0, self.gather.flatten()).view(*self.gather.shape, *rows.shape[1:])

    def rows(self, batch: Tensor) -> Tensor:
        """``(tokens, ...)`` of ``(branches, longest, ...)``, without padding; see ``places``."""
        return batch.flatten(0, 1).index_select(0, self._kept)

    def silence(self, batch: Tensor) -> Tensor:
        """``(branches, longest, ...)``, in place, with zeros as padding."""
        batch.flatten(0, 1).index_fill_(0, self._padding, 0.0)
        return batch


@dataclass(frozen=True)
class Layout:
    """How a row is made of trees."""

    spans: tuple[Span, ...]

    @cached_property
    def ends(self) -> Tensor:
        """``(branches,)`` place in the row of each branch's last token."""
        places = [span.branches_start + end - 1 for span in self.spans for end in accumulate(span.branches)]
        return torch.tensor(places, dtype=torch.long)

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

    @cached_property
    def _stairs(self) -> Tensor:
        """``(piece, prefix + piece)``, behind whose zeros each row hides one column less than the row above."""
        longest = max(span.prefix for span in self.spans)
        hidden = torch.full((2 * PIECE_TOKENS, 2 * PIECE_TOKENS), float("-inf")).triu(1)
        return torch.cat([torch.zeros(len(hidden), longest), hidden], dim=1)

    def stairs(self, queries: int, keys: int) -> Tensor:
        """``(queries, keys)`` to be added to products, where the last query sees all keys, the one before one less."""
        zeros = self._stairs.shape[1] - len(self._stairs)
        return self._stairs[:queries, zeros - (keys - queries) : zeros + queries]

    def mask(self, device: torch.device) -> Tensor:
        """``(1, 1, T, T)`` bool, True where the row's token sees the column's.

        That is its own tree's prefix and its own branch, up to and including itself.
        """
        segments = [  # tree, branch (-1 for the prefix), length
            (tree, number - 1, length)
            for tree, span in enumerate(self.spans)
            for number, length in enumerate((span.prefix, *span.branches))
        ]
        trees, branches, lengths = torch.tensor(segments, device=device).T
        tree_T, branch_T = trees.repeat_interleave(lengths), branches.repeat_interleave(lengths)
        same_tree_TT = tree_T[:, None] == tree_T[None, :]
        visible_TT = (branch_T[None, :] == -1) | (branch_T[None, :] == branch_T[:, None])
        mask: Tensor = (same_tree_TT & visible_TT).tril()[None, None]
        return mask


def _bin(branches: Sequence[tuple[int, int]]) -> Bin:
    lengths, starts = torch.tensor(branches).T
    columns = torch.arange(int(lengths[-1]))
    inside = torch.minimum(columns[None, :], lengths[:, None] - 1)
    return Bin(starts[:, None] + inside, columns[None, :] < lengths[:, None])


def attention_over_trees(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    dropout: float = 0.0,
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
        dropout: Share of the weights that are dropped, for which the row needs its mask.
        options: Scaling and the like, handed on.

    Returns:
        ``(1, T, H, D)``, and no weights.
    """
    if layout is not None and not needs_mask(query.device):
        if not dropout:
            queries, keys, values = (one[0].transpose(0, 1) for one in (query, key, value))
            scale = options.get("scaling")
            return attention_by_parts(module.layer_idx, queries, keys, values, layout, scale)[None], None
        attention_mask = layout.mask(query.device)
    heads = (one.to(_format(module, query)) for one in (query, key, value))
    found = sdpa_attention_forward(module, *heads, attention_mask, dropout=dropout, **options)[0]
    return found.to(query.dtype), None


def _format(module: Any, query: Tensor) -> torch.dtype:
    """In which attention is computed: of a model of 4 bits that of its products, as transformers' flash attention does.

    Tuning makes its norms float32, hence also the queries, though they come from products in bfloat16.
    """
    dtype: torch.dtype = module.config.dtype if getattr(module.config, "_is_quantized", False) else query.dtype
    return dtype


def needs_mask(device: torch.device) -> bool:
    """Whether a row on ``device`` must bring its mask; on a CPU its layout is enough."""
    return device.type != "cpu"


def attention_by_parts(
    layer: int, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None
) -> Tensor:
    """``(T, H, D)``: prefixes over themselves; branches over their prefix and over themselves, merged.

    Args:
        layer: Index of the layer, under which prefixes are kept.
        query: ``(T, H, D)``, on a CPU.
        key: ``(T, G, D)``, G dividing H.
        value: See ``key``.
        layout: How the row is made of trees; where gradients are wanted, with all its prefixes in the row.
        scale: Of the products; None: one over the root of D.
    """
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        out_THD: Tensor = _WithGradients.apply(layer, query, key, value, layout, scale)  # type: ignore[no-untyped-call]
        return out_THD
    return attended(layer, query, key, value, layout, scale).out


class Attended(NamedTuple):
    """What attention came from and what came of it: all that its gradients are made of."""

    query: Tensor
    """``(T, H, D)``."""
    key: Tensor
    """``(T, G, D)``."""
    value: Tensor
    """``(T, G, D)``."""
    out: Tensor
    """``(T, H, D)``."""
    sums: Tensor
    """``(T, H)``, at least float32: logarithm of the sum each softmax divided by."""

    def part(self, queries: slice, keys: slice) -> "Attended":
        """As a batch of one, some queries and some of the keys they see."""
        key, value = self.key[None, keys], self.value[None, keys]
        return Attended(self.query[None, queries], key, value, self.out[None, queries], self.sums[None, queries])


class _WithGradients(torch.autograd.Function):
    """``attended`` and its gradients, as autograd wants them."""

    @staticmethod
    def forward(
        ctx: Any, layer: int, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None
    ) -> Tensor:
        found = attended(layer, query, key, value, layout, scale)
        ctx.save_for_backward(*found)
        ctx.layout, ctx.scale = layout, scale
        return found.out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        found = attention_gradients(gradients[0], Attended(*ctx.saved_tensors), ctx.layout, ctx.scale)
        return None, *found, None, None


def attended(layer: int, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None) -> Attended:
    """As ``attention_by_parts``, with all that its gradients need."""
    out_THD = torch.empty_like(query, memory_format=torch.contiguous_format)
    sums_TH = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
    for span in layout.spans:
        prefix, branches = slice(span.start, span.branches_start), slice(span.branches_start, span.end)
        keys, values = _prefix_of(span, layer, key[prefix], value[prefix])
        for queries, end in span.prefix_pieces:
            stairs = layout.stairs(queries.stop - queries.start, end)
            part, sums = _flash(query[None, queries], keys[None, :end], values[None, :end], stairs, scale)
            out_THD[queries], sums_TH[queries] = part[0], sums[0]
        if span.branches and len(keys):
            part, sums = _flash(query[None, branches], keys[None], values[None], None, scale)
            out_THD[branches], sums_TH[branches] = part[0], sums[0]
        else:  # without a prefix, branches are all they see
            out_THD[branches], sums_TH[branches] = 0.0, float("-inf")
    for one in layout.bins:
        part, sums = _flash(one.batch(query), one.batch(key), one.batch(value), CAUSAL, scale)
        own, own_sums = one.rows(part), one.rows(sums)
        shared, shared_sums = (rows.index_select(0, one.places) for rows in (out_THD, sums_TH))
        weights = torch.sigmoid(own_sums - shared_sums).to(own.dtype)
        out_THD.index_add_(0, one.places, own.sub_(shared).mul_(weights[..., None]))
        sums_TH.index_copy_(0, one.places, torch.logaddexp(own_sums, shared_sums))
    return Attended(query, key, value, out_THD, sums_TH)


def attention_gradients(
    gradient: Tensor, whole: Attended, layout: Layout, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, shaped as they are.

    Args:
        gradient: ``(T, H, D)``, of the output.
        whole: From ``attended`` with the same ``layout`` and ``scale``.
        layout: How the row is made of trees; no prefix may be kept for other passes, or be known from one.
        scale: Of the products; None: one over the root of D.
    """
    assert all(span.state is None for span in layout.spans), "a prefix kept for other passes has no gradients"
    of_query, of_key, of_value = (
        torch.zeros_like(one, memory_format=torch.contiguous_format) for one in (whole.query, whole.key, whole.value)
    )
    for queries, keys, seen in _shared(layout):
        found = _flash_gradients(gradient[None, queries], whole.part(queries, keys), seen, scale)
        of_query[queries] += found[0][0]
        of_key[keys] += found[1][0]
        of_value[keys] += found[2][0]
    for one in layout.bins:
        of_out = one.silence(one.batch(gradient))  # padding asks for nothing, so that nothing comes of it
        found = _flash_gradients(of_out, Attended(*map(one.batch, whole)), CAUSAL, scale)
        for total, part in zip((of_query, of_key, of_value), found, strict=True):
            total.index_add_(0, one.places, one.rows(part))
    return of_query, of_key, of_value


def _shared(layout: Layout) -> Iterator[tuple[slice, slice, Seen]]:
    """Queries with the keys of their tree's prefix: the prefix itself in pieces, then all its branches."""
    for span in layout.spans:
        for queries, end in span.prefix_pieces:
            yield queries, slice(span.start, span.start + end), layout.stairs(queries.stop - queries.start, end)
        if span.prefix and span.branches:
            yield slice(span.branches_start, span.end), slice(span.start, span.branches_start), None


def _prefix_of(span: Span, layer: int, keys: Tensor, values: Tensor) -> KeysAndValues:
    """Keys and values of the prefix: those just computed, which may be wanted again, or those kept."""
    if span.state is None:
        return keys, values
    if span.prefix:
        span.state.layers[layer] = keys.clone(), values.clone()
    return span.state.layers[layer]


def _flash(query: Tensor, key: Tensor, value: Tensor, seen: Seen, scale: float | None) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithm of the sum each softmax divided by.

    Args:
        query: ``(n, queries, H, D)``.
        key: ``(n, keys, G, D)``.
        value: See ``key``.
        seen: CAUSAL: a query sees no more keys than its place says; what is added to products; None: all are seen.
        scale: Of the products; None: one over the root of D.

    Returns:
        ``(n, queries, H, D)``, and ``(n, queries, H)``, at least float32.
    """
    heads, options = _by_head(query, key, value), _options(seen, query, scale)
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads, **options)
    return _by_token(out, len(query)), _by_token(sums, len(query))


def _flash_gradients(
    gradient: Tensor, part: Attended, seen: Seen, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What the keys of ``part`` add to the gradients of its queries, of themselves and of their values.

    Args:
        gradient: ``(n, queries, H, D)``, of the output.
        part: ``(n, queries, ...)`` and ``(n, keys, ...)``; output and sums are those over all keys, not these alone.
        seen: See ``_flash``.
        scale: See ``_flash``.
    """
    rows, repeats = len(part.query), part.query.shape[2] // part.key.shape[2]
    of_query, of_key, of_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _grouped(gradient, repeats),
        *_by_head(part.query, part.key, part.value),
        _grouped(part.out, repeats),
        _grouped(part.sums, repeats),
        **_options(seen, part.query, scale),
    )
    return _by_token(of_query, rows), _over_repeats(of_key, rows, repeats), _over_repeats(of_value, rows, repeats)


def _options(seen: Seen, query: Tensor, scale: float | None) -> dict[str, Any]:
    """The kernel's way to say which keys are seen."""
    causal = isinstance(seen, str)
    mask = None if seen is None or isinstance(seen, str) else seen.to(query.dtype)
    return {"dropout_p": 0.0, "is_causal": causal, "attn_mask": mask, "scale": scale}


def _by_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each with its heads before its tokens, and as many heads."""
    repeats = query.shape[2] // key.shape[2]
    if len(query) == 1:  # heads that share a key become a batch, and the key is not copied
        keys, values = (one[0].transpose(0, 1)[:, None].expand(-1, repeats, -1, -1) for one in (key, value))
    else:
        keys, values = (one.transpose(1, 2).repeat_interleave(repeats, dim=1) for one in (key, value))
    return _grouped(query, repeats), keys, values


def _grouped(rows: Tensor, repeats: int) -> Tensor:
    """Heads of ``(n, T, H, ...)`` before tokens; of a single row, heads that share a key as one row of a batch."""
    heads = rows.transpose(1, 2)
    return heads[0].view(-1, repeats, *heads.shape[2:]) if len(rows) == 1 else heads


def _by_token(heads: Tensor, rows: int) -> Tensor:
    """``(n, T, H, ...)``: what ``_grouped`` did, undone."""
    return (heads.flatten(0, 1)[None] if rows == 1 else heads).transpose(1, 2)


def _over_repeats(heads: Tensor, rows: int, repeats: int) -> Tensor:
    """``(n, T, G, D)`` sum over the heads that share a key, of what the kernel gives."""
    return heads.reshape(rows, -1, repeats, *heads.shape[2:]).sum(2).transpose(1, 2)


AttentionInterface.register(NAME, attention_over_trees)
AttentionMaskInterface.register(NAME, sdpa_mask)
