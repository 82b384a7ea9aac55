import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recranker.llm.attention import PrefixState, needs_mask
from recranker.llm.decoder import decoder_of
from recranker.llm.encoding import Branch, Tree
from recranker.llm.model import LanguageModel, add_adapter, load_model
from recranker.llm.packing import (
    PackingError,
    Part,
    alone_logits,
    answer_logits,
    check_packing,
    label_logits,
    pack,
    pack_parts,
    passes,
    vocabulary_logits,
)
from recranker.llm.scoring import BACKENDS, Work
from recranker.llm.settings import LLMSettings, LoraSettings


def random_tree(random: np.random.Generator, prefix: int, lengths: list[int]) -> Tree:
    def ids(count: int) -> list[int]:
        return [int(one) for one in random.integers(3, 300, count)]

    branches = [
        Branch(ids(length), [int(one) for one in random.permutation(300)[:3]], 0, "pointwise") for length in lengths
    ]
    return Tree("t", ids(prefix), branches)


def random_trees(seed: int) -> list[Tree]:
    """Mixed lengths, an empty prefix, a single question, a prefix by itself."""
    random = np.random.default_rng(seed)
    shapes = [(17, [3, 1, 9]), (0, [4, 2]), (5, [1]), (60, [70, 90, 10, 150, 2]), (30, [])]
    return [random_tree(random, prefix, lengths) for prefix, lengths in shapes]


def one_by_one(lm: LanguageModel, trees: list[Tree]) -> list[torch.Tensor]:
    rows = [(tree.prefix_ids + branch.token_ids, branch.label_ids) for tree in trees for branch in tree.branches]
    return [lm.model(input_ids=torch.tensor([ids])).logits[0, -1][labels] for ids, labels in rows]


def test_a_small_tree_by_hand() -> None:
    packed = pack(
        [Tree("a", [10, 11], [Branch([12], [1, 2], 1, "pointwise"), Branch([13, 14], [1, 2], None, "pairwise")])]
    )
    assert packed.input_ids.tolist() == [[10, 11, 12, 13, 14]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 2, 3]]
    assert packed.layout.mask(packed.input_ids.device)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert packed.answer_positions.tolist() == [2, 4]
    assert packed.answers == [1, None]
    assert packed.tasks == ["pointwise", "pairwise"]


def through_transformers(lm: LanguageModel, trees: list[Tree]) -> list[torch.Tensor]:
    """As a model goes that our own decoder does not know."""
    return label_logits(lm.model, pack(trees))


def through_decoder(lm: LanguageModel, trees: list[Tree]) -> list[torch.Tensor]:
    return answer_logits(lm, pack(trees))


Way = Callable[[LanguageModel, list[Tree]], list[torch.Tensor]]
WAYS = pytest.mark.parametrize("way", [through_transformers, through_decoder])


@WAYS
@pytest.mark.parametrize("seed", range(5))
def test_packed_rows_give_the_logits_of_questions_asked_alone(shared_lm: LanguageModel, way: Way, seed: int) -> None:
    trees = random_trees(seed)
    with torch.inference_mode():
        packed, alone = way(shared_lm, trees), one_by_one(shared_lm, trees)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=0)


def test_a_thousand_random_trees_in_passes_give_the_logits_of_questions_asked_alone(shared_lm: LanguageModel) -> None:
    random = np.random.default_rng(11)
    trees = [
        random_tree(random, int(random.integers(0, 40)), random.integers(1, 12, random.integers(1, 5)).tolist())
        for _ in range(1000)
    ]
    places = [(index, number) for index, tree in enumerate(trees) for number in range(len(tree.branches))]
    found: dict[tuple[int, int], torch.Tensor] = {}
    with torch.inference_mode():
        wanted = dict(zip(places, one_by_one(shared_lm, trees), strict=True))
        for parts in passes(trees, 40, {}, can_keep=True):  # most trees are spread over several passes
            packed = pack_parts(parts)
            asked = zip(packed.trees, packed.numbers, strict=True)
            found |= dict(zip(asked, answer_logits(shared_lm, packed), strict=True))
    assert found.keys() == wanted.keys()
    assert max(float((found[place] - wanted[place]).abs().max()) for place in places) < 1e-3


def test_a_row_on_a_cpu_brings_no_mask() -> None:
    assert pack(random_trees(4)).mask.numel() == 1
    assert needs_mask(torch.device("cuda"))


