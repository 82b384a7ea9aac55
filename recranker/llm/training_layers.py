"""The layers of LLaMA and its kin with LoRA, for training on a CPU: the same gradients as peft's, in less time.

Between the matrix products peft and autograd make and keep a new tensor for every operation, and on a CPU that takes as
long as the products. Here each layer is one operation whose gradient is written by hand. Adapters of linears with the
same input share a product, what is cheap (norms, the gate) is computed again rather than kept, results are written
where they are wanted, and layers below the first adapted one keep nothing. Base weights have no gradient. Of the last
layer only the tokens that answer are computed, as in ``decoder``.

Shapes: T tokens, A tokens that are computed once attention is done, E width of the model, H heads, G key-value heads,
D width of a head, F width of the gated layer, R ranks of adapters that share an input.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import silu

from recranker.llm.attention import Attended, Layout, attended, attention_gradients
from recranker.llm.decoder import KINDS, Projected, add_layer, linears_of, normed, rotate
from recranker.llm.model import LanguageModel, base_of

TILE_TOKENS = 1024
"""About so many tokens go through all products between two attentions while what they hold is in the cache."""

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of the position embedding, each ``(1, T, D)``."""


def quicken(lm: LanguageModel, *, zero_stage: int = 0) -> bool:
    """Let rows of trees go through the layers of this module whenever ``lm.model`` is called; ``restore`` undoes it.

    Embedding, last norm, output head and all that wraps the model stay as they are. Hooks of modules inside a layer
    are not called, so this is not for weights that are gathered by hooks (ZeRO-3).

    Returns:
        Whether it was done: below ZeRO-3, for float32 on a CPU, an architecture with these layers, and a plain LoRA
        adapter on linears of the layers as all that is trained, without dropout. Otherwise nothing has changed.
    """
    model = base_of(lm)
    if zero_stage == 3 or lm.device.type != "cpu" or lm.dtype != torch.float32 or type(model) not in KINDS:
        return False
    if model.config.hidden_act != "silu" or model.config.attention_dropout or not _only_plain_adapters(model):
        return False
    layers = list(model.model.layers)
    first = next(index for index, layer in enumerate(layers) if _adapters(layer))
    for index, layer in enumerate(layers):
        quick = partial(_forward, layer, below=index - first, is_last=index == len(layers) - 1)
        setattr(layer, "forward", quick)  # noqa: B010 - mypy takes it for a method
    return True


def restore(lm: LanguageModel) -> None:
    """Undo ``quicken``: the layers' own forward shows again."""
    for layer in base_of(lm).model.layers:
        vars(layer).pop("forward", None)


def _only_plain_adapters(model: Any) -> bool:
    """Whether linears of the layers are plain, or have one plain LoRA adapter each, and nothing else is trained."""
    linears = [one for layer in model.model.layers for one in linears_of(layer)]
    if not all(type(one) is nn.Linear or _is_plain_adapter(one) for one in linears):
        return False
    adapters = {id(weight) for layer in model.model.layers for weight in _adapters(layer)}
    trained = {id(weight) for weight in model.parameters() if weight.requires_grad}
    return bool(trained) and trained == adapters


def _is_plain_adapter(module: Any) -> bool:
    """peft's Linear round torch's, with one adapter in use, without dropout or any of the variants of LoRA."""
    if type(module) is not LoraLinear or type(module.base_layer) is not nn.Linear or module.fan_in_fan_out:
        return False
    names = module.active_adapters
    if module.merged or module.disable_adapters or len(names) != 1 or names[0] not in module.lora_A:
        return False
    name = names[0]
    plain = type(module.lora_dropout[name]) is nn.Identity and not module.lora_bias[name]
    return plain and name not in module.lora_variant and module.lora_A[name].weight.dtype == torch.float32


def _adapters(layer: Any) -> list[Tensor]:
    """A and B of each adapted linear, in order."""
    return [weight for one in linears_of(layer) if isinstance(one, LoraLinear) for weight in _factors(one)]


def _factors(module: LoraLinear) -> tuple[Tensor, Tensor]:
    name = module.active_adapters[0]
    return module.lora_A[name].weight, module.lora_B[name].weight


