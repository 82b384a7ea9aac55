"""SASRec: no look into the future, padding out of sight, its loss, and an order learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from recranker.backbones.examples import PADDING
from recranker.backbones.fits import fit_closed_form, validation_ndcg
from recranker.backbones.folds import FoldData
from recranker.backbones.sasrec import Architecture, SASRec, SequenceFit, latest
from recranker.backbones.settings import PopularitySettings, SASRecSettings
from tests.backbones.made_up import asked_with, fit_on, fold_of, histories_of

SHAPE = Architecture(num_items=12, dim=8, layers=2, heads=2, max_length=6)


def model_of(*histories: list[int], l2: float = 0.0) -> SASRec:
    return SASRec(histories_of(*histories), SHAPE, dropout=0.0, l2=l2, key=(0, "sasrec"))


def chain(num_users: int = 40, num_items: int = 15, length: int = 6) -> FoldData:
    """Item i is always followed by i + 1; each user starts anywhere, and the last like is kept for validation."""
    starts = np.random.default_rng(0).integers(0, num_items, num_users)
    likes = [(user, int(start + step) % num_items) for user, start in enumerate(starts) for step in range(length)]
    validation = [(user, int(start + length) % num_items) for user, start in enumerate(starts)]
    return fold_of(likes, num_users=num_users, num_items=num_items, validation=validation)


def test_a_later_item_changes_nothing_before_it() -> None:
    encoder = model_of([0]).encoder.eval()
    with torch.no_grad():
        one, other = (encoder(torch.tensor([[1, 5, 2, last, 7]])) for last in (3, 11))
    torch.testing.assert_close(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3:], other[:, 3:])


def test_padding_changes_nothing() -> None:
    encoder = model_of([0]).encoder.eval()
    with torch.no_grad():
        short = encoder(torch.tensor([[1, 5, 2]]))
        padded = encoder(torch.tensor([[1, 5, 2, PADDING, PADDING]]))
    torch.testing.assert_close(short, padded[:, :3])


def test_a_query_is_scored_the_same_alone_and_beside_longer_ones() -> None:
    fit = model_of([0]).fit()
    histories = ([4, 2], [], [1, 2, 3, 4, 5, 6, 7, 8], [9])
    together = fit.scores(asked_with(*histories))
    for row, history in enumerate(histories):
        np.testing.assert_allclose(together[row], fit.scores(asked_with(history))[0], atol=1e-5)
    assert not together[1].any()  # nothing is known of an empty history


def test_only_the_latest_likes_are_looked_at() -> None:
    items, lengths = latest(histories_of([1, 2, 3, 4], [5], [6, 7]), np.array([2, 0, 1]), 3)
    assert items.tolist() == [[6, 7, PADDING], [2, 3, 4], [5, PADDING, PADDING]]
    assert lengths.tolist() == [2, 3, 1]
    fit = model_of([0]).fit()
    whole, end = fit.scores(asked_with([11, 10, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]))
    np.testing.assert_allclose(whole, end, atol=1e-5)


def test_order_of_the_history_matters() -> None:
    one, other = model_of([0]).fit().scores(asked_with([1, 2, 3], [3, 2, 1]))
    assert not np.allclose(one, other)


def test_user_factors_score_the_training_history() -> None:
    histories = [[1, 2, 3], [], [7, 4]]
    fit = model_of(*histories).fit()
    np.testing.assert_allclose(fit.user_factors @ fit.item_factors.T, fit.scores(asked_with(*histories)), atol=1e-5)


def test_arrays_keep_the_scores() -> None:
    fit = replace(model_of([1, 2], [3]).fit(), epochs=7, validation_ndcg_at_10=0.25)
    again = SequenceFit.from_arrays(fit.arrays())
    queries = asked_with([1, 2, 3], [4], [])
    np.testing.assert_array_equal(again.scores(queries), fit.scores(queries))
    np.testing.assert_array_equal(again.user_factors, fit.user_factors)
    assert (again.shape, again.epochs, again.validation_ndcg_at_10) == (SHAPE, 7, 0.25)


def test_loss_is_the_cross_entropy_of_each_next_item() -> None:
    model = model_of([0], l2=0.01).eval()
    inputs, targets = torch.tensor([[1, 2, 3], [4, PADDING, PADDING]]), torch.tensor([[2, 3, 5], [6, PADDING, PADDING]])
    with torch.no_grad():
        states = model.encoder(inputs)
        logits = states @ model.encoder.items.T
        expected = sum(
            functional.cross_entropy(logits[row, place], targets[row, place])
            for row, place in ((0, 0), (0, 1), (0, 2), (1, 0))
        )
        penalty = 0.01 * 2 * model.encoder.items.square().sum()  # per sequence
        torch.testing.assert_close(model.loss(inputs, targets), expected / 6 + penalty)


def test_softmax_over_drawn_items_that_are_all_items_is_the_full_one() -> None:
    model = model_of([0]).eval()
    inputs, targets = torch.tensor([[1, 2], [4, PADDING]]), torch.tensor([[2, 3], [6, PADDING]])
    everything = torch.arange(12).repeat(2, 1)  # the target stands among them and must count once
    with torch.no_grad():
        torch.testing.assert_close(model.loss(inputs, targets, everything), model.loss(inputs, targets))
        few = model.loss(inputs, targets, everything[:, 7:9])
    assert 0 < few < model.loss(inputs, targets)


def test_a_worker_without_sequences_adds_nothing() -> None:
    model = model_of([0])
    nothing = torch.empty(0, 6, dtype=torch.int64)
    loss = model.loss(nothing, nothing)
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("negatives", [None, 8])
def test_learns_a_planted_order_popularity_cannot_see(negatives: int | None) -> None:
    fold = chain()
    settings = SASRecSettings(
        dim=16, layers=1, batch_size=10, learning_rate=1e-2, epochs=30, max_length=8, negatives=negatives
    )
    fit = fit_on(fold, settings)
    popular = validation_ndcg(fit_closed_form(fold, PopularitySettings(), 0), fold) / 40
    assert fit.validation_ndcg_at_10 > 0.95
    assert popular < 0.6
    assert fit.scores(asked_with([2, 3, 4])).argmax() == 5


def test_dropout_is_keyed_by_the_epoch() -> None:
    model = SASRec(histories_of([0]), SHAPE, dropout=0.5, l2=0.0, key=(0, "sasrec"))
    inputs, targets = torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])
    losses = []
    for epoch in (1, 2, 1):
        model.begin_epoch(epoch)
        losses.append(model.loss(inputs, targets).item())
    assert losses[0] == losses[2] != losses[1]
