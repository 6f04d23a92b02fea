"""Fixtures of the tests of topics."""

from serve_server import serve  # noqa: F401 - a fixture
