"""Fixtures of the tests of the server."""

from serve_server import running, serve  # noqa: F401 - fixtures
