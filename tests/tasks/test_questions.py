import pytest

from recranker.errors import DataError, SettingsError
from recranker.tasks import listwise, pairwise, pointwise
from recranker.tasks.protocol import Candidate, RatingScale
from recranker.tasks.questions import ranking_questions, training_questions
from recranker.tasks.settings import InstructSettings

SCALE = RatingScale(1.0, 5.0)
TEN = [Candidate(f"i{n}", f"Film {n}", n + 1, 4.0 - n / 10) for n in range(10)]
MANY = [Candidate(f"i{n}", f"Film {n}.", n + 1, None, 1 / 200) for n in range(200)]


def test_a_user_costs_ten_points_ten_pairs_in_both_orders_and_two_lists() -> None:
    asked = ranking_questions(TEN, InstructSettings(), SCALE, 0, "list")
    assert [sum(one.task == task for one in asked) for task in ("pointwise", "pairwise", "listwise")] == [10, 20, 2]
    assert all(one.answer is None for one in asked)


def test_disjoint_pairs_are_asked_in_both_orders() -> None:
    settings = InstructSettings(pair_schedule="disjoint")
    asked = [one.item_ids for one in ranking_questions(TEN, settings, SCALE, 0, "list", tasks=["pairwise"])]
    assert all(pair[::-1] in asked for pair in asked)
    assert sorted(item for pair in asked for item in pair) == sorted(2 * [one.item_id for one in TEN])


@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_every_item_is_in_a_pair(count: int) -> None:
    pairs = pairwise.disjoint(count, "key")
    assert {item for pair in pairs for item in pair} == set(range(count))
    assert all(first != second for first, second in pairs)


def test_the_order_shown_is_keyed_and_differs_between_permutations() -> None:
    asked = ranking_questions(TEN, InstructSettings(), SCALE, 0, "list", tasks=["listwise"])
    again = ranking_questions(TEN, InstructSettings(), SCALE, 0, "list", tasks=["listwise"])
    other = ranking_questions(TEN, InstructSettings(), SCALE, 1, "list", tasks=["listwise"])
    assert asked == again
    assert asked[0].item_ids != asked[1].item_ids
    assert asked[0].item_ids != other[0].item_ids
    assert asked[0].item_ids != tuple(one.item_id for one in TEN)


def test_training_answers_name_the_target() -> None:
    settings = InstructSettings(pointwise_negatives=2, pairs=3)
    for draw in range(20):
        for one in training_questions(TEN, "i4", 5.0, settings, SCALE, 0, draw):
            if one.task == "listwise":
                assert one.item_ids["ABCDEFGHIJ".index(one.answer or "")] == "i4"
            elif one.task == "pairwise":
                assert one.item_ids[0 if one.answer == "Yes" else 1] == "i4"
            else:
                assert (one.item_ids == ("i4",)) == (one.answer == "Yes")


def test_pair_answers_and_letters_are_not_always_the_same() -> None:
    asked = [one for draw in range(40) for one in training_questions(TEN, "i4", 5.0, InstructSettings(), SCALE, draw)]
    assert {one.answer for one in asked if one.task == "pairwise"} == {"Yes", "No"}
    assert len({one.answer for one in asked if one.task == "listwise"}) > 5


def test_the_rating_question_takes_its_scale_from_the_data() -> None:
    books = RatingScale(1.0, 10.0)
    settings = InstructSettings(pointwise_answer="rating")
    asked = training_questions(TEN, "i4", 7.5, settings, books, 0)[0]
    assert asked.labels == tuple(str(n) for n in range(1, 11))
    assert asked.answer == "8"
    assert "from 1 to 10" in asked.text


def test_without_ratings_a_rating_is_not_asked_and_no_rating_is_mentioned() -> None:
    bare = [Candidate(one.item_id, one.title, one.place) for one in TEN]
    settings = InstructSettings(pointwise_answer="rating")
    asked = training_questions(bare, "i4", None, settings, SCALE, 0)
    assert {one.task for one in asked} == {"pairwise", "listwise"}
    assert "predicted" not in pointwise.question(bare[0], 10, kind="like", scale=SCALE, hint="backbone").text


