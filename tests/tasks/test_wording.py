from pathlib import Path

import pytest

from recranker.errors import SettingsError
from recranker.tasks import listwise, pairwise, pointwise
from recranker.tasks.prefix import build_prefix
from recranker.tasks.protocol import Candidate, RatingScale
from recranker.tasks.questions import ranking_questions, training_questions
from recranker.tasks.settings import InstructSettings
from recranker.tasks.wording import Templates, default_templates, load_templates

SCALE = RatingScale(1, 5)
FIRST, SECOND = Candidate("a", "Alien", 2, 3.54, 0.5), Candidate("b", "{Brazil}", 1, 4.0, 0.5)
GERMAN = """
version = "de-1"
[prefix]
instructions = "Was jemand mochte."
disliked = "Nicht gemocht:"
liked = "Gemocht:"
nothing_liked = "Gemocht: nichts bekannt"
[questions]
like = "Gefällt {title}?"
rating = "Note für {title}, {lowest} bis {highest}?"
pair = "Lieber {first} als {second}?"
list = "Das Beste von\\n{items}\\nist"
"""


def written(folder: Path, text: str, name: str = "texts.toml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_the_texts_of_this_version_are_these_to_the_letter() -> None:
    assert build_prefix(["Heat", "Ran"], ["Jaws"]) == (
        "Below is what one person liked and disliked, the most recent first. Judge what this person will enjoy next.\n"
        "'Like X?' and 'Prefer X to Y?' are answered by Yes or No, 'Rate X' by a number, 'Best of' by a letter. "
        "What other recommenders say stands in brackets.\nDisliked:\nJaws\nLiked:\nHeat\nRan"
    )
    assert build_prefix([], []).endswith("in brackets.\nLiked: nothing known yet")
    like = pointwise.question(FIRST, 2, kind="like", scale=SCALE, hint="reranker")
    rating = pointwise.question(FIRST, 2, kind="rating", scale=SCALE, hint="backbone")
    pair, listed = (
        pairwise.question(FIRST, SECOND, hint="reranker"),
        listwise.question([FIRST, SECOND], hint="backbone"),
    )
    assert [one.text for one in (like, rating, pair, listed)] == [
        "\n\nLike Alien? [others: unsure, place 2]",
        "\n\nRate Alien from 1 to 5. [predicted rating 3.5]",
        "\n\nPrefer Alien to {Brazil}? [second]",
        "\n\nBest of\nA. Alien\nB. {Brazil}\n[order: B A]",
    ]
    assert default_templates().version == "1"


@pytest.mark.parametrize("kind", ["like", "rating"])
def test_a_users_own_texts_reach_every_question_and_the_prefix(tmp_path: Path, kind: str) -> None:
    own = load_templates(written(tmp_path, GERMAN))
    assert load_templates(str(tmp_path)) == own  # the folder that holds it
    assert Templates.model_validate(own.model_dump()) == own  # as it travels in a manifest
    settings = InstructSettings.model_validate({"hints": "none", "pointwise_answer": kind, "list_permutations": 1})
    point = {"like": "Gefällt {}?", "rating": "Note für {}, 1 bis 5?"}[kind]
    ranked = {one.text.strip() for one in ranking_questions([FIRST, SECOND], settings, SCALE, templates=own)}
    either = {"Das Beste von\nA. Alien\nB. {Brazil}\nist", "Das Beste von\nA. {Brazil}\nB. Alien\nist"}
    pairs = {"Lieber Alien als {Brazil}?", "Lieber {Brazil} als Alien?"}
    assert ranked - either == {point.replace("{}", "Alien"), point.replace("{}", "{Brazil}"), *pairs}
    trained = training_questions([FIRST, SECOND], "a", 4.0, settings, SCALE, 0, templates=own)
    assert trained[0].text == "\n\n" + point.replace("{}", "Alien")
    assert {one.text.strip() for one in trained} <= ranked | either
    assert build_prefix(["Ran"], [], own) == "Was jemand mochte.\nGemocht:\nRan"
    assert build_prefix([], ["Ran"], own) == "Was jemand mochte.\nNicht gemocht:\nRan\nGemocht: nichts bekannt"


def test_every_wrong_placeholder_is_named_in_one_error(tmp_path: Path) -> None:
    text = GERMAN.replace("{title}?", "{titel}?", 1).replace("{lowest}", "{lowest:d}").replace("{second}", "{first}")
    text = text.replace('"Gemocht:"', '"Gemocht {title}:"').replace("\\n{items}\\n", " {items} ")
    with pytest.raises(SettingsError) as error:
        load_templates(written(tmp_path, text))
    message = str(error.value)
    assert "\n" not in message.replace("Das Beste von\\n", "")
    for complaint in (
        "'questions.like' = 'Gefällt {titel}?' is refused: lacks placeholder {title} and has unknown "
        "placeholder {titel}",
        "lacks placeholder {lowest} and has unknown placeholder {lowest:d}",
        "lacks placeholder {second} and has {first} 2 times",
        "'prefix.liked' = 'Gemocht {title}:' is refused: takes no placeholders",
        "must have {items} on a line of its own",
    ):
        assert complaint in message


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("{title}?", "{title?"), "has braces that do not pair up"),
        (('"Gemocht:"', '"Gemocht\\n:"'), "'prefix.liked' = 'Gemocht\\n:' is refused: must be one line"),
        (('"Was jemand mochte."', '" "'), "must not be empty"),
        (('version = "de-1"', ""), "'version' is missing"),
        (('pair = "', 'duel = "'), "unknown setting 'questions.duel'"),
    ],
)
def test_other_mistakes_are_named_too(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    with pytest.raises(SettingsError, match=r"instruct\.templates: .*texts\.toml") as error:
        load_templates(written(tmp_path, GERMAN.replace(*change, 1)))
    assert complaint in str(error.value)


def test_a_folder_must_hold_just_one_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"needed one \*.toml .*found \[\]"):
        load_templates(str(tmp_path))
    for name in ("a.toml", "b.toml"):
        written(tmp_path, GERMAN, name)
    with pytest.raises(SettingsError, match=r"found \['a.toml', 'b.toml'\]; name the file"):
        load_templates(str(tmp_path))
