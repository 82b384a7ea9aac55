from pathlib import Path

import pytest

from jobs.load.bodies import bodies
from jobs.load.settings import HostSettings
from recranker.errors import DataError
from serve.settings import ServeSettings
from tests.jobs.load.published import USERS, published_run


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ServeSettings:
    return published_run(tmp_path_factory.mktemp("run"), candidates_each=12)


def test_requests_are_those_of_published_users_and_bring_everything(service: ServeSettings) -> None:
    found = bodies(HostSettings(service=service, users=USERS))
    assert found == bodies(HostSettings(service=service, users=USERS))
    assert len(found) == USERS
    for body in found:
        assert [entry["title"] for entry in body["history"]] == ["Film h0", "Film h1", "Film h2"]
        assert [one["id"] for one in body["candidates"]] == [f"i{n}" for n in range(10)]
        assert all(one["title"] == f"Film {one['id']}" for one in body["candidates"])
        assert set(body) == {"history", "candidates"}


def test_too_few_users_or_no_run_are_one_line_with_the_way_out(service: ServeSettings, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"users=5, but only 4 of its users have candidates=10 or more; ask for fewer"):
        bodies(HostSettings(service=service, users=5))
    with pytest.raises(DataError, match=r"only 0 of its users have candidates=13"):
        bodies(HostSettings(service=service, users=1, candidates=13))
    nowhere = service.model_copy(update={"home": str(tmp_path)})
    with pytest.raises(DataError, match=r"python -m jobs\.pipeline jobs/configs/quickstart\.toml$"):
        bodies(HostSettings(service=nowhere))


def test_users_that_are_not_published_are_named(tmp_path: Path) -> None:
    from tests.serve.runs import finished_run

    with pytest.raises(DataError, match=r"python -m jobs\.publish CONFIG"):
        bodies(HostSettings(service=finished_run(tmp_path)))
