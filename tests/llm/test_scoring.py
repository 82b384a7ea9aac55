from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from recranker.errors import ModelError
from recranker.llm.model import LanguageModel, add_adapter
from recranker.llm.scoring import TreeScorer, make_scorer
from recranker.llm.settings import LLMSettings, LoraSettings
from recranker.tasks.prefix import build_prefix
from recranker.tasks.protocol import Candidate, Prompt, Question, RatingScale
from recranker.tasks.questions import ranking_questions
from recranker.tasks.settings import InstructSettings

WORDS = ["Alien", "Heat", "Brazil", "Ran", "Rope", "Fargo", "(1979)", "the", "of", "<|im_end|>", "\n", "7"]
LABELS: list[tuple[str, ...]] = [("Yes", "No"), ("A", "B", "C", "D"), ("1", "2", "3", "4", "5")]

Backend = Literal["packed", "kv", "plain"]


def scorer(lm: LanguageModel, backend: Backend, token_budget: int = 4096) -> TreeScorer:
    return make_scorer(lm, LLMSettings(model="tiny", device="cpu", backend=backend, token_budget=token_budget))


def random_prompts(seed: int, count: int = 6) -> list[Prompt]:
    random = np.random.default_rng(seed)

    def text(most: int) -> str:
        return " ".join(random.choice(WORDS, size=random.integers(0, most)))

    def question() -> Question:
        return Question("pointwise", text(20), LABELS[random.integers(3)], ("1",))

    shapes = [0, 1, *random.integers(1, 12, count - 2)]
    prompts = [Prompt(str(i), text(60), tuple(question() for _ in range(size))) for i, size in enumerate(shapes)]
    return [*prompts, Prompt("empty prefix", "", (question(), question()))]


def flat(answers: list[list[np.ndarray]]) -> np.ndarray:
    return np.concatenate([one for found in answers for one in found])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("token_budget", [64, 300, 4096])
def test_all_backends_agree(shared_lm: LanguageModel, seed: int, token_budget: int) -> None:
    prompts = random_prompts(seed)
    plain, packed, kv = (scorer(shared_lm, name, token_budget).score(prompts) for name in ("plain", "packed", "kv"))
    assert [len(found) for found in plain] == [len(prompt.questions) for prompt in prompts]
    np.testing.assert_allclose(flat(packed), flat(plain), atol=1e-4)
    np.testing.assert_allclose(flat(kv), flat(plain), atol=1e-4)


@pytest.mark.parametrize("backend", ["packed", "kv", "plain"])
def test_answers_are_normalised_over_the_labels(shared_lm: LanguageModel, backend: Backend) -> None:
    for found in scorer(shared_lm, backend).score(random_prompts(9)):
        for one in found:
            assert one.dtype == np.float64
            assert np.exp(one).sum() == pytest.approx(1.0, abs=1e-12)


