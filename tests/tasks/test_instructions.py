import numpy as np
import pyarrow as pa
import pytest

from recranker.errors import DataError
from recranker.tasks.instructions import WITH_REASON, PromptBuilder, titles_by_id, to_prompts
from recranker.tasks.prefix import build_prefix
from recranker.tasks.protocol import RatingScale
from recranker.tasks.settings import InstructSettings
from tests.tables import candidate_list, candidates, draws, interactions
from tests.tasks.plain_instructions import made_up_service, plain_rows

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
    assert [{**one, "tokens": None} for one in plain] == rows["questions"][0].as_py()


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


@pytest.mark.parametrize(
    "settings",
    [
        InstructSettings(),
        InstructSettings(hints="backbone", pointwise_answer="rating", max_liked=2, max_disliked=0),
        InstructSettings(hints="none", pair_schedule="budgeted", list_permutations=3, pointwise_negatives=3),
    ],
)
def test_many_users_at_once_get_exactly_the_prompts_made_one_by_one(settings: InstructSettings) -> None:
    builder = PromptBuilder(TITLES, settings, RatingScale(1, 5), 7)
    tables = made_up_service(120, 1)
    found = sorted(builder.prompts(*tables).to_pylist(), key=lambda row: row["prompt_id"])
    expected = pa.Table.from_pylist(plain_rows(builder, *tables), schema=WITH_REASON)
    assert found == expected.to_pylist()
    assert {row["reason"] for row in found} >= {
        None,
        "no training list holds its target",
        "a candidate has no title",
        "the list has no candidates",
    }


def test_one_million_events_of_one_user_cost_no_more_than_their_sorting() -> None:
    count = 1_000_000
    history = pa.table(
        {
            "user_id": pa.repeat("u", count),
            "item_id": pa.array([f"i{n}" for n in range(20)]).take(pa.array(np.arange(count) % 20)),
            "feedback": pa.repeat("like", count),
            "sequence": pa.array(np.arange(count)[::-1].astype(np.int32)),
        }
    )
    rows = BUILDER.prompts(history, candidates({**TEST, "before": 5}, {**TRAIN, "before": count}), draws("u"))
    liked = [row.split("Liked:\n")[1].splitlines() for row in rows["prefix"].to_pylist()]
    assert liked[0] == ["Film 0", "Film 1", "Film 2"]  # sequence runs against the rows: the last event is in row 0
    assert liked[1] == ["Film 15", "Film 16", "Film 17"]  # sequences 4, 3, 2 are in rows 999,995 and after


def test_two_events_of_a_user_in_one_place_are_refused() -> None:
    twice = interactions(("v", "i0", 4, "like", "train"), ("u", "i0", 4, "like", "train"), ("v", "i1", 4, "like", "x"))
    with pytest.raises(DataError, match="user 'v' has two interactions with sequence 4"):
        BUILDER.prompts(twice, candidates(), draws())


def test_text_that_cannot_be_read_and_users_with_too_few_likes_are_put_aside_with_their_reason() -> None:
    titles = pa.array([f"Film {n}".encode() for n in range(20)]).cast(pa.binary()).to_pylist()
    titles[11] = b"Am\xe9lie"  # Latin-1
    text = pa.array(titles, pa.binary()).view(pa.string())
    read = titles_by_id(pa.table({"item_id": [f"i{n}" for n in range(20)], "title": text}))
    assert read["i11"] == "Am\ufffdlie"
    builder = PromptBuilder(read, InstructSettings(min_liked=4), RatingScale(1, 5), 0)
    rows = builder.prompts(
        HISTORY, candidates(TRAIN, {**TEST, "before": 6}, {**TEST, "list_id": "test/u/8"}), draws("u")
    )
    assert dict(zip(rows["prompt_id"].to_pylist(), rows["reason"].to_pylist(), strict=True)) == {
        "train/0": "a candidate's title is not readable text",
        "test/u/i8": "fewer likes before it than instruct.min_liked",
        "test/u/8": None,
    }


def test_users_without_a_single_usable_list_are_put_aside_too() -> None:
    rows = BUILDER.prompts(interactions(), candidates(), draws("u", "v"))
    assert rows["reason"].to_pylist() == ["no training list holds its target"] * 2
    assert BUILDER.prompts(HISTORY, candidates(TRAIN), draws()).num_rows == 0


def test_likes_that_are_not_shown_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match=r"min_liked 6 must be at most instruct\.max_liked 5"):
        InstructSettings(min_liked=6, max_liked=5)
