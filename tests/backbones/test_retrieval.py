"""Retrieval over the whole catalogue: any block size, bounded memory, ranks that agree, and its speed."""

import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from recranker.backbones.fit import FactorFit, Floats, Queries
from recranker.backbones.retrieval import retrieve, scores_of, target_ranks
from recranker.backbones.topk import ItemSets
from tests.backbones.made_up import random_pairs

USERS, ITEMS = 23, 17


@dataclass
class Spy:
    """A fit that remembers how many scores it was asked for at a time."""

    fit: FactorFit
    asked: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> object:
        return getattr(self.fit, name)

    def scores(self, queries: Queries) -> Floats:
        found = self.fit.scores(queries)
        self.asked.append(found.size)
        return found


def tied_fit(num_users: int = USERS, num_items: int = ITEMS, dim: int = 3) -> FactorFit:
    """Factors of few whole numbers: many scores are equal."""
    random = np.random.default_rng(0)
    users, items = (random.integers(-1, 2, (count, dim)).astype(np.float32) for count in (num_users, num_items))
    return FactorFit(users, items)


def everybody() -> tuple[Queries, ItemSets, np.ndarray]:
    pairs = np.array(random_pairs(USERS, ITEMS, 90))
    masked = ItemSets.of(pairs[:, 0], pairs[:, 1], USERS)
    eligible = np.arange(ITEMS) != 5
    return Queries(np.arange(USERS)[::-1].copy(), masked), masked, eligible


@pytest.mark.parametrize("cells", [1, ITEMS, 3 * ITEMS, 10 * ITEMS + 5, 1 << 20])
def test_blocks_of_any_size_give_the_same_in_bounded_memory(cells: int) -> None:
    queries, masked, eligible = everybody()
    targets = np.random.default_rng(1).integers(0, ITEMS, USERS)
    pairs = np.array(random_pairs(USERS, ITEMS, 60, seed=2))
    results = []
    for size in (USERS * ITEMS, cells):
        spy = Spy(tied_fit())
        found = [
            *retrieve(spy, queries, 4, masked=masked, eligible=eligible, cells=size),
            target_ranks(spy, queries, targets, masked=masked, eligible=eligible, cells=size),
            scores_of(spy, queries, pairs[:, 0], pairs[:, 1], cells=size),
        ]
        assert max(spy.asked) <= max(size, ITEMS)  # a single query is the least there is
        results.append(found)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_block_sizes_do_not_move_the_last_bits() -> None:
    random = np.random.default_rng(0)
    fit = FactorFit(*(random.normal(size=(count, 64)).astype(np.float32) for count in (300, 200)))
    nothing = ItemSets(np.zeros(301, np.int64), np.empty(0, np.int64))
    queries, eligible = Queries(np.arange(300), nothing), np.ones(200, dtype=bool)
    values = [
        retrieve(fit, queries, 9, masked=nothing, eligible=eligible, cells=cells)[2] for cells in (200, 1400, 60000)
    ]
    np.testing.assert_array_equal(values[0], values[2])
    np.testing.assert_array_equal(values[1], values[2])


def test_ranks_agree_with_the_places_in_the_retrieved_lists() -> None:
    queries, masked, eligible = everybody()
    rows, items, _ = retrieve(tied_fit(), queries, ITEMS, masked=masked, eligible=eligible)
    places = np.arange(len(rows)) - np.searchsorted(rows, rows) + 1
    for target in range(ITEMS):
        ranks = target_ranks(tied_fit(), queries, np.full(USERS, target), masked=masked, eligible=eligible)
        expected = np.full(USERS, ITEMS + 1)  # out of the race: behind all
        expected[rows[items == target]] = places[items == target]
        assert ranks.tolist() == expected.tolist()


def test_pair_scores_are_those_of_the_whole_row() -> None:
    queries, _, _ = everybody()
    rows, items = np.array([0, 0, 4, 4, 22]), np.array([3, 1, 16, 0, 5])
    expected = tied_fit().scores(queries)[rows, items]
    assert scores_of(tied_fit(), queries, rows, items).tolist() == expected.tolist()


def test_nobody_asked_gives_nothing() -> None:
    nobody = Queries(np.empty(0, np.int64), ItemSets(np.zeros(1, np.int64), np.empty(0, np.int64)))
    rows, items, values = retrieve(tied_fit(), nobody, 3, masked=nobody.histories, eligible=np.ones(ITEMS, dtype=bool))
    assert len(rows) == len(items) == len(values) == 0
    assert len(scores_of(tied_fit(), nobody, rows, items)) == 0


@pytest.mark.slow
def test_ten_best_for_six_thousand_users_take_less_than_two_cpu_seconds() -> None:
    random = np.random.default_rng(0)
    fit = FactorFit(*(random.normal(size=(count, 64)).astype(np.float32) for count in (6000, 3700)))
    likes = np.sort(random.integers(0, 6000 * 3700, 600_000))
    masked = ItemSets.of(likes // 3700, likes % 3700, 6000)
    started = time.process_time()
    rows, *_ = retrieve(fit, Queries(np.arange(6000), masked), 10, masked=masked, eligible=np.ones(3700, dtype=bool))
    assert time.process_time() - started < 2.0  # one thread: conftest sets OMP_NUM_THREADS
    assert len(rows) == 60_000
