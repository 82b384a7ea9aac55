import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recranker.evaluation.position_bias import position_bias
from recranker.schema import ANSWERS
from recranker.tasks.listwise import windows
from recranker.tasks.protocol import Candidate


def asked(task: str, items: Iterable[str], *probabilities: float, round: int = 0) -> dict[str, Any]:
    return {"task": task, "item_ids": list(items), "log_probabilities": np.log(probabilities), "round": round}


def listwise(order: Iterable[str], *probabilities: float, round: int = 0) -> dict[str, Any]:
    return asked("listwise", order, *probabilities, round=round)


def pairwise(order: str, yes: float) -> dict[str, Any]:
    return asked("pairwise", order, 1 - yes, yes)


def pointwise(item: str) -> dict[str, Any]:
    return asked("pointwise", [item], 0.5, 0.5)


def answers(*rows: list[dict[str, Any]], model: str = "tuned", split: str = "test") -> pa.Table:
    made = [
        {"list_id": f"{split}/u{number}/x", "user_id": f"u{number}", "split": split, "model": model}
        | {"answers": row, "prompt_tokens": 1, "cut_lines": 0}
        for number, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(made, schema=ANSWERS.schema)


def test_a_model_that_reads_items_has_no_bias() -> None:
    liked = {"a": 0.6, "b": 0.3, "c": 0.1}
    shuffles = [listwise(order, *(liked[item] for item in order)) for order in ("abc", "cba", "bca")]
    table = answers([pointwise("a"), *shuffles, pairwise("ab", 0.9), pairwise("ba", 0.1)])
    bias = position_bias(table)["tuned"]
    assert bias.kendall_tau == pytest.approx(1.0)
    assert bias.first_slot_rate == pytest.approx(1 / 3)
    assert bias.first_slot_chance == pytest.approx(1 / 3)
    assert bias.pair_agreement == 1.0
    assert bias.pair_first_rate == 0.5


def test_a_model_that_always_takes_the_first_is_seen() -> None:
    table = answers(
        [
            listwise("abcd", 0.4, 0.3, 0.2, 0.1),
            listwise("dcba", 0.4, 0.3, 0.2, 0.1),
            pairwise("ab", 0.9),
            pairwise("ba", 0.9),
        ],
        [pairwise("cd", 0.8), pairwise("dc", 0.3)],
    )
    bias = position_bias(table)["tuned"]
    assert bias.first_slot_rate == 1.0
    assert bias.kendall_tau == pytest.approx(-1.0)
    assert bias.pair_agreement == 0.5
    assert bias.pair_first_rate == 0.75


def test_rankings_of_different_lists_are_not_compared() -> None:
    bias = position_bias(answers([listwise("ab", 0.9, 0.1)], [listwise("ab", 0.1, 0.9)]))["tuned"]
    assert "kendall_tau" not in bias.metrics()
    assert bias.first_slot_rate == 0.5


def by_letter(items: Iterable[str]) -> dict[str, Any]:
    """A question to a model that likes letters early in the alphabet twice as much as the next."""
    shown = list(items)
    odds = np.array([2.0 ** -ord(item) for item in shown])
    return listwise(shown, *(odds / odds.sum()))


def by_place(items: Iterable[str]) -> dict[str, Any]:
    """A question to a model that looks at places alone."""
    shown = list(items)
    odds = 2.0 ** -np.arange(len(shown))
    return listwise(shown, *(odds / odds.sum()))


def in_windows(order: str, window: int, stride: int) -> list[str]:
    """What ``tasks.listwise.windows`` shows of an order longer than a question."""
    shown = windows([Candidate(item, item, 1) for item in order], window=window, stride=stride)
    return ["".join(one.item_id for one in each) for each in shown]


@pytest.mark.parametrize(("window", "stride"), [(20, 15), (20, 10), (10, 2)])
def test_windows_are_put_together_before_two_shuffles_are_compared(window: int, stride: int) -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcd"
    shuffles = ["".join(random.Random(seed).sample(letters, 30)) for seed in (1, 2)]
    shown = [one for order in shuffles for one in in_windows(order, window, stride)]
    both = position_bias(answers([by_letter(one) for one in shown]))["tuned"]
    assert both.kendall_tau == pytest.approx(1.0)
    placed = position_bias(answers([by_place(one) for one in shown]))["tuned"]
    assert placed.kendall_tau < 0.5
    assert placed.first_slot_rate == 1.0
    assert placed.first_slot_chance == pytest.approx(1 / window)
    one_shuffle = position_bias(answers([by_letter(one) for one in shown[: len(shown) // 2]]))["tuned"]
    assert "kendall_tau" not in one_shuffle.metrics()


def test_lists_asked_again_do_not_count_twice() -> None:
    calm = [listwise("abc", 0.6, 0.3, 0.1), listwise("cba", 0.1, 0.3, 0.6)]
    torn = [listwise("abc", 0.6, 0.3, 0.1), listwise("cba", 0.6, 0.3, 0.1)]
    again = [listwise("bac", 0.6, 0.3, 0.1, round=1), listwise("acb", 0.6, 0.3, 0.1, round=2)]
    bias = position_bias(answers(calm, [*torn, *again]))["tuned"]
    assert bias.kendall_tau == pytest.approx(0.0)  # of 1 and -1
    assert bias.first_slot_rate == 0.75


def test_the_same_pair_in_two_lists_is_two_pairs() -> None:
    table = answers([pairwise("ab", 0.9), pairwise("ba", 0.2)], [pairwise("ab", 0.9)])
    assert position_bias(table)["tuned"].pair_agreement == 1.0  # the second list asked one order only


def test_lists_of_different_length_are_weighed_by_question() -> None:
    bias = position_bias(answers([listwise("ab", 0.9, 0.1)], [listwise("abcd", 0.1, 0.2, 0.3, 0.4)] * 1))["tuned"]
    assert bias.first_slot_rate == 0.5
    assert bias.first_slot_chance == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_models_are_told_apart_and_validation_is_left_out() -> None:
    tuned, untuned = answers([pairwise("ab", 0.9)]), answers([pairwise("ab", 0.1)], model="untuned")
    validation = answers([pairwise("ab", 0.1)], split="validation")
    bias = position_bias(pa.concat_tables([tuned, untuned, validation]))
    assert {model: one.pair_first_rate for model, one in bias.items()} == {"tuned": 1.0, "untuned": 0.0}


def test_a_model_never_asked_has_no_numbers() -> None:
    assert position_bias(answers([pointwise("a")]))["tuned"].metrics() == {}
