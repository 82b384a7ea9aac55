"""The conventional re-rankers: models of the lists' evidence, and the bar that an LLM is held against.

They learn from training lists that hold their target. A training list is scored by a model that has seen no list of
its user; validation and test lists by the model of all training lists. Scores are logits: their softmax within a list
is the model's probability of each candidate.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from recranker.backbones.events import Interactions
from recranker.backbones.signals import signal_rows
from recranker.errors import DataError, SettingsError
from recranker.randomness import key_of, keys_of
from recranker.ranking.choice import fit_flat_choice, lists_of, log_probabilities
from recranker.ranking.evidence import Evidence, FoldView, SignalScores, evidence_of
from recranker.ranking.settings import ConventionalModel, ConventionalSettings, FeatureGroup
from recranker.schema import CANDIDATES, SIGNALS

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PARTS = 5
"""Users are split into so many parts; each is scored with models of the others."""
LEAST_PARTS = 3
"""Parts that must hold training lists: one to leave out, and of the others one to choose by and one to fit on."""
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""L2 penalties of the logistic regression, of which cross-validation chooses one."""
ROUNDS = (5, 10, 20, 40, 60, 80)
"""Numbers of trees, of which cross-validation chooses one."""
LEAVES, LEARNING_RATE, LEAF_ROWS, TREE_L2 = 4, 0.15, 40, 10.0
"""Small, strongly regularised trees: a few hundred lists must do."""
TOO_FEW = (
    "%d training lists in %d of %d parts of the users hold their target; re-rankers need %d lists in %d: "
    "none is fitted, the retriever's scores are kept"
)

Path = Callable[[Evidence], Floats]
"""One fitted family: ``(C, levels)`` scores at every PENALTY or number of ROUNDS."""


@dataclass(frozen=True)
class Chosen:
    """What cross-validation says of a family."""

    level: int
    """Index of the best of PENALTIES or ROUNDS."""
    slope: float
    """What its scores are multiplied by to be logits."""
    likelihood: float
    """Mean log-likelihood, in nats, of targets left out of the fit."""


@dataclass(frozen=True)
class LogisticPath:
    """A conditional logit on the z-scores within each list."""

    weights: Floats
    """``(F, PENALTIES)``."""

    @classmethod
    def fit(cls, evidence: Evidence, targets: Ints, seed: int) -> "LogisticPath":
        """Weights for every penalty; without a use for ``seed``."""
        features = evidence.standardised()
        found = [fit_flat_choice(features, evidence.starts, targets, l2=l2) for l2 in PENALTIES]
        return cls(np.stack(found, axis=1))

    def __call__(self, evidence: Evidence) -> Floats:
        """``(C, PENALTIES)``."""
        return np.asarray(evidence.standardised() @ self.weights)


def fit_trees(evidence: Evidence, targets: Ints, seed: int) -> Path:
    """Gradient-boosted trees that tell targets from other candidates."""
    trees = HistGradientBoostingClassifier(
        max_iter=ROUNDS[-1],
        max_leaf_nodes=LEAVES,
        learning_rate=LEARNING_RATE,
        min_samples_leaf=LEAF_ROWS,
        l2_regularization=TREE_L2,
        early_stopping=False,
        random_state=key_of(seed, "trees") % 2**32,
    )
    trees.fit(_columns(evidence), _labels(evidence, targets))

    def path(offered: Evidence) -> Floats:
        stages = enumerate(trees.staged_decision_function(_columns(offered)), start=1)
        return np.stack([scores for rounds, scores in stages if rounds in ROUNDS], axis=1)

    return path


def fit_lambdamart(evidence: Evidence, targets: Ints, seed: int) -> Path:
    """LambdaMART: gradient-boosted trees under a ranking loss.

    Raises:
        SettingsError: If LightGBM is not installed.

    Source: Burges 2010, From RankNet to LambdaRank to LambdaMART, in LightGBM's implementation.
    """
    try:
        import lightgbm
    except ImportError:
        raise SettingsError(
            "conventional.models: 'lambdamart' needs LightGBM, which is not installed; "
            "install recranker[lambdamart], or leave it out"
        ) from None
    ranker = lightgbm.LGBMRanker(
        n_estimators=ROUNDS[-1],
        num_leaves=LEAVES,
        learning_rate=LEARNING_RATE,
        min_child_samples=LEAF_ROWS,
        reg_lambda=TREE_L2,
        random_state=key_of(seed, "lambdamart") % 2**31,
        deterministic=True,
        force_col_wise=True,
        n_jobs=1,
        verbose=-1,
    )
    lengths = np.diff(np.append(evidence.starts, len(evidence.raw)))
    booster = ranker.fit(_columns(evidence), _labels(evidence, targets), group=lengths).booster_

    def path(offered: Evidence) -> Floats:
        columns = _columns(offered)
        return np.stack([booster.predict(columns, num_iteration=rounds) for rounds in ROUNDS], axis=1)

    return path


