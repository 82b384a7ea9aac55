"""Every canary is caught by the check it names and by no accident; clean runs of every split pass."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from recranker.data.leakage import check_candidates, check_interactions, check_prompts
from recranker.data.leakage.canaries import CANARIES, Canary, try_canaries
from recranker.data.leakage.checks import CHECKS, audit, complaint_of, run_checks
from recranker.data.leakage.tables import GateTables
from recranker.errors import LeakageError
from recranker.evaluation.made_up import made_up_run, try_canaries_on_made_up_runs

Row = dict[str, Any]

BY_LEAVE_ONE_OUT, BY_TIME = made_up_run(), made_up_run(split={"kind": "time"})


def place_of(canary: Canary) -> GateTables:
    """The made-up run that has a place for it."""
    return BY_LEAVE_ONE_OUT if canary.planted(BY_LEAVE_ONE_OUT) else BY_TIME


def with_rows(tables: GateTables, name: str, change: Callable[[list[Row]], None]) -> GateTables:
    """The same with ``change`` applied to the rows of one table."""
    table = getattr(tables, name)
    rows = table.to_pylist()
    change(rows)
    return replace(tables, **{name: pa.Table.from_pylist(rows, schema=table.schema)})


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_a_canary_is_caught_by_the_check_it_names(canary: Canary) -> None:
    tables = place_of(canary)
    planted = canary.planted(tables)
    assert planted is not None
    complaints = {one.check: one.complaint for one in audit(planted) if one.complaint}
    assert canary.caught_by in complaints
    assert set(complaints) <= {canary.caught_by, *canary.also}
    assert "\n" not in complaints[canary.caught_by]
    assert ";" in complaints[canary.caught_by]  # the way out


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_without_its_check_a_canary_goes_through(canary: Canary) -> None:
    planted = canary.planted(place_of(canary))
    assert planted is not None
    rest = [check for check in CHECKS if check.name not in (canary.caught_by, *canary.also)]
    assert complaint_of(planted, rest) is None
    gone = next(try_canaries(place_of(canary), [canary], rest))
    assert (gone.planted, gone.message) == (True, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("target-in-its-own-fit", "the target was in the fit of its own fold 'rolled_back', .* in-sample: user 'u"),
        ("future-in-rolled-back-fit", "saw what came after the history of a list it scored"),
        ("given-ratings-as-guesses", "predicted ratings are the ratings the targets were given"),
        ("signal-knows-targets", "signal 'planted' puts the target alone on top of 100% of a split's lists"),
        ("popularity-of-another", "popularity is not how many likes the item has in the list's own fold"),
        ("signal-too-short", "a signal is not one finite number per candidate: list '.*', signal 'item_knn'"),
        ("signal-missing", "a list lacks signal 'item_knn' that others have: user"),
        ("hint-of-list-knows-target", "the order quoted in a listwise question is not the signal's"),
        ("target-in-liked-history", "a prefix shows an item that is not in its user's history before"),
        ("target-in-profile", "free text of a prefix names the target"),
        ("other-wording-in-training", "worded differently: the line 'You recommend items.' stands in every prompt of"),
        ("hint-in-training-only", r"worded differently: a pointwise question stands in .* \[\.\.\.\]' in training, "),
        ("two-templates", r"different templates: \{'test': 'b', 'train': 'a'\}"),
        ("test-before-its-moment", "an event is on the wrong side of the moments of the time split"),
        ("not-the-last-like", "a target of leave-one-out is not the last like of its user"),
    ],
)
def test_the_complaint_names_the_trap(name: str, message: str) -> None:
    canary = next(one for one in CANARIES if one.name == name)
    planted = canary.planted(place_of(canary))
    assert planted is not None
    with pytest.raises(LeakageError, match=message):
        run_checks(planted, [check for check in CHECKS if check.name == canary.caught_by])


def test_every_check_has_a_canary() -> None:
    """But for those that guard against plain mistakes in a team's own tables, tested below."""
    guarded = {canary.caught_by for canary in CANARIES}
    plain = {"sequence-numbers", "split-names", "targets-trained", "users-known", "lists-there"}
    assert {check.name for check in CHECKS} == guarded | plain


def test_all_canaries_find_a_place_in_the_made_up_runs() -> None:
    caught = try_canaries_on_made_up_runs()
    assert {one.canary.name for one in caught} == {canary.name for canary in CANARIES}
    assert all(one.planted and one.message for one in caught)


@pytest.mark.parametrize(
    "data",
    [{}, {"split": {"kind": "time"}}, {"split": {"kind": "time", "target": "last"}}, {"hints": "backbone"}],
    ids=str,
)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_clean_run_passes(seed: int, data: dict[str, Any]) -> None:
    run_checks(made_up_run(seed=seed, **data))


