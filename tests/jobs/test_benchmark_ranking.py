import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs import benchmark
from jobs.benchmarks import ranking
from jobs.benchmarks.ranking import BUDGETED, ENGINE, GENERATION, HALVED, PLAIN, Outcome, Way
from jobs.benchmarks.settings import RankingBenchmark
from jobs.benchmarks.users import Users
from jobs.benchmarks.ways import Answers, Measured, measure_engine, measure_generation, measure_trees
from recranker.errors import DataError, SettingsError
from recranker.llm.settings import LLMSettings
from recranker.settings import load_settings
from recranker.tasks.protocol import Prompt, Question
from recranker.tasks.settings import InstructSettings
from tests.models import tiny_model
from tests.toy import toy_settings

LLM = LLMSettings(model="tiny", device="cpu")
YES = ("No", "Yes")


def prompt(number: int) -> Prompt:
    """Two points and a list."""
    points = tuple(Question("pointwise", f"\nLike {title}?", YES, (title,)) for title in ("Ran", "Heat"))
    listed = Question("listwise", "\nBest of\nA. Ran\nB. Heat", ("A", "B"), ("Ran", "Heat"))
    return Prompt(f"p{number}", f"Liked:\nFilm {number}", (*points, listed))


def answers(first: float, count: int = 1) -> Answers:
    """'Ran' is liked with probability ``first``, 'Heat' with 0.5; letters likewise."""
    return [[np.log([1 - first, first]), np.log([0.5, 0.5]), np.log([first, 1 - first])]] * count


def measured(cpu_s: list[float], tokens: int = 100, given: Answers | None = None) -> Measured:
    return Measured(cpu_s, cpu_s, tokens, 100, [50.0, 40.0, 60.0], 150.0, 30.0, 1.5, given)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("tiny") / "model"))


def test_figures_by_hand() -> None:
    prompts = [prompt(0), prompt(1)]
    ways = [
        Way(ENGINE, 10, prompts, measure_engine, ()),
        Way(PLAIN, 10, prompts[:1], measure_engine, ()),
        Way(GENERATION, 10, prompts[:1], measure_generation, ()),
        Way(HALVED, 10, prompts, measure_engine, ()),
        Way(BUDGETED, 10, prompts, measure_engine, ()),
        Way(BUDGETED, 200, prompts, measure_engine, ()),
    ]
    found = [
        measured([2.0, 4.0], given=answers(0.8, 2)),
        measured([20.0], 700, answers(0.8001)),
        measured([50.0], 800),
        measured([1.0, 1.0], given=[*answers(0.8), *answers(0.3)]),
        measured([2.0, 2.0]),
        measured([30.0, 50.0], tokens=104),
    ]
    figures = ranking._figures(ways, found, difference=1e-6)
    assert figures["speedup_over_generation"] == 25.0  # 50 s against 2 s, for the user both ranked
    assert figures["speedup_over_full_prompts"] == 10.0
    assert figures["token_overhead"] == 1.04
    assert figures["gemm_share"] == (150 + 30) / (6 * 50)
    assert figures["gemm_share_linear_layers"] == 150 / (6 * 50)
    assert figures["max_abs_logprob_difference"] == pytest.approx(np.log(0.2 / 0.1999))
    assert figures["same_orders"] is True
    assert figures["cost_by_candidates"] == {10: 1.0, 200: 20.0}
    assert figures["bfloat16_speedup"] == 3.0
    assert figures["bfloat16_kendall_tau"] == {"pointwise": 0.0, "listwise": 0.0}  # one order kept, one reversed
    assert figures["peak_rss_gb"] == 1.5


def test_another_order_is_noticed() -> None:
    kept, turned = (measured([1.0], given=answers(first)) for first in (0.8, 0.3))
    assert ranking._same_orders([prompt(0)], kept, kept)
    assert not ranking._same_orders([prompt(0)], kept, turned)


