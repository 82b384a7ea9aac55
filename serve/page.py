"""The pages at ``/`` and ``/docs``: files without any data of users, and the demo users the first asks for."""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Protocol

from fastapi import APIRouter, Response

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
PAGES = {"/": "index.html", "/docs": "docs.html"}
"""File of each page; FastAPI's own pages load their scripts from elsewhere."""
ASSETS = {
    "/static/docs.css": "text/css",
    "/static/docs.js": "text/javascript",
    "/static/page.css": "text/css",
    "/static/page.js": "text/javascript",
    "/static/icon.svg": "image/svg+xml",
}
"""Path of each file the pages load, and its kind."""
PAGE_PATHS = frozenset((*PAGES, *ASSETS))
"""Answered without a token, as a browser sends none before a page can ask for one; the same for everybody."""


class HasUsers(Protocol):
    """What the page needs of the service."""

    users: Users | None


def page_routes(service: Callable[[], HasUsers]) -> APIRouter:
    """The pages, their files and the demo users."""
    routes = APIRouter()

    @routes.get("/v1/demo-users", responses={401: {"model": ErrorMessage}})
    async def demo_users(response: Response) -> DemoUsers:
        """A few published users to try the service with."""
        response.headers["Cache-Control"] = "no-store"
        users = service().users
        return DemoUsers(users=users.demo_users if users else ())

    own = {path: (name, "text/html") for path, name in PAGES.items()}
    own |= {path: (path.removeprefix("/static/"), kind) for path, kind in ASSETS.items()}
    for path, (name, kind) in own.items():
        routes.add_api_route(path, _sends(name, kind), include_in_schema=False)
    return routes


def _sends(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        text = files("serve").joinpath("static", name).read_bytes()
        return Response(text, media_type=kind, headers=HEADERS)

    return send
