"""Hostile titles, histories, queries, ids and bodies against the whole of a router: answered or refused, never told."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.rerank import PATHS
from tests.hostile import TITLES
from tests.serve.attack import CANARY, CLIENTS, Attack, Ear, check, listening, under_attack
from tests.serve.fake_service import FakeService, send

ODD = st.characters(categories=("Cc", "Cf", "Co", "Cn", "Mn", "Me", "Zl", "Zp", "Zs", "Sk", "Lm", "No", "So"))
HALF = st.characters(categories=("Cs",))
PIECES = st.one_of(st.sampled_from(TITLES), st.text(max_size=30), st.text(ODD, max_size=30), st.text(HALF, max_size=2))
IDS = st.one_of(
    # ids come back, and among the texts that hypothesis tries are the constants of this code
    PIECES.map(lambda text: text[:200]).filter(lambda text: CANARY not in text.lower()),
    st.integers(0, 12).map(lambda place: f"i{place}"),
)
NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.integers() | st.none()
RATINGS = st.sampled_from((1, 2.5, 3, 4, 5)) | NUMBERS


@st.composite
def hostile(draw: st.DrawFn) -> str:
    """A title that holds the canary, in one piece, somewhere among hostile text."""
    return f"{draw(PIECES)}{CANARY}{draw(PIECES)}"


def _entry() -> st.SearchStrategy[dict[str, Any]]:
    liked = st.fixed_dictionaries({"title": hostile(), "liked": st.booleans()})
    return st.one_of(liked, liked, st.fixed_dictionaries({"title": hostile(), "rating": RATINGS}))


def _candidates() -> st.SearchStrategy[list[dict[str, Any]]]:
    plain = st.lists(st.fixed_dictionaries({"title": hostile()}), min_size=1, max_size=5)
    named = st.lists(
        st.fixed_dictionaries({"title": hostile()}, optional={"id": IDS, "backbone_score": NUMBERS}), max_size=4
    )
    return st.one_of(plain, plain, named)


def _rank() -> st.SearchStrategy[dict[str, Any]]:
    signals = st.sampled_from(("pointwise", "pairwise", "listwise", "backbone"))
    return st.fixed_dictionaries(
        {"candidates": _candidates(), "history": st.lists(_entry(), max_size=4)},
        optional={
            "tasks": st.lists(st.sampled_from(("pointwise", "pairwise", "listwise")), max_size=3),
            "weights": st.dictionaries(signals, st.floats(0, 1e6) | NUMBERS, max_size=4),
            "explain": st.booleans(),
        },
    )


def _of_user() -> st.SearchStrategy[dict[str, Any]]:
    users = st.one_of(st.sampled_from(("u", "v", "w")), hostile())
    wanted = st.lists(st.fixed_dictionaries({"id": IDS}), max_size=3) | _candidates()
    return st.fixed_dictionaries({"user_id": users}, optional={"candidates": wanted})


def _rerank() -> st.SearchStrategy[dict[str, Any]]:
    documents = st.lists(hostile() | st.fixed_dictionaries({"text": hostile(), CANARY: hostile()}), max_size=5)
    query = st.lists(hostile(), max_size=3).map("\n".join)
    return st.fixed_dictionaries(
        {"query": query, "documents": documents},
        optional={"top_n": st.integers(-1, 7), "return_documents": st.booleans(), "model": hostile()},
    )


def _batch() -> st.SearchStrategy[dict[str, Any]]:
    nested = st.recursive(hostile() | NUMBERS, lambda one: st.lists(one, max_size=2) | st.dictionaries(hostile(), one))
    return st.fixed_dictionaries({"requests": st.lists(st.one_of(_rank(), _of_user(), nested), max_size=3)})


def _broken() -> st.SearchStrategy[str]:
    """JSON cut short, doubled, or with a piece of something else in it."""

    def torn(whole: str, cut: float, extra: str) -> str:
        place = int(cut * len(whole))
        return whole[:place] + extra + whole[place:]

    return st.builds(torn, (_rank() | _rerank()).map(json.dumps), st.floats(0, 1), st.sampled_from('{}[]",:\\x\ud800'))


CASES = st.one_of(
    st.tuples(st.just("/v1/rank"), _rank()),
    st.tuples(st.just("/v1/rank"), _rank()),
    st.tuples(st.just("/v1/rank"), _of_user()),
    st.tuples(st.sampled_from(tuple(PATHS)), _rerank()),
    st.tuples(st.just("/v1/rank:batch"), _batch()),
    st.tuples(st.sampled_from(("/v1/rank", "/rerank", "/v1/rank:batch")), _broken()),
)


def attack_with(folder: Path, cases: int) -> Attack:
    """The attack after so many cases."""
    with under_attack(folder) as attack:

        @settings(
            max_examples=cases,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(CASES)
        def one(case: tuple[str, Any]) -> None:
            path, body = case
            echoes = '"return_documents": true' in (body if isinstance(body, str) else json.dumps(body))
            if isinstance(body, str):
                attack.send(path, content=body.encode("utf-8", "surrogatepass"), echoes=echoes)
            else:
                attack.send(path, body, echoes=echoes)

        one()
        for title in TITLES:  # each as it stands
            candidates = [{"title": f"{title}{CANARY}"}, {"title": "Heat"}]
            attack.send(body={"history": [{"title": f"{CANARY}{title}", "liked": True}], "candidates": candidates})
    return attack


def _judge(attack: Attack, cases: int) -> None:
    assert sum(attack.statuses.values()) >= cases
    assert attack.leaks() == []
    assert attack.statuses[200] > cases / 5, "most was refused before it was read"
    assert attack.statuses[422] > cases / 10, "nothing was hostile enough"
    assert attack.statuses[503] > 0, "no queue was ever full"
    assert len(attack.ear.heard) > 0, "nothing was heard"


def test_hostile_text_is_answered_or_refused_and_told_nobody(tmp_path: Path) -> None:
    _judge(attack_with(tmp_path, 300), 300)


@pytest.mark.slow
def test_ten_thousand_hostile_texts(tmp_path: Path) -> None:
    _judge(attack_with(tmp_path, 10_000), 10_000)


DEEP = 100_000
LARGE: dict[str, str] = {
    "a title of a megabyte": json.dumps({"candidates": [{"title": CANARY + "x" * 900_000}, {"title": "B"}]}),
    "more than the body may hold": json.dumps({"candidates": [{"title": CANARY + "x" * 1_100_000}]}),
    "a history of bombs": json.dumps(
        {
            "history": [{"title": f"{CANARY}{place}" + "\ufdfa" * 900, "liked": True} for place in range(150)],
            "candidates": [{"title": "A" + CANARY}, {"title": "B"}],
        }
    ),
    "combining marks": json.dumps(
        {"candidates": [{"title": CANARY + "a\u0301\u0323" * 300}, {"title": "\u0344" * 999}]}
    ),
    "an id of a megabyte": json.dumps({"user_id": CANARY * 50_000}),
    "a query of 300,000 lines": json.dumps({"query": f"{CANARY}\n" + "x\n" * 300_000, "documents": ["A"]}),
    "a line of a megabyte": json.dumps({"query": CANARY + "y" * 900_000, "documents": ["A"]}),
    "300,000 documents": '{"query":"","documents":[' + ",".join(['""'] * 300_000) + "]}",
    "490,000 documents that are none": '{"query":"","documents":[' + ",".join("0" * 490_000) + "]}",
    "300,000 empty candidates": '{"candidates":[' + ",".join(["{}"] * 300_000) + "]}",
    "490,000 entries that are none": '{"history":[' + ",".join("0" * 490_000) + "]}",
    "490,000 tasks that are none": '{"tasks":[' + ",".join("0" * 490_000) + "]}",
    "490,000 wrong entries in a batch": '{"requests":[{"history":[' + ",".join("0" * 480_000) + "]}]}",
    "100,000 keys": "{" + ",".join(f'"{place:x}":0' for place in range(100_000)) + "}",
    "brackets without end": "[" * DEEP,
    "objects without end": '{"candidates":' * (DEEP // 2),
    "a deep list in its place": '{"candidates":' + "[" * 900 + "]" * 900 + "}",
    "a deep list where it is ignored": '{"query":"a","documents":["b"],"model":' + "[" * 900 + "]" * 900 + "}",
    "a very deep list where it is ignored": f'{{"query":"a","documents":["b"],"model":{"[" * DEEP}{"]" * DEEP}}}',
    "deep requests": '{"requests":[' + '{"candidates":' * 900 + "1" + "}" * 900 + "]}",
    "a number of 500,000 digits": '{"candidates":[{"title":"a"},{"title":"b"}],"deadline_ms":' + "9" * 500_000 + "}",
    "a number beyond all": '{"candidates":[{"title":"a","backbone_score":1e999}]}',
    "no number": '{"candidates":[{"title":"a","backbone_score":NaN}]}',
    "the smallest weight": '{"candidates":[{"title":"a"},{"title":"b"}],"weights":{"pointwise":5e-324}}',
    "keys twice": '{"candidates":[{"title":"a"}],"candidates":[{"title":"' + CANARY + '"}]}',
    "halves of pairs": '{"candidates":[{"title":"\\ud800' + CANARY + '"}],"user_id":"\\udfff"}',
    "a byte order mark": "\ufeff" + json.dumps({"candidates": [{"title": CANARY}]}),
    "another coding": json.dumps({"candidates": [{"title": CANARY}]}).encode("utf-16").decode("latin-1"),
}
"""Up to the million bytes that a body may hold, and beyond."""


def test_large_and_deep_bodies_cost_little_and_are_answered_or_refused(tmp_path: Path) -> None:
    with under_attack(tmp_path) as attack:
        for body in LARGE.values():
            for path in ("/v1/rank", "/v1/rerank", "/v1/rank:batch"):
                attack.send(path, content=body.encode())
        assert attack.leaks() == []
        assert attack.statuses[413] == 3
        assert attack.costliest_s < 3.0, "CPU seconds; nobody else is answered meanwhile"


def test_the_ear_hears_what_is_not_passed_on_and_the_judge_sees_what_is_told() -> None:
    own = logging.getLogger("tests.keeps_to_itself")
    own.propagate = False
    own.setLevel(logging.ERROR)
    with listening() as ear:
        own.debug("a title: %s", CANARY)
        try:
            raise ValueError(CANARY)
        except ValueError:
            logging.getLogger("ray.serve").info("failed", exc_info=True)
        logging.getLogger(CLIENTS[0]).error(CANARY)
    assert [CANARY in line for line in ear.heard] == [True, True]  # and not what the client says
    assert own.level == logging.ERROR
    own.debug(CANARY)
    assert len(ear.heard) == 2
    with pytest.raises(AssertionError, match="500"):
        check(send(FakeService(error=RuntimeError()), json={"candidates": [{"title": "A"}]}))
    with pytest.raises(AssertionError, match="canary"):
        check(send(FakeService(), json={"candidates": [{"title": "A", "id": CANARY}]}))
    assert isinstance(ear, Ear)
