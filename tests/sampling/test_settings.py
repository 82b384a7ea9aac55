import pytest

from jobs.settings import JobSettings
from recranker.errors import SettingsError
from recranker.sampling.settings import AdaptiveSampling, PaperSampling, UniformSampling
from recranker.settings import check_settings

RUN = {"name": "x", "data": {"source": {"kind": "movielens-100k"}}, "llm": {"model": "m"}}


def sampling(**values: object) -> AdaptiveSampling | PaperSampling | UniformSampling:
    return check_settings(JobSettings, {**RUN, "sampling": values}, where="test").sampling


def test_the_papers_numbers_take_one_line() -> None:
    # arXiv 2312.16018, section 4.1 and its settings: 60 % of the draws into either pool, 10 clusters, C = 0.95.
    paper = PaperSampling(num_draws=10_000).adaptive
    assert sampling(kind="paper") == PaperSampling(num_draws=5000)
    assert (paper.importance_draws, paper.cluster_draws, paper.num_clusters) == (6000, 6000, 10)
    assert (paper.num_draws, paper.repetition_penalty) == (10_000, 0.95)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "adaptive", "importance_share": 0, "cluster_share": 0}, "leave the pool empty"),
        ({"kind": "adaptive", "num_draws": 1, "importance_share": 0.2, "cluster_share": 0.2}, "leave the pool empty"),
        ({"kind": "adaptive", "num_clusters": 50, "cluster_fit_users": 49}, "cluster_fit_users=49 must be at least"),
        ({"kind": "adaptive", "importance_share": -0.1}, "importance_share"),
        ({"kind": "adaptive", "repetition_penalty": 1.01}, "repetition_penalty"),
        ({"kind": "adaptive", "repetition_penalty": 0}, "repetition_penalty"),
        ({"kind": "paper", "repetition_penalty": 0.9}, "'sampling.repetition_penalty'; another kind of 'sampling'"),
        ({"kind": "uniform", "num_draws": 0}, "num_draws"),
        ({"kind": "greedy"}, "sampling"),
    ],
)
def test_nonsense_is_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        sampling(**values)


def test_one_pool_may_be_left_out() -> None:
    assert AdaptiveSampling(importance_share=0).importance_draws == 0
    assert AdaptiveSampling(cluster_share=0, num_draws=5).importance_draws == 3
