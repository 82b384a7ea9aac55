"""Batch ranking: what is asked, in which batches, and that it goes on where it was killed."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recranker.distributed.answer_parts import AnswerParts
from recranker.distributed.ranking import (
    Pool,
    RankActor,
    Spent,
    answer_facts,
    answer_missing,
    collect_answers,
    cut_batches,
    tokens_to_ask,
)
from recranker.errors import DataError, ModelError, OutputError
from recranker.llm.model import load_adapter, load_model
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings
from recranker.llm.tuned import adapter_for
from recranker.schema import ANSWERS, PROMPTS
from recranker.tasks.instructions import to_prompts
from recranker.tasks.rounds import ask_in_rounds
from tests.distributed.rank_prompts import LLM, asked_on_cluster, make_models, make_prompts, planned
from tests.jobs.small import ROOT, environment

TOTAL = 24 + 2 * 12
"""Lists of the prompts of ``rank_prompts``: all for the tuned model, the test half for either untuned one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranking")
    make_models(made)
    return made


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> pa.Table:
    """The answers of a ranking without Ray, a list per batch."""
    pools = planned(folder, scratch="unbroken", token_budget=64)
    assert asked_here(folder, pools, token_budget=64) == TOTAL
    return in_order(collect_answers(pools))


def asked_here(folder: Path, pools: list[Pool], *, llm: LLMSettings = LLM, token_budget: int = LLM.token_budget) -> int:
    """What the actors of each pool would do, in this process; returns how many lists were asked."""
    lists = 0
    settings = llm.model_copy(update={"token_budget": token_budget}).model_dump()
    for pool in pools:
        adapter = None if pool.adapter is None else str(pool.adapter)
        actor = RankActor(str(folder / "model"), adapter, pool.tasks, str(pool.parts.folder), settings)
        lists += sum(actor(batch)["lists"][0].as_py() for batch in pool.missing)
    return lists


def in_order(answers: pa.Table) -> pa.Table:
    return ANSWERS.conform(answers, where="test").sort_by([(name, "ascending") for name in ANSWERS.key])


def assert_same(found: pa.Table, wanted: pa.Table) -> None:
    """The same lists and questions exactly, the same numbers up to 1e-5."""
    found, wanted = in_order(found), in_order(wanted)
    for name in ("list_id", "model", "user_id", "split", "cut_lines"):
        assert found[name].to_pylist() == wanted[name].to_pylist()
    for one, other in zip(found["answers"].to_pylist(), wanted["answers"].to_pylist(), strict=True):
        for answer, expected in zip(one, other, strict=True):
            np.testing.assert_allclose(
                answer.pop("log_probabilities"), expected.pop("log_probabilities"), atol=1e-5, rtol=0
            )
            assert answer == expected


def question(task: str, tokens: int | None, round: int = 0) -> dict[str, object]:
    asked = {"text": "?", "labels": ["No", "Yes"], "item_ids": ["a"]}
    return {"task": task, **asked, "round": round, "tokens": tokens}


def prompt_row(name: str, tokens: int | None, *questions: dict[str, object]) -> dict[str, object]:
    shared = {"prompt_id": name, "list_id": name, "user_id": name, "split": "test"}
    return {**shared, "prefix": "p", "questions": questions, "prefix_tokens": tokens}


def sized(*names: str) -> pa.Table:
    table = pa.Table.from_pylist([prompt_row(name, 0) for name in names], schema=PROMPTS.schema)
    return table.append_column("model", pa.array(["tuned"] * len(names)))


def test_the_tokens_counted_are_those_that_will_be_asked() -> None:
    rows = [
        prompt_row("other", 99, question("pointwise", 99)),
        prompt_row("a", 10, question("pointwise", 4), question("listwise", 6, 1)),
        prompt_row("b", 20, question("pairwise", 4), question("listwise", 2)),
        prompt_row("c", 10),
    ]
    table = pa.Table.from_pylist(rows, schema=PROMPTS.schema).slice(1)
    assert tokens_to_ask(table, ("pointwise", "pairwise", "listwise")).tolist() == [14, 26, 0]
    assert tokens_to_ask(table, ("listwise",)).tolist() == [0, 22, 0]  # that of a is asked later, if at all


@pytest.mark.parametrize(
    "row", [prompt_row("a", None, question("pairwise", 1)), prompt_row("a", 1, question("pairwise", None))]
)
def test_prompts_nobody_has_counted_are_refused(row: dict[str, object]) -> None:
    with pytest.raises(DataError, match="without token counts"):
        tokens_to_ask(pa.Table.from_pylist([row], schema=PROMPTS.schema), ("pairwise",))