@pytest.mark.parametrize("name", ["interactions", "candidates", "fit_events", "signals", "prompts", "items"])
def test_row_order_does_not_matter(name: str) -> None:
    run_checks(with_rows(BY_LEAVE_ONE_OUT, name, lambda rows: rows.reverse()))


def test_hints_of_another_signal_and_of_none_are_told_apart() -> None:
    wrong = replace(BY_LEAVE_ONE_OUT, hints="mf")
    assert "is not what the signal says" in str(complaint_of(wrong))
    assert "prompts are said to have none" in str(complaint_of(replace(BY_LEAVE_ONE_OUT, hints="none")))
    assert "signal 'lost', which is not there" in str(complaint_of(replace(BY_LEAVE_ONE_OUT, hints="lost")))


def test_prompts_without_hints_pass_and_are_no_reranker_prompts() -> None:
    clean = made_up_run(hints="none")
    run_checks(clean)
    assert "a question quotes no hint" in str(complaint_of(replace(clean, hints="reranker")))


def test_a_predicted_rating_is_quoted_as_published() -> None:
    clean = made_up_run(hints="backbone")

    def plant(rows: list[Row]) -> None:
        rows[0]["predicted_ratings"] = [guess - 0.2 for guess in rows[0]["predicted_ratings"]]

    planted = with_rows(clean, "candidates", plant)
    assert "the hint of a pointwise question is not what the signal says of its item" in str(complaint_of(planted))


def test_the_doors_of_the_stages_take_what_they_have() -> None:
    run = BY_LEAVE_ONE_OUT
    check_interactions(run.interactions, run.facts)
    check_candidates(run.interactions, run.candidates, run.fit_events, run.facts)
    check_candidates(run.interactions, run.candidates, run.fit_events, run.facts, signals=run.signals)
    check_prompts(run.interactions, run.candidates, run.prompts)
    check_prompts(run.interactions, run.candidates, run.prompts, items=run.items, hints=run.hints)
    with pytest.raises(LeakageError, match="different templates"):
        check_prompts(run.interactions, run.candidates, run.prompts, template_hashes={"train": "a", "test": "b"})


def test_a_gap_in_the_sequence() -> None:
    planted = with_rows(BY_LEAVE_ONE_OUT, "interactions", lambda rows: rows.pop(0))
    assert "sequence numbers of a user are not 0, 1, 2" in str(complaint_of(planted))


def test_an_unknown_split() -> None:
    planted = with_rows(BY_LEAVE_ONE_OUT, "interactions", lambda rows: rows[-1].update(split="hold out"))
    assert "a split has an unknown name: user 'u" in str(complaint_of(planted))


def test_a_target_nobody_likes_in_training() -> None:
    target = next(row for row in BY_LEAVE_ONE_OUT.interactions.to_pylist() if row["split"] == "test")

    def plant(rows: list[Row]) -> None:
        for row in rows:
            if row["item_id"] == target["item_id"] and row["split"] == "train":
                row.update(rating=3.0, feedback="neutral")

    planted = with_rows(BY_LEAVE_ONE_OUT, "interactions", plant)
    assert "a target's item is in no training like" in str(complaint_of(planted))


def test_a_list_for_an_unknown_user() -> None:
    planted = with_rows(BY_LEAVE_ONE_OUT, "candidates", lambda rows: rows[0].update(user_id="u9999"))
    assert "a list is for a user the interactions do not know: user 'u9999'" in str(complaint_of(planted))


def test_a_list_that_is_not_there() -> None:
    planted = with_rows(BY_LEAVE_ONE_OUT, "prompts", lambda rows: rows[0].update(list_id="train/u0/nothing"))
    assert "a prompt asks about a list that is not there: user 'u0', list 'train/u0/" in str(complaint_of(planted))


def test_a_rating_may_be_missing_only_where_the_source_says_so() -> None:
    liked = next(row for row in BY_LEAVE_ONE_OUT.interactions.to_pylist() if row["split"] == "train")

    def plant(rows: list[Row]) -> None:
        one = next(row for row in rows if row == liked)
        one.update(rating=None, feedback="like")

    planted = with_rows(replace(BY_LEAVE_ONE_OUT), "interactions", plant)
    of_interactions = [check for check in CHECKS if check.name in ("rating-scale", "feedback")]
    assert "a rating is off the scale" in str(complaint_of(planted, of_interactions))
    allowed = replace(planted, facts={**planted.facts, "unrated_is_like": True})
    assert complaint_of(allowed, of_interactions) is None


def test_a_canary_without_a_place_says_so() -> None:
    early = GateTables(BY_LEAVE_ONE_OUT.interactions, BY_LEAVE_ONE_OUT.facts)  # as after stage 'prepare'
    found = {one.canary.name: one for one in try_canaries(early)}
    assert found["time-reversed"].message
    assert (found["test-event-in-fit"].planted, found["test-event-in-fit"].message) == (False, None)
