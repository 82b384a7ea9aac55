"""The layers of LLaMA and its kin, for inference on a CPU: the same numbers as transformers', in less time.

transformers' layers make a new tensor for every operation, and on a CPU that costs as much as a third of the matrix
products. Here the residual stream is one tensor that products are added to in place, the gated layers run over so few
tokens at a time that what they hold stays in the cache, and of the last layer only the tokens that answer are computed.
In bfloat16 the products alone are rounded, the residual stream stays float32.

``check_packing`` compares the answers with those of transformers' own forward whenever a model is taken into use.

Shapes: T tokens, Q answers, E width of the model, H heads, D width of a head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

from recranker.llm.attention import Layout, attention_by_parts
from recranker.llm.model import LanguageModel, base_of, is_sharded

KINDS = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM)
"""Architectures with these very layers; a model of another one goes through transformers' forward."""

TILE_TOKENS = 384
"""Tokens that go through all products between two attentions while what they hold is in the cache."""


def decoder_of(lm: LanguageModel) -> "Decoder | None":
    """The decoder of ``lm``; None where it is not on a CPU, of another kind, sharded, or its adapter is not merged."""
    model = base_of(lm)
    if is_sharded(lm) or lm.device.type != "cpu" or type(model) not in KINDS or model.config.hidden_act != "silu":
        return None
    if not all(type(one) is nn.Linear for layer in model.model.layers for one in linears_of(layer)):
        return None
    return Decoder(model.model)


def linears_of(layer: Any) -> list[Any]:
    attention, gated = layer.self_attn, layer.mlp
    return [
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(gated.gate_proj, gated.up_proj, gated.down_proj),
    ]


@dataclass(frozen=True)
class Decoder:
    """The layers between embedding and output head."""

    body: Any
    """transformers' model without its head."""

    def __call__(self, input_ids: Tensor, position_ids: Tensor, layout: Layout, answers: Tensor) -> Tensor:
        """``(Q, E)`` hidden state of the answering tokens, after the last norm.

        Args:
            input_ids: ``(1, T)``.
            position_ids: ``(1, T)``.
            layout: How the row is made of trees.
            answers: ``(Q,)`` places in the row.
        """
        embedded: Tensor = self.body.embed_tokens(input_ids)[0]  # new, so that the stream may be it
        rotary = self.body.rotary_emb(embedded, position_ids)  # cosines and sines, each (1, T, D)
        stream_TE = embedded.float()
        layers = list(self.body.layers)
        projected = Projected.empty(embedded, layers[0].self_attn)
        tiles = [slice(start, start + TILE_TOKENS) for start in range(0, len(stream_TE), TILE_TOKENS)]
        for tile in tiles:
            projected.write(stream_TE, layers[0], rotary, tile)
        for index, layer in enumerate(layers):
            attended_TE = projected.attended(layout, index, layer.self_attn.scaling)
            if index == len(layers) - 1:
                stream_TE, attended_TE = stream_TE[answers], attended_TE[answers]
                add_layer(stream_TE, attended_TE, layer)
                break
            for tile in tiles:  # as far as a token can go without the others
                add_layer(stream_TE[tile], attended_TE[tile], layer)
                projected.write(stream_TE, layers[index + 1], rotary, tile)
        return normed(stream_TE, self.body.norm)


@dataclass(frozen=True)
class Projected:
    """Queries, keys and values of one layer after another, in the same memory."""

    query: Tensor
    """``(T, H, D)``."""
    key: Tensor
    """``(T, G, D)``."""
    value: Tensor
    """``(T, G, D)``."""

    @classmethod
    def empty(cls, embedded_TE: Tensor, attention: Any) -> "Projected":
        """For a row as long as ``embedded_TE``, in its number format."""
        widths = (one.out_features for one in (attention.q_proj, attention.k_proj, attention.v_proj))
        tokens, size = len(embedded_TE), attention.head_dim
        return cls(*(embedded_TE.new_empty(tokens, width // size, size) for width in widths))

    def write(self, stream_TE: Tensor, layer: Any, rotary: tuple[Tensor, Tensor], tile: slice) -> None:
        """What ``layer`` asks of and offers to the tokens in ``tile``."""
        attention, normed_TE = layer.self_attn, normed(stream_TE[tile], layer.input_layernorm)
        cos, sin = (one[0, tile, None] for one in rotary)
        for out, one in ((self.query, attention.q_proj), (self.key, attention.k_proj)):
            rotate(_product(normed_TE, one).view(out[tile].shape), cos, sin, out[tile])
        self.value[tile] = _product(normed_TE, attention.v_proj).view(self.value[tile].shape)

    def attended(self, layout: Layout, layer: int, scale: float) -> Tensor:
        """``(T, E)`` of all tokens."""
        return attention_by_parts(layer, self.query, self.key, self.value, layout, scale).flatten(1)


def normed(stream_TE: Tensor, norm: Any) -> Tensor:
    """Root mean square norm, in the number format of the weights; Zhang & Sennrich 2019, arXiv 1910.07467."""
    squares_T1 = torch.linalg.vecdot(stream_TE, stream_TE)[:, None]
    scales_T1 = torch.rsqrt_(squares_T1.div_(stream_TE.shape[1]).add_(norm.variance_epsilon))
    out = torch.empty_like(stream_TE, dtype=norm.weight.dtype)
    return torch.mul(stream_TE, scales_T1, out=out).mul_(norm.weight)


def rotate(heads_THD: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Rotary position embedding over halves of the width; Su et al. 2021, arXiv 2104.09864."""
    half = heads_THD.shape[-1] // 2
    torch.mul(heads_THD, cos, out=out)
    out[..., :half].addcmul_(heads_THD[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(heads_THD[..., :half], sin[..., half:])


def add_layer(stream_TE: Tensor, attended_TE: Tensor, layer: Any) -> None:
    """Add to the stream what ``layer`` makes of it once attention is done."""
    gated = layer.mlp
    _add_product(stream_TE, attended_TE, layer.self_attn.o_proj)
    normed_TE = normed(stream_TE, layer.post_attention_layernorm)
    inner = silu(_product(normed_TE, gated.gate_proj), inplace=True).mul_(_product(normed_TE, gated.up_proj))
    _add_product(stream_TE, inner, gated.down_proj)


def _product(inputs: Tensor, layer: nn.Linear) -> Tensor:
    return linear(inputs, layer.weight, layer.bias)


def _add_product(stream: Tensor, inputs: Tensor, layer: nn.Linear) -> None:
    """Add a linear layer's output to ``stream`` in place, in one go where the formats are the same."""
    if layer.bias is None and stream.dtype == inputs.dtype:
        stream.addmm_(inputs, layer.weight.t())
    else:
        stream.add_(_product(inputs, layer))
