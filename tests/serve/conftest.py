"""Serve as ``make serve`` starts it."""

import os

# before a cluster starts, whose processes inherit it
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve.proxy:middlewares")
