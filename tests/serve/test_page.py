import asyncio
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.sources import ROOT
from serve.http import make_api
from serve.page import ASSETS, PAGES, POLICY
from serve.router import Router
from serve.settings import ServeSettings
from tests.serve.fake_service import FakeService, send
from tests.serve.opinions import opinionated
from tests.serve.published import published
from tests.serve.test_ranking import served

STATIC = ROOT / "serve" / "static"


class Links(HTMLParser):
    """What a document loads or links to, and what of it a strict policy would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.refused: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href"):
                self.loaded.append(value or "")
            if name == "style" or name.startswith("on"):
                self.refused.append(f"{tag} {name}")
        if tag == "style" or (tag == "script" and "src" not in dict(attrs)):
            self.refused.append(tag)


def test_the_pages_load_only_files_of_their_own_and_keep_to_their_policy() -> None:
    loaded = set()
    for name in PAGES.values():
        found = Links()
        found.feed((STATIC / name).read_text())
        assert found.refused == []
        loaded |= {f"/{path.removeprefix('./')}" for path in found.loaded}
    assert loaded == {*ASSETS, *PAGES}
    assert {path.name for path in STATIC.iterdir()} == {*PAGES.values(), *(Path(path).name for path in ASSETS)}
    for one in STATIC.iterdir():
        text = one.read_text()
        assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace("// ", ""), f"{one}: elsewhere"
        assert not [word for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write") if word in text]


def test_the_frameworks_own_pages_which_load_scripts_from_elsewhere_are_off() -> None:
    assert send(FakeService(), "GET", "/redoc").status_code == 404
    assert send(FakeService(), "GET", "/docs/oauth2-redirect").status_code == 404
    docs = send(FakeService(), "GET", "/docs")
    assert docs.content == (STATIC / "docs.html").read_bytes()
    assert docs.headers["Content-Security-Policy"] == POLICY


@pytest.mark.parametrize("path", [*PAGES, *ASSETS])
def test_the_pages_files_need_no_token_and_are_the_same_for_everybody(path: str) -> None:
    answers = [send(service, "GET", path) for service in (FakeService("right"), FakeService())]
    assert [one.status_code for one in answers] == [200, 200]
    assert answers[0].content == answers[1].content
    assert answers[0].headers["Content-Security-Policy"] == POLICY
    assert answers[0].headers["Content-Type"].startswith(ASSETS.get(path, "text/html"))
    assert answers[0].headers["X-Content-Type-Options"] == "nosniff"


def test_the_policy_allows_nothing_from_elsewhere_and_nothing_inline() -> None:
    assert POLICY.startswith("default-src 'self';")
    assert "unsafe" not in POLICY
    assert "frame-ancestors 'none'" in POLICY


def test_the_page_works_under_a_prefix() -> None:
    async def call(path: str) -> int:
        transport = httpx.ASGITransport(make_api(lambda: FakeService("right")), root_path="/prefix")
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get(path)).status_code

    paths = ("/prefix/", "/prefix/static/page.js", "/prefix/v1/demo-users")
    assert [asyncio.run(call(path)) for path in paths] == [200, 200, 401]


@pytest.mark.parametrize("path", ["/static/../settings.py", "/static/", "/static/index.html", "/static/%2e%2e/app.py"])
def test_no_other_file_is_sent(path: str) -> None:
    assert send(FakeService(), "GET", path).status_code == 404


def test_demo_users_need_the_token_and_are_kept_nowhere(tmp_path: Path) -> None:
    service: Any = Router(ServeSettings(run="toy"), published(tmp_path), opinionated())
    service.token = "right"
    assert send(service, "GET", "/v1/demo-users").status_code == 401
    answer = send(service, "GET", "/v1/demo-users", headers={"Authorization": "Bearer right"})
    assert answer.headers["Cache-Control"] == "no-store"
    by_id = {one["user_id"]: one for one in answer.json()["users"]}
    assert set(by_id) == {"u", "w"}
    assert [one["title"] for one in by_id["u"]["history"]] == ["Film 2", "Film 4", "Film 5", "Film 6"]
    assert [one["id"] for one in by_id["u"]["candidates"]] == ["i9", "i8", "i7"]


def test_without_published_users_there_are_no_demo_users() -> None:
    assert send(FakeService(), "GET", "/v1/demo-users").json() == {"users": []}


def test_a_user_is_ranked_over_http_and_one_nobody_knows_is_marked(tmp_path: Path) -> None:
    service: Any = Router(ServeSettings(run="toy"), published(tmp_path), opinionated())
    known = send(service, json={"user_id": "u"}).json()
    assert (known["user"], {one["id"] for one in known["ranking"]}) == ("known", {"i7", "i8", "i9"})
    unknown = send(service, json={"user_id": "k4nary", "candidates": [{"id": "i1"}, {"id": "i2"}]})
    assert (unknown.status_code, unknown.json()["user"]) == (200, "unknown")
    assert "k4nary" not in unknown.text
    refused = send(service, json={"user_id": "u", "candidates": [{"id": "k4nary"}]})
    assert (refused.status_code, "k4nary" in refused.text) == (422, False)


def test_where_nobody_is_published_a_user_id_is_refused_with_the_way_out() -> None:
    service: Any = Router(ServeSettings(run="toy"), served(), opinionated())
    answer = send(service, json={"user_id": "u"})
    assert answer.status_code == 422
    assert answer.json()["code"] == "not_served"
    assert "jobs.publish" in answer.json()["message"]
