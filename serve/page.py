"""The page at ``/``: files without any data of users, and the demo users it asks for."""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Protocol

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from serve.messages import DemoUsers, ErrorMessage
from serve.users import Users

POLICY = "; ".join(
    (
        "default-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "object-src 'none'",
    )
)
"""Nothing from elsewhere, no script or style inside the document, nobody may frame it."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ASSETS = {
    "/static/page.css": "text/css",
    "/static/page.js": "text/javascript",
    "/static/icon.svg": "image/svg+xml",
}
"""Path of each file the page loads, and its kind."""
PAGE_PATHS = frozenset(("/", *ASSETS))
"""Answered without a token, as a browser sends none before the page can ask for one; the same for everybody."""


class HasUsers(Protocol):
    """What the page needs of the service."""

    users: Users | None


def page_routes(service: Callable[[], HasUsers]) -> APIRouter:
    """The page, its files and its demo users."""
    routes = APIRouter()

    @routes.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        return _file("index.html", "text/html")

    @routes.get("/v1/demo-users", responses={401: {"model": ErrorMessage}})
    async def demo_users(response: Response) -> DemoUsers:
        """A few published users to try the service with."""
        response.headers["Cache-Control"] = "no-store"
        users = service().users
        return DemoUsers(users=users.demo_users if users else ())

    for path, kind in ASSETS.items():
        routes.add_api_route(path, _sends(path.removeprefix("/static/"), kind), include_in_schema=False)
    return routes


def _sends(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    async def asset() -> Response:
        return _file(name, kind)

    return asset


def _file(name: str, kind: str) -> Response:
    text = files("serve").joinpath("static", name).read_bytes()
    return Response(text, media_type=kind, headers=HEADERS)
