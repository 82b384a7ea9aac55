"""The rows of the results table: their names, their order, and what each is."""

from collections.abc import Iterable

METRICS = ("hr_at_3", "ndcg_at_3", "hr_at_5", "ndcg_at_5")
"""Columns of RESULTS and USER_RESULTS, in the order every array of values here has."""
INTERVAL_OF = METRICS.index("ndcg_at_3")
"""The metric whose differences carry an interval."""

LEARNERS = ("logistic", "trees", "lambdamart", "logistic_text", "trees_text", "lambdamart_text")
"""Conventional re-rankers, as SIGNALS names them; rows where it holds their scores."""
BAR = "conventional"
"""The conventional re-ranker whose order is the hint: what it gains over the backbone is not the LLM's own."""
BASELINES = ("backbone", "random", "oracle", "popularity", *LEARNERS, BAR)
HYBRIDS = ("hybrid_paper", "hybrid", "hybrid_conventional")

_TASKS = ("pointwise", "pairwise", "listwise")
_UNTUNED = tuple(f"{model}_{task}" for model in ("untuned", "untuned_no_hint") for task in (*_TASKS, "hybrid"))

ROW_ORDER = (*BASELINES, *_UNTUNED, *_TASKS, *HYBRIDS)
"""Baselines first, then the rankers in this order; others follow alphabetically."""

_MEANINGS = {
    "backbone": "the retriever's own order",
    "random": "expectation over all orders of the candidates",
    "oracle": "the target first: the best any re-ranker could do",
    "popularity": "candidates by training likes",
    "logistic": "logistic regression on the signals",
    "trees": "gradient-boosted trees on the signals",
    "lambdamart": "LambdaMART on the signals",
    "logistic_text": "logistic regression on signals and content",
    "trees_text": "gradient-boosted trees on signals and content",
    "lambdamart_text": "LambdaMART on signals and content",
    BAR: "hint only: the conventional re-ranker whose order the prompts quote",
    "pointwise": "tuned LLM, one question per candidate",
    "pairwise": "tuned LLM, which of two first",
    "listwise": "tuned LLM, all candidates in one question",
    "hybrid_paper": "the three tasks with the paper's utilities, a third each",
    "hybrid": "the tasks and the retriever with weights learned on validation",
    "hybrid_conventional": "as hybrid, with the conventional re-ranker's score as one more signal",
}


def row_order(names: Iterable[str]) -> list[str]:
    """``names`` as the table lists them: ROW_ORDER, then all others alphabetically."""
    names = set(names)
    known = [name for name in ROW_ORDER if name in names]
    return known + sorted(name for name in names if name not in ROW_ORDER)


def group_of(row: str) -> str:
    """'baseline' (no LLM), 'untuned' or 'tuned'."""
    if row in BASELINES:
        return "baseline"
    return "untuned" if row.startswith("untuned_") else "tuned"


def meaning_of(row: str) -> str:
    """What a row is, in a few words; empty for a ranker this package does not know."""
    for prefix, words in (("untuned_no_hint_", "untuned LLM without hint"), ("untuned_", "untuned LLM with hint")):
        if row.startswith(prefix):
            task = row.removeprefix(prefix)
            return f"{words}, {'its tasks at equal weight' if task == 'hybrid' else task}"
    return _MEANINGS.get(row, "")
