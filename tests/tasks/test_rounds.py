"""Lists whose order is settled are not asked about again."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recranker.tasks.protocol import Candidate, Prompt, RatingScale
from recranker.tasks.questions import ranking_questions
from recranker.tasks.rounds import ask_in_rounds
from recranker.tasks.settings import InstructSettings

TEN = [Candidate(f"i{n}", f"Film {n}", n + 1) for n in range(10)]


@dataclass(frozen=True)
class Found:
    log_probabilities: list[NDArray[np.float64]]
    tokens: int
    cut_lines: int


@dataclass
class FakeScorer:
    """Prefers items by their number; prompts called 'noisy' get noise on top, new in every call."""

    noise: float = 100.0
    calls: list[list[Prompt]] = field(default_factory=list)

    def __call__(self, prompts: Sequence[Prompt]) -> list[Found]:
        self.calls.append(list(prompts))
        random = np.random.default_rng(len(self.calls))
        return [
            Found([self._answer(one.item_ids, one.labels, prompt, random) for one in prompt.questions], 100, number)
            for number, prompt in enumerate(prompts)
        ]

    def _answer(
        self, items: tuple[str, ...], labels: tuple[str, ...], prompt: Prompt, random: np.random.Generator
    ) -> NDArray[np.float64]:
        logits = np.array([-float(item[1:]) for item in items]) if len(items) > 2 else np.zeros(len(labels))
        if "noisy" in prompt.prompt_id:
            logits = logits + random.normal(scale=self.noise, size=len(logits))
        return np.asarray(logits - np.logaddexp.reduce(logits))


def prompt(name: str, permutations: int, candidates: Sequence[Candidate] = TEN) -> Prompt:
    questions = ranking_questions(candidates, InstructSettings(list_permutations=permutations), RatingScale(1, 5), name)
    return Prompt(name, f"prefix of {name}", questions)


def test_without_later_rounds_everything_is_one_call() -> None:
    score = FakeScorer()
    prompts = [prompt("a", 2), prompt("noisy", 1), Prompt("empty", "", ())]
    asked = ask_in_rounds(score, prompts)
    assert [[one.prompt_id for one in call] for call in score.calls] == [["a", "noisy", "empty"]]
    assert [one.questions for one in asked] == [one.questions for one in prompts]
    assert [one.tokens for one in asked] == [100, 100, 100]


def test_only_unsettled_lists_are_asked_again_and_only_about_that_round() -> None:
    score = FakeScorer()
    calm, noisy = prompt("calm", 4), prompt("noisy", 4)
    asked = ask_in_rounds(score, [calm, noisy])
    assert [[one.prompt_id for one in call] for call in score.calls] == [["calm", "noisy"], ["noisy"], ["noisy"]]
    for number, call in enumerate(score.calls):
        assert {one.prefix for one in call} <= {"prefix of calm", "prefix of noisy"}
        assert {question.round for one in call for question in one.questions} == {number}
    assert [len(one.questions) for one in score.calls[1]] == [1]
    assert asked[0].questions == tuple(one for one in calm.questions if one.round == 0)
    assert asked[1].questions == noisy.questions
    assert [one.tokens for one in asked] == [100, 300]
    assert [one.cut_lines for one in asked] == [0, 1]  # the most of any round


def test_every_answer_stays_with_its_question() -> None:
    asked = ask_in_rounds(FakeScorer(noise=3.0), [prompt("noisy", 6)])[0]
    assert [len(found) for found in asked.log_probabilities] == [len(one.labels) for one in asked.questions]
    assert [(one.item_ids, one.round) for one in asked.answers] == [
        (one.item_ids, one.round) for one in asked.questions
    ]


def test_windows_of_long_lists_are_asked_in_rounds_too() -> None:
    many = [Candidate(f"i{n}", f"Film {n}", n + 1) for n in range(60)]
    score = FakeScorer()
    asked = ask_in_rounds(score, [prompt("calm", 3, many), prompt("noisy", 3, many)])
    lists = [sum(question.task == "listwise" for question in one.questions) for one in asked]
    assert lists == [2 * 4, 3 * 4]  # ceil(60 / 15) windows a shuffle
    assert len(score.calls) == 2


def test_no_prompts_are_no_answers() -> None:
    assert ask_in_rounds(FakeScorer(), []) == []