FAMILIES: Mapping[ConventionalModel, Callable[[Evidence, Ints, int], Path]] = {
    "logistic": LogisticPath.fit,
    "trees": fit_trees,
    "lambdamart": fit_lambdamart,
}


class CrossFitted:
    """A family fitted on every set of parts that is needed, each once."""

    def __init__(self, family: ConventionalModel, evidence: Evidence, targets: Ints, parts: Ints, seed: int) -> None:
        """Learn from lists with their targets.

        Args:
            family: Which.
            evidence: Of the lists.
            targets: ``(L,)`` place of each target within its list.
            parts: ``(L,)`` part of the list's user, below PARTS.
            seed: Keys the trees.
        """
        self.fit, self.seed = FAMILIES[family], seed
        self.evidence, self.targets, self.parts = evidence, targets, parts
        self.path = cache(self._path)
        self.chosen = cache(self._chosen)

    def scores(self, evidence: Evidence, without: int | None = None) -> Floats:
        """``(C,)`` logits by what was learned without one part; neither fit nor choice has seen it."""
        left_out = frozenset(() if without is None else (without,))
        chosen = self.chosen(left_out)
        return np.asarray(chosen.slope * self.path(left_out)(evidence)[:, chosen.level])

    def _path(self, left_out: frozenset[int]) -> Path:
        inside = ~np.isin(self.parts, list(left_out))
        return self.fit(self.evidence.of_lists(inside), self.targets[inside], self.seed)

    def _chosen(self, left_out: frozenset[int]) -> Chosen:
        """The level under which the targets of each part are likeliest for fits without it."""
        kept = ~np.isin(self.parts, list(left_out))
        evidence, targets, parts = self.evidence.of_lists(kept), self.targets[kept], self.parts[kept]
        of = lists_of(evidence.starts, len(evidence.raw))
        found: Floats | None = None
        for part in np.unique(parts).tolist():
            inside = parts == part
            scores = self.path(left_out | {part})(evidence.of_lists(inside))
            found = np.empty((len(of), scores.shape[1])) if found is None else found
            found[inside[of]] = scores
        assert found is not None
        levels = [_calibrated(found[:, level], evidence.starts, targets, level) for level in range(found.shape[1])]
        return max(levels, key=lambda one: one.likelihood)


def conventional_scores(
    interactions: Interactions,
    folds: Mapping[str, FoldView],
    lists: pa.Table,
    signals: Mapping[str, SignalScores],
    items: pa.Table,
    facts: Mapping[str, Any],
    settings: ConventionalSettings,
    seed: int,
) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """Every conventional re-ranker's scores, and what is to be said of them.

    Args:
        interactions: By index.
        folds: What each fold named in ``lists`` knows.
        lists: CANDIDATES but for the re-ranker's scores.
        signals: ``(C,)`` scores of other backbones by name, one list after another.
        items: ITEMS.
        facts: Of the prepared data.
        settings: Which re-rankers, what they look at, and whose scores are the hint.
        seed: Keys parts and trees.

    Returns:
        SIGNALS rows of every re-ranker; CANDIDATES with the scores of ``settings.hint``; facts for the manifest.
        With too few training lists there are no SIGNALS rows, and CANDIDATES repeat the retriever's scores.

    Raises:
        DataError: If the hint looks at text and the catalogue holds none.
    """
    evidence = evidence_of(interactions, folds, lists, signals, items, facts).only(settings.groups)
    usable = np.asarray(pc.and_(pc.equal(lists["split"], "train"), lists["hit"]))
    stated: dict[str, Any] = {
        "training_lists": int(usable.sum()),
        "features": list(evidence.names),
        "absent": sorted(set(settings.groups) - set(evidence.groups)),
    }
    parts = (keys_of(lists["user_id"], seed, "reranker") % np.uint64(PARTS)).astype(np.int64)
    held = len(np.unique(parts[usable]))
    if usable.sum() < settings.min_lists or held < LEAST_PARTS:
        if pc.any(pc.equal(lists["split"], "train")).as_py():  # without any, backbones are compared alone, on purpose
            logger.warning(TOO_FEW, usable.sum(), held, PARTS, settings.min_lists, LEAST_PARTS)
        return SIGNALS.schema.empty_table(), _candidates(lists, lists["backbone_scores"]), stated | {"hint": "backbone"}
    if settings.hint.endswith("_text") and "text" not in evidence.groups:
        raise DataError(
            f"conventional.hint {settings.hint!r} needs genres, or titles with words of two letters or more; the "
            f"catalogue of {items.num_rows} items holds neither; set conventional.hint={settings.hint[:-5]}"
        )
    scores, models = _fit_all(evidence, lists, usable, parts, settings, seed)
    rows = signal_rows(lists, scores)
    hint = rows.filter(pc.equal(rows["signal"], settings.hint))["scores"]
    stated |= {"hint": settings.hint, "models": models}
    return SIGNALS.conform(rows, where="signals"), _candidates(lists, hint), stated