def test_hints_say_what_the_retriever_thinks_and_can_be_left_out() -> None:
    assert "[second]" in pairwise.question(TEN[5], TEN[2], hint="backbone").text
    assert "[order: B C A]" in listwise.question([TEN[9], TEN[0], TEN[4]], hint="backbone").text
    assert "[predicted rating 3.6]" in pointwise.question(TEN[4], 10, kind="like", scale=SCALE, hint="backbone").text
    for one in ranking_questions(TEN, InstructSettings(hints="none"), SCALE, 0):
        assert "[" not in one.text


def test_more_candidates_than_letters_are_refused() -> None:
    with pytest.raises(SettingsError, match="at most 26 candidates, got 27"):
        listwise.question([TEN[0]] * 27, hint="none")


@pytest.mark.parametrize(("rating", "label"), [(0.5, "1"), (3.4, "3"), (3.5, "4"), (5.0, "5"), (9.0, "5")])
def test_ratings_become_the_nearest_label(rating: float, label: str) -> None:
    assert pointwise.rating_label(rating, SCALE) == label


def taught(*probabilities: float) -> list[Candidate]:
    return [Candidate(f"i{n}", f"Film {n}", n + 1, None, one) for n, one in enumerate(probabilities)]


def test_the_teacher_speaks_in_training_only() -> None:
    candidates = taught(0.5, 0.3, 0.2)
    assert all(one.soft_labels is None for one in ranking_questions(candidates, InstructSettings(), SCALE, 0))
    asked = training_questions(candidates, "i1", 5.0, InstructSettings(), SCALE, 0)
    assert all(sum(one.soft_labels or ()) == pytest.approx(1.0) for one in asked)


def test_soft_labels_by_hand() -> None:
    first, second, third = taught(0.5, 0.3, 0.2)
    pair = pairwise.question(second, first, hint="reranker", answer="Yes")
    assert pair.soft_labels == pytest.approx((0.5 / 0.8, 0.3 / 0.8))  # No, Yes
    assert pair.text.endswith("[second]")
    shown = listwise.question([third, first, second], hint="reranker", answer_id="i1")
    assert shown.soft_labels == pytest.approx((0.2, 0.5, 0.3))
    # Asked about one target and one of two others: target in 0.3 of the cases, other in 0.7 / 2.
    assert pointwise.soft_like(second, 3, 1) == pytest.approx((0.35 / 0.65, 0.3 / 0.65))
    assert pointwise.soft_like(TEN[0], 10, 1) is None


def test_the_rerankers_place_is_the_pointwise_hint() -> None:
    asked = ranking_questions(TEN, InstructSettings(), SCALE, 0, tasks=["pointwise"])
    words = ["Yes", "Yes", "mostly Yes", "mostly Yes", "unsure", "unsure", "mostly No", "mostly No", "No", "No"]
    for place, (one, word) in enumerate(zip(asked, words, strict=True), start=1):
        assert one.text.endswith(f" [others: {word}, place {place}]")
    assert [pointwise.opinion(place, 3) for place in (1, 2, 3)] == ["Yes", "mostly Yes", "mostly No"]
    rating = pointwise.question(TEN[4], 10, kind="rating", scale=SCALE, hint="reranker")
    assert rating.text.endswith("5. [place 5]")


def test_title_slots_grow_with_the_candidates_and_not_with_their_square() -> None:
    settings = InstructSettings(pair_schedule="budgeted", pairs_per_candidate=2)
    slots = {
        count: sum(len(one.item_ids) for one in ranking_questions(MANY[:count], settings, SCALE, 0))
        for count in (10, 200)
    }
    assert slots[10] == 10 + 20 * 2 * 2 + 2 * 10  # points, 20 pairs in both orders, 2 shuffles
    assert slots[200] == 200 + 400 * 2 * 2 + 2 * 14 * 20  # 14 windows of 20 a shuffle
    assert slots[200] <= 25 * slots[10]


@pytest.mark.parametrize("schedule", ["disjoint", "all", "budgeted"])
def test_every_pair_is_asked_in_both_orders(schedule: pairwise.PairSchedule) -> None:
    settings = InstructSettings(pair_schedule=schedule, pairs_per_candidate=2)
    asked = ranking_questions(TEN, settings, SCALE, 0, tasks=["pairwise"])
    pairs = [one.item_ids for one in asked]
    assert len(set(pairs)) == len(pairs) == {"disjoint": 10, "all": 90, "budgeted": 40}[schedule]
    assert {pair[::-1] for pair in pairs} == set(pairs)


