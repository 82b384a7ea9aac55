"""The trained backbones on a GPU: the same recommender as on the CPU, up to noise."""

import numpy as np
import pytest
import torch

from recranker.backbones.fits import fit_rating_predictor, fit_retriever
from recranker.backbones.settings import (
    LightGCNSettings,
    MFSettings,
    MixGCFSettings,
    RatingPredictorSettings,
    SASRecSettings,
    SGLSettings,
    Trained,
)
from recranker.backbones.training import Alone
from tests.backbones.made_up import fold_of, two_tastes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHORT = {"batch_size": 64, "epochs": 5, "check_every": 5}


@pytest.mark.parametrize(
    "settings",
    [
        MFSettings(**SHORT),
        LightGCNSettings(**SHORT),
        SGLSettings(**SHORT),
        MixGCFSettings(**SHORT),
        SASRecSettings(**SHORT, dropout=0.0),
        SASRecSettings(**SHORT, dropout=0.0, negatives=7),
    ],
    ids=lambda settings: settings.kind,
)
def test_a_gpu_fits_what_a_cpu_fits(settings: Trained) -> None:
    on_cpu, on_gpu = (
        fit_retriever(two_tastes(), settings, 0, Alone(), torch.device(device)) for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(on_gpu.user_factors, on_cpu.user_factors, atol=5e-3)
    np.testing.assert_allclose(on_gpu.item_factors, on_cpu.item_factors, atol=5e-3)
    assert on_gpu.validation_ndcg_at_10 == pytest.approx(on_cpu.validation_ndcg_at_10, abs=0.05)


def test_a_gpu_predicts_the_ratings_a_cpu_predicts() -> None:
    ratings = [(user, item, 1.0 + (user + item) % 5) for user in range(20) for item in range(15)]
    fold = fold_of([], num_users=20, num_items=15, ratings=ratings)
    on_cpu, on_gpu = (
        fit_rating_predictor(fold, RatingPredictorSettings(epochs=5), 0, Alone(), torch.device(device))
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(on_gpu.item_factors, on_cpu.item_factors, atol=1e-3)