def fit_and_score(
    features: Floats,
    starts: Ints,
    targets: Ints,
    groups: Ints,
    *,
    family: ConventionalModel = "logistic",
    seed: int = 0,
) -> Floats:
    """``(C,)`` logits of every list by a model that has seen no list of its group.

    Args:
        features: ``(C, F)`` of all lists, one list after another, on any scale; NaN where unknown.
        starts: ``(L,)`` where each list begins.
        targets: ``(L,)`` place of each target within its list.
        groups: ``(L,)`` whole numbers; lists of one group are left out together.
        family: Which re-ranker.
        seed: Keys the trees.

    Raises:
        ValueError: If there are fewer than LEAST_PARTS groups.
    """
    if (found := len(np.unique(groups))) < LEAST_PARTS:
        raise ValueError(f"groups must hold at least {LEAST_PARTS} different numbers, got {found}")
    groups_of: tuple[FeatureGroup, ...] = ("backbone",) * features.shape[1]
    evidence = Evidence(tuple(f"feature_{column}" for column in range(len(groups_of))), groups_of, features, starts)
    learned = CrossFitted(family, evidence, targets, groups, seed)
    scores = np.empty(len(features))
    for group in np.unique(groups).tolist():
        inside = groups == group
        scores[inside[lists_of(starts, len(features))]] = learned.scores(evidence.of_lists(inside), group)
    return scores


def _fit_all(
    evidence: Evidence,
    lists: pa.Table,
    usable: NDArray[np.bool_],
    parts: Ints,
    settings: ConventionalSettings,
    seed: int,
) -> tuple[dict[str, Floats], dict[str, Any]]:
    """Scores of all lists and facts, by the name of each re-ranker."""
    training = np.asarray(pc.equal(lists["split"], "train"))
    targets = target_places(lists)
    scores, models = {}, {}
    for suffix, seen in _variants(evidence):
        for family in settings.models:
            learned = CrossFitted(family, seen.of_lists(usable), targets[usable], parts[usable], seed)
            scores[family + suffix] = _score(learned, seen, np.where(training, parts, -1))
            models[family + suffix] = _facts_of(learned, seen)
    return scores, models


def _variants(evidence: Evidence) -> list[tuple[str, Evidence]]:
    """Without text and, where there is any, with it."""
    plain = evidence.only([group for group in evidence.groups if group != "text"])
    return [("", plain), ("_text", evidence)] if "text" in evidence.groups else [("", plain)]


def _score(learned: CrossFitted, evidence: Evidence, left_out: Ints) -> Floats:
    """``(C,)`` logits; ``left_out`` is the part that a list's model must not have seen, -1: it may have seen all."""
    scores = np.empty(len(evidence.raw))
    for part in np.unique(left_out).tolist():
        inside = left_out == part
        found = learned.scores(evidence.of_lists(inside), None if part < 0 else part)
        scores[inside[lists_of(evidence.starts, len(scores))]] = found
    return scores


def _facts_of(learned: CrossFitted, evidence: Evidence) -> dict[str, Any]:
    whole, path = learned.chosen(frozenset()), learned.path(frozenset())
    levels = PENALTIES if isinstance(path, LogisticPath) else ROUNDS
    stated: dict[str, Any] = {"level": levels[whole.level], "left_out_log_likelihood": round(whole.likelihood, 4)}
    if isinstance(path, LogisticPath):
        weights = whole.slope * path.weights[:, whole.level]
        stated["weights"] = dict(zip(evidence.names, np.round(weights, 4).tolist(), strict=True))
    return stated


def _calibrated(scores: Floats, starts: Ints, targets: Ints, level: int) -> Chosen:
    """``level`` with the slope under which its scores make the targets likeliest."""
    slope = float(fit_flat_choice(scores[:, None], starts, targets, l2=0.0, lowest=0.01)[0])  # above 0 keeps the order
    return Chosen(level, slope, float(log_probabilities(slope * scores, starts)[starts + targets].mean()))


def target_places(lists: pa.Table) -> Ints:
    """``(L,)`` place of each list's target among its candidates; -1 where it is not there."""
    offered = lists["candidate_ids"].combine_chunks()
    of = pc.list_parent_indices(offered).to_numpy().astype(np.int64)
    here = pc.equal(offered.flatten(), lists["target_id"].combine_chunks().take(pa.array(of)))
    places = np.full(len(offered), -1)
    found = np.flatnonzero(np.asarray(here))
    places[of[found]] = found - np.searchsorted(of, of[found])
    return places


def _columns(evidence: Evidence) -> Floats:
    """``(C, 2 F)`` what trees look at: every feature as it is, and against the others of its list."""
    return np.concatenate([evidence.raw, evidence.standardised()], axis=1)


def _labels(evidence: Evidence, targets: Ints) -> Ints:
    labels = np.zeros(len(evidence.raw), np.int64)
    labels[evidence.starts + targets] = 1
    return labels


def _candidates(lists: pa.Table, scores: pa.ChunkedArray) -> pa.Table:
    return CANDIDATES.conform(lists.append_column("reranker_scores", scores), where="candidates")
