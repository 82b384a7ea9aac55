"""Serve as ``make serve`` starts it."""

import os
import socket
from collections.abc import Iterator

import pytest

# before a cluster starts, whose processes inherit it
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve.proxy:middlewares")


@pytest.fixture(scope="module")
def url(ray_cluster: None) -> Iterator[str]:
    """Base address of a Serve instance that ends with the module that asks for it."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