def test_a_kept_prefix_answers_later_questions(shared_lm: LanguageModel) -> None:
    tree, state = random_trees(0)[0], PrefixState()
    with torch.inference_mode():
        together = through_decoder(shared_lm, [tree])
        first = pack_parts([Part(tree, 0, 0, 1, True, state)])
        later = pack_parts([Part(tree, 0, 1, 3, False, state)])
        apart = [*answer_logits(shared_lm, first), *answer_logits(shared_lm, later)]
    assert [first.num_tokens, later.num_tokens] == [17 + 3, 1 + 9]
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("budget", [16, 40, 200, 1000])
@pytest.mark.parametrize("can_keep", [False, True])
def test_passes_keep_to_the_budget_and_lose_no_branch(budget: int, can_keep: bool) -> None:
    trees = random_trees(2)
    plan = list(passes(trees, budget, {}, can_keep=can_keep))
    parts = [part for one in plan for part in one]
    asked = sorted((part.index, number) for part in parts for number in range(part.first, part.last))
    assert asked == [(index, number) for index, tree in enumerate(trees) for number in range(len(tree.branches))]
    for one in plan:
        single = len(one) == 1 and one[0].last - one[0].first == 1
        assert single or sum(part.num_tokens for part in one) <= budget
    with_prefix = [part.index for part in parts if part.with_prefix]
    assert set(with_prefix) == {0, 1, 2, 3}
    assert not can_keep or len(with_prefix) == 4  # every prefix once, however small the budget


def test_only_the_heads_rows_of_the_labels_are_computed(lm: LanguageModel) -> None:
    trees = random_trees(1)
    used = {label for tree in trees for branch in tree.branches for label in branch.label_ids}
    size = lm.model.config.vocab_size
    with torch.inference_mode():
        before = through_decoder(lm, trees)
        head = torch.nn.Linear(32, size, bias=False)
        head.weight.copy_(lm.model.lm_head.weight)
        head.weight[[row for row in range(size) if row not in used]] = float("nan")
        lm.model.set_output_embeddings(head)
        torch.testing.assert_close(through_decoder(lm, trees), before)


@pytest.fixture(scope="module")
def coarse_lm(tiny_path: Path) -> LanguageModel:
    """In bfloat16, with answers so large that its own products are 0.0625 apart."""
    lm = load_model(tiny_path, LLMSettings(model="tiny", device="cpu", dtype="bfloat16"))
    lm.model.model.norm.weight.data.fill_(2.0)
    return lm


def alone(lm: LanguageModel, trees: list[Tree]) -> list[torch.Tensor]:
    return [alone_logits(lm, tree, branch) for tree in trees for branch in tree.branches]


def through_cache(lm: LanguageModel, trees: list[Tree]) -> list[torch.Tensor]:
    return [logits for _, _, logits in BACKENDS["kv"](lm, Work(trees, 4096))]


@pytest.mark.parametrize("way", [alone, through_cache])
def test_a_bfloat16_models_labels_are_those_of_a_float32_head(coarse_lm: LanguageModel, way: Way) -> None:
    tree, head, states = random_trees(2)[0], coarse_lm.model.lm_head.weight.double().tolist(), list[torch.Tensor]()
    noted = coarse_lm.model.model.norm.register_forward_hook(lambda module, inputs, output: states.append(output))
    with torch.inference_mode():
        found = way(coarse_lm, [tree])
    noted.remove()
    hidden_QE = torch.cat([state[:, -1] for state in states])[-3:]  # the cache's prefix is read before
    assert hidden_QE.dtype == torch.bfloat16
    for logits, hidden, branch in zip(found, hidden_QE.tolist(), tree.branches, strict=True):
        by_hand = [
            sum(one * other for one, other in zip(hidden, head[label], strict=True)) for label in branch.label_ids
        ]
        assert logits.dtype == torch.float32
        assert logits.tolist() == pytest.approx(by_hand, abs=2e-5)


