from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from recranker.llm.attention import Layout, Span, attention_over_trees


@pytest.mark.parametrize(("quantized", "products"), [(True, torch.bfloat16), (False, torch.float32)])
def test_attention_of_a_model_of_four_bits_is_computed_in_the_format_of_its_products(
    quantized: bool, products: torch.dtype
) -> None:
    config = SimpleNamespace(_is_quantized=quantized, dtype=torch.bfloat16)
    module = SimpleNamespace(config=config, num_key_value_groups=1)
    random = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, 4, 9, 16, generator=random, requires_grad=True) for _ in range(3)]
    mask = Layout((Span(0, 4, (3, 2)),)).mask(torch.device("cpu"))
    found, _ = attention_over_trees(module, *rows, mask)
    wanted = scaled_dot_product_attention(*(one.to(products) for one in rows), attn_mask=mask).transpose(1, 2)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted.float())
    found.sum().backward()
    assert all(one.grad is not None and one.grad.dtype == torch.float32 for one in rows)
