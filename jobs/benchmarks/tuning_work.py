"""Multiply-adds that a training step cannot do without, however it is computed.

Forward, every linear layer for every token, attention between tokens that see each other, and the output head where
the model answers. Backward, the same products towards the inputs wherever an adapter lies before them: base weights
have no gradients, and below the first adapter nothing flows. Of the last layer only keys and values are needed of all
tokens, the rest of those that answer. Scores that fused attention computes a second time do not count.
"""

from dataclasses import dataclass

from recranker.llm.encoding import Tree
from recranker.llm.settings import LoraSettings
from recranker.llm.shapes import ModelShape

GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""The linear layers of one decoder layer in their order, those with the same input together; attention stands behind
the first group."""
OF_ALL_TOKENS = ("k_proj", "v_proj")
"""What the last layer needs of tokens that do not answer."""
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 4
"""Of attention, per pair of tokens: with keys and values; towards queries, keys, values and weights."""

Place = tuple[int, int]
"""Layer and group."""


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one or more steps."""

    linear: float
    """Linear layers, their adapters, and the output head."""
    attention: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.linear + other.linear, self.attention + other.attention)


def work_of(tree: Tree, shape: ModelShape, lora: LoraSettings) -> Work:
    """What training on ``tree`` once takes.

    Args:
        tree: Prefix and questions.
        shape: Of the model.
        lora: Which layers are adapted.
    """
    start = _first_adapter(shape, lora)
    linear, attention = 2.0 * len(tree.branches) * shape.width * shape.vocabulary, 0.0  # the head, there and back
    for layer in range(shape.layers):
        is_last = layer == shape.layers - 1
        for group, names in enumerate(GROUPS):
            flows = start < (layer, group)
            for name in names:
                tokens = len(tree.branches) if is_last and name not in OF_ALL_TOKENS else tree.num_tokens
                rank = lora.rank if name in lora.targets and (layer, 0) >= (start[0], 0) else 0
                linear += tokens * _per_token(*shape.linears[name], rank=rank, flows=flows)
        products = FORWARD_PRODUCTS + BACKWARD_PRODUCTS * (start <= (layer, 0))
        attention += products * shape.queries * (answer_pairs(tree) if is_last else visible_pairs(tree))
    return Work(linear, attention)


def _first_adapter(shape: ModelShape, lora: LoraSettings) -> Place:
    layer = shape.layers - shape.adapted_layers(lora)
    return layer, min(group for group, names in enumerate(GROUPS) if set(names) & set(lora.targets))


def _per_token(inputs: int, outputs: int, *, rank: int, flows: bool) -> int:
    """Of one linear layer, forward and backward, with its adapter if ``rank`` is above 0.

    Args:
        inputs: Width.
        outputs: Width.
        rank: Of the adapter.
        flows: Whether the gradient goes on to the inputs.
    """
    base = inputs * outputs * (1 + flows)
    adapter = 3 * rank * (inputs + outputs) - (0 if flows else rank * inputs)  # through A and B, and of their weights
    return base + adapter


def visible_pairs(tree: Tree) -> int:
    """Pairs of tokens of which one sees the other, itself included."""
    prefix, branches = len(tree.prefix_ids), [len(branch.token_ids) for branch in tree.branches]
    return _triangle(prefix) + sum(one * prefix + _triangle(one) for one in branches)


def answer_pairs(tree: Tree) -> int:
    """The same of the tokens that answer alone: each sees its whole question."""
    return sum(len(tree.prefix_ids) + len(branch.token_ids) for branch in tree.branches)


def _triangle(length: int) -> int:
    return length * (length + 1) // 2
