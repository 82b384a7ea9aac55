import numpy as np
import pytest

from recranker.errors import DataError
from recranker.ranking.choice import standardised
from recranker.ranking.fusion import PAPER_WEIGHTS, best_first, fuse, learn_weights


def test_the_papers_hybrid_by_hand() -> None:
    # U = 1/3 (s - 0.05 m) + 1/3 {0.5, 0.25, 0} + 1/3 (-0.025 m')
    scores = {
        "pointwise": np.array([4.0 - 0.05, 4.0 - 0.10]),
        "pairwise": np.array([0.0, 0.5]),
        "listwise": np.array([-0.05, -0.025]),
    }
    np.testing.assert_allclose(fuse(scores, PAPER_WEIGHTS), [(3.95 - 0.05) / 3, (3.9 + 0.5 - 0.025) / 3])


def test_one_rating_point_outweighs_all_else_in_the_papers_hybrid() -> None:
    best, worst = (
        {"pointwise": 3.0 - 0.05, "pairwise": 0.5, "listwise": -0.025},
        {
            "pointwise": 4.0 - 0.5,
            "pairwise": 0.0,
            "listwise": -0.25,
        },
    )
    fused = fuse({name: np.array([best[name], worst[name]]) for name in best}, PAPER_WEIGHTS)
    assert fused[0] < fused[1] or np.isclose(fused[0], fused[1], atol=0.1)


def test_weights_of_missing_tasks_go_to_the_others() -> None:
    scores = {"pointwise": np.array([1.0, 3.0])}
    np.testing.assert_allclose(fuse(scores, PAPER_WEIGHTS), [1.0, 3.0])


def test_nothing_to_fuse_and_nan_are_refused() -> None:
    with pytest.raises(DataError, match="no score to fuse"):
        fuse({"pointwise": np.zeros(2)}, {"listwise": 1.0})
    with pytest.raises(DataError, match="'pointwise' must be finite"):
        fuse({"pointwise": np.array([np.nan, 1.0])}, PAPER_WEIGHTS)
    with pytest.raises(DataError, match="NaN"):
        best_first(np.array([np.nan, 1.0]))


def test_ties_keep_the_retrievers_order() -> None:
    assert best_first(np.array([1.0, 2.0, 1.0, 2.0])).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("seed", range(20))
def test_every_order_is_a_permutation(seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 3, 12).astype(float)
    assert sorted(best_first(scores)) == list(range(12))


def test_standardised_scores_by_hand() -> None:
    np.testing.assert_allclose(standardised(np.array([1.0, 2.0, 3.0])), np.array([-1, 0, 1]) / np.sqrt(2 / 3))
    assert standardised(np.full(4, 7.0)).tolist() == [0.0] * 4


def planted(strength: float, count: int = 400) -> tuple[list[dict[str, np.ndarray]], list[int]]:
    random = np.random.default_rng(1)
    lists, targets = [], []
    for _ in range(count):
        good, noise = random.normal(size=10), random.normal(size=10)
        logits = strength * good
        targets.append(int(random.choice(10, p=np.exp(logits) / np.exp(logits).sum())))
        lists.append({"listwise": good, "backbone": noise})
    return lists, targets


def test_learned_weights_find_the_signal_that_helps() -> None:
    weights = learn_weights(*planted(1.0))
    assert weights["listwise"] > 0.85
    assert np.isclose(sum(weights.values()), 1.0)


def test_a_signal_that_misleads_gets_no_weight() -> None:
    weights = learn_weights(*planted(-1.0))
    assert weights["listwise"] == 0.0


def test_signals_without_evidence_leave_the_retrievers_order() -> None:
    lists, targets = planted(0.0, count=60)
    assert learn_weights(lists, targets) == {"listwise": 0.0, "backbone": 1.0}


@pytest.mark.parametrize("seed", range(6))
def test_signals_that_repeat_one_another_share_the_weight(seed: int) -> None:
    random = np.random.default_rng(seed)
    tasks = ("pointwise", "pairwise", "listwise")
    lists, targets = [], []
    for _ in range(100):
        good = random.normal(size=10)
        targets.append(int(random.choice(10, p=np.exp(good) / np.exp(good).sum())))
        noisy = {task: good + 0.5 * random.normal(size=10) for task in tasks}
        lists.append({**noisy, "backbone": random.normal(size=10)})
    weights = learn_weights(lists, targets)
    assert min(weights[task] for task in tasks) > 0.22
    assert weights["backbone"] < 0.12


def test_weights_must_beat_the_best_signal_that_is_there_anyway() -> None:
    lists, targets = planted(1.0)
    random = np.random.default_rng(2)
    for one in lists:
        one["conventional"] = one["listwise"]
        one["listwise"] = random.normal(size=10)
    weights = learn_weights(lists, targets, alone=("backbone", "conventional"))
    assert weights["conventional"] > 0.9
    lists, targets = planted(0.0, count=60)
    same = [{**one, "conventional": one["backbone"]} for one in lists]
    assert learn_weights(same, targets, alone=("backbone", "conventional"))["backbone"] == 1.0  # of equals the first


def test_a_signal_that_a_list_lacks_says_nothing_about_it() -> None:
    lists, targets = planted(1.0)
    lacking = [{"backbone": one["backbone"]} if n % 3 == 0 else one for n, one in enumerate(lists)]
    filled = [{"listwise": np.zeros(10), **one} for one in lacking]
    weights = learn_weights(lacking, targets)
    assert weights == pytest.approx(learn_weights(filled, targets))
    assert weights["listwise"] > 0.8


def test_the_gradient_leads_to_the_minimum_of_the_loss() -> None:
    lists, targets = planted(0.7)
    weights = learn_weights(lists, targets, l2=0.0)
    ratio = weights["backbone"] / weights["listwise"]

    def loss(strength: float, other: float) -> float:
        total = 0.0
        for one, target in zip(lists, targets, strict=True):
            logits = strength * one["listwise"] + other * one["backbone"]
            total -= logits[target] - np.logaddexp.reduce(logits)
        return total / len(lists)

    grid = [(a, b, loss(a, b)) for a in np.linspace(0.3, 1.1, 17) for b in np.linspace(0, 0.2, 9)]
    best = min(grid, key=lambda entry: entry[2])
    assert abs(best[1] / best[0] - ratio) < 0.06


def test_no_validation_list_is_said() -> None:
    with pytest.raises(DataError, match="preset 'paper'"):
        learn_weights([], [])