def test_batches_hold_a_budget_and_the_longest_come_first() -> None:
    tokens = np.array([3, 50, 3, 9, 4, 0, 3])
    batches = cut_batches(sized("a", "b", "c", "d", "e", "none", "f"), tokens, 10)
    assert [batch["list_id"].to_pylist() for batch in batches] == [["b"], ["d"], ["e", "a", "c"], ["f"]]


def test_a_prompt_is_in_one_batch_whatever_the_order_of_the_table() -> None:
    tokens = np.array([3, 3, 3, 3])
    one = cut_batches(sized("a", "b", "c", "d"), tokens, 6)
    other = cut_batches(sized("d", "b", "a", "c"), tokens, 6)
    assert [batch["list_id"].to_pylist() for batch in one] == [batch["list_id"].to_pylist() for batch in other]


def test_the_tuned_model_is_one_pool_and_all_untuned_ones_another(folder: Path) -> None:
    joint, base = planned(folder, scratch="pools")
    assert (joint.name, joint.adapter, joint.num_missing) == ("joint", folder / "adapter/joint", 24)
    assert (base.name, base.adapter, base.num_missing) == ("base", None, 24)
    assert set(joint.prompts["model"].to_pylist()) == {"tuned"}
    assert set(base.prompts["model"].to_pylist()) == {"untuned", "untuned_no_hint"}


def test_answers_are_those_of_the_adapter_beside_the_weights_asked_in_rounds(folder: Path, unbroken: pa.Table) -> None:
    lm = load_model(folder / "model", LLM)
    base = make_scorer(lm, LLM).score(to_prompts(make_prompts()))[5]
    load_adapter(lm, folder / "adapter/joint")
    prompts = to_prompts(make_prompts())
    expected = dict(zip([one.prompt_id for one in prompts], ask_in_rounds(_plain(lm), prompts), strict=True))
    with_adapter = make_scorer(lm, LLM).score(prompts)[5]
    assert max(np.abs(one - other).max() for one, other in zip(base, with_adapter, strict=True)) > 0.1
    tuned = unbroken.filter(pa.compute.equal(unbroken["model"], "tuned")).to_pylist()
    assert len(tuned) == len(prompts)
    rounds = set()
    for row in tuned:
        asked = expected[row["list_id"]]
        assert [(one["task"], tuple(one["item_ids"]), one["round"]) for one in row["answers"]] == [
            (one.task, one.item_ids, one.round) for one in asked.questions
        ]
        for answer, wanted in zip(row["answers"], asked.log_probabilities, strict=True):
            np.testing.assert_allclose(answer["log_probabilities"], wanted, atol=1e-4)
        assert row["cut_lines"] == asked.cut_lines
        rounds.add(max(one["round"] for one in row["answers"]))
    assert rounds == {0, 1, 2}  # settled at once, once asked again, twice


def _plain(lm: object) -> object:
    return make_scorer(lm, LLM.model_copy(update={"backend": "plain"})).score_with_cost  # type: ignore[arg-type]


def test_the_prefix_of_a_later_round_is_not_computed_again(folder: Path, unbroken: pa.Table) -> None:
    lm = load_model(folder / "model", LLM)
    prompts = to_prompts(make_prompts())
    sizes = dict(zip([one.prompt_id for one in prompts], make_scorer(lm, LLM).score_with_cost(prompts), strict=True))
    for row in unbroken.to_pylist():
        assert row["prompt_tokens"] <= sizes[row["list_id"]].tokens  # all rounds in one call
        if row["answers"][-1]["round"] == 2:
            assert row["prompt_tokens"] == sizes[row["list_id"]].tokens


