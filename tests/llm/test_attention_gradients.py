"""Attention by parts against plain attention under the row's mask: what comes out, and what goes back."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from recranker.llm.attention import PIECE_TOKENS, Layout, PrefixState, Span, attended, attention_by_parts
from recranker.llm.attention import attention_gradients as gradients_of

SHAPES: dict[str, list[tuple[int, tuple[int, ...]]]] = {
    "several trees": [(17, (3, 1, 9)), (5, (1,)), (60, (70, 90, 10, 150, 2))],
    "a prefix by itself": [(30, ()), (4, (2, 2))],
    "branches without a prefix": [(0, (4, 2)), (0, (1,))],
    "a prefix in many pieces": [(3 * PIECE_TOKENS + 7, (40, 5)), (1, (3,))],
}
TREES = pytest.mark.parametrize("trees", SHAPES.values(), ids=SHAPES.keys())


def layout_of(trees: Sequence[tuple[int, tuple[int, ...]]]) -> Layout:
    spans: list[Span] = []
    for prefix, branches in trees:
        spans.append(Span(spans[-1].end if spans else 0, prefix, branches))
    return Layout(tuple(spans))


def inputs(layout: Layout, heads: int, key_heads: int, width: int = 16) -> list[Tensor]:
    """Queries, keys, values and the gradient of the output, each ``(T, heads, D)``, large enough to choose keys."""
    random, tokens = torch.Generator().manual_seed(0), layout.spans[-1].end
    shapes = [(tokens, count, width) for count in (heads, key_heads, key_heads, heads)]
    return [torch.randn(shape, generator=random) * 2 for shape in shapes]


def plain(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    rows = [one.transpose(0, 1)[None] for one in (query, key, value)]
    mask = layout.mask(torch.device("cpu"))
    return scaled_dot_product_attention(*rows, attn_mask=mask, enable_gqa=True, scale=0.3)[0].transpose(0, 1)


@TREES
@pytest.mark.parametrize(("heads", "key_heads"), [(3, 3), (6, 2), (4, 1)])
def test_output_and_gradients_are_those_of_plain_attention_under_the_mask(
    trees: list[tuple[int, tuple[int, ...]]], heads: int, key_heads: int
) -> None:
    layout = layout_of(trees)
    *rows, gradient = inputs(layout, heads, key_heads)
    leaves = [one.requires_grad_() for one in rows]
    wanted, found = plain(*leaves, layout), attention_by_parts(0, *leaves, layout, 0.3)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for name, one, other in zip(
        ("query", "key", "value"),
        torch.autograd.grad(found, leaves, gradient),
        torch.autograd.grad(wanted, leaves, gradient),
        strict=True,
    ):
        assert float((one - other).abs().max()) < 1e-5 * float(other.abs().max()), name


def test_gradients_hold_to_the_last_digits_of_a_difference_quotient() -> None:
    layout = layout_of([(3, (2, 3)), (0, (2, 1))])
    rows = [one.double().requires_grad_() for one in inputs(layout, 4, 2, width=8)[:3]]
    assert torch.autograd.gradcheck(lambda *leaves: attention_by_parts(0, *leaves, layout, None), rows, atol=1e-6)


def test_padding_adds_nothing_even_where_it_could_be_anything() -> None:
    """Branches of 2 and 3 tokens share a padded batch; alone in the row they have none."""
    layout = layout_of([(4, (2, 3))])
    assert [one.keep.tolist() for one in layout.bins] == [[[True, True, False], [True, True, True]]]
    *rows, gradient = inputs(layout, 2, 1)
    whole = gradients_of(gradient, attended(0, *rows, layout, None), layout, None)
    short = layout_of([(4, (2,))])
    gradient[6:] = 0.0  # nothing is asked of the longer branch, so the rest is a row without it
    cut = gradients_of(gradient[:6], attended(0, *(one[:6] for one in rows), short, None), short, None)
    silent = gradients_of(gradient, attended(0, *rows, layout, None), layout, None)
    for one, other, loud in zip(silent, cut, whole, strict=True):
        torch.testing.assert_close(one[:6], other, atol=1e-6, rtol=1e-5)
        assert one[6:].abs().max() == 0.0
        assert loud[6:].abs().max() > 0.1


def test_a_checkpointed_layer_gives_the_same_gradients() -> None:
    layout = layout_of(SHAPES["several trees"])
    *rows, gradient = inputs(layout, 4, 2)
    leaves = [one.requires_grad_() for one in rows]

    def block(*leaves: Tensor) -> Tensor:
        return attention_by_parts(0, *(one.sin() for one in leaves), layout, None)

    wanted = torch.autograd.grad(block(*leaves), leaves, gradient)
    found = torch.autograd.grad(checkpoint(block, *leaves, use_reentrant=False), leaves, gradient)
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)


def test_a_prefix_known_from_another_pass_has_no_gradient() -> None:
    layout = Layout((Span(0, 3, (2,), PrefixState()),))
    *rows, gradient = inputs(layout, 2, 2)
    with pytest.raises(AssertionError, match="kept for other passes"):
        gradients_of(gradient, attended(0, *rows, layout, None), layout, None)


def test_a_mask_of_two_trees_by_hand() -> None:
    assert layout_of([(1, (1, 2)), (0, (1,))]).mask(torch.device("cpu"))[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_pieces_of_a_prefix_follow_one_another_and_see_all_before_them() -> None:
    span = Span(10, 2 * PIECE_TOKENS, (3,))
    assert list(span.prefix_pieces) == [
        (slice(10, 10 + PIECE_TOKENS), PIECE_TOKENS),
        (slice(10 + PIECE_TOKENS, 10 + 2 * PIECE_TOKENS), 2 * PIECE_TOKENS),
    ]
    assert list(Span(0, 0, (3,)).prefix_pieces) == []
    hidden = float("-inf")
    assert Layout((span,)).stairs(2, 3).tolist() == [[0.0, 0.0, hidden], [0.0, 0.0, 0.0]]
