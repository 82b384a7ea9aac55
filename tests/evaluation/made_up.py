"""A made-up run large enough to look at, in which some rows are better than others."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recranker.schema import CANDIDATES, INTERACTIONS, ITEMS, RANKINGS, SIGNALS
from tests.tables import candidate_list

GENRES = ("drama", "comedy", "action", "horror", "children")
SIGNAL_ROWS = {"logistic": 1.1, "trees": 1.0, "lambdamart": 1.0, "logistic_text": 1.2, "trees_text": 1.1}
RANKED_ROWS = {f"untuned_{task}": 0.1 for task in ("pointwise", "pairwise", "listwise", "hybrid")}
RANKED_ROWS |= {"pointwise": 0.8, "pairwise": 0.6, "listwise": 1.1, "hybrid_paper": 1.1}
RANKED_ROWS |= {"hybrid": 1.3, "hybrid_conventional": 1.4}


@dataclass(frozen=True)
class MadeUp:
    """The tables an evaluation reads."""

    interactions: pa.Table
    items: pa.Table
    candidates: pa.Table
    signals: pa.Table
    rankings: pa.Table


def made_up(users: int = 120, items: int = 60, *, width: int = 10, hits: float = 0.4, seed: int = 0) -> MadeUp:
    """Every test user has a list; a row's skill is how far it lifts the target above noise."""
    random = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, items + 1)
    events, lists, signals, rankings = [], [], [], []
    for number in range(users):
        user, liked = f"u{number}", _draw(random, popularity, 2 + number % 9)
        events += [_event(user, item, place, "train") for place, item in enumerate(liked)]
        target, *others = _draw(random, popularity, width + 1)
        offered = [target, *others[1:]] if random.random() < hits else others
        random.shuffle(offered)
        events.append(_event(user, target, len(liked), "test"))
        found = np.array([item == target for item in offered])
        ids = [str(item) for item in offered]
        scores = {
            name: random.normal(size=width) + skill * found for name, skill in (SIGNAL_ROWS | RANKED_ROWS).items()
        }
        conventional = scores["logistic"].tolist()
        one = candidate_list(user, "test", str(target), ids, popularity=popularity[offered].tolist())
        lists.append(one | {"reranker_scores": conventional})
        signals += [{"list_id": one["list_id"], "signal": name, "scores": scores[name]} for name in SIGNAL_ROWS]
        rankings += [_ranking(one, name, scores[name]) for name in RANKED_ROWS if one["hit"]]
    catalogue = [
        {"item_id": str(item), "title": f"Title {item}", "genres": [GENRES[item % 5], GENRES[item % 3]]}
        for item in range(items)
    ]
    return MadeUp(
        pa.Table.from_pylist(events, schema=INTERACTIONS.schema),
        pa.Table.from_pylist(catalogue, schema=ITEMS.schema),
        pa.Table.from_pylist(lists, schema=CANDIDATES.schema),
        pa.Table.from_pylist(signals, schema=SIGNALS.schema),
        pa.Table.from_pylist(rankings, schema=RANKINGS.schema),
    )


def _draw(random: np.random.Generator, popularity: NDArray[np.float64], count: int) -> list[int]:
    return [int(one) for one in random.choice(len(popularity), count, replace=False, p=popularity / popularity.sum())]


def _event(user: str, item: int, sequence: int, split: str) -> dict[str, object]:
    rest = {"rating": 5.0, "timestamp": sequence, "sequence": sequence, "feedback": "like", "split": split}
    return {"user_id": user, "item_id": str(item)} | rest


def _ranking(one: dict[str, object], name: str, scores: NDArray[np.float64]) -> dict[str, object]:
    order = np.argsort(-scores)
    ids = list(one["candidate_ids"])  # type: ignore[call-overload]
    kept = {key: one[key] for key in ("list_id", "user_id", "split")}
    ranking = kept | {"row": name, "item_ids": [ids[at] for at in order], "scores": scores[order].tolist()}
    odds = np.exp(scores[order])
    return ranking if name.startswith("untuned") else ranking | {"probabilities": (odds / odds.sum()).tolist()}
