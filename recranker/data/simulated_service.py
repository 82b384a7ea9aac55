"""A made-up service of any size: what people meet in a catalogue whose popularity has a long tail, as tastes drift.

Nothing in it is real. It is there so that anyone can try scale without private data. User ``u`` and everything they do
depend on (seed, ``u``) and on the sizes of the catalogue and of histories alone: not on how many users there are, how
they are cut into shards, or where and when a shard is made.

- **Items.** Each has a genre, many a second one, a quality and a title that tells of its genre. Within a genre the
  item of rank r, from 0, is met in proportion to 1 / (r + 10): Zipf's law with exponent 1, its head flattened as
  Mandelbrot proposed. Low item numbers are the popular ones.
- **Users.** How much a user meets is log-normal: half of them meet less than 0.6 times the mean. A user's taste is a
  vector with a number per genre that turns by a third of a half circle from the first event to the last, in 8 steps.
- **Events.** The taste of the time draws the genre, popularity the item, once per user; the rating follows from taste,
  quality, the user's mood and chance. Gaps between events are exponential.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from recranker.data.lookup import places
from recranker.randomness import Keys, key_of, mix, uniforms
from recranker.settings import Settings

SOURCE = "simulated"
"""What manifests and reports call this data."""
START = 1_500_000_000
"""UTC seconds at which the service opens."""
SPAN_S = 3 * 365 * 86_400
"""How long it is watched."""
SCALE = (1.0, 5.0)
THRESHOLDS = (4.0, 3.0)
"""A rating from the first on is a like, one below the second a dislike."""
STEPS = 8
"""In how many steps a taste moves from a user's first event to the last."""

MIN_EVENTS, MAX_EVENTS = 3, 5_000
"""Of one user."""
_SPREAD = 1.0
"""Standard deviation of the logarithm of events per user."""
_DRIFT = np.pi / 3
"""Angle a taste has turned by at the end."""
_HEAD = 10.0
"""Added to ranks: how flat the head of popularity is."""
_SHARPNESS = 1.2
"""How much more often a genre is met that is liked by one more."""
_ROUNDS = 6
"""How often items that a user has met already are drawn anew; what still repeats is dropped."""
_PLACE_BITS = 13
"""Enough for a place in a history."""
_CDF_BITS = 31
"""Cumulative probabilities are whole numbers of so many bits: sums of fractions would depend on a user's neighbours."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class ServiceSettings(Settings):
    """How large the service is."""

    users: int = Field(ge=1, le=10_000_000)
    """People."""
    items: int = Field(default=100_000, ge=320, le=10_000_000)
    """Items in the catalogue."""
    events_per_user: float = Field(default=50.0, ge=5, le=1_000)
    """Mean events of a user, nearly; an eighth of the items at most."""
    seed: int = 0
    """Everything drawn is keyed by it."""
    shard_users: int = Field(default=20_000, ge=1, le=1_000_000)
    """Users per file; a file is made whole in memory."""
    train_share: float = Field(default=0.1, ge=0, le=1)
    """Share of users with a training list, where lists are made."""
    ranked_share: float = Field(default=1.0, ge=0, le=1)
    """Share of users with a validation and a test list, where lists are made."""

    @property
    def shards(self) -> int:
        """Files of users."""
        return -(-self.users // self.shard_users)

    def users_of(self, shard: int) -> range:
        """The numbers of the users in a shard."""
        return range(shard * self.shard_users, min((shard + 1) * self.shard_users, self.users))

    def keys(self, purpose: str, numbers: Ints) -> Keys:
        """``(numbers,)`` a key for each user or item number, for one purpose."""
        return mix(np.full(len(numbers), key_of(self.seed, "service", purpose), dtype=np.uint64), numbers)


@dataclass(frozen=True)
class Catalogue:
    """What events need to know of items."""

    num_items: int
    second: NDArray[np.int8]
    """``(items,)`` second genre; the first one again where there is none."""
    quality: NDArray[np.float32]
    """``(items,)`` of mean 0 and variance 1."""

    @property
    def per_genre(self) -> int:
        """Items of a genre, rounded up."""
        return -(-self.num_items // NUM_GENRES)

    def item_at(self, genres: Ints, shares: Floats) -> Ints:
        """The item of a genre with ``shares`` of all events with the genre on more popular items."""
        ranks = np.floor(_HEAD * np.expm1(shares * np.log1p(self.per_genre / _HEAD))).astype(np.int64)
        items: Ints = genres + NUM_GENRES * np.minimum(ranks, self.per_genre - 1)
        items[items >= self.num_items] -= NUM_GENRES  # the last rank is not in every genre
        return items

    def liking(self, tastes: NDArray[np.float64], items: Ints, rows: Ints) -> Floats:
        """How much the taste in each of ``rows`` of ``tastes`` ``(tastes, genres)`` likes each item's genres."""
        flat, base = tastes.reshape(-1), rows * NUM_GENRES
        liking: Floats = (flat[base + items % NUM_GENRES] + flat[base + self.second[items]]) / 2
        return liking