def test_an_adapter_per_task_answers_its_own_questions_and_they_stand_in_the_prompts_order(tmp_path: Path) -> None:
    tasks = ("pointwise", "pairwise", "listwise")
    make_models(tmp_path, tasks)
    pools = planned(tmp_path)
    assert [(pool.name, pool.tasks) for pool in pools[:-1]] == [(task, (task,)) for task in tasks]
    assert [pool.prompts.num_rows for pool in pools] == [24, 18, 18, 24]  # 6 lists of one item have no pair, no list
    asked_here(tmp_path, pools)
    answers = collect_answers(pools)
    assert answers.num_rows == TOTAL
    lm = load_model(tmp_path / "model", LLM)
    scores = {}
    for task in tasks:
        load_adapter(lm, adapter_for(tmp_path / "adapter", task))
        scores[task] = make_scorer(lm, LLM).score(to_prompts(make_prompts()))
    places = {one.prompt_id: place for place, one in enumerate(to_prompts(make_prompts()))}
    for row in answers.filter(pa.compute.equal(answers["model"], "tuned")).to_pylist():
        place = places[row["list_id"]]
        highest = row["answers"][-1]["round"]
        questions = [one for one in to_prompts(make_prompts())[place].questions if one.round <= highest]
        for number, (asked, answer) in enumerate(zip(questions, row["answers"], strict=True)):
            assert (asked.task, asked.item_ids, asked.round) == (
                answer["task"],
                tuple(answer["item_ids"]),
                answer["round"],
            )
            np.testing.assert_allclose(answer["log_probabilities"], scores[asked.task][place][number], atol=1e-4)


def test_a_task_without_an_adapter_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    make_models(tmp_path, ("pointwise", "listwise"))
    with pytest.raises(ModelError, match="no adapter for task 'pairwise'"):
        planned(tmp_path)


def test_another_token_budget_gives_the_same_answers(folder: Path, unbroken: pa.Table) -> None:
    pools = planned(folder, scratch="larger")
    assert 4 <= sum(len(pool.missing) for pool in pools) < TOTAL / 2
    asked_here(folder, pools)
    assert_same(collect_answers(pools), unbroken)


def test_a_run_asks_only_what_earlier_ones_have_not(
    folder: Path, unbroken: pa.Table, caplog: pytest.LogCaptureFixture
) -> None:
    first = planned(folder, scratch="resumed")
    asked_here(folder, [_some(pool) for pool in first])
    with caplog.at_level(logging.INFO):
        pools = planned(folder, scratch="resumed")
    done = TOTAL - sum(pool.num_missing for pool in pools)
    assert 0 < done < TOTAL
    assert f"rank: {done} of {TOTAL} lists were answered before" in caplog.text
    assert [batch["list_id"].to_pylist() for pool in pools for batch in pool.missing] == [
        batch["list_id"].to_pylist() for pool in first for batch in pool.missing[1:]
    ]
    assert asked_here(folder, pools) == TOTAL - done
    assert_same(collect_answers(pools), unbroken)


def _some(pool: Pool) -> Pool:
    return Pool(pool.name, pool.adapter, pool.tasks, pool.prompts, pool.missing[:1], pool.parts)


def test_a_broken_part_is_set_aside_and_its_lists_are_asked_again(
    folder: Path, unbroken: pa.Table, caplog: pytest.LogCaptureFixture
) -> None:
    pools = planned(folder, scratch="broken")
    asked_here(folder, pools)
    cut, flipped, other, *_ = sorted((folder / "broken/joint").glob("*.parquet"))
    lost = sum(pq.read_table(path).num_rows for path in (cut, flipped, other))
    cut.write_bytes(cut.read_bytes()[:100])
    content = bytearray(flipped.read_bytes())
    content[60] ^= 0xFF
    flipped.write_bytes(bytes(content))
    pq.write_table(pa.table({"list_id": ["x"]}), other)
    (folder / "broken/joint/.half.parquet.1.partial").write_bytes(b"PAR1")  # of a writer that was killed
    with pytest.raises(OutputError, match=f"{lost} of 24 lists have no answer there, for instance '"):
        collect_answers(pools)
    assert caplog.text.count("a part of the answers is broken, its lists are asked again") == 3
    assert sorted(path.stem for path in (folder / "broken/joint").glob("*.broken")) == sorted(
        path.stem for path in (cut, flipped, other)
    )
    pools = planned(folder, scratch="broken")
    assert asked_here(folder, pools) == lost
    assert_same(collect_answers(pools), unbroken)


def test_lists_answered_in_two_batches_are_there_once(folder: Path, unbroken: pa.Table) -> None:
    pools = planned(folder, scratch="twice")
    asked_here(folder, pools)
    asked_here(folder, planned(folder, scratch="other", token_budget=700), token_budget=700)
    for pool in pools:
        for path in (folder / "other" / pool.name).glob("*.parquet"):
            path.rename(pool.parts.folder / path.name)
        assert pq.ParquetDataset(pool.parts.folder).read().num_rows > pool.prompts.num_rows
        assert pool.parts.read().num_rows == pool.prompts.num_rows
    pools = planned(folder, scratch="twice")
    assert not any(pool.missing for pool in pools)
    found = collect_answers(pools)
    assert_same(found, unbroken)
    assert found.equals(in_order(found))  # whatever batches they came in


