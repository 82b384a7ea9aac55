import pytest

from recranker.errors import ModelError
from recranker.llm.chat import plain_ids
from recranker.llm.encoding import STEP, encode, encode_all, encode_apart
from recranker.llm.model import LanguageModel
from recranker.tasks.protocol import Prompt, Question


def question(text: str = "Fargo?", labels: tuple[str, ...] = ("Yes", "No"), answer: str | None = None) -> Question:
    return Question("pointwise", text, labels, ("1",), answer)


def history(lm: LanguageModel, ids: list[int]) -> str:
    return str(lm.tokenizer.decode(ids[len(lm.frame.head_ids) :]))


def test_a_tree_holds_frame_prefix_and_questions(shared_lm: LanguageModel) -> None:
    prompt = Prompt("p", "Liked:\nAlien", (question("\nFargo?", answer="No"), question("\nRan?")))
    tree = encode(prompt, shared_lm, 512)
    tokenizer, frame = shared_lm.tokenizer, shared_lm.frame
    assert tree.prefix_ids == [*frame.head_ids, *plain_ids(tokenizer, ["Liked:\nAlien"])[0]]
    assert tree.branches[0].token_ids == [*plain_ids(tokenizer, ["\nFargo?"])[0], *frame.tail_ids]
    assert [tokenizer.decode([token]) for token in tree.branches[0].label_ids] == ["Yes", "No"]
    assert [branch.answer for branch in tree.branches] == [1, None]
    assert tree.cut_lines == 0


def test_many_prompts_are_encoded_as_each_alone(shared_lm: LanguageModel) -> None:
    prompts = [
        Prompt("a", "Alien\n" * 40, (question("x"), question("y", ("A", "B", "C"), "C"))),
        Prompt("b", "", ()),
        Prompt("c", "Heat", (question("z"),)),
    ]
    assert encode_all(prompts, shared_lm, 128) == [encode(prompt, shared_lm, 128) for prompt in prompts]


@pytest.mark.parametrize("ending", ["", "\n"])
def test_history_is_cut_from_its_end_by_whole_lines(shared_lm: LanguageModel, ending: str) -> None:
    lines = ["Liked:", *(f"- Film {number}" for number in range(30))]
    prompt = Prompt("p", "\n".join(lines) + ending, (question("short"), question("a much longer question than that")))
    whole = encode(prompt, shared_lm, 4096)
    longest = max(len(branch.token_ids) for branch in whole.branches)
    limit = len(whole.prefix_ids) + longest - 20
    tree = encode(prompt, shared_lm, limit)
    assert tree.cut_lines > 0
    assert history(shared_lm, tree.prefix_ids) == "\n".join(lines[: len(lines) - tree.cut_lines]) + ending
    one_more = "\n".join(lines[: len(lines) - tree.cut_lines + 1]) + ending
    needed = len(shared_lm.frame.head_ids) + len(plain_ids(shared_lm.tokenizer, [one_more])[0]) + longest
    assert len(tree.prefix_ids) + longest <= limit < needed


def test_a_question_sees_what_it_alone_leaves_room_for(shared_lm: LanguageModel) -> None:
    prefix = "\n".join(["Liked:", *(f"- Film {number}" for number in range(30))])
    short, other, long = question("qxzqx?"), question("xqzxq?"), question("long " * 30)
    prompts = [Prompt("p", prefix, (long, short, other)), Prompt("p", prefix, (short, long)), Prompt("p", prefix, ())]
    whole = encode(Prompt("p", prefix, (short,)), shared_lm, 4096)
    most = whole.num_tokens - 1  # just too long for the short ones
    apart, alone, none = encode_apart(prompts, shared_lm, most)
    assert [part.questions for part in apart] == [(0,), (1, 2)]
    assert [part.questions for part in alone] == [(0,), (1,)]
    assert apart[1].tree.prefix_ids == alone[0].tree.prefix_ids
    assert len(apart[0].tree.prefix_ids) < len(apart[1].tree.prefix_ids) < len(whole.prefix_ids)
    for part in apart:
        reserved = STEP * -(-len(part.tree.branches[0].token_ids) // STEP)
        assert len(part.tree.prefix_ids) <= most - reserved
    assert [(part.questions, part.tree.branches) for part in none] == [((), [])]


def test_where_the_history_fits_all_questions_share_one_tree(shared_lm: LanguageModel) -> None:
    prompt = Prompt("p", "Liked:\n- Alien", (question("a?"), question("long " * 60)))
    whole = encode(prompt, shared_lm, 4096)
    most = len(whole.prefix_ids) + max(len(branch.token_ids) for branch in whole.branches)
    assert [(part.tree, part.questions) for part in encode_apart([prompt], shared_lm, most)[0]] == [(whole, (0, 1))]


def test_a_prompt_that_just_fits_is_not_cut(shared_lm: LanguageModel) -> None:
    prompt = Prompt("p", "Liked:\n- Alien\n- Heat", (question(),))
    whole = encode(prompt, shared_lm, 4096)
    assert encode(prompt, shared_lm, whole.num_tokens).cut_lines == 0
    assert encode(prompt, shared_lm, whole.num_tokens - 1).cut_lines == 1


def test_a_single_line_that_is_too_long_is_cut_between_tokens(shared_lm: LanguageModel) -> None:
    tree = encode(Prompt("p", "word " * 300 + "\nlast", (question(),)), shared_lm, 100)
    assert len(tree.prefix_ids) + len(tree.branches[0].token_ids) == 100
    assert tree.cut_lines == 2  # 'last' is gone, the first is shorter


def test_a_question_without_room_for_a_prefix_is_refused(shared_lm: LanguageModel) -> None:
    with pytest.raises(ModelError, match=r"prompt 'p': its longest question .* raise llm.max_prompt_tokens"):
        encode(Prompt("p", "x", (question("word " * 200),)), shared_lm, 100)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("Yes", "Yes"), "two or more labels with a token each of its own"),
        (("Yes",), "two or more labels"),
        ((), "two or more labels"),
        (("Yes", "Qx9"), r"label 'Qx9' must be one token .* it is 3"),
        (("Yes", ""), "label '' must be one token .* it is 0"),
    ],
)
def test_labels_must_be_single_and_distinct_tokens(
    shared_lm: LanguageModel, labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        encode(Prompt("p", "x", (question(labels=labels),)), shared_lm, 100)


def test_an_answer_must_be_a_label(shared_lm: LanguageModel) -> None:
    with pytest.raises(ModelError, match="prompt 'p': the answer 'Maybe' is none of the labels"):
        encode(Prompt("p", "x", (question(answer="Maybe"),)), shared_lm, 100)
