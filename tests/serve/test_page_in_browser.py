"""The page in headless Chromium: Debian's package ``chromium``, driven by playwright."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from recranker.tasks.protocol import Prompt
from serve.errors import BusyError
from serve.http import make_api
from serve.router import Router
from serve.scored import Scored
from serve.settings import ServeSettings
from tests.serve.fake_service import FakeService, served_on_loopback
from tests.serve.opinions import Opinions, opinionated
from tests.serve.published import published
from tests.serve.test_ranking import served

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium found: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


class Visit:
    """A page open on a service, and everything it asked for and complained about."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.url = url
        self.asked: list[tuple[str, str]] = []
        self.complaints: list[str] = []
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(10_000)
        self.page.on("request", lambda one: self.asked.append((one.method, one.url)))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self.page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        self.page.goto(url)

    def ranked(self) -> list[str]:
        """Titles in the new order."""
        self.page.wait_for_selector("#after li button")
        return self.page.locator("#after li .row .title").all_inner_texts()

    def set_weight(self, task: str, value: float) -> None:
        """As a person who moves a slider does."""
        self.page.locator(f"#weight-{task}").fill(str(value))

    @property
    def ranks(self) -> int:
        """Requests that asked the model."""
        return sum(url.endswith("/v1/rank") for _, url in self.asked)

    def asked_outside(self) -> list[str]:
        return [url for _, url in self.asked if not url.startswith(self.url)]


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens the page on a service: ``opened(service)``."""
    with ExitStack() as stack:

        def visit(service: Any, **options: Any) -> Visit:
            url = stack.enter_context(served_on_loopback(service))
            found = Visit(browser, f"{url}/", **options)
            stack.callback(found.page.close)
            return found

        yield visit


def router(run: Any, **settings: Any) -> Any:
    return Router(ServeSettings(run="toy", **settings), run, opinionated())


def test_sliders_reorder_at_once_and_without_a_request(opened: Any, tmp_path: Path) -> None:
    run = published(tmp_path)
    visit = opened(router(run))
    visit.ranked()
    orders = set()
    for task in ("pointwise", "pairwise", "listwise"):
        weights = {one: 1.0 if one == task else 0.0 for one in ("pointwise", "pairwise", "listwise")}
        for one, weight in weights.items():
            visit.set_weight(one, weight)
        orders.add(tuple(visit.ranked()))
        assert visit.page.locator(f"#value-{task}").inner_text() == "1.00"
    assert len(orders) > 1
    visit.page.click("#reset")
    assert visit.page.locator("#value-pointwise").inner_text() == "0.40"
    assert visit.ranks == 1
    assert visit.complaints == []


def test_the_order_of_the_sliders_is_the_order_the_service_would_give(opened: Any, tmp_path: Path) -> None:
    service = router(published(tmp_path))
    visit = opened(service)
    visit.ranked()
    for weights in ((1.0, 0.0, 0.5), (0.0, 1.0, 0.0), (0.1, 0.2, 0.9)):
        sent = dict(zip(("pointwise", "pairwise", "listwise"), weights, strict=True))
        for task, weight in sent.items():
            visit.set_weight(task, weight)
        answer = visit.page.evaluate(
            """async (weights) => {
                const body = JSON.stringify({ user_id: state.request.user_id, weights });
                const headers = { "Content-Type": "application/json" };
                const answer = await (await fetch("v1/rank", { method: "POST", headers, body })).json();
                return answer.ranking.map((one) => titleOf(one.id));
            }""",
            {**sent, "backbone": 0.2},
        )
        assert visit.ranked() == answer


def test_nothing_is_loaded_from_outside_and_the_policy_is_kept(opened: Any, tmp_path: Path) -> None:
    visit = opened(router(published(tmp_path)))
    visit.ranked()
    visit.page.click("#explain")
    visit.page.wait_for_selector("button.entry")
    assert visit.asked_outside() == []
    assert visit.complaints == []


def test_each_candidate_says_where_it_came_from_and_why(opened: Any, tmp_path: Path) -> None:
    visit = opened(router(published(tmp_path)))
    first = visit.ranked()[0]
    row = visit.page.locator("#after li").first
    row.locator("button").click()
    before = visit.page.locator("#before li .clip").all_inner_texts()
    assert before == ["Film 9", "Film 8", "Film 7"]
    place = before.index(first) + 1
    text = visit.page.locator("#after li").first.inner_text()
    assert (f"From place {place} to 1" if place > 1 else "Stays at place 1") in text
    assert f"quoted it at place {4 - place}" in text
    assert visit.page.locator("#lines path").count() == 3


def test_history_entries_show_what_they_add_until_the_weights_change(opened: Any, tmp_path: Path) -> None:
    visit = opened(router(published(tmp_path)))
    visit.ranked()
    visit.page.click("#explain")
    visit.page.wait_for_selector("button.entry")
    assert visit.page.locator("button.entry").count() == 4
    assert visit.page.locator("#score-name").inner_text() == "it adds"
    scores = visit.page.locator("#after .score").all_inner_texts()
    visit.page.locator("button.entry").nth(1).click()
    assert visit.page.locator("#after .score").all_inner_texts() != scores
    visit.set_weight("listwise", 0.9)
    assert visit.page.locator("button.entry").count() == 0
    assert visit.ranks == 2


def test_it_is_said_why_a_task_did_not_take_part_and_who_is_first_now(opened: Any, tmp_path: Path) -> None:
    class Brief(Opinions):
        """Reads no lists."""

        async def _said(self, prompt: Prompt) -> Scored:
            return Scored([], 0, 0.0, too_long=frozenset({"listwise"}))

    tasks = {**opinionated("pointwise", "pairwise"), "listwise": Brief("listwise")}
    visit = opened(Router(ServeSettings(run="toy"), published(tmp_path), tasks))
    visit.ranked()
    assert "Listwise: with titles this long" in visit.page.locator("#remarks").inner_text()
    visit.set_weight("pointwise", 0.0)
    visit.set_weight("pairwise", 1.0)
    assert visit.page.locator("#status").inner_text() == f"First now: {visit.ranked()[0]}."
    visit.page.click("#explain")
    visit.page.wait_for_selector("#after .title")
    assert visit.page.locator("#remarks p").count() == 1  # said once, however often it is asked
    assert visit.complaints == []


def test_pasted_titles_are_ranked_and_are_text_whatever_they_hold(opened: Any) -> None:
    visit = opened(router(served()))
    visit.page.fill("#liked", f"{HOSTILE}\nAlien")
    visit.page.fill("#offered", f"Aliens\n{HOSTILE}")
    visit.page.click("#own button[type=submit]")
    visit.page.locator("#after li button", has_text="onerror").wait_for()
    assert sorted(visit.ranked()) == sorted(["Aliens", HOSTILE])
    assert HOSTILE in visit.page.locator("#history").inner_text()
    assert visit.page.locator("main img").count() == 0
    assert visit.complaints == []


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: _failing(BusyError()), "busy"),
        (lambda: _failing(RuntimeError("k4nary")), "The service failed"),
        (lambda: router(served(), max_candidates=2), "at most 2 candidates"),
    ],
)
def test_errors_are_said_in_words_and_can_be_tried_again(opened: Any, make: Any, says: str) -> None:
    visit = opened(make())
    visit.page.wait_for_selector("#problem:visible")
    assert says.lower() in visit.page.locator("#problem-text").inner_text().lower()
    assert "k4nary" not in visit.page.content()
    with visit.page.expect_response(lambda one: one.url.endswith("/v1/rank")):
        visit.page.click("#retry")
    visit.page.wait_for_selector("#problem:visible")


def _failing(error: Exception) -> Any:
    service = router(served())

    async def rank(*_: Any) -> Any:
        raise error

    service.rank = rank
    return service


def test_a_service_that_went_away_is_said_in_words(browser: Any) -> None:
    with served_on_loopback(router(served())) as url:
        visit = Visit(browser, f"{url}/")
        visit.ranked()
    visit.page.click("#own button[type=submit]")
    visit.page.wait_for_selector("#problem:visible")
    assert "cannot be reached" in visit.page.locator("#problem-text").inner_text()
    visit.page.close()


def test_the_page_asks_for_the_token(opened: Any, tmp_path: Path) -> None:
    service = router(published(tmp_path))
    service.token = "right"
    visit = opened(service)
    visit.page.wait_for_selector("#token-form:visible")
    visit.page.fill("#token", "wrong")
    visit.page.click("#token-form button")
    visit.page.locator("#problem-text", has_text="does not accept this token").wait_for()
    visit.page.fill("#token", "right")
    visit.page.click("#token-form button")
    assert len(visit.ranked()) == 3
    assert visit.page.locator("#token-form").is_hidden()


def test_keyboard_alone_is_enough(opened: Any, tmp_path: Path) -> None:
    visit = opened(router(published(tmp_path)))
    visit.ranked()
    visit.page.locator("#weight-pairwise").focus()
    visit.page.keyboard.press("End")
    assert visit.page.locator("#value-pairwise").inner_text() == "1.00"
    row = visit.page.locator("#after li button").first
    row.focus()
    visit.page.keyboard.press("Enter")
    assert visit.page.locator("#after .why").count() == 1
    assert visit.page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_runs_over_the_edge(opened: Any, tmp_path: Path, width: int, scheme: str) -> None:
    visit = opened(router(published(tmp_path)), viewport={"width": width, "height": 800}, color_scheme=scheme)
    visit.ranked()
    visit.page.locator("#after li button").first.click()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    paper = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(20, 22, 26)") == (scheme == "dark")


def test_the_docs_list_every_route_and_field_from_the_services_own_words(opened: Any) -> None:
    service = FakeService("right")
    visit = opened(service)
    visit.page.goto(f"{visit.url}docs")
    visit.page.fill("#token", "wrong")
    visit.page.press("#token", "Enter")
    visit.page.wait_for_selector("text=does not accept this token")
    visit.page.fill("#token", "right")
    visit.page.press("#token", "Enter")
    visit.page.wait_for_selector("#routes article")
    described = make_api(lambda: service).openapi()
    routes = {f"{method.upper()} {path}" for path, methods in described["paths"].items() for method in methods}
    assert set(visit.page.locator("#routes h2").all_inner_texts()) == routes
    schemas = described["components"]["schemas"]
    assert visit.page.locator("#schemas h2").all_inner_texts() == list(schemas)
    fields = [field for schema in schemas.values() for field in schema.get("properties", {})]
    assert visit.page.locator("#schemas td:first-child").all_inner_texts() == fields
    limits = visit.page.locator("#RankRequest tr", has_text="user_id").first.inner_text()
    assert "string, at least 1, at most 1000 or null" in limits
    assert visit.asked_outside() == []
    assert [one for one in visit.complaints if "401" not in one] == []