def _forward(layer: Any, stream: Tensor, *, below: int, is_last: bool, **options: Any) -> Tensor:
    """``(1, T, E)`` what ``layer`` makes of ``stream``, in place of its own forward.

    Args:
        layer: transformers' decoder layer.
        stream: ``(1, T, E)``.
        below: Layers between it and the first adapted one below; negative where it lies below that one itself.
        is_last: Whether only the tokens that answer are wanted.
        options: As transformers hands them on; a row without a layout goes through transformers.
    """
    layout = options.get("layout")
    if layout is None or any(isinstance(one, LoraLinear) and one.disable_adapters for one in linears_of(layer)):
        found: Tensor = type(layer).forward(layer, stream, **options)
        return found
    row = Row(layout, options["position_embeddings"], is_last)
    if below < 0:
        with torch.no_grad():
            return _untrained(layer, row, stream[0])[None]
    if below == 0:
        stream = stream.detach()  # whatever made it is not trained
    if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
        checkpointed: Tensor = layer._gradient_checkpointing_func(partial(_trained, layer, row), stream[0])
        return checkpointed[None]
    return _trained(layer, row, stream[0])[None]


@dataclass(frozen=True)
class Row:
    """What all layers are told of a row."""

    layout: Layout
    rotary: Rotary
    answers_only: bool
    """Whether what comes out matters for tokens that answer only; the others may stay as they are."""

    def wanted(self, whole: Tensor) -> Tensor:
        """``(A, ...)`` of ``(T, ...)``: those tokens that are computed once attention is done."""
        return whole[self.layout.ends] if self.answers_only else whole

    def put(self, rows: Tensor, whole: Tensor) -> Tensor:
        """``whole`` with ``rows`` in place of those that are wanted."""
        return whole.index_copy(0, self.layout.ends, rows) if self.answers_only else rows