def test_an_answer_is_the_softmax_of_the_models_next_token(shared_lm: LanguageModel) -> None:
    tokenizer = shared_lm.tokenizer
    turns = [{"role": "user", "content": "Liked: Alien.Fargo?"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    with torch.inference_mode():
        logits = shared_lm.model(input_ids=torch.tensor([ids])).logits[0, -1]
    yes, no = (float(logits[tokenizer.convert_tokens_to_ids(label)]) for label in ("Yes", "No"))
    # "." and "F" stay apart in both: the pre-tokenizer splits between them
    prompt = Prompt("p", "Liked: Alien.", (Question("pointwise", "Fargo?", ("Yes", "No"), ("1",)),))
    found = scorer(shared_lm, "packed").score([prompt])[0][0]
    np.testing.assert_allclose(found, [-np.log1p(np.exp(no - yes)), -np.log1p(np.exp(yes - no))], atol=1e-4)


def test_answers_come_in_the_order_of_the_prompts(shared_lm: LanguageModel) -> None:
    prompts = random_prompts(5)
    together = scorer(shared_lm, "packed", 300).score(prompts)
    backwards = scorer(shared_lm, "packed", 300).score(prompts[::-1])[::-1]
    np.testing.assert_allclose(flat(together), flat(backwards), atol=1e-5)


def test_cost_counts_a_shared_prefix_once(shared_lm: LanguageModel) -> None:
    questions = tuple(Question("pointwise", text, ("Yes", "No"), ("1",)) for text in ("Ran?", "Heat?", "Rope?"))
    prompt = Prompt("p", "Liked: Alien", questions)
    shared = scorer(shared_lm, "packed").score_with_cost([prompt])[0].tokens
    plain = scorer(shared_lm, "plain").score_with_cost([prompt])[0].tokens
    head, tail = len(shared_lm.frame.head_ids), len(shared_lm.frame.tail_ids)
    text = [len(shared_lm.tokenizer(one)["input_ids"]) for one in ("Liked: Alien", "Ran?", "Heat?", "Rope?")]
    assert shared == head + text[0] + sum(text[1:]) + 3 * tail
    assert plain == 3 * (head + text[0] + tail) + sum(text[1:])


def test_cut_lines_are_reported(shared_lm: LanguageModel) -> None:
    settings = LLMSettings(model="tiny", device="cpu", max_prompt_tokens=64)
    prompt = Prompt("p", "\n".join(["Liked:"] + ["Alien"] * 60), (Question("pointwise", "?", ("Yes", "No"), ("1",)),))
    scored = make_scorer(shared_lm, settings).score_with_cost([prompt])[0]
    assert scored.cut_lines > 0
    assert scored.tokens <= 64


def test_no_prompts_no_answers(shared_lm: LanguageModel) -> None:
    assert scorer(shared_lm, "packed").score([]) == []


def test_an_answer_that_is_no_number_names_prompt_and_question(lm: LanguageModel) -> None:
    prompts = [Prompt("p7", "", (Question("pointwise", "?", ("Yes", "No"), ("1",)),))]
    broken = scorer(lm, "packed")
    lm.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="prompt 'p7', question 0"):
        broken.score(prompts)


def test_a_tuned_model_is_scored_without_dropout(lm: LanguageModel) -> None:
    add_adapter(lm, LoraSettings(dropout=0.5))
    lm.model.train()
    prompts = random_prompts(3)
    np.testing.assert_array_equal(flat(scorer(lm, "packed").score(prompts)), flat(scorer(lm, "packed").score(prompts)))


def test_a_later_call_reads_a_kept_prefix(shared_lm: LanguageModel) -> None:
    first = Prompt("p", "Liked: Alien", (Question("pointwise", "Ran?", ("Yes", "No"), ("1",)),))
    second = Prompt("p", "Liked: Alien", (Question("pointwise", "Heat?", ("Yes", "No"), ("2",)),))
    ranker = scorer(shared_lm, "packed")
    alone = ranker.score_with_cost([second])[0]
    with ranker.keeping_prefixes():
        ranker.score_with_cost([first])
        kept = ranker.score_with_cost([second])[0]
    forgotten = ranker.score_with_cost([second])[0]
    np.testing.assert_allclose(kept.log_probabilities[0], alone.log_probabilities[0], atol=1e-5)
    prefix = len(shared_lm.frame.head_ids) + len(shared_lm.tokenizer("Liked: Alien")["input_ids"])
    assert (kept.tokens, forgotten.tokens) == (alone.tokens - prefix, alone.tokens)


def test_kept_prefixes_stay_within_the_token_budget(shared_lm: LanguageModel) -> None:
    prompts = [Prompt(f"p{n}", f"Liked: {n} " * 8, random_prompts(1)[3].questions) for n in range(9)]
    ranker = scorer(shared_lm, "packed", 200)
    wanted = ranker.score(prompts)
    with ranker.keeping_prefixes():
        assert ranker._kept is not None
        for _ in range(2):
            np.testing.assert_allclose(flat(ranker.score(prompts)), flat(wanted), atol=1e-5)
            assert sum(map(len, ranker._kept)) <= 200


def test_a_model_that_cannot_be_packed_is_scored_through_a_cache_and_says_so_once(
    lm: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = random_prompts(2)
    wanted = scorer(lm, "plain").score(prompts)
    lm.model.config.sliding_window = 1024  # shorter than a prompt may be, though not than these
    ranker = scorer(lm, "packed")
    assert ranker.backend == "kv"
    np.testing.assert_allclose(flat(ranker.score(prompts)), flat(wanted), atol=1e-4)
    assert [record.message.count("key-value cache") for record in caplog.records] == [1]


@pytest.mark.parametrize(("backend", "tolerance"), [("plain", 0.0), ("packed", 1e-5)])
def test_what_one_item_is_called_changes_no_other_items_answer(
    shared_lm: LanguageModel, backend: Backend, tolerance: float
) -> None:
    """Isolation: an item's title stands in its own question only, and no question sees another."""
    random = np.random.default_rng(3)
    candidates = [Candidate(str(number), f"Film {number}", number + 1) for number in range(4)]
    ranker = scorer(shared_lm, backend)

    def ask(title: str) -> list[np.ndarray]:
        renamed = [replace(candidates[0], title=title), *candidates[1:]]
        asked = ranking_questions(renamed, InstructSettings(), RatingScale(1, 5), 0, tasks=["pointwise"])
        return ranker.score([Prompt("p", build_prefix(["Alien"], []), asked)])[0]

    before = ask("Film 0")
    for _ in range(8):
        after = ask(" ".join(random.choice(WORDS, size=random.integers(1, 40))))
        assert np.abs(after[0] - before[0]).max() > 1e-4
        assert np.abs(np.array(after[1:]) - np.array(before[1:])).max() <= tolerance


@pytest.mark.parametrize("backend", ["packed", "kv", "plain"])
def test_a_long_question_takes_no_history_from_the_others(shared_lm: LanguageModel, backend: str) -> None:
    settings = LLMSettings(model="tiny", device="cpu", backend=backend, max_prompt_tokens=200)
    scorer = make_scorer(shared_lm, settings)
    history = "\n".join(f"- Film {number}" for number in range(60))
    usual = [Question("pointwise", f"Like {title}?", ("No", "Yes"), (title,)) for title in ("Heat", "Ran", "Alien")]
    hostile = Question("pointwise", "Like " + "x" * 100, ("No", "Yes"), ("x",))
    alone, beside = scorer.score_with_cost(
        [Prompt("p", history, tuple(usual)), Prompt("p", history, (usual[0], hostile, *usual[1:]))]
    )
    others = [beside.log_probabilities[place] for place in (0, 2, 3)]
    np.testing.assert_allclose(others, alone.log_probabilities, rtol=0, atol=1e-5)
    assert beside.cut_lines > alone.cut_lines > 0
