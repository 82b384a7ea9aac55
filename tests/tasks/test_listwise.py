"""Windows of long lists, how their answers are joined, and when a list is settled."""

import numpy as np
import pytest

from recranker.errors import SettingsError
from recranker.settings import check_settings
from recranker.tasks import listwise
from recranker.tasks.protocol import Answer, Candidate
from recranker.tasks.settings import InstructSettings


def some(count: int) -> list[Candidate]:
    return [Candidate(f"i{n}", f"Film {n}", n + 1) for n in range(count)]


def answer(items: str, *probabilities: float, round: int = 0) -> Answer:
    return Answer("listwise", tuple(items), np.log(np.array(probabilities)), round)


def ids(windows: list[list[Candidate]]) -> list[list[int]]:
    return [[int(one.item_id[1:]) for one in shown] for shown in windows]


@pytest.mark.parametrize("count", [2, 10, 26])
def test_up_to_26_candidates_are_one_question(count: int) -> None:
    assert ids(listwise.windows(some(count), window=5, stride=5)) == [list(range(count))]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_candidates_are_no_question(count: int) -> None:
    assert listwise.windows(some(count), window=20, stride=15) == []


def test_windows_of_27_candidates_by_hand() -> None:
    first, second = ids(listwise.windows(some(27), window=20, stride=15))
    assert first == list(range(20))
    assert second == [*range(13, 27), *range(6)]  # half of the way round a circle


def test_windows_leave_no_gap_overlap_and_ask_about_all_equally_often() -> None:
    for count in range(27, 201):
        for window, stride in [(20, 15), (26, 26), (26, 1), (10, 7), (2, 1), (2, 2), (20, 20)]:
            shown = ids(listwise.windows(some(count), window=window, stride=stride))
            assert len(shown) == -(-count // stride)  # linear in the number of candidates
            assert all(len(set(one)) == len(one) == window for one in shown)
            times = np.bincount(np.concatenate(shown), minlength=count)
            assert times.min() >= 1
            assert times.max() - times.min() <= 1
            if stride < window:
                assert all(set(one) & set(other) for one, other in zip(shown, shown[1:] + shown[:1], strict=True))


def test_the_hint_of_a_window_is_the_order_within_it() -> None:
    window = listwise.windows(some(27)[::-1], window=3, stride=2)[0]
    assert listwise.question(window, hint="reranker").text.endswith(
        "A. Film 26\nB. Film 25\nC. Film 24\n[order: C B A]"
    )


def test_windows_that_agree_give_back_the_truth() -> None:
    # a, b, c are the best with 0.5, 0.3, 0.2: of a and b it is a with 0.5 / 0.8, of b and c it is b with 0.3 / 0.5
    answers = [answer("ab", 0.625, 0.375), answer("cb", 0.4, 0.6)]
    np.testing.assert_allclose(listwise.scores(answers, ["c", "a", "b"]), np.log([0.2, 0.5, 0.3]))


def test_window_scores_do_not_depend_on_how_strong_the_others_of_a_window_are() -> None:
    random = np.random.default_rng(0)
    items = some(60)
    truth = random.normal(scale=3.0, size=60)
    answers = []
    for permutation in range(2):
        order = listwise.shuffled(items, permutation)
        for shown in listwise.windows(order, window=20, stride=15):
            logits = truth[[one.place - 1 for one in shown]]
            found = logits - np.logaddexp.reduce(logits)
            answers.append(Answer("listwise", tuple(one.item_id for one in shown), found))
    scores = listwise.scores(answers, [one.item_id for one in items])
    np.testing.assert_allclose(scores, truth - np.logaddexp.reduce(truth))


def test_questions_about_the_whole_list_are_averaged_and_not_normalised_again() -> None:
    answers = [answer("ab", 0.9, 0.1), answer("ba", 0.8, 0.2)]
    expected = [(np.log(0.9) + np.log(0.2)) / 2, (np.log(0.1) + np.log(0.8)) / 2]
    assert listwise.scores(answers, ["a", "b"]).tolist() == expected


def test_the_first_two_shuffles_are_asked_at_once_and_each_further_one_by_itself() -> None:
    assert [listwise.round_of(permutation) for permutation in range(5)] == [0, 0, 1, 2, 3]


def test_a_list_is_settled_when_the_latest_shuffle_left_its_order() -> None:
    same = [answer("ab", 0.9, 0.1), answer("ba", 0.4, 0.6)]
    assert listwise.settled(same, ["a", "b"])
    turned = [answer("ab", 0.6, 0.4), answer("ba", 0.9, 0.1)]  # a alone in front, b on average
    assert not listwise.settled(turned, ["a", "b"])
    assert listwise.settled([*turned, answer("ab", 0.3, 0.7, round=1)], ["a", "b"])
    assert not listwise.settled([*turned, answer("ab", 0.99, 0.01, round=1)], ["a", "b"])
    back = [*turned, answer("ab", 0.99, 0.01, round=1), answer("ba", 0.5, 0.5, round=2)]
    assert listwise.settled(back, ["a", "b"])  # rounds are told apart: this one changed nothing


def test_windows_of_one_shuffle_settle_a_list_together() -> None:
    first = [answer("ab", 0.7, 0.3), answer("bc", 0.7, 0.3)]
    assert listwise.settled([*first, answer("ba", 0.4, 0.6), answer("cb", 0.4, 0.6)], ["a", "b", "c"])
    assert not listwise.settled([*first, answer("ba", 0.4, 0.6), answer("cb", 0.9, 0.1)], ["a", "b", "c"])


def test_a_stride_beyond_the_window_is_refused_and_names_both() -> None:
    with pytest.raises(SettingsError, match=r"list_stride 15 must be at most instruct\.list_window 10"):
        check_settings(InstructSettings, {"list_window": 10}, where="test")
    assert InstructSettings(list_window=10, list_stride=10).list_stride == 10