def test_packed_bfloat16_labels_are_those_of_a_float32_head(coarse_lm: LanguageModel) -> None:
    packed, head = pack(random_trees(2)), coarse_lm.model.lm_head.weight.double()
    states: list[torch.Tensor] = []
    noted = coarse_lm.model.model.norm.register_forward_hook(lambda module, inputs, output: states.append(output))
    with torch.inference_mode():
        through_forward = label_logits(coarse_lm.model, packed)
        noted.remove()
        decoder = decoder_of(coarse_lm)
        assert decoder is not None
        ours = decoder(packed.input_ids, packed.position_ids, packed.layout, packed.answer_positions)
        through_ours = answer_logits(coarse_lm, packed)
    for found, hidden_QE in ((through_forward, states[0][0, packed.answer_positions]), (through_ours, ours)):
        wanted = [row @ head[labels].T for row, labels in zip(hidden_QE.double(), packed.label_ids, strict=True)]
        torch.testing.assert_close([one.double() for one in found], wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("way", [alone, through_cache, through_transformers, through_decoder])
def test_candidates_that_bfloat16_would_tie_differ(coarse_lm: LanguageModel, way: Way) -> None:
    tree = random_trees(2)[0]
    ids = torch.tensor([tree.prefix_ids + tree.branches[0].token_ids])
    with torch.inference_mode():
        rounded = coarse_lm.model(input_ids=ids).logits[0, -1]
        largest = float(rounded.abs().max())
        values, counts = rounded.unique(return_counts=True)
        tied = (rounded == values[counts.argmax()]).nonzero()[:2, 0].tolist()
        asked = replace(tree, branches=[replace(tree.branches[0], label_ids=tied)])
        found = way(coarse_lm, [asked])[0]
    assert largest > 8
    assert float(rounded[tied[0]]) == float(rounded[tied[1]])
    assert float(found[0]) != float(found[1])
    assert "forward" not in vars(coarse_lm.model.lm_head)


def test_training_reads_float32_labels_of_a_bfloat16_model_and_gradients_reach_the_adapter(tiny_path: Path) -> None:
    lm = load_model(tiny_path, LLMSettings(model="tiny", device="cpu", dtype="bfloat16"))
    add_adapter(lm, LoraSettings(), seed=1)
    lm.model.train()
    trees = random_trees(2)
    packed = gradients(lm, torch.cat(label_logits(lm.model, pack(trees))))
    alone = gradients(lm, torch.cat(one_by_one(lm, trees)).float())
    assert all("lora_" in name for name in packed)
    assert packed.keys() == alone.keys()
    found, wanted = (torch.cat([one.flatten() for one in each.values()]) for each in (packed, alone))
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


def test_a_float32_head_gives_training_the_very_products_of_the_whole_vocabulary(shared_lm: LanguageModel) -> None:
    packed = pack(random_trees(2))
    with torch.inference_mode():
        found, whole_QV = label_logits(shared_lm.model, packed), vocabulary_logits(shared_lm.model, packed)
    for logits, row, labels in zip(found, whole_QV, packed.label_ids, strict=True):
        assert torch.equal(logits, row[labels])


def test_another_thread_sees_the_whole_head_while_one_has_narrowed_it(lm: LanguageModel) -> None:
    few, many = random_trees(1)[2:3], random_trees(2)  # as a health check beside a batch
    with torch.inference_mode():
        expected = through_decoder(lm, few), through_decoder(lm, many)
    others: list[torch.Tensor] = []

    class Model(torch.nn.Module):
        """Lets another thread ask before its own head is computed."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **asked: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                beside = threading.Thread(target=ask)
                beside.start()
                beside.join()
            return self.inner(**asked)

        def get_output_embeddings(self) -> Any:
            return self.inner.get_output_embeddings()

    def ask() -> None:
        with torch.inference_mode():
            others.append(through_decoder(lm, few))

    lm.model = Model(lm.model)
    with torch.inference_mode():
        torch.testing.assert_close(through_decoder(lm, many), expected[1])
    torch.testing.assert_close(others[0], expected[0])
    assert "forward" not in vars(lm.model.get_output_embeddings())


def test_parts_change_nothing_but_time(shared_lm: LanguageModel) -> None:
    packed = pack(random_trees(7))
    mask = packed.layout.mask(packed.input_ids.device)
    with torch.inference_mode():
        by_parts = label_logits(shared_lm.model, packed)
        dense = label_logits(
            lambda **inputs: shared_lm.model(**{**inputs, "layout": None, "attention_mask": mask}), packed
        )
    torch.testing.assert_close(by_parts, dense, atol=1e-4, rtol=0)


def test_attention_that_drops_weights_goes_by_the_mask(lm: LanguageModel) -> None:
    """With all weights dropped in training, attention adds nothing, and a question's prefix does not matter."""
    trees = random_trees(7)
    other = [replace(tree, prefix_ids=[5] * len(tree.prefix_ids)) for tree in trees]
    with torch.inference_mode():
        before = label_logits(lm.model, pack(trees))
        for layer in lm.model.model.layers:
            layer.self_attn.attention_dropout = 1.0
        lm.model.train()
        found, changed = label_logits(lm.model, pack(trees)), label_logits(lm.model, pack(other))
    torch.testing.assert_close(found, changed)
    assert max(float((one - two).abs().max()) for one, two in zip(before, found, strict=True)) > 0.01


@WAYS
def test_another_text_in_one_question_leaves_all_others_as_they_were(shared_lm: LanguageModel, way: Way) -> None:
    trees = random_trees(1)
    changed = replace(trees[0], branches=list(trees[0].branches))
    changed.branches[1] = replace(changed.branches[1], token_ids=[7])
    with torch.inference_mode():
        before, after = way(shared_lm, trees), way(shared_lm, [changed, *trees[1:]])
    same = [torch.allclose(one, other, atol=1e-5) for one, other in zip(before, after, strict=True)]
    assert same == [index != 1 for index in range(len(before))]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_adapter_only_and_equal_those_of_single_questions(
    lm: LanguageModel, checkpointing: bool
) -> None:
    add_adapter(lm, LoraSettings(), seed=1)
    for name, weight in lm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    if checkpointing:
        lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        lm.model.enable_input_require_grads()
    lm.model.train()
    trees = random_trees(2)
    packed = gradients(lm, torch.cat(label_logits(lm.model, pack(trees))))
    alone = gradients(lm, torch.cat(one_by_one(lm, trees)))
    assert packed
    assert all("lora_" in name for name in packed)
    torch.testing.assert_close(packed, alone, atol=1e-3, rtol=1e-3)


def gradients(lm: LanguageModel, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    lm.model.zero_grad()
    logits.square().mean().backward()
    return {name: weight.grad.clone() for name, weight in lm.model.named_parameters() if weight.grad is not None}


def test_a_model_that_obeys_the_mask_passes_the_check(shared_lm: LanguageModel) -> None:
    check_packing(shared_lm, max_prompt_tokens=2048, way_out="WAY OUT")


def test_the_check_leaves_the_model_in_the_mode_it_found(lm: LanguageModel) -> None:
    for training in (True, False):
        lm.model.train(training)
        check_packing(lm, max_prompt_tokens=2048, way_out="WAY OUT")
        assert {module.training for module in lm.model.modules()} == {training}
    lm.model.train()
    lm.model.config.sliding_window = 512
    with pytest.raises(PackingError):
        check_packing(lm, max_prompt_tokens=2048, way_out="WAY OUT")
    assert lm.model.training


class Wrapped:
    """The shared model with something planted in its forward."""

    def __init__(self, lm: LanguageModel, **planted: Any) -> None:
        self.lm, self.planted, self.config = lm, planted, lm.model.config

    training = False

    def eval(self) -> None:
        pass

    def get_output_embeddings(self) -> Any:
        return self.lm.model.get_output_embeddings()

    def __call__(self, **inputs: Any) -> Any:
        return self.lm.model(**{**inputs, **self.planted})


def test_a_model_that_ignores_the_mask_is_found_out(shared_lm: LanguageModel) -> None:
    deaf = replace(shared_lm, model=Wrapped(shared_lm, attention_mask=None, layout=None))
    with pytest.raises(PackingError, match=r"ignores the mask .* WAY OUT"):
        check_packing(deaf, max_prompt_tokens=2048, way_out="WAY OUT")


def test_a_model_that_ignores_positions_is_found_out(shared_lm: LanguageModel) -> None:
    deaf = replace(shared_lm, model=Wrapped(shared_lm, position_ids=None))
    with pytest.raises(PackingError, match="ignores the mask"):
        check_packing(deaf, max_prompt_tokens=2048, way_out="WAY OUT")


def test_a_sliding_window_shorter_than_a_prompt_is_refused(lm: LanguageModel) -> None:
    lm.model.config.sliding_window = 512
    check_packing(lm, max_prompt_tokens=512, way_out="WAY OUT")
    with pytest.raises(PackingError, match="sees 512 tokens back"):
        check_packing(lm, max_prompt_tokens=2048, way_out="WAY OUT")