def test_a_pointwise_question_speaks_of_its_own_item_alone() -> None:
    for one in ranking_questions(MANY, InstructSettings(), SCALE, 0, tasks=["pointwise"]):
        assert [other.item_id for other in MANY if other.title in one.text] == list(one.item_ids)


def test_shuffles_have_rounds_and_nothing_else_has() -> None:
    asked = ranking_questions(TEN, InstructSettings(list_permutations=5), SCALE, 0)
    assert [one.round for one in asked if one.task == "listwise"] == [0, 0, 1, 2, 3]
    assert all(one.round == 0 for one in asked if one.task != "listwise")
    assert asked[:-3] == ranking_questions(TEN, InstructSettings(), SCALE, 0)  # more of them change no earlier one


def test_a_long_list_is_asked_about_in_windows_that_differ_between_shuffles() -> None:
    asked = ranking_questions(MANY[:27], InstructSettings(), SCALE, 0, tasks=["listwise"])
    assert [len(one.item_ids) for one in asked] == [20, 20, 20, 20]
    assert {item for one in asked[:2] for item in one.item_ids} == {one.item_id for one in MANY[:27]}
    assert set(asked[0].item_ids) != set(asked[2].item_ids)


def test_one_candidate_is_asked_about_pointwise_only_and_none_not_at_all() -> None:
    for settings in (InstructSettings(), InstructSettings(pair_schedule="disjoint"), InstructSettings(hints="none")):
        assert [one.task for one in ranking_questions(TEN[:1], settings, SCALE, 0)] == ["pointwise"]
        assert ranking_questions([], settings, SCALE, 0) == ()


def test_candidates_named_twice_are_refused_by_id() -> None:
    twice = [*TEN, TEN[3]]
    with pytest.raises(DataError, match="must be distinct, 'i3' came 2 times"):
        ranking_questions(twice, InstructSettings(), SCALE, 0)
    with pytest.raises(DataError, match="must be distinct, 'i3' came 2 times"):
        training_questions(twice, "i4", 5.0, InstructSettings(), SCALE, 0)


def test_more_candidates_than_can_be_ranked_are_refused() -> None:
    assert ranking_questions(MANY, InstructSettings(), SCALE, 0)
    with pytest.raises(SettingsError, match="at most 200 candidates, got 201"):
        ranking_questions([*MANY, Candidate("x", "X", 201)], InstructSettings(), SCALE, 0)


def test_training_on_a_long_list_sees_a_window_with_the_target() -> None:
    settings = InstructSettings(list_window=12, list_stride=12)
    shown, places = set(), set()
    for draw in range(40):
        asked = training_questions(MANY, "i150", 5.0, settings, SCALE, draw)[-1]
        assert len(set(asked.item_ids)) == 12
        assert asked.item_ids[asked.labels.index(asked.answer or "")] == "i150"
        assert asked.soft_labels == pytest.approx([1 / 12] * 12)  # 1 / 200 each, over the window
        shown |= set(asked.item_ids)
        places.add(asked.answer)
    assert len(shown) > 150  # others are drawn from the whole list
    assert len(places) > 8


def test_training_on_one_candidate_asks_about_it_alone() -> None:
    alone = training_questions(taught(1.0), "i0", 5.0, InstructSettings(), SCALE, 0)
    assert [(one.task, one.answer, one.soft_labels) for one in alone] == [("pointwise", "Yes", None)]
    assert training_questions(taught(1.0), "i0", None, InstructSettings(pointwise_answer="rating"), SCALE, 0) == ()


def test_a_teacher_sure_of_one_item_teaches_nothing_about_the_others() -> None:
    sure = taught(1.0, 0.0, 0.0)
    asked = training_questions(sure, "i1", 5.0, InstructSettings(pointwise_negatives=0), SCALE, 0)
    labels = {(one.task, frozenset(one.item_ids)): one.soft_labels for one in asked}
    assert labels["pointwise", frozenset({"i1"})] is None  # never asked about as anything
    assert labels["pairwise", frozenset({"i1", "i2"})] is None
    assert max(labels["pairwise", frozenset({"i0", "i1"})] or ()) == 1.0
    assert sorted(labels["listwise", frozenset({"i0", "i1", "i2"})] or ()) == [0.0, 0.0, 1.0]
    assert listwise.question(sure[1:], hint="none", answer_id="i1").soft_labels is None
