"""Users in a real Redis server, started here: Debian's package redis-server, and the client of 'recranker[redis]'."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recranker.errors import DataError, OutputError, SettingsError
from serve.histories import LookupFailedError, SqliteUsers
from serve.redis_users import RedisUsers, fill, is_redis, key, shown
from serve.settings import ServeSettings
from serve.users import open_users
from tests.serve.published import published, users_file
from tests.serve.test_users import sent

SERVER = shutil.which("redis-server")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of a server that keeps nothing and ends with this module."""
    pytest.importorskip("redis", reason="the client is missing: pip install 'recranker[redis]'")
    if SERVER is None:
        pytest.skip("redis-server is missing: apt-get install redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--requirepass",
        "s3cret",
    ]
    process = subprocess.Popen([SERVER, *options], stdout=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield f"redis://:s3cret@127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int) -> None:
    for _ in range(100):
        with socket.socket() as door:
            if door.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("redis-server does not listen after 10 s")


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    """An emptied database."""
    from redis import Redis

    with Redis.from_url(url, decode_responses=True) as found:
        found.flushall()
        yield found


def filled(folder: Path, url: str) -> tuple[SqliteUsers, RedisUsers]:
    """The same users in both."""
    file = SqliteUsers(str(users_file(published(folder))))
    fill(url, "toy", file)
    return file, RedisUsers(url, "toy", timeout_s=5)


def test_redis_holds_what_the_file_holds(tmp_path: Path, url: str, client: Any) -> None:
    file, redis = filled(tmp_path, url)
    assert redis.meta() == file.meta()
    for user_id in ("u", "v", "w", "nobody"):
        assert redis.find(user_id) == file.find(user_id)
    wanted = ["i1", "i99", "none", "i7"]
    assert redis.titles(wanted) == file.titles(wanted) == {"i1": "Film 1", "i7": "Film 7"}
    assert redis.titles([]) == {}


def test_a_service_completes_requests_from_redis(tmp_path: Path, url: str, client: Any) -> None:
    run = published(tmp_path)
    fill(url, run.name, SqliteUsers(str(users_file(run))))
    limits = ServeSettings(run="toy")
    of_redis = open_users(limits.model_copy(update={"users": url}), run)
    of_file = open_users(limits, run)
    assert of_redis is not None
    assert of_file is not None
    for user_id in ("u", "v", "nobody"):
        assert of_redis.complete(sent(user_id=user_id)) == of_file.complete(sent(user_id=user_id))


def test_filling_again_replaces_everything_at_once(tmp_path: Path, url: str, client: Any) -> None:
    client.hset(key("toy", "users"), "gone", "[]")
    client.hset(f"{key('toy', 'users')}:partial", "left over", "[]")
    client.set("somebody else's", "1")
    filled(tmp_path, url)
    assert set(client.hkeys(key("toy", "users"))) == {"u", "v", "w"}
    assert set(client.keys()) == {"somebody else's", *(key("toy", kind) for kind in ("users", "items", "meta"))}


def test_a_fill_that_fails_leaves_what_was_there(tmp_path: Path, url: str, client: Any) -> None:
    file, redis = filled(tmp_path, url)
    client.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(
            OutputError, match=r"redis://127\.0\.0\.1:\d+/0 does not take the users: .*maxmemory"
        ) as failed:
            fill(url, "toy", file)
    finally:
        client.config_set("maxmemory", "0")
    assert "s3cret" not in str(failed.value)
    assert redis.find("u") == file.find("u")


def test_broken_records_and_lost_servers_are_failed_lookups_that_quote_nothing(
    tmp_path: Path, url: str, client: Any
) -> None:
    _, redis = filled(tmp_path, url)
    client.hset(key("toy", "users"), "u", "k4nary")
    with pytest.raises(LookupFailedError) as broken:
        redis.find("u")
    client.delete(key("toy", "users"))
    client.set(key("toy", "users"), "no hash")
    with pytest.raises(LookupFailedError) as of_another_kind:
        redis.find("k4nary")
    assert "k4nary" not in str(broken.value) + str(of_another_kind.value)


def test_a_server_that_hangs_is_given_up_after_the_time_allowed(url: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        users = RedisUsers(f"redis://127.0.0.1:{silent.getsockname()[1]}", "toy", timeout_s=0.1)
        began = time.monotonic()
        with pytest.raises(LookupFailedError, match="TimeoutError"):
            users.find("u")
        assert time.monotonic() - began < 1.5
        users.close()


def test_redis_without_the_run_or_without_a_server_says_what_to_do(url: str, client: Any) -> None:
    with pytest.raises(DataError, match=r"python -m jobs\.publish CONFIG --to URL"):
        RedisUsers(url, "other", timeout_s=1).meta()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"redis://:s3cret@127.0.0.1:{free.getsockname()[1]}/0"
    with pytest.raises(DataError, match="does not answer") as failed:
        RedisUsers(closed, "toy", timeout_s=1).meta()
    assert "s3cret" not in str(failed.value)


def test_urls_are_told_from_paths_and_shown_without_the_password() -> None:
    assert [is_redis(one) for one in ("redis://a", "rediss://a", "unix:///a", "/a/redis", "s3://a")] == [
        *(True, True, True, False, False)
    ]
    assert shown("rediss://me:s3cret@host:6380/2") == "rediss://host:6380/2"
    pytest.importorskip("redis", reason="the client is missing: pip install 'recranker[redis]'")
    with pytest.raises(SettingsError, match="is no Redis URL"):
        RedisUsers("redis://host:port", "toy", 1.0)
