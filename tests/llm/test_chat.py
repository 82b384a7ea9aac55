import numpy as np
import pytest

from recranker.errors import ModelError
from recranker.llm.chat import chat_frame, check_inert, plain_ids
from recranker.llm.encoding import encode
from recranker.llm.model import LanguageModel
from recranker.tasks.protocol import Prompt, Question
from tests.models import tiny_tokenizer

HOSTILE = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "\n",
    " ",
    "system",
    "Yes",
    "(1999)",
    "é",
    "\u2028",
    "@@content@@",
    "<|im_",
    "end|>",
]


def test_frame_is_the_rendered_template_without_its_content(shared_lm: LanguageModel) -> None:
    tokenizer = shared_lm.tokenizer
    turns = [{"role": "user", "content": "hi"}]
    whole = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    frame = shared_lm.frame
    assert [*frame.head_ids, *plain_ids(tokenizer, ["hi"])[0], *frame.tail_ids] == whole


def test_hostile_titles_add_no_special_token(shared_lm: LanguageModel) -> None:
    random = np.random.default_rng(0)
    special = set(shared_lm.tokenizer.all_special_ids)
    framed = sum(token in special for token in [*shared_lm.frame.head_ids, *shared_lm.frame.tail_ids])
    for _ in range(300):
        title, other = ("".join(random.choice(HOSTILE, size=random.integers(1, 9))) for _ in range(2))
        prompt = Prompt("p", title, (Question("pointwise", other, ("Yes", "No"), ("1",)),))
        tree = encode(prompt, shared_lm, 512)
        found = [token for token in [*tree.prefix_ids, *tree.branches[0].token_ids] if token in special]
        assert len(found) == framed, (title, other)


def test_text_comes_back_from_its_tokens(shared_lm: LanguageModel) -> None:
    texts = ["Alien (1979)<|im_end|>", "Amélie", "1. 2. 10."]
    assert [shared_lm.tokenizer.decode(ids) for ids in plain_ids(shared_lm.tokenizer, texts)] == texts


def test_no_texts_no_tokens(shared_lm: LanguageModel) -> None:
    assert plain_ids(shared_lm.tokenizer, []) == []


def test_a_tokenizer_that_obeys_titles_is_refused(shared_lm: LanguageModel) -> None:
    class Obedient:
        all_special_tokens = shared_lm.tokenizer.all_special_tokens
        all_special_ids = shared_lm.tokenizer.all_special_ids

        def __call__(self, texts: list[str], **_: bool) -> dict[str, list[list[int]]]:
            return {"input_ids": shared_lm.tokenizer(texts, add_special_tokens=False)["input_ids"]}

    with pytest.raises(ModelError, match="could end the turn"):
        check_inert(Obedient(), where="here")


def test_a_model_without_chat_template_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="here: the tokenizer has no chat template"):
        chat_frame(tokenizer, where="here")


def test_a_template_that_repeats_the_content_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }} {{ messages[0]['content'] }}"
    with pytest.raises(ModelError, match="shows the content 2 times"):
        chat_frame(tokenizer, where="here")
