"""The contract is a module of its own beside the tests; importlib mode puts nothing on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("store_contract")
