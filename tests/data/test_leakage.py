"""One planted leak per trap; and a clean set that passes."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from recranker.data.leakage import check_candidates, check_interactions, check_prompts
from recranker.errors import LeakageError
from tests.data.gate_tables import Row, Tables, clean_tables


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return clean_tables(tmp_path_factory.mktemp("toy"))


def check_all(tables: Tables) -> None:
    check_interactions(tables.interactions, tables.facts)
    check_candidates(tables.interactions, tables.candidates, tables.fit_events, tables.facts)
    check_prompts(tables.interactions, tables.candidates, tables.prompts)


def caught(tables: Tables, message: str) -> None:
    with pytest.raises(LeakageError, match=message) as error:
        check_all(tables)
    assert "user 'u" in str(error.value)
    assert "\n" not in str(error.value)


def first(rows: list[Row], **wanted: object) -> Row:
    return next(row for row in rows if all(row[name] == value for name, value in wanted.items()))


def test_a_clean_set_passes(clean: Tables) -> None:
    check_all(clean)


def test_row_order_does_not_matter(clean: Tables) -> None:
    check_all(
        clean.with_rows("interactions", lambda rows: rows.reverse()).with_rows("fit_events", lambda r: r.reverse())
    )


# --- interactions


def test_an_item_twice_in_a_history(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        target = first(rows, user_id="u0", split="test")
        first(rows, user_id="u0", split="train")["item_id"] = target["item_id"]

    caught(clean.with_rows("interactions", plant), "an item stands twice in a history")


def test_a_history_out_of_time(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        one, other = first(rows, user_id="u0", sequence=2), first(rows, user_id="u0", sequence=3)
        one["timestamp"], other["timestamp"] = other["timestamp"] + 1, one["timestamp"]

    caught(clean.with_rows("interactions", plant), "the future is in the history")


def test_a_gap_in_the_sequence(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        rows.remove(first(rows, user_id="u0", sequence=0))

    caught(clean.with_rows("interactions", plant), "sequence numbers of a user are not 0, 1, 2")


@pytest.mark.parametrize("scale", [{"rating_max": 4.0}, {"rating_min": 2.0}])
def test_a_swapped_rating_scale(clean: Tables, scale: dict[str, float]) -> None:
    caught(replace(clean, facts=clean.facts | scale), "a rating is off the scale of the manifest")


def test_feedback_by_another_scale(clean: Tables) -> None:
    books = {"rating_max": 10.0, "like_at_least": 9.0}
    caught(replace(clean, facts=clean.facts | books), "feedback does not follow from the rating")


def test_training_that_goes_on_after_a_target(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        first(rows, split="unused")["split"] = "train"

    caught(clean.with_rows("interactions", plant), "training goes on after a held-out target")


def test_two_test_targets_of_one_user(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        first(rows, user_id="u0", split="validation")["split"] = "test"

    caught(clean.with_rows("interactions", plant), "a user has two targets of one split")


def test_a_disliked_target(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        first(rows, split="test").update(rating=1.0, feedback="dislike")

    caught(clean.with_rows("interactions", plant), "a held-out target is not a like")


# --- fits and candidates


@pytest.mark.parametrize("split", ["validation", "test", "unused"])
@pytest.mark.parametrize("fold", ["full", "rolled_back"])
def test_a_held_out_event_in_a_fit(clean: Tables, split: str, fold: str) -> None:
    held_out = first(clean.interactions.to_pylist(), split=split)
    row = {"fold": fold, "user_id": held_out["user_id"], "item_id": held_out["item_id"]}
    caught(
        clean.with_rows("fit_events", lambda rows: rows.append(row)), "a fit saw an event that is not a training event"
    )


def test_an_in_sample_signal(clean: Tables) -> None:
    """The backbone has seen the training target: its hint is too good to be true."""
    target = first(clean.candidates.to_pylist(), split="train")
    row = {"fold": "rolled_back", "user_id": target["user_id"], "item_id": target["target_id"]}
    caught(clean.with_rows("fit_events", lambda rows: rows.append(row)), "its signals are in-sample")


def test_training_lists_scored_by_the_full_fit(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        first(rows, split="train")["fold"] = "full"

    caught(clean.with_rows("candidates", plant), "fit of its own fold 'full', so its signals are in-sample")


def test_a_fold_that_says_nothing(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        first(rows, split="train")["fold"] = "mystery"

    caught(clean.with_rows("candidates", plant), "fold 'mystery' does not say what it was fitted on")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_target_in_its_own_history(clean: Tables, split: str) -> None:
    def plant(rows: list[Row]) -> None:
        first(rows, split=split)["before"] += 1

    caught(clean.with_rows("candidates", plant), "the history of a list reaches beyond its target")


def test_a_list_for_an_unknown_user(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        first(rows, split="test")["user_id"] = "u9999"

    caught(clean.with_rows("candidates", plant), "a list is for a user the interactions do not know: user 'u9999'")


def test_a_row_number_in_place_of_an_id(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        first(rows, split="train")["target_id"] = "17"

    caught(clean.with_rows("candidates", plant), "a target is no interaction of its user")


def test_a_test_target_in_a_training_list(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        first(rows, user_id="u0", split="test").update(split="train", fold="rolled_back")

    caught(clean.with_rows("candidates", plant), "a list's target is not a like of the list's own split")


def test_a_rating_of_another_item(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        row = first(rows, split="test")
        row["target_rating"] = 9.0 - row["target_rating"]

    caught(clean.with_rows("candidates", plant), "target_rating is not the rating the user gave")


def test_a_target_offered_twice(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        row = first(rows, split="test")
        places = [place for place, item_id in enumerate(row["candidate_ids"]) if item_id != row["target_id"]]
        row["candidate_ids"][places[0]] = row["target_id"]

    caught(clean.with_rows("candidates", plant), "an item is offered twice in one list")


def test_a_candidate_out_of_the_history(clean: Tables) -> None:
    liked = first(clean.interactions.to_pylist(), user_id="u0", split="train", feedback="like")

    def plant(rows: list[Row]) -> None:
        row = first(rows, user_id="u0", split="test")
        place = next(i for i, item_id in enumerate(row["candidate_ids"]) if item_id != row["target_id"])
        row["candidate_ids"][place] = liked["item_id"]

    caught(clean.with_rows("candidates", plant), "a candidate is a like of the list's own history")


def test_hits_by_position(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        first(rows, split="test")["hit"] = False

    caught(clean.with_rows("candidates", plant), "hit does not say whether the target is offered")


@pytest.mark.parametrize("rating", [0.5, 5.5, float("nan")])
def test_a_predicted_rating_off_the_scale(clean: Tables, rating: float) -> None:
    def plant(rows: list[Row]) -> None:
        first(rows, split="test")["predicted_ratings"][2] = rating

    caught(clean.with_rows("candidates", plant), "a predicted rating is off the scale")


# --- prompts


def questions(rows: list[Row], split: str, task: str) -> list[Row]:
    return [one for row in rows if row["split"] == split for one in row["questions"] if one["task"] == task]


@pytest.mark.parametrize("task", ["pointwise", "pairwise", "listwise"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_answer_at_inference(clean: Tables, split: str, task: str) -> None:
    def plant(rows: list[Row]) -> None:
        one = questions(rows, split, task)[0]
        one["answer"] = one["labels"][0]

    caught(clean.with_rows("prompts", plant), "a validation or test prompt knows its answer")


def test_a_training_question_without_an_answer(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        questions(rows, "train", "listwise")[0]["answer"] = None

    caught(clean.with_rows("prompts", plant), "a training question has no answer")


def test_an_item_from_outside_the_list(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        questions(rows, "test", "pointwise")[0]["item_ids"] = ["i999"]

    caught(clean.with_rows("prompts", plant), "an item its list does not offer")


def test_a_list_of_somebody_else(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        first(rows, user_id="u0", split="test")["list_id"] = first(rows, user_id="u1", split="test")["list_id"]

    caught(clean.with_rows("prompts", plant), "a prompt's list is of another user or split")


def test_a_test_list_asked_about_in_training(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        first(rows, user_id="u0", split="train")["list_id"] = first(rows, user_id="u0", split="test")["list_id"]

    caught(clean.with_rows("prompts", plant), "a prompt's list is of another user or split")


def test_a_list_that_is_not_there(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        rows[0]["list_id"] = "train/u0/nothing"

    caught(clean.with_rows("prompts", plant), "a prompt asks about a list that is not there")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_held_out_like_as_a_known_negative(clean: Tables, split: str) -> None:
    held_out = first(clean.interactions.to_pylist(), user_id="u0", split=split)["item_id"]
    row = first(clean.candidates.to_pylist(), user_id="u0", split="train")
    victim = next(item_id for item_id in row["candidate_ids"] if item_id != row["target_id"])

    def swap(ids: list[str]) -> list[str]:
        return [held_out if item_id == victim else item_id for item_id in ids]

    def plant_candidates(rows: list[Row]) -> None:
        one = first(rows, user_id="u0", split="train")
        one["candidate_ids"] = swap(one["candidate_ids"])

    def plant_prompts(rows: list[Row]) -> None:
        for one in first(rows, user_id="u0", split="train")["questions"]:
            one["item_ids"] = swap(one["item_ids"])

    planted = clean.with_rows("candidates", plant_candidates).with_rows("prompts", plant_prompts)
    caught(planted, "a training prompt shows the user's own validation or test target")


@pytest.mark.parametrize("task", ["pairwise", "listwise", "pointwise"])
def test_an_answer_that_points_elsewhere(clean: Tables, task: str) -> None:
    def plant(rows: list[Row]) -> None:
        one = questions(rows, "train", task)[0]
        one["answer"] = next(label for label in one["labels"] if label != one["answer"])

    caught(clean.with_rows("prompts", plant), f"{task} question (does not point at its target|mistakes another item)")


def test_an_answer_that_is_no_label(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        questions(rows, "train", "listwise")[0]["answer"] = "Z"

    caught(clean.with_rows("prompts", plant), "an answer is none of the question's labels")


def _in_order(tables: Tables, splits: tuple[str, ...]) -> Callable[[list[Row]], None]:
    offered = {row["list_id"]: row for row in tables.candidates.to_pylist()}

    def plant(rows: list[Row]) -> None:
        for row in rows:
            ids = offered[row["list_id"]]["candidate_ids"]
            target = offered[row["list_id"]]["target_id"]
            for one in row["questions"]:
                if row["split"] in splits and one["task"] == "listwise":
                    one["item_ids"] = ids
                    one["answer"] = one["labels"][ids.index(target)] if row["split"] == "train" else None

    return plant


@pytest.mark.parametrize("splits", [("validation", "test"), ("train",)])
def test_lists_left_in_retrieval_order(clean: Tables, splits: tuple[str, ...]) -> None:
    caught(clean.with_rows("prompts", _in_order(clean, splits)), "all lists stand in the retriever's order")


def test_a_target_that_always_stands_first(clean: Tables) -> None:
    targets = {row["list_id"]: row["target_id"] for row in clean.candidates.to_pylist()}

    def plant(rows: list[Row]) -> None:
        for row in rows:
            for one in row["questions"]:
                if row["split"] == "train" and one["task"] == "listwise":
                    one["item_ids"].sort(key=lambda item_id: item_id != targets[row["list_id"]])
                    one["answer"] = one["labels"][0]

    caught(clean.with_rows("prompts", plant), "the target of every listwise training question stands in the same place")


def test_a_pair_asked_in_one_order(clean: Tables) -> None:
    def plant(rows: list[Row]) -> None:
        row = first(rows, user_id="u0", split="test")
        row["questions"].remove(next(one for one in row["questions"] if one["task"] == "pairwise"))

    caught(clean.with_rows("prompts", plant), "a pair is asked in one order only")


def test_two_templates(clean: Tables) -> None:
    with pytest.raises(LeakageError, match=r"different templates: \{'test': 'b', 'train': 'a'\}"):
        check_prompts(clean.interactions, clean.candidates, clean.prompts, template_hashes={"train": "a", "test": "b"})
    check_prompts(clean.interactions, clean.candidates, clean.prompts, template_hashes={"train": "a", "test": "a"})
