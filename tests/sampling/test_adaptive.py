import numpy as np

from recranker.sampling.adaptive import cluster_quotas, importance, penalised_mass


def test_importance_is_the_natural_logarithm_of_likes() -> None:
    np.testing.assert_allclose(importance(np.array([0, 1, 2, 100])), [0.0, 0.0, np.log(2), np.log(100)])


def test_penalised_mass_by_hand() -> None:
    np.testing.assert_allclose(penalised_mass(np.array([1, 2, 3]), 0.95), [1.0, 2 * 0.95, 3 * 0.9025])


def test_quotas_follow_cluster_sizes_and_lose_no_draw() -> None:
    # 10 draws over sizes 5, 3, 1: exact shares 5.56, 3.33, 1.11; the largest remainder goes up.
    assert cluster_quotas(np.array([5, 3, 1]), 10).tolist() == [6, 3, 1]
    assert cluster_quotas(np.array([1, 1, 1]), 7).sum() == 7
    assert cluster_quotas(np.array([3, 0]), 7).tolist() == [7, 0]
