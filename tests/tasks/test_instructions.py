import numpy as np
import pyarrow as pa
import pytest

from recranker.tasks.instructions import PromptBuilder, to_prompts
from recranker.tasks.prefix import build_prefix
from recranker.tasks.protocol import RatingScale
from recranker.tasks.settings import InstructSettings
from tests.tables import candidate_list, candidates, draws, interactions

TITLES = {f"i{n}": f"Film {n}" for n in range(20)}
BUILDER = PromptBuilder(TITLES, InstructSettings(max_liked=3, max_disliked=1), RatingScale(1, 5), 0)
HISTORY = interactions(
    ("u", "i0", 0, "like", "train"),
    ("u", "i1", 1, "dislike", "train"),
    ("u", "i2", 2, "like", "train"),
    ("u", "i3", 3, "like", "train"),
    ("u", "i4", 4, "neutral", "train"),
    ("u", "i5", 5, "dislike", "train"),
    ("u", "i6", 6, "like", "train"),
    ("u", "i7", 7, "like", "validation"),
    ("u", "i8", 8, "like", "test"),
)
LISTS = ("labels", "item_ids", "soft_labels")
TRAIN = candidate_list("u", "train", "i6", ["i6", "i10", "i11", "i12"], before=6)
TEST = candidate_list("u", "test", "i8", ["i13", "i8", "i14"], before=8)


def built(*rows: dict, drawn: tuple[str, ...] = ()) -> pa.Table:
    return BUILDER.prompts(HISTORY, candidates(*rows), draws(*drawn))


def test_the_history_is_newest_first_cut_and_ends_before_the_target() -> None:
    prefix = built(TRAIN, drawn=("u",))["prefix"][0].as_py()
    assert prefix.splitlines()[2:] == ["Disliked:", "Film 5", "Liked:", "Film 3", "Film 2", "Film 0"]


def test_the_history_at_test_time_holds_the_validation_like_but_not_the_target() -> None:
    lines = built(TEST)["prefix"][0].as_py().splitlines()
    assert lines[lines.index("Liked:") + 1 :] == ["Film 7", "Film 6", "Film 3"]


def test_a_prompt_per_draw_and_per_ranked_list() -> None:
    rows = built(TRAIN, TEST, drawn=("u", "u"))
    assert rows["prompt_id"].to_pylist() == ["train/0", "train/1", "test/u/i8"]
    assert rows["reason"].null_count == 3


def test_repeated_draws_go_through_all_lists_before_one_comes_again() -> None:
    other = candidate_list("u", "train", "i3", ["i3", "i15", "i16"], before=3)
    rows = built(TRAIN, other, drawn=("u", "u", "u", "u"))
    first = rows["list_id"].to_pylist()
    assert set(first[:2]) == {"train/u/i6", "train/u/i3"}
    assert first[:2] == first[2:]
    assert rows["questions"][0].as_py() != rows["questions"][2].as_py()  # new shuffles for the same list


def test_what_cannot_become_a_prompt_keeps_its_row_and_a_reason() -> None:
    missed = candidate_list("u", "train", "i6", ["i10", "i11"])
    nameless = candidate_list("u", "validation", "i7", ["i7", "unknown"], before=7)
    rows = built(missed, nameless, drawn=("u",))
    assert rows["reason"].to_pylist() == ["no training list holds its target", "a candidate has no title"]


def test_prompts_come_back_from_their_table() -> None:
    rows = built(TRAIN, drawn=("u",))
    prompt = to_prompts(rows)[0]
    assert prompt.prompt_id == "train/0"
    plain = [{**vars(one), **{name: list(getattr(one, name)) for name in LISTS}} for one in prompt.questions]
    assert plain == rows["questions"][0].as_py()


def test_rounds_come_back_from_their_table() -> None:
    builder = PromptBuilder(TITLES, InstructSettings(list_permutations=4), RatingScale(1, 5), 0)
    prompt = to_prompts(builder.prompts(HISTORY, candidates(TEST), draws()))[0]
    assert [one.round for one in prompt.questions if one.task == "listwise"] == [0, 0, 1, 2]


def test_lists_of_one_candidate_are_asked_about_and_those_of_none_are_put_aside() -> None:
    one = candidate_list("u", "test", "i8", ["i8"], before=8)
    none = candidate_list("u", "validation", "i7", [], before=7)
    rows = built(one, none)
    assert rows["reason"].to_pylist() == ["the list has no candidates", None]
    assert [question["task"] for question in rows["questions"][1].as_py()] == ["pointwise"]


def test_a_training_list_that_leaves_nothing_to_ask_is_put_aside() -> None:
    settings = InstructSettings(pointwise_answer="rating")
    alone = candidate_list("u", "train", "i6", ["i6"], before=6, target_rating=None)
    rows = PromptBuilder(TITLES, settings, RatingScale(1, 5), 0).prompts(HISTORY, candidates(alone), draws("u"))
    assert rows["reason"].to_pylist() == ["one candidate without a rating leaves nothing to ask"]


def test_a_user_without_history_still_gets_a_prefix() -> None:
    assert build_prefix([], []).endswith("Liked: nothing known yet")


def test_hints_quote_the_order_that_the_settings_name() -> None:
    turned = {**TEST, "reranker_scores": [0.0, 1.0, 2.0]}  # the re-ranker turns the retriever's order round
    orders = {}
    for hints in ("reranker", "backbone"):
        builder = PromptBuilder(TITLES, InstructSettings(hints=hints), RatingScale(1, 5), 0)
        questions = builder.prompts(HISTORY, candidates(turned), draws())["questions"][0].as_py()
        shown = next(one for one in questions if one["task"] == "listwise")
        letters = shown["text"].split("[order: ")[1].rstrip("]").split()
        orders[hints] = [shown["item_ids"][shown["labels"].index(letter)] for letter in letters]
    assert orders == {"reranker": ["i14", "i8", "i13"], "backbone": ["i13", "i8", "i14"]}


def test_the_teachers_probabilities_are_a_softmax_of_the_rerankers_scores() -> None:
    row = built({**TRAIN, "reranker_scores": [np.log(4.0), np.log(3.0), np.log(2.0), 0.0]}, drawn=("u",))
    listwise = row["questions"][0].as_py()[-1]
    by_item = dict(zip(listwise["item_ids"], listwise["soft_labels"], strict=True))
    assert by_item == pytest.approx({"i6": 0.4, "i10": 0.3, "i11": 0.2, "i12": 0.1})
