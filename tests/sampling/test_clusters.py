import numpy as np
import pyarrow as pa
import pytest

from recranker.errors import DataError
from recranker.randomness import keys_of
from recranker.sampling.clusters import Centres, fit_centres, fit_sample, to_matrix
from recranker.schema import USER_FACTORS

RANDOM = np.random.default_rng(0)
GROUPS = np.repeat(np.array([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0], [0.0, 10.0, 0.0]], np.float32), 20, axis=0)
POINTS = GROUPS + RANDOM.normal(0, 0.1, GROUPS.shape).astype(np.float32)


def factors_of(points: np.ndarray, first: int = 0) -> pa.Table:
    ids = [f"u{first + n}" for n in range(len(points))]
    return pa.table([ids, points.tolist()], schema=USER_FACTORS.schema)


def test_clusters_find_separate_groups_of_embeddings() -> None:
    clusters = fit_centres([factors_of(POINTS)], 3, 60, seed=0).nearest(POINTS).reshape(3, 20)
    assert (clusters == clusters[:, :1]).all()
    assert len(set(clusters[:, 0])) == 3


def test_the_nearest_centre_is_the_one_at_the_smallest_distance() -> None:
    points, centres = RANDOM.normal(size=(9000, 7)).astype(np.float32), RANDOM.normal(size=(11, 7))
    distances = ((points[:, None, :].astype(np.float64) - centres) ** 2).sum(axis=2)
    assert (Centres(centres).nearest(points) == distances.argmin(axis=1)).all()


def test_a_users_cluster_does_not_depend_on_who_else_is_in_the_block() -> None:
    # Centres come in pairs that lie almost on top of each other: a sum rounded another way finds the other one.
    points, centres = RANDOM.integers(-3, 4, size=(5000, 33)).astype(np.float32), RANDOM.normal(size=(8, 33))
    centres[4:] = centres[:4] + 1e-15
    found = Centres(centres).nearest(points)
    for size in (1, 7, 4097):
        parts = [Centres(centres).nearest(points[at : at + size]) for at in range(0, 5000 if size > 1 else 50, size)]
        assert (np.concatenate(parts) == found[: 5000 if size > 1 else 50]).all()
    assert Centres(centres).nearest(points[:0]).tolist() == []


def test_a_tie_goes_to_the_first_centre() -> None:
    assert Centres(np.array([[1.0], [-1.0], [1.0]])).nearest(np.zeros((2, 1), np.float32)).tolist() == [0, 0]


@pytest.mark.parametrize("blocks", [1, 2, 7, 64])
def test_centres_are_the_same_bytes_for_any_shards_and_row_order(blocks: int) -> None:
    points = RANDOM.normal(size=(2000, 4)).astype(np.float32)
    table = factors_of(np.round(points, 3))
    limit = 300
    whole = fit_centres([fit_sample(table, limit, 2000, 5)], 4, limit, 5)
    order = np.array_split(np.random.default_rng(blocks).permutation(2000), blocks)
    samples = [fit_sample(table.take(pa.array(some)), limit, 2000, 5) for some in order]
    assert limit <= sum(sample.num_rows for sample in samples) < 500
    assert fit_centres(samples[::-1], 4, limit, 5).values.tobytes() == whole.values.tobytes()


def test_the_fit_sees_no_more_users_than_its_limit() -> None:
    lowest = np.argmin(keys_of([f"u{n}" for n in range(60)], 0, "sample", "fit"))
    np.testing.assert_allclose(fit_centres([factors_of(POINTS)], 1, 1, seed=0).values[0], POINTS[lowest], atol=1e-6)


def test_the_sample_is_a_fair_choice() -> None:
    table = factors_of(np.zeros((4000, 1), np.float32))
    taken = fit_sample(table, 100, 4000, 0)["user_id"].to_pylist()
    assert 100 <= len(taken) <= 300
    lower = sum(int(one[1:]) < 2000 for one in taken)
    assert abs(lower - len(taken) / 2) < 2 * np.sqrt(len(taken))
    assert fit_sample(table, 100, 4000, 1)["user_id"].to_pylist() != taken
    assert fit_sample(table, 4000, 4000, 0).num_rows == 4000


def test_more_clusters_than_users_are_refused() -> None:
    with pytest.raises(DataError, match=r"3 clusters need as many users, got 2; lower sampling\.num_clusters"):
        fit_centres([factors_of(np.zeros((2, 4), np.float32))], 3, 100, seed=0)


def test_as_many_users_as_clusters_are_enough() -> None:
    assert fit_centres([factors_of(np.eye(3, dtype=np.float32))], 3, 100, seed=0).values.shape == (3, 3)


def test_embeddings_of_different_lengths_are_refused() -> None:
    uneven = pa.table([["a", "b"], [[1.0, 2.0, 3.0], [1.0]]], schema=USER_FACTORS.schema)
    with pytest.raises(DataError, match="same length, got 4 numbers for 2 users"):
        to_matrix(uneven)
    assert to_matrix(uneven.slice(1)).tolist() == [[1.0]]
    assert to_matrix(uneven.slice(0, 0)).shape[0] == 0
