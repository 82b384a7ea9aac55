"""Canaries: each plants one trap into a copy of a clean run's tables and names the check that must catch it.

A gate that lets one through is broken. Traps are those of the method that have sunk published or earlier versions of
it; a canary that finds no place to plant its trap (no ratings, no hints) says so rather than counting as caught.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from recranker.data.leakage import planted_in_prompts as in_prompts
from recranker.data.leakage import planted_in_tables as in_tables
from recranker.data.leakage.checks import CHECKS, complaint_of
from recranker.data.leakage.gate import Check
from recranker.data.leakage.tables import GateTables

MAX_PROMPTS = 100
"""Prompts of each split that canaries are planted among; a large run need not be copied whole."""


@dataclass(frozen=True)
class Canary:
    """One planted trap."""

    name: str
    trap: str
    """What went wrong where this happened."""
    caught_by: str
    """Name of the check that must complain."""
    plant: Callable[[GateTables], GateTables]
    """The tables with the trap in them; raises LookupError where they offer no place for it."""
    also: tuple[str, ...] = ()
    """Further checks that see it, rightly."""

    def planted(self, tables: GateTables) -> GateTables | None:
        """A copy of ``tables`` with the trap; None where there is no place for it."""
        check = next(one for one in CHECKS if one.name == self.caught_by)
        try:
            planted = self.plant(tables)
        except LookupError:
            return None
        return planted if check.can_run(planted) else None


@dataclass(frozen=True)
class Caught:
    """What became of one canary."""

    canary: Canary
    planted: bool
    """False: this run has no place for it."""
    message: str | None
    """The complaint; None: it went through, or was not planted."""


def try_canaries(
    tables: GateTables, canaries: Sequence["Canary"] | None = None, checks: Sequence[Check] = CHECKS
) -> Iterator[Caught]:
    """Plant each canary in a copy of ``tables`` and ask the check it names.

    Args:
        tables: A clean run as far as it has come.
        canaries: Which; None: all.
        checks: The gate.
    """
    small = replace(tables, prompts=_some_prompts(tables.prompts)) if tables.prompts is not None else tables
    for canary in CANARIES if canaries is None else canaries:
        planted = canary.planted(small)
        asked = [one for one in checks if one.name == canary.caught_by]
        yield Caught(canary, planted is not None, complaint_of(planted, asked) if planted is not None else None)


def _some_prompts(prompts: pa.Table) -> pa.Table:
    of_split = [prompts.filter(pc.equal(prompts["split"], one)) for one in ("train", "validation", "test")]
    return pa.concat_tables([one.slice(0, MAX_PROMPTS) for one in of_split]).combine_chunks()


_MATRIX = "hints read from a matrix that holds the true test ratings"
_IN_SAMPLE = "in-sample hints in training, honest ones at test: the model learns to copy the hint"
_POSITIONS = "ids compared with positions, so that the target stays in the liked history"
_INDEX_MAP = "signals looked up through another model's index map"
_HELD_OUT = "a validation or test event in a fit, a prompt or a pool of negatives"
_SCALE = "the rating scales of books and films swapped"
_SUBSTRINGS = "titles matched as substrings, so that nested titles collide"
_ALIGNED = "labels that do not say exactly the answer"
_ORDER = "candidates in retrieval order at test while training shuffled them"
_TEMPLATE = "another template in training than at test"
_FUTURE = "the future in the history"
_TARGETS = "targets that are not the ones the protocol holds out"

CANARIES: tuple[Canary, ...] = (
    Canary("given-ratings-as-guesses", _MATRIX, "predicted-not-given", in_tables.given_ratings),
    Canary("signal-knows-targets", _MATRIX, "not-too-good", in_tables.oracle),
    Canary("guess-off-scale", _SCALE, "predicted-on-scale", in_tables.guess_off_scale),
    Canary(
        "hint-of-item-knows-target",
        _MATRIX,
        "hints-quoted",
        in_prompts.asked("test", in_prompts.hint_knows("pointwise")),
    ),
    Canary("words-of-hint-know-target", _MATRIX, "hints-quoted", in_prompts.asked("test", in_prompts.words_know)),
    Canary(
        "hint-of-pair-knows-target",
        _MATRIX,
        "hints-quoted",
        in_prompts.asked("train", in_prompts.hint_knows("pairwise")),
    ),
    Canary(
        "hint-of-list-knows-target",
        _MATRIX,
        "hints-quoted",
        in_prompts.asked("test", in_prompts.hint_knows("listwise")),
    ),
    Canary("target-in-its-own-fit", _IN_SAMPLE, "out-of-fold", in_tables.target_in_fit, ("popularity-by-id",)),
    Canary("training-list-by-full-fit", _IN_SAMPLE, "out-of-fold", in_tables.scored_by_full_fit, ("popularity-by-id",)),
    Canary(
        "future-in-rolled-back-fit", _IN_SAMPLE, "clock-rolled-back", in_tables.future_in_fit, ("popularity-by-id",)
    ),
    Canary("fold-says-nothing", _IN_SAMPLE, "folds-stated", in_tables.fold_unknown),
    Canary(
        "target-in-liked-history", _POSITIONS, "history-past", in_prompts.asked("test", in_prompts.target_in_history)
    ),
    Canary(
        "history-beyond-test-target", _POSITIONS, "history-ends", in_tables.history_too_long("test"), ("offers-new",)
    ),
    Canary(
        "history-beyond-training-target",
        _POSITIONS,
        "history-ends",
        in_tables.history_too_long("train"),
        ("offers-new",),
    ),
    Canary("row-number-as-id", _POSITIONS, "targets-known", in_tables.row_number_as_id),
    Canary("hit-by-position", _POSITIONS, "hits", in_tables.hit_by_position),
    Canary("popularity-of-another", _INDEX_MAP, "popularity-by-id", in_tables.other_index_popularity),
    Canary("scores-of-another", _INDEX_MAP, "best-first", in_tables.other_index_scores),
    Canary("signal-too-short", _INDEX_MAP, "signals-aligned", in_tables.signal_short),
    Canary("signal-missing", _INDEX_MAP, "signals-aligned", in_tables.signal_missing),
    Canary("score-not-finite", _INDEX_MAP, "candidate-columns", in_tables.score_not_finite),
    Canary(
        "validation-event-in-fit",
        _HELD_OUT,
        "fits-train-only",
        in_tables.held_out_in_fit("validation"),
        ("out-of-fold", "popularity-by-id"),
    ),
    Canary(
        "test-event-in-fit",
        _HELD_OUT,
        "fits-train-only",
        in_tables.held_out_in_fit("test"),
        ("out-of-fold", "popularity-by-id"),
    ),
    Canary(
        "test-target-as-training-target", _HELD_OUT, "targets-of-split", in_tables.test_target_trained, ("lists-own",)
    ),
    Canary("test-target-as-negative", _HELD_OUT, "held-out-hidden", in_prompts.test_target_as_negative),
    Canary("training-after-target", _HELD_OUT, "training-ends", in_tables.trains_after_target, ("time-split",)),
    Canary("rating-of-another", _HELD_OUT, "target-ratings", in_tables.rating_of_another),
    Canary(
        "item-from-outside-its-list",
        _HELD_OUT,
        "items-of-list",
        in_prompts.asked("test", in_prompts.item_from_outside),
        ("hints-quoted",),
    ),
    Canary(
        "list-of-another-user",
        _HELD_OUT,
        "lists-own",
        in_prompts.list_of_another,
        ("items-of-list", "hints-quoted", "history-past"),
    ),
    Canary("target-in-profile", _HELD_OUT, "profile-blind", in_prompts.profile_names_target),
    Canary("scale-too-small", _SCALE, "rating-scale", in_tables.smaller_scale, ("predicted-on-scale",)),
    Canary("thresholds-of-books", _SCALE, "feedback", in_tables.thresholds_of_books),
    Canary("nested-title-in-history", _SUBSTRINGS, "history-past", in_prompts.nested_title),
    Canary(
        "answer-points-elsewhere", _ALIGNED, "answers-aligned", in_prompts.asked("train", in_prompts.points_elsewhere)
    ),
    Canary("answer-at-inference", _ALIGNED, "answers-in-training", in_prompts.asked("test", in_prompts.knows_answer)),
    Canary("teacher-at-inference", _ALIGNED, "answers-in-training", in_prompts.asked("test", in_prompts.knows_teacher)),
    Canary(
        "retrieval-order-at-test",
        _ORDER,
        "lists-shuffled",
        in_prompts.reordered(in_prompts.retrieved, ("validation", "test")),
    ),
    Canary(
        "retrieval-order-in-training", _ORDER, "lists-shuffled", in_prompts.reordered(in_prompts.retrieved, ("train",))
    ),
    Canary("target-always-first", _ORDER, "target-moves", in_prompts.reordered(in_prompts.target_first, ("train",))),
    Canary("pair-in-one-order", _ORDER, "pairs-both-ways", in_prompts.asked("test", in_prompts.pair_one_way)),
    Canary("other-wording-in-training", _TEMPLATE, "wording-same", in_prompts.worded_otherwise),
    Canary("hint-in-training-only", _TEMPLATE, "wording-same", in_prompts.hint_in_training_only, ("hints-quoted",)),
    Canary("two-templates", _TEMPLATE, "templates-same", in_prompts.two_templates),
    Canary("time-reversed", _FUTURE, "time-order", in_tables.time_reversed),
    Canary("item-twice-in-history", _FUTURE, "item-once", in_tables.item_twice),
    Canary("candidate-out-of-history", _FUTURE, "offers-new", in_tables.liked_before, ("hints-quoted",)),
    Canary(
        "candidate-offered-twice",
        _FUTURE,
        "offers-distinct",
        in_tables.offered_twice,
        ("items-of-list", "hints-quoted"),
    ),
    Canary("test-before-its-moment", _FUTURE, "time-split", in_tables.target_before_its_moment),
    Canary(
        "disliked-target",
        _TARGETS,
        "targets-liked",
        in_tables.disliked_target,
        ("feedback", "last-likes", "targets-of-split"),
    ),
    Canary(
        "two-test-targets",
        _TARGETS,
        "one-target",
        in_tables.second_target,
        ("last-likes", "time-split", "targets-of-split"),
    ),
    Canary("not-the-last-like", _TARGETS, "last-likes", in_tables.not_the_last_like, ("targets-of-split",)),
)
"""Every trap of the method, planted at least once."""
