"""Fixtures of the tests of the server."""

from pull_server import server  # noqa: F401 - a fixture
from serve_server import running, serve  # noqa: F401 - fixtures
