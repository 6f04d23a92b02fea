"""Makes `store_helpers` importable: importlib mode does not add folders to the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
