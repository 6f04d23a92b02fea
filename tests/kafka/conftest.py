"""Fixtures of the tests of topics."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not add folders to the path

from serve_server import serve  # noqa: F401 - a fixture
