"""The made-up data set itself."""

from pathlib import Path

from tests.toy import toy_interactions


def test_the_same_arguments_write_the_same_bytes(tmp_path: Path) -> None:
    first, second = (toy_interactions(tmp_path / name, num_users=8) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_users_like_their_own_genre(tmp_path: Path) -> None:
    interactions, _ = toy_interactions(tmp_path)
    rows = [line.split(",") for line in interactions.read_text().splitlines()[1:]]
    likes = [(int(user[1:]) % 4, int(item[1:]) % 4) for user, item, rating, _ in rows if int(rating) >= 4]
    assert sum(loved == genre for loved, genre in likes) / len(likes) > 0.75  # 0.25 by chance
