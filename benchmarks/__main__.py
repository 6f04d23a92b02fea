"""Print all figures of the README in one table.

Each module also runs on its own: `python -m benchmarks.client`.
"""

import platform
import sys
from importlib import import_module

from benchmarks.table import show

MODULES = (
    "imports",
    "client",
    "embedding",
    "pipeline",
    "redaction",
    "journal",
    "memory",
    "filters",
    "search",
    "findable",
    "fulltext_cost",
)

if __name__ == "__main__":
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}",
        file=sys.stderr,
    )
    show([figure for name in MODULES for figure in import_module(f"benchmarks.{name}").main()])
