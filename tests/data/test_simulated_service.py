"""The made-up service: its tails, its drift, and that a user is the same in any shard."""

import numpy as np
import pytest
from pydantic import ValidationError

from recranker.data.lookup import places
from recranker.data.simulated_service import (
    GENRE_NOUNS,
    NUM_GENRES,
    SPAN_S,
    START,
    Histories,
    ServiceSettings,
    catalogue_of,
    events_table,
    histories_of,
    items_table,
    repeats,
)
from recranker.data.titles import clean_title

SERVICE = ServiceSettings(users=2000, items=3200)


@pytest.fixture(scope="module")
def histories() -> Histories:
    return histories_of(SERVICE, SERVICE.users_of(0))


@pytest.mark.parametrize("numbers", [range(7), range(700, 701), range(1990, 2000)])
def test_a_user_is_the_same_in_any_shard(histories: Histories, numbers: range) -> None:
    mine = (histories.users >= numbers.start) & (histories.users < numbers.stop)
    alone = histories_of(SERVICE.model_copy(update={"users": 10_000_000}), numbers)
    for name in ("items", "ratings", "times"):
        assert getattr(alone, name).tobytes() == getattr(histories, name)[mine].tobytes(), name
    assert alone.people.tastes.tobytes() == histories.people.tastes[numbers.start : numbers.stop].tobytes()


def test_another_seed_is_another_service(histories: Histories) -> None:
    other = histories_of(SERVICE.model_copy(update={"seed": 1}), range(50))
    assert other.items[:100].tolist() != histories.items[:100].tolist()


def test_nobody_meets_an_item_twice_and_time_goes_on(histories: Histories) -> None:
    pairs = histories.users * SERVICE.items + histories.items
    assert len(np.unique(pairs)) == len(pairs)
    same = histories.users[1:] == histories.users[:-1]
    assert (np.diff(histories.times)[same] > 0).all()
    assert histories.times.min() >= START
    assert histories.times.max() < START + SPAN_S + 5000
    assert set(histories.ratings.tolist()) == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_half_of_the_users_meet_little(histories: Histories) -> None:
    counts = np.bincount(histories.users)
    assert 44 < counts.mean() < 52  # 50 were asked for; few items leave heavy users less
    assert 0.55 < np.median(counts) / 50 < 0.67  # of a log-normal with spread 1: exp(-1 / 2) = 0.61
    assert counts.max() > 250


def test_popularity_follows_zipf() -> None:
    """Of 200 items a genre, those before the middle of all events are 10 * (sqrt(210 / 10) - 1) = 35.8."""
    catalogue = catalogue_of(SERVICE)
    shares = np.array([0.0, 0.5, 1 - 1e-12])
    assert catalogue.item_at(np.array([3, 3, 3]), shares).tolist() == [3, 3 + NUM_GENRES * 35, 3 + NUM_GENRES * 199]
    short = catalogue_of(ServiceSettings(users=1, items=3201))  # genre 0 has 201 items, the others 200
    assert short.item_at(np.array([0, 3]), np.array([1 - 1e-12, 1 - 1e-12])).tolist() == [3200, 3 + NUM_GENRES * 199]


def test_few_items_take_many_events(histories: Histories) -> None:
    counts = np.sort(np.bincount(histories.items, minlength=SERVICE.items))[::-1]
    assert counts[:320].sum() > 0.28 * counts.sum()  # a tenth of the catalogue
    assert counts[1600:].sum() < 0.30 * counts.sum()  # half of it


def test_tastes_turn_by_sixty_degrees(histories: Histories) -> None:
    first, last = histories.people.tastes[:, 0], histories.people.tastes[:, -1]
    cosines = (first * last).sum(axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(last, axis=1)
    assert abs(cosines.mean() - 0.5) < 0.03


def test_what_a_user_meets_follows_the_taste_of_the_time(histories: Histories) -> None:
    """The latest taste likes late events better than early ones."""
    numbers = np.bincount(histories.users)[histories.users]
    share = places(histories.users) / numbers
    latest = histories.people.tastes[:, -1].reshape(-1)
    liking = latest[histories.users * NUM_GENRES + histories.items % NUM_GENRES]
    assert liking[share > 0.8].mean() > liking[share < 0.2].mean() + 0.2


def test_what_a_user_likes_is_rated_higher(histories: Histories) -> None:
    likes = histories.ratings >= 4
    assert 0.45 < likes.mean() < 0.65
    assert 0.1 < (histories.ratings < 3).mean() < 0.2
    quality = catalogue_of(SERVICE).quality[histories.items]
    assert quality[likes].mean() > quality[~likes].mean() + 0.2


def test_titles_are_readable_distinct_and_tell_the_genre() -> None:
    items = items_table(SERVICE, range(SERVICE.items))
    titles = items["title"].to_pylist()
    assert len(set(titles)) == len(titles)
    assert titles[1] == "Old Teapot of Naples (1977)"
    for title, genres in zip(titles, items["genres"].to_pylist(), strict=True):
        assert title.split()[1] in GENRE_NOUNS[genres[0]].split()
        assert clean_title(title, 200) == title
        assert len(genres) == len(set(genres)) <= 2


def test_ten_million_titles_would_still_differ() -> None:
    assert len({*" ".join(GENRE_NOUNS.values()).split()}) == NUM_GENRES * 12  # so that genres never share a title
    combinations = 24 * 12 * 40 * 75  # adjectives, nouns of a genre, places, years
    assert combinations > 10_000_000 / NUM_GENRES
    assert np.gcd(combinations, 500_009) == 1  # so that ranks and combinations are the same in another order


def test_ids_sort_as_numbers(histories: Histories) -> None:
    users = events_table(histories)["user_id"].to_pylist()
    assert users[0] == "u00000000"
    assert users == sorted(users)


def test_rows_that_repeat_an_item_are_found() -> None:
    groups, items = np.array([0, 0, 0, 1, 1]), np.array([7, 8, 7, 7, 7])
    found = repeats(groups, items, np.array([0, 1, 2, 0, 1]), np.array([0, 3]), 10)
    assert found.tolist() == [2, 4]


@pytest.mark.parametrize("wrong", [{"users": 0}, {"users": 10_000_001}, {"users": 1, "items": 319}])
def test_nonsense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ServiceSettings.model_validate(wrong)
