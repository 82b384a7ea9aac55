import numpy as np
import pyarrow as pa
import pytest

from recranker.distributed.datasets import by_user, draw, from_table
from recranker.distributed.instructions import build_prompts
from recranker.distributed.sampling import draw_users, eligible_users
from recranker.errors import DataError
from recranker.sampling import races
from recranker.sampling.settings import AdaptiveSampling, UniformSampling
from recranker.schema import DRAWS, PROMPTS
from recranker.store import logical_hash
from recranker.tasks.instructions import PromptBuilder
from recranker.tasks.protocol import RatingScale
from recranker.tasks.settings import InstructSettings
from tests.tables import candidate_list, candidates, draws, factors, interactions

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

USERS = [f"u{n}" for n in range(40)]
EVENTS = interactions(
    *((user, f"i{k}", k, "like", "train") for n, user in enumerate(USERS) for k in range(4 + n % 5)),
    *((user, "t", 20, "like", "test") for user in USERS),
)
LISTS = candidates(
    *(candidate_list(user, "train", "i3", ["i3", "i10", "i11"], before=3) for user in USERS[:30]),
    *(candidate_list(user, "test", "t", ["i12", "t", "i13"], before=20) for user in USERS),
)
FACTORS = factors(**{user: [float(n % 4), float(n // 20), 1.0] for n, user in enumerate(USERS)})
TITLES = {name: f"Film {name}" for name in [*(f"i{n}" for n in range(20)), "t"]}
BUILDER = PromptBuilder(TITLES, InstructSettings(), RatingScale(1, 5), 0)


@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_draws_over_shards_equal_draws_in_one_place(blocks: int) -> None:
    rates = np.log(np.arange(2.0, 42.0))
    table = pa.table({"user_id": USERS, "rate": rates, "group": np.zeros(40, np.int32)})
    found = draw(from_table(table, blocks), {0: 300}, 5, "step")
    expected = races.draw(USERS, rates, 300, 5, "step")
    assert found.user_ids.tolist() == expected.user_ids.tolist()
    assert found.times.tobytes() == expected.times.tobytes()


def test_groups_race_apart_and_fill_their_quotas() -> None:
    table = pa.table({"user_id": USERS, "rate": np.ones(40), "group": np.repeat(np.array([3, 8], np.int32), [10, 30])})
    drawn = draw(from_table(table, 3), {3: 25, 8: 5}, 0, "groups")
    assert sum(int(user[1:]) < 10 for user in drawn.user_ids) == 25
    assert len(drawn) == 30
    assert (np.diff(drawn.times) >= 0).all()


def test_sampling_gives_the_same_bytes_for_any_blocks_and_row_order() -> None:
    settings = AdaptiveSampling(num_draws=60, num_clusters=4)
    order = np.random.default_rng(0).permutation(EVENTS.num_rows)
    one, facts = draw_users(EVENTS, LISTS, FACTORS, settings, 0, 1)
    four, _ = draw_users(EVENTS.take(order), LISTS, FACTORS, settings, 0, 4)
    assert logical_hash(one, DRAWS) == logical_hash(four, DRAWS)
    assert facts == {"eligible_users": 30, "draws": 60, "distinct_users": len(set(one["user_id"].to_pylist()))}


def test_another_seed_draws_other_users() -> None:
    settings = UniformSampling(num_draws=50)
    first, _ = draw_users(EVENTS, LISTS, FACTORS, settings, 0, 2)
    second, _ = draw_users(EVENTS, LISTS, FACTORS, settings, 1, 2)
    assert first["user_id"] != second["user_id"]


def test_only_users_with_a_training_list_that_holds_its_target_are_drawn() -> None:
    missed = candidates(candidate_list("u0", "train", "i3", ["i9", "i8"]), candidate_list("u1", "train", "i3", ["i3"]))
    assert eligible_users(EVENTS, missed).to_pylist() == [{"user_id": "u1", "num_likes": 5}]
    with pytest.raises(DataError, match="nobody to learn from"):
        draw_users(EVENTS, missed.slice(0, 1), FACTORS, UniformSampling(num_draws=5), 0, 1)


def test_all_rows_of_a_user_meet_in_one_call() -> None:
    def count(tables: dict[str, pa.Table]) -> pa.Table:
        user = tables["events"]["user_id"][0].as_py()
        return pa.table({"user_id": [user], "events": [tables["events"].num_rows], "lists": [tables["lists"].num_rows]})

    rows = by_user({"events": EVENTS, "lists": LISTS}, count, 5).take_all()
    assert len(rows) == 40
    assert {row["user_id"]: row["lists"] for row in rows} == {user: 2 if n < 30 else 1 for n, user in enumerate(USERS)}
    assert sum(row["events"] for row in rows) == EVENTS.num_rows


def test_prompts_are_the_same_bytes_for_one_and_four_blocks_and_none_is_lost() -> None:
    drawn = draws(*(USERS[:30] * 2))
    one, lost_one = build_prompts(EVENTS, LISTS, drawn, BUILDER, 1)
    four, lost_four = build_prompts(EVENTS, LISTS, drawn, BUILDER, 4)
    assert logical_hash(one, PROMPTS) == logical_hash(four, PROMPTS)
    assert one.num_rows + lost_one.num_rows == 60 + 40
    assert lost_one.num_rows == lost_four.num_rows == 0


def test_a_draw_that_cannot_become_a_prompt_is_quarantined_with_its_reason() -> None:
    prompts, lost = build_prompts(EVENTS, LISTS, draws("u35", "u0"), BUILDER, 2)
    assert lost.to_pylist() == [{"row_id": "train/0", "reason": "no training list holds its target"}]
    assert prompts.num_rows == 1 + 40