def _tiles(tokens: Tensor) -> Iterator[slice]:
    """All of them in tiles of about the same size, since a short one costs more than its share."""
    count = max(1, round(len(tokens) / TILE_TOKENS))
    cuts = [len(tokens) * number // count for number in range(count + 1)]
    return (slice(start, end) for start, end in pairwise(cuts) if end > start)


def _untrained(layer: Any, row: Row, stream_TE: Tensor) -> Tensor:
    projected, attention = Projected.empty(stream_TE, layer.self_attn), layer.self_attn
    for tile in _tiles(stream_TE):
        projected.write(stream_TE, layer, row.rotary, tile)
    seen_TE, out_TE = projected.attended(row.layout, attention.layer_idx, attention.scaling), stream_TE.clone()
    for tile in _tiles(stream_TE):
        add_layer(out_TE[tile], seen_TE[tile], layer)
    return out_TE


def _trained(layer: Any, row: Row, stream_TE: Tensor) -> Tensor:
    out_TE: Tensor = _Layer.apply(stream_TE, layer, row, *_adapters(layer))  # type: ignore[no-untyped-call]
    return out_TE


class _Layer(torch.autograd.Function):
    """One layer as autograd sees it, which is given the adapters to know whose gradients come back."""

    @staticmethod
    def forward(ctx: Any, stream_TE: Tensor, layer: Any, row: Row, *_: Tensor) -> Tensor:
        asking, answering = Asking.of(layer), Answering.of(layer)
        query, key, value, low_TR = asking.forward(stream_TE, row.rotary)
        seen = attended(asking.index, query, key, value, row.layout, asking.scale)
        answered, out_AE = answering.forward(row.wanted(stream_TE), row.wanted(seen.out.flatten(1)))
        ctx.save_for_backward(stream_TE, low_TR, *seen, *answered)
        ctx.halves, ctx.row = (asking, answering), row
        return row.put(out_AE, stream_TE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (asking, answering), row, flows = ctx.halves, ctx.row, bool(ctx.needs_input_grad[0])
        stream_TE, low_TR, *kept = ctx.saved_tensors
        seen, answered = Attended(*kept[:5]), Answered(*kept[5:])
        total_AE, seen_TE = row.wanted(gradients[0]).clone(), seen.out.flatten(1)
        of_seen_AE, later = answering.back(total_AE, row.wanted(seen_TE), answered)
        of_seen = row.put(of_seen_AE, torch.zeros_like(seen_TE)).view(seen.out.shape)
        of_heads = attention_gradients(of_seen, seen, row.layout, asking.scale)
        total_TE = row.put(total_AE, gradients[0]) if flows else None
        earlier = asking.back(of_heads, stream_TE, row.rotary, low_TR, total_TE)
        return total_TE, None, None, *earlier, *later


@dataclass(frozen=True)
class Adapted:
    """A frozen linear layer and what its adapter adds."""

    weight: Tensor
    """``(outputs, inputs)``."""
    bias: Tensor | None
    """``(outputs,)``."""
    up: Tensor | None
    """``(outputs, rank)``, the adapter's B times its scale; None without an adapter."""
    scale: float
    ranks: slice
    """Where the adapter's A is among those of its ``Linears``."""

    @property
    def rank(self) -> int:
        return 0 if self.up is None else self.up.shape[1]

    def write(self, inputs: Tensor, low: Tensor, out: Tensor, base: Tensor | None) -> None:
        """See ``Linears.write``."""
        start = self.bias if base is None else base
        if start is None:
            torch.mm(inputs, self.weight.t(), out=out)
        else:
            torch.addmm(start, inputs, self.weight.t(), out=out)
        if base is not None and self.bias is not None:
            out.add_(self.bias)
        if self.up is not None:
            out.addmm_(low[:, self.ranks], self.up.t())


@dataclass(frozen=True)
class Linears:
    """Linear layers with the same input, whose adapters share a product."""

    each: list[Adapted]
    downs: Tensor
    """``(R, inputs)``, the A of all adapters."""

    @classmethod
    def of(cls, *modules: Any) -> "Linears":
        """Of plain linears, or peft's round them."""
        each: list[Adapted] = []
        downs = [modules[0].weight.new_empty(0, modules[0].in_features)]
        start = 0
        for module in modules:
            base, up, scale = module, None, 1.0
            if isinstance(module, LoraLinear):
                base, (down, up), scale = module.base_layer, _factors(module), module.scaling[module.active_adapters[0]]
                downs.append(down.detach())
                up = up.detach() * scale
            rank = 0 if up is None else up.shape[1]
            each.append(Adapted(base.weight.detach(), base.bias, up, scale, slice(start, start + rank)))
            start += rank
        return cls(each, torch.cat(downs))

    def write(self, inputs: Tensor, low: Tensor, outs: Sequence[Tensor], base: Tensor | None = None) -> None:
        """Compute all layers for some tokens.

        Args:
            inputs: ``(tokens, inputs)``.
            low: ``(tokens, R)``, gets what A makes of the inputs.
            outs: Each ``(tokens, outputs)``; get the outputs.
            base: ``(tokens, outputs)`` to which the outputs are added.
        """
        if len(self.downs):
            torch.mm(inputs, self.downs.t(), out=low)
        for one, out in zip(self.each, outs, strict=True):
            one.write(inputs, low, out, base)

    def empty(self, tokens: int) -> list[Tensor]:
        """Room for the outputs, each ``(tokens, outputs)``, then for ``low``."""
        widths = [len(one.weight) for one in self.each] + [len(self.downs)]
        return [self.downs.new_empty(tokens, width) for width in widths]


class Gained:
    """Gradients of the adapters of ``linears``, growing tile by tile."""

    def __init__(self, linears: Linears) -> None:
        self._linears = linears
        self._downs = torch.zeros_like(linears.downs)
        self._ups = [linears.downs.new_zeros(one.rank, len(one.weight)) for one in linears.each]

    def add(self, of_outs: Sequence[Tensor], inputs: Tensor, low: Tensor, of_inputs: Tensor | None) -> None:
        """Add what some tokens give.

        Args:
            of_outs: Gradients of the outputs, each ``(tokens, outputs)``.
            inputs: ``(tokens, inputs)``.
            low: ``(tokens, R)``, as ``Linears.write`` left it.
            of_inputs: ``(tokens, inputs)``, gets the gradient of the inputs; None: nobody asks for it.
        """
        of_low = torch.empty_like(low)
        for number, (one, of_out) in enumerate(zip(self._linears.each, of_outs, strict=True)):
            if of_inputs is not None:
                of_inputs.addmm_(of_out, one.weight, beta=float(number > 0))
            if one.up is not None:
                torch.mm(of_out, one.up, out=of_low[:, one.ranks])
                self._ups[number].addmm_(low[:, one.ranks].t(), of_out)
        if len(self._downs):
            self._downs.addmm_(of_low.t(), inputs)
            if of_inputs is not None:
                of_inputs.addmm_(of_low, self._linears.downs)

    def gradients(self) -> Iterator[Tensor]:
        """Of A and B of each adapted layer, in order."""
        for one, up in zip(self._linears.each, self._ups, strict=True):
            if one.up is not None:
                yield self._downs[one.ranks]
                yield up.t() * one.scale


@dataclass(frozen=True)
class Asking:
    """The first half of a layer: what tokens ask of, and offer to, one another."""

    index: int
    """Of the layer."""
    scale: float
    """Of the products of queries and keys."""
    size: int
    """D."""
    norm: Any
    linears: Linears

    @classmethod
    def of(cls, layer: Any) -> "Asking":
        one = layer.self_attn
        linears = Linears.of(one.q_proj, one.k_proj, one.v_proj)
        return cls(one.layer_idx, one.scaling, one.head_dim, layer.input_layernorm, linears)

    def forward(self, stream_TE: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries ``(T, H, D)``, keys and values ``(T, G, D)``, and ``(T, R)`` what A makes of the inputs."""
        query, key, value, low_TR = self.linears.empty(len(stream_TE))
        for tile in _tiles(stream_TE):
            outs = [one[tile] for one in (query, key, value)]
            self.linears.write(normed(stream_TE[tile], self.norm), low_TR[tile], outs)
            for out in outs[:2]:
                _turn(self._heads(out), rotary, tile)
        return self._heads(query), self._heads(key), self._heads(value), low_TR

    def _heads(self, rows: Tensor) -> Tensor:
        return rows.view(len(rows), -1, self.size)

    def back(
        self, of_heads: Sequence[Tensor], stream_TE: Tensor, rotary: Rotary, low_TR: Tensor, total_TE: Tensor | None
    ) -> Iterator[Tensor]:
        """Gradients of the adapters.

        Args:
            of_heads: Gradients of queries, keys and values, which are overwritten.
            stream_TE: As it was forwards, and so are ``rotary`` and ``low_TR``.
            rotary: See ``stream_TE``.
            low_TR: See ``stream_TE``.
            total_TE: Gradient of the stream, to which is added what comes this way; None: nobody asks for it.
        """
        gained = Gained(self.linears)
        for tile in _tiles(stream_TE):
            for one in of_heads[:2]:
                _turn(one[tile], rotary, tile, back=True)
            of_outs, inputs = [one[tile].flatten(1) for one in of_heads], normed(stream_TE[tile], self.norm)
            of_inputs = None if total_TE is None else torch.empty_like(inputs)
            gained.add(of_outs, inputs, low_TR[tile], of_inputs)
            if total_TE is not None and of_inputs is not None:
                _add_norm_gradient(total_TE[tile], of_inputs, stream_TE[tile], self.norm)
        return gained.gradients()


class Answered(NamedTuple):
    """What the second half of a layer keeps for its gradients."""

    low_output: Tensor
    """``(A, R)`` what A of the attention's output makes of its input."""
    middle: Tensor
    """``(A, E)`` the stream between attention and gated layer."""
    low_gates: Tensor
    """``(A, R)`` of gate and up."""
    gate: Tensor
    """``(A, F)``, before its silu."""
    up: Tensor
    """``(A, F)``."""
    low_down: Tensor
    """``(A, R)``."""


@dataclass(frozen=True)
class Answering:
    """The second half of a layer: what becomes of a token by itself once attention is done."""

    output: Linears
    norm: Any
    gates: Linears
    down: Linears

    @classmethod
    def of(cls, layer: Any) -> "Answering":
        gated = layer.mlp
        gates = Linears.of(gated.gate_proj, gated.up_proj)
        return cls(
            Linears.of(layer.self_attn.o_proj), layer.post_attention_layernorm, gates, Linears.of(gated.down_proj)
        )

    def forward(self, stream_AE: Tensor, seen_AE: Tensor) -> tuple[Answered, Tensor]:
        """What is kept, and the stream ``(A, E)`` behind the layer.

        Args:
            stream_AE: The stream before the layer.
            seen_AE: Output of the attention.
        """
        middle, low_output = self.output.empty(len(stream_AE))
        gate, up, low_gates = self.gates.empty(len(stream_AE))
        out, low_down = self.down.empty(len(stream_AE))
        for tile in _tiles(stream_AE):
            self.output.write(seen_AE[tile], low_output[tile], [middle[tile]], base=stream_AE[tile])
            self.gates.write(normed(middle[tile], self.norm), low_gates[tile], [gate[tile], up[tile]])
            inner = silu(gate[tile]).mul_(up[tile])
            self.down.write(inner, low_down[tile], [out[tile]], base=middle[tile])
        return Answered(low_output, middle, low_gates, gate, up, low_down), out

    def back(self, total_AE: Tensor, seen_AE: Tensor, kept: Answered) -> tuple[Tensor, list[Tensor]]:
        """Gradient of ``seen_AE``, and those of the adapters.

        Args:
            total_AE: Gradient of the stream behind the layer; becomes that of the stream before attention's output.
            seen_AE: As it was forwards.
            kept: What was kept then.
        """
        output, gates, down = Gained(self.output), Gained(self.gates), Gained(self.down)
        of_seen_AE = torch.empty_like(seen_AE)
        for tile in _tiles(total_AE):
            total, one = total_AE[tile], Answered(*(rows[tile] for rows in kept))
            of_gate, of_up = _gate_gradients(total, one, down)
            of_normed = torch.empty_like(total)
            gates.add([of_gate, of_up], normed(one.middle, self.norm), one.low_gates, of_normed)
            _add_norm_gradient(total, of_normed, one.middle, self.norm)
            output.add([total], seen_AE[tile], one.low_output, of_seen_AE[tile])
        return of_seen_AE, [*output.gradients(), *gates.gradients(), *down.gradients()]


def _gate_gradients(of_out: Tensor, kept: Answered, down: Gained) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up, each ``(tokens, F)``; those of the adapter behind them go to ``down``."""
    opened, of_inner = silu(kept.gate), torch.empty_like(kept.gate)
    down.add([of_out], opened * kept.up, kept.low_down, of_inner)
    of_up = opened.mul_(of_inner)
    of_gate = of_inner.mul_(kept.up)
    torch.ops.aten.silu_backward.grad_input(of_gate, kept.gate, grad_input=of_gate)
    return of_gate, of_up


def _turn(heads_THD: Tensor, rotary: Rotary, tile: slice, *, back: bool = False) -> None:
    """The position embedding of the tokens in ``tile``, in place; ``back``: of gradients, which turn the other way."""
    cos, sin = (one[0, tile, None] for one in rotary)
    rotate(heads_THD.clone(), cos, -sin if back else sin, heads_THD)


def _add_norm_gradient(total_TE: Tensor, of_normed_TE: Tensor, stream_TE: Tensor, norm: Any) -> None:
    """Add the stream's gradient to ``total_TE``, given that of ``normed(stream_TE, norm)``, which is overwritten."""
    width = stream_TE.shape[1]
    squares_T1 = torch.linalg.vecdot(stream_TE, stream_TE)[:, None]
    scales_T1 = torch.rsqrt_(squares_T1.div_(width).add_(norm.variance_epsilon))
    along_T1 = torch.linalg.vecdot(of_normed_TE.mul_(norm.weight), stream_TE)[:, None]
    total_TE.addcmul_(of_normed_TE, scales_T1)
    total_TE.addcmul_(stream_TE, along_T1.mul_(scales_T1.pow(3)), value=-1.0 / width)