def test_lists_of_which_some_are_answered_are_asked_without_those(folder: Path, unbroken: pa.Table) -> None:
    joint = planned(folder, scratch="partly")[0]
    first = joint.missing[0]["list_id"].to_pylist()
    assert len(first) > 1
    known = pa.compute.and_(
        pa.compute.equal(unbroken["list_id"], first[0]), pa.compute.equal(unbroken["model"], "tuned")
    )
    joint.parts.write(unbroken.filter(known))
    pools = planned(folder, scratch="partly")
    assert pools[0].missing[0]["list_id"].to_pylist() == first[1:]
    asked_here(folder, pools)
    assert_same(collect_answers(pools), unbroken)


def test_a_part_is_written_whole_or_not_at_all(tmp_path: Path, unbroken: pa.Table) -> None:
    parts = AnswerParts(tmp_path / "parts")
    with pytest.raises(OutputError, match=r"set store\.home to a writable folder that all nodes share"):
        parts.write(unbroken)  # nobody made the folder, or another node did
    parts.create()
    parts.write(unbroken)
    parts.write(unbroken.take(np.arange(unbroken.num_rows)[::-1]))  # the same batch again
    assert len(list(parts.folder.iterdir())) == 1
    assert in_order(parts.read()).equals(unbroken)


def test_history_that_did_not_fit_is_counted_once_per_list(
    folder: Path, unbroken: pa.Table, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert answer_facts(unbroken) == {"lists": 24, "cut_history_lines": 0}
    assert "did not fit" not in caplog.text
    lines = pa.array([3 if one == "test/u3/i39" else 0 for one in unbroken["list_id"].to_pylist()], pa.int32())
    place = unbroken.schema.get_field_index("cut_lines")
    cut = unbroken.set_column(place, unbroken.schema.field("cut_lines"), lines)
    assert answer_facts(cut) == {"lists": 24, "cut_history_lines": 3}  # three models have lost the same lines
    assert "3 lines of history, the oldest likes of 1 of 24 lists, did not fit" in caplog.text


def test_cut_lines_come_with_the_answers(folder: Path) -> None:
    llm = LLM.model_copy(update={"max_prompt_tokens": 400})
    pools = planned(folder, scratch="cut")
    asked_here(folder, pools, llm=llm)
    lines = collect_answers(pools)["cut_lines"].to_pylist()
    assert max(lines) > 3
    assert min(lines) == 0


def test_speeds_are_those_of_this_run() -> None:
    spent = Spent().plus(2, 100, seconds=1.0).plus(4, 300, seconds=2.0)
    assert (spent.lists_per_second, spent.tokens_per_second) == (3.0, 200.0)
    assert (Spent().lists_per_second, Spent().tokens_per_second) == (0.0, 0.0)


@pytest.mark.ray
def test_two_workers_give_the_answers_of_one(ray_cluster: None, folder: Path, unbroken: pa.Table) -> None:
    pools = planned(folder, scratch="workers")
    heard: list[Spent] = []
    spent = answer_missing(pools, model=folder / "model", settings=LLM, workers=2, on_batch=heard.append)
    assert spent == heard[-1]
    assert len(heard) == sum(len(pool.missing) for pool in pools)  # a block each
    answers = collect_answers(pools)
    assert spent.lists == TOTAL
    assert spent.tokens == sum(answers["prompt_tokens"].to_pylist())
    assert [len(list(pool.parts.folder.iterdir())) for pool in pools] == [len(pool.missing) for pool in pools]
    assert_same(answers, unbroken)
    assert asked_on_cluster(folder, planned(folder, scratch="workers")) == 0


@pytest.mark.ray
def test_killed_in_the_middle_the_same_command_asks_the_rest(tmp_path: Path, folder: Path, unbroken: pa.Table) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    (tmp_path / "adapter").symlink_to(folder / "adapter")
    command = [sys.executable, "-m", "tests.distributed.rank_prompts", str(tmp_path)]
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("scratch/joint/*.parquet"))) < 5:
        assert running.poll() is None, "the ranking ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "answers.parquet").exists()
    again = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr[-2000:]
    assert 0 < int(again.stdout) <= 24 - 5
    answers = pq.read_table(tmp_path / "answers.parquet")
    tuned = unbroken.filter(pa.compute.equal(unbroken["model"], "tuned"))
    assert_same(answers, tuned)
    assert in_order(answers)["prompt_tokens"].to_pylist() == tuned["prompt_tokens"].to_pylist()
