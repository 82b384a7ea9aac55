"""The rating predictor recovers what was planted, and its widened factors say the same as its loss."""

import numpy as np
import pytest
import torch

from recranker.backbones.fit import FactorFit
from recranker.backbones.fits import fit_rating_predictor
from recranker.backbones.rating_predictor import RatingPredictor, constant_ratings, predict_ratings
from recranker.backbones.settings import RatingPredictorSettings
from recranker.backbones.training import Alone
from tests.backbones.made_up import CPU, fold_of


def test_recovers_planted_biases_on_pairs_never_rated() -> None:
    random = np.random.default_rng(0)
    user_bias, item_bias = random.normal(0, 0.5, 30), random.normal(0, 0.5, 20)
    truth = 3.0 + user_bias[:, None] + item_bias[None, :]
    seen = random.random((30, 20)) < 0.6
    ratings = [(u, i, float(truth[u, i])) for u, i in zip(*np.nonzero(seen), strict=True)]
    fold = fold_of([], num_users=30, num_items=20, ratings=ratings)
    settings = RatingPredictorSettings(epochs=200, batch_size=64, l2=1e-3, learning_rate=1e-2)
    fit = fit_rating_predictor(fold, settings, 0, Alone(), CPU)
    users, items = np.nonzero(~seen)
    guesses = predict_ratings(fit, users, items, lowest=-10, highest=10)
    error = np.sqrt(np.mean((guesses - truth[users, items]) ** 2))
    assert error < 0.2 * truth.std()


def test_factors_say_mean_plus_biases_plus_product() -> None:
    model = RatingPredictor(np.array([0]), np.array([0, 1]), 2, 2, mean=3.5, dim=2, l2=0.0, key=(0,))
    with torch.no_grad():
        model.user_bias[0], model.item_bias[1] = 0.25, -0.5
        product = float(model.users[0] @ model.items[1])
        loss = model.loss(torch.tensor([0]), torch.tensor([1]), torch.tensor([4.0]))
    fit = model.fit()
    assert isinstance(fit, FactorFit)
    guess = fit.pair_scores(np.array([0, 1]), np.array([1, 1]))
    assert guess[0] == pytest.approx(3.5 + 0.25 - 0.5 + product)
    assert guess[1] == pytest.approx(3.5 - 0.5)  # user 1 never rated: the item alone speaks
    assert loss.item() == pytest.approx((4.0 - guess[0]) ** 2, rel=1e-5)


def test_guesses_stay_on_the_scale() -> None:
    fit = constant_ratings(1, 2, 7.0)
    fit.item_factors[1] = -2.0
    guesses = predict_ratings(fit, np.array([0, 0]), np.array([0, 1]), lowest=1.0, highest=5.0)
    assert guesses.tolist() == [5.0, 1.0]
