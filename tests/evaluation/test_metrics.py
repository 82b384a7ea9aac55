import ir_measures
import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import ndcg_score

from recranker.evaluation.metrics import (
    expected_hr_at_k,
    expected_ndcg_at_k,
    expected_reciprocal_rank,
    first_slot_rate,
    hits_at_positions,
    hr_at_k,
    kendall_tau,
    ndcg_at_k,
    pair_agreement,
    rank_biased_overlap,
    reciprocal_rank,
)

SECOND, THIRD = 1 / np.log2(3), 1 / np.log2(4)  # what the second and third rank weigh


def test_a_target_at_each_place_is_worth_its_discount() -> None:
    hits = hits_at_positions(np.array([0, 1, 2, 3, -1]), width=10)
    assert hr_at_k(hits, k=3).tolist() == [1, 1, 1, 0, 0]
    assert ndcg_at_k(hits, np.ones(5, dtype=np.int64), k=3) == pytest.approx([1.0, SECOND, THIRD, 0.0, 0.0])


def test_ndcg_charges_items_the_retriever_missed() -> None:
    hits = np.array([[True, False, False]])
    assert ndcg_at_k(hits, np.array([2]), k=3) == pytest.approx(1 / (1 + SECOND))  # a second relevant item exists


def test_ndcg_of_a_user_without_ground_truth_is_nan() -> None:
    assert np.isnan(ndcg_at_k(np.array([[False, False]]), np.array([0]), k=3)).all()


def test_a_list_shorter_than_k_is_used_whole() -> None:
    hits = np.array([[False, True]])
    assert hr_at_k(hits, k=5).tolist() == [1.0]
    assert ndcg_at_k(hits, np.array([1]), k=5) == pytest.approx([SECOND])


def test_ndcg_agrees_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    hits = random.random((200, 10)) < 0.3
    hits[:, 0] |= ~hits.any(axis=1)  # scikit-learn has no value for a user without ground truth
    ranked = np.tile(np.arange(10, 0, -1.0), (200, 1))
    for k in (1, 3, 5, 10):
        ours = ndcg_at_k(hits, hits.sum(axis=1), k=k)
        theirs = [
            ndcg_score(truth[None].astype(float), scores[None], k=k) for truth, scores in zip(hits, ranked, strict=True)
        ]
        assert ours == pytest.approx(theirs)


def test_metrics_agree_with_ir_measures_on_random_lists() -> None:
    random = np.random.default_rng(3)
    positions = random.integers(-1, 10, size=300)  # -1: the target was not retrieved
    hits, one = hits_at_positions(positions, width=10), np.ones(300, dtype=np.int64)
    truth = [ir_measures.Qrel(str(user), "target", 1) for user in range(300)]
    run = [
        ir_measures.ScoredDoc(str(user), "target" if place == position else f"item {place}", 10.0 - place)
        for user, position in enumerate(positions)
        for place in range(10)
    ]
    ours = {ir_measures.RR: reciprocal_rank(positions)}
    for k in (1, 3, 5, 10):
        ours |= {ir_measures.nDCG @ k: ndcg_at_k(hits, one, k=k), ir_measures.Success @ k: hr_at_k(hits, k=k)}
    seen = {measure: np.full(300, np.nan) for measure in ours}
    for found in ir_measures.iter_calc(list(ours), truth, run):
        seen[found.measure][int(found.query_id)] = found.value
    for measure, values in ours.items():
        assert values == pytest.approx(seen[measure]), measure


def test_expected_reciprocal_rank_is_the_mean_over_all_places() -> None:
    assert expected_reciprocal_rank(np.array([1, 4])) == pytest.approx([1.0, (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4])
    assert expected_reciprocal_rank(np.array([7])) == pytest.approx(reciprocal_rank(np.arange(7)).mean())


def test_metrics_refuse_a_cutoff_below_one() -> None:
    hits = np.array([[True]])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        hr_at_k(hits, k=0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ndcg_at_k(hits, np.array([1]), k=0)


def test_expectation_over_random_orders_is_the_mean_over_all_places() -> None:
    assert expected_hr_at_k(np.array([10, 4, 2]), k=3) == pytest.approx([0.3, 0.75, 1.0])
    expected = [(1 + SECOND + THIRD) / 10, (1 + SECOND) / 2]
    assert expected_ndcg_at_k(np.array([10, 2]), k=3) == pytest.approx(expected)
    every_place = hits_at_positions(np.arange(7), width=7)
    one = np.ones(7, dtype=np.int64)
    assert expected_ndcg_at_k(np.array([7]), k=5) == pytest.approx(ndcg_at_k(every_place, one, k=5).mean())


def test_kendall_tau_of_same_reversed_and_one_swap() -> None:
    first = np.array([[4.0, 3.0, 2.0, 1.0]] * 3)
    second = np.array([[9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 2.0, 1.0]])
    assert kendall_tau(first, second) == pytest.approx([1.0, -1.0, (5 - 1) / 6])  # one of six pairs disagrees


def test_kendall_tau_with_ties_agrees_with_scipy() -> None:
    random = np.random.default_rng(1)
    first, second = random.integers(0, 4, (2, 50, 6)).astype(float)
    theirs = [kendalltau(a, b).statistic for a, b in zip(first, second, strict=True)]
    assert kendall_tau(first, second) == pytest.approx(theirs)


def test_kendall_tau_of_a_constant_scoring_is_nan() -> None:
    assert np.isnan(kendall_tau(np.ones((1, 3)), np.array([[1.0, 2.0, 3.0]]))).all()


def test_first_slot_rate_counts_likeliest_first_labels_and_shares_ties() -> None:
    scores = np.log(np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2]]))
    assert first_slot_rate(scores) == pytest.approx((1 + 0 + 0.5) / 3)
    assert np.isnan(first_slot_rate(np.empty((0, 3))))


def test_pair_agreement_needs_the_same_sign_in_both_orders() -> None:
    assert pair_agreement(np.array([1.0, -2.0, 0.5, 0.0]), np.array([0.1, -0.1, -0.5, 0.0])) == 0.5
    assert np.isnan(pair_agreement(np.empty(0), np.empty(0)))


def test_rank_biased_overlap_worked_out_by_hand() -> None:
    assert rank_biased_overlap("abcd", "abcd") == pytest.approx(1.0)
    assert rank_biased_overlap("ab", "ba", p=0.9) == pytest.approx(0.9)  # 0.9^2 + (0.1 / 0.9) * (0 + 0.9^2)
    assert rank_biased_overlap("abc", "bac", p=0.5) == pytest.approx(0.5)  # 1/8 + (0 + 1/4 + 1/8)
    assert rank_biased_overlap("abc", "acb", p=0.5) == pytest.approx(0.875)  # 1/8 + (1/2 + 1/2 * 1/4 + 1/8)
    assert rank_biased_overlap("abcd", "bacd") < rank_biased_overlap("abcd", "abdc")  # the top counts most


@pytest.mark.parametrize(("first", "second"), [("", ""), ("aa", "aa"), ("ab", "ac"), ("ab", "abc")])
def test_rank_biased_overlap_is_of_orders_of_the_same_items(first: str, second: str) -> None:
    with pytest.raises(ValueError, match="two orders of the same distinct items"):
        rank_biased_overlap(first, second)