@dataclass(frozen=True)
class People:
    """The users of one shard. ``U`` users."""

    numbers: Ints
    """``(U,)``."""
    tastes: Floats
    """``(U, STEPS, genres)``."""
    mood: Floats
    """``(U,)`` added to each of their ratings."""


@dataclass(frozen=True)
class Histories:
    """What the users of one shard meet; a user's events stand together, oldest first. ``N`` events."""

    people: People
    users: Ints
    """``(N,)`` place of the user in the shard."""
    items: Ints
    """``(N,)`` item number."""
    ratings: NDArray[np.float32]
    """``(N,)``."""
    times: Ints
    """``(N,)`` UTC seconds, rising within a user."""


@lru_cache(maxsize=1)
def catalogue_of(service: ServiceSettings) -> Catalogue:
    """All items, as events see them."""
    numbers = np.arange(service.items)
    keys = service.keys("items", numbers)
    first, chance = numbers % NUM_GENRES, uniforms(keys, 0)
    other = (first + 1 + (uniforms(keys, 1) * (NUM_GENRES - 1)).astype(np.int64)) % NUM_GENRES
    second = np.where(chance < 0.4, other, first).astype(np.int8)
    return Catalogue(service.items, second, _normals(keys, 2).astype(np.float32))


def histories_of(service: ServiceSettings, numbers: range) -> Histories:
    """What the users of these numbers meet."""
    catalogue, people = catalogue_of(service), _people(service, np.arange(numbers.start, numbers.stop))
    counts = _counts(service, people.numbers)
    users = np.repeat(np.arange(len(counts)), counts)
    place = places(users)
    offsets, life = _offsets(service, people.numbers, users, place)
    step = offsets * STEPS // life[users]
    genres = genres_at(people, users, step, uniforms(service.keys("genre", people.numbers)[users], place))
    items, repeated = _items(service, catalogue, people.numbers, users, place, genres)
    liking = catalogue.liking(people.tastes.reshape(-1, NUM_GENRES), items, users * STEPS + step)
    chance = uniforms(service.keys("rating", people.numbers)[users], place)
    level = rating_level(liking, catalogue.quality[items], people.mood[users]) + 0.45 * np.log(chance / (1 - chance))
    ratings = np.clip(np.floor(level + 0.5), *SCALE).astype(np.float32)
    kept = ~repeated
    times = _opened(service, people.numbers, users, offsets, life) + place
    return Histories(people, users[kept], items[kept], ratings[kept], times[kept])


def genres_at(people: People, users: Ints, steps: Ints, chances: Floats) -> Ints:
    """A genre for each of ``chances``, drawn by the taste of a user at a step."""
    weights = np.exp(_SHARPNESS * people.tastes - 0.05 * np.arange(NUM_GENRES))  # some genres are larger than others
    sums = np.cumsum(weights, axis=-1)
    bounds = (sums / sums[..., -1:] * 2.0**_CDF_BITS).astype(np.int64).reshape(-1, NUM_GENRES)
    bounds[:, -1] = 1 << _CDF_BITS
    bounds += np.arange(len(bounds))[:, None] << _CDF_BITS
    rows = users * STEPS + steps
    wanted = (rows << _CDF_BITS) + (chances * 2.0**_CDF_BITS).astype(np.int64)
    return np.searchsorted(bounds.reshape(-1), wanted, side="right") - rows * NUM_GENRES


def rating_level(liking: Floats, quality: NDArray[np.floating], mood: Floats | float) -> Floats:
    """The rating to expect before chance, unrounded."""
    return np.asarray(3.15 + 0.6 * liking + 0.4 * quality + mood, dtype=np.float64)