def test_the_engine_computes_what_is_needed_and_full_prompts_more(model: str) -> None:
    prompts = [prompt(0), prompt(1)]
    engine = measure_engine(model, LLM, prompts)
    plain = measure_engine(model, LLM.model_copy(update={"backend": "plain"}), prompts)
    assert engine.tokens == engine.needed == plain.needed < plain.tokens
    assert len(engine.cpu_s) == len(engine.wall_s) == 2
    assert min(engine.cpu_s) > 0
    assert len(engine.gemm_rates) == 3
    assert 0.1 < engine.peak_rss_gb < 10
    assert ranking._difference(engine, plain) < 1e-4
    # two layers: 32 x 32 twice, 32 x 16 twice, 32 x 64 three times
    assert engine.linear_madds == engine.needed * 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)


def test_attention_counts_the_pairs_that_see_each_other() -> None:
    from jobs.benchmarks.ways import _visible_pairs
    from recranker.llm.encoding import Branch, Tree

    tree = Tree("t", [1, 2, 3], [Branch([4, 5], [1, 2], None, "pointwise"), Branch([6], [1, 2], None, "pointwise")])
    assert _visible_pairs(tree) == (1 + 2 + 3) + (4 + 5) + 4


def test_generation_computes_every_prompt_and_every_token_of_the_answers(model: str) -> None:
    prompts = [prompt(0)]
    generated = measure_generation(model, LLM, prompts, ["Ran\nHeat"])
    plain = measure_engine(model, LLM.model_copy(update={"backend": "plain"}), prompts)
    from tests.models import tiny_tokenizer

    listed = len(tiny_tokenizer()("Ran\nHeat", add_special_tokens=False)["input_ids"])
    assert generated.tokens == plain.tokens + 2 + 2 + listed
    assert generated.answers is None


def test_random_trees_agree(model: str) -> None:
    assert measure_trees(model, LLM, [prompt(0), prompt(1)], 40, seed=0) < 1e-4


def test_users_have_full_histories_and_as_many_candidates_as_asked(tmp_path: Path) -> None:
    settings = RankingBenchmark.model_validate(
        {
            "data": toy_settings(tmp_path),
            "llm": {"model": "tiny"},
            "instruct": {"max_liked": 6},
            "budgeted": {},
            "users": 3,
        }
    )
    users = Users(settings, tmp_path)
    prompts = users.prompts(5, InstructSettings(max_liked=6, list_permutations=1))
    assert len(prompts) == len(set(users.user_ids)) == 3
    for one in prompts:
        assert len({item_id for question in one.questions for item_id in question.item_ids}) == 5
        liked = one.prefix.split("Liked:\n")[1].splitlines()
        assert len(liked) == 6
        shown = set(users.titles_of(one.questions[-1].item_ids))
        assert not shown & set(liked)
    with pytest.raises(DataError, match=r"have more than instruct\.max_liked=6 likes"):
        Users(settings.model_copy(update={"users": 10_000}), tmp_path)


def test_options_are_settings_and_unknown_ones_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ranking", "--users", "2", "--candidates", "10", "30", "--dry-run"]
    assert benchmark.main([*command[:3], "trees=7", *command[3:]]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["users"], shown["candidates"], shown["trees"]) == (2, [10, 30], 7)
    assert shown["instruct"]["max_liked"] == 50
    with pytest.raises(SystemExit):
        benchmark.main(["ranking", "--user", "2", "--nonsense"])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_lists_longer_than_the_limit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["ranking", "--candidates", "500", "--dry-run"]) == 2
    assert "candidates must be 2 to 200" in capsys.readouterr().err
    with pytest.raises(SettingsError):
        load_settings(RankingBenchmark, str(benchmark.config_of("ranking")), ["candidates=[1]"])


def test_the_outcome_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    way = Way(ENGINE, 10, [prompt(0)], measure_engine, ())
    row = ranking._row(way, replace(measured([2.5]), tokens=90))
    outcome = Outcome([row], {"speedup_over_generation": 21.5, "cost_by_candidates": {10: 1.0}})
    benchmark.show_ranking(outcome, None)  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert "speedup_over_generation 21.5" in printed
    assert "2.50" in printed
    benchmark.write_outcome(tmp_path / "found.json", outcome)
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["speedup_over_generation"] == 21.5
    assert written["rows"][0]["gemm_gflops"] == 2e-9 * 50