def repeats(groups: Ints, items: Ints, place: Ints, starts: Ints, num_items: int) -> Ints:
    """Rows whose item stands at an earlier place of the same group.

    Args:
        groups: ``(rows,)`` from 0.
        items: ``(rows,)``.
        place: ``(rows,)`` distinct within a group, below 2^13.
        starts: ``(groups,)`` row of each group's place 0.
        num_items: All items.
    """
    packed = np.sort((groups * num_items + items) << _PLACE_BITS | place)  # far faster than sorting rows by two keys
    pair = packed >> _PLACE_BITS
    again = packed[1:][pair[1:] == pair[:-1]]
    rows: Ints = starts[(again >> _PLACE_BITS) // num_items] + (again & ((1 << _PLACE_BITS) - 1))
    return rows


def user_ids(numbers: Ints) -> pa.Array:
    """The ids of users by number."""
    return _ids("u", numbers)


def item_ids(numbers: Ints) -> pa.Array:
    """The ids of items by number."""
    return _ids("i", numbers)


def items_table(service: ServiceSettings, numbers: range) -> pa.Table:
    """Id, title and genres of the items of these numbers."""
    items, names = np.arange(numbers.start, numbers.stop), pa.array(GENRES)
    first, second = items % NUM_GENRES, catalogue_of(service).second[items].astype(np.int64)
    pairs = np.stack([first, second], axis=1).reshape(-1)
    kept = np.stack([np.ones(len(items), dtype=bool), first != second], axis=1)
    ends = pa.array(np.append(0, np.cumsum(kept.sum(axis=1))), pa.int32())
    genres = pa.ListArray.from_arrays(ends, names.take(pa.array(pairs[kept.reshape(-1)])))
    return pa.table({"item_id": item_ids(items), "title": _titles(items), "genres": genres})


def events_table(histories: Histories) -> pa.Table:
    """User, item, rating and time of every event, as a service would export them."""
    return pa.table(
        {
            "user_id": user_ids(histories.people.numbers).take(pa.array(histories.users)),
            "item_id": item_ids(histories.items),
            "rating": histories.ratings,
            "timestamp": histories.times,
        }
    )


def _people(service: ServiceSettings, numbers: Ints) -> People:
    genres = np.arange(NUM_GENRES)
    first, last = (_normals(service.keys(name, numbers)[:, None], 2 * genres) for name in ("taste", "drift"))
    angles = _DRIFT * np.arange(STEPS) / (STEPS - 1)
    tastes = first[:, None, :] * np.cos(angles)[:, None] + last[:, None, :] * np.sin(angles)[:, None]
    return People(numbers, tastes, 0.3 * _normals(service.keys("mood", numbers), 0))


def _counts(service: ServiceSettings, numbers: Ints) -> Ints:
    """``(users,)`` events drawn for each."""
    drawn = np.exp(_SPREAD * _normals(service.keys("count", numbers), 0) - _SPREAD**2 / 2)
    most = min(MAX_EVENTS, service.items // 8)
    return np.clip(np.rint(service.events_per_user * drawn), MIN_EVENTS, most).astype(np.int64)


def _offsets(service: ServiceSettings, numbers: Ints, users: Ints, place: Ints) -> tuple[Ints, Ints]:
    """When each event happens in its user's life, and how long that is, on a clock of the user's own.

    Gaps are whole numbers, so that their sums are the same whoever else is in the shard.
    """
    gaps = 1 + (-1000 * np.log(uniforms(service.keys("gap", numbers)[users], place))).astype(np.int64)
    so_far = np.cumsum(gaps)
    last = np.flatnonzero(np.append(users[1:] != users[:-1], True))
    before = np.append(0, so_far[last[:-1]])
    return so_far - before[users], so_far[last] - before + 1000


def _opened(service: ServiceSettings, numbers: Ints, users: Ints, offsets: Ints, life: Ints) -> Ints:
    """UTC seconds of each event: a user comes at some time and stays for a while."""
    keys = service.keys("life", numbers)
    lasts = ((0.1 + 0.9 * uniforms(keys, 0)) * SPAN_S).astype(np.int64)
    comes = START + (uniforms(keys, 1) * (SPAN_S - lasts)).astype(np.int64)
    return comes[users] + offsets * lasts[users] // life[users]


def _items(
    service: ServiceSettings, catalogue: Catalogue, numbers: Ints, users: Ints, place: Ints, genres: Ints
) -> tuple[Ints, NDArray[np.bool_]]:
    """An item for each event, and whether the user has met it before after all."""
    keys = service.keys("item", numbers)
    starts = np.flatnonzero(place == 0)
    items = catalogue.item_at(genres, uniforms(keys[users], place))
    rows, repeated = np.arange(len(users)), np.empty(0, np.int64)
    for number in range(1, _ROUNDS + 1):
        repeated = repeats(users[rows], items[rows], place[rows], starts, service.items)
        if number == _ROUNDS or not len(repeated):
            break
        shares = uniforms(keys[users[repeated]], place[repeated] + (number << _PLACE_BITS))
        items[repeated] = catalogue.item_at(genres[repeated], shares)
        concerned = np.zeros(len(numbers), dtype=np.bool_)
        concerned[users[repeated]] = True
        rows = np.flatnonzero(concerned[users])
    marked = np.zeros(len(users), dtype=np.bool_)
    marked[repeated] = True
    return items, marked


def _normals(keys: Keys, counter: int | Ints) -> Floats:
    """Normal numbers of mean 0 and variance 1; each takes its counter and the next.

    Source: Box & Muller 1958, doi:10.1214/aoms/1177706645.
    """
    radius = np.sqrt(-2 * np.log(uniforms(keys, counter)))
    return np.asarray(radius * np.cos(2 * np.pi * uniforms(keys, np.asarray(counter) + 1)), dtype=np.float64)


def _ids(letter: str, numbers: Ints) -> pa.Array:
    distinct, rows = np.unique(numbers, return_inverse=True)
    texts = pc.utf8_lpad(pc.cast(pa.array(distinct), pa.string()), 8, "0")
    return pc.binary_join_element_wise(letter, texts, "").take(pa.array(rows))


def _titles(items: Ints) -> pa.Array:
    """A title per item, no two alike: ``Quiet Lighthouse of Lisbon (1987)``."""
    genres, ranks = items % NUM_GENRES, items // NUM_GENRES
    nouns = [text.split() for text in GENRE_NOUNS.values()]
    words = [_ADJECTIVES.split(), nouns[0], _PLACES.split(), [str(year) for year in _YEARS]]
    counts = [len(one) for one in words]
    left = (ranks * _STRIDE + genres * _GENRE_STRIDE) % np.prod(counts)  # neighbours in rank are none in words
    chosen = []
    for count in counts:
        chosen.append(left % count)
        left = left // count
    chosen[1] += genres * counts[1]
    words[1] = [noun for of_genre in nouns for noun in of_genre]
    adjective, noun, place, year = (pa.array(one).take(pa.array(at)) for one, at in zip(words, chosen, strict=True))
    return pc.binary_join_element_wise(adjective, " ", noun, " of ", place, " (", year, ")", "")


GENRE_NOUNS = {
    "Adventure": "Voyage Expedition Compass Island Caravan Treasure Raft Summit Jungle Passage Galleon Horizon",
    "Animation": "Balloon Puppet Dragonfly Gingerbread Snowman Kitten Goblin Pinwheel Lantern Teapot Marmot Bubble",
    "Biography": "Portrait Memoir Statesman Composer Painter Inventor Dynasty Apprentice Diary Legacy Champion Scholar",
    "Comedy": "Wedding Neighbour Mistake Butler Picnic Impostor Holiday Roommate Bachelor Prank Mayor Umbrella",
    "Crime": "Heist Detective Alibi Informer Ransom Burglar Verdict Fingerprint Smuggler Forger Witness Syndicate",
    "Documentary": "Glacier Archive Harvest Railway Migration Reef Factory Telescope Vineyard Workshop Orchestra River",
    "Drama": "Letter Harbour Daughter Silence Inheritance Winter Promise Farewell House Orchard Confession Stranger",
    "Family": "Puppy Treehouse Grandfather Birthday Campfire Kite Bakery Sledge Pony Garden Bicycle Snowfort",
    "Fantasy": "Sorcerer Unicorn Amulet Dragon Enchantress Grimoire Castle Oracle Spell Griffin Throne Moonstone",
    "Horror": "Haunting Crypt Cellar Scarecrow Possession Graveyard Ghoul Asylum Curse Werewolf Coffin Nightmare",
    "Musical": "Melody Cabaret Ballroom Serenade Chorus Songbird Overture Waltz Trumpet Tango Encore Violin",
    "Mystery": "Riddle Secret Labyrinth Cipher Disappearance Mask Key Clockmaker Lighthouse Manuscript Shadow Vault",
    "Romance": "Kiss Sweetheart Rose Proposal Embrace Valentine Bouquet Elopement Reunion Honeymoon Moonlight Suitor",
    "Science Fiction": "Android Starship Galaxy Wormhole Colony Satellite Clone Reactor Asteroid Robot Orbit Signal",
    "War": "Battalion Trench Armistice Bunker Regiment Siege Medic Squadron Convoy Minefield General Frontline",
    "Western": "Sheriff Saloon Stagecoach Outlaw Prairie Gunslinger Ranch Bounty Canyon Mustang Homestead Posse",
}
"""Genre to the nouns in titles of its items."""
GENRES = tuple(GENRE_NOUNS)
NUM_GENRES = len(GENRES)

_ADJECTIVES = (
    "Quiet Last Golden Broken Second Hidden Long Blue Empty Bright Burning Crooked Distant Early Faded Gentle Hollow "
    "Iron Jaded Kindred Lonely Midnight Northern Old"
)
_PLACES = (
    "Lisbon Tokyo Cairo Quito Oslo Dakar Prague Lima Hanoi Dublin Naples Tunis Bergen Havana Seville Kyoto Leeds Malmo "
    "Odessa Perth Riga Salta Turin Utrecht Verona Warsaw Xiamen Yerevan Zagreb Accra Basel Cusco Derry Essen Fez Genoa "
    "Haifa Izmir Jakarta Kiel"
)
_YEARS = range(1950, 2025)
_STRIDE, _GENRE_STRIDE = 500_009, 314_159
"""The first is a prime that does not divide the number of titles, so that all come up before one does again."""
