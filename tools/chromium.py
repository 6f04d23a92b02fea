"""Find the Chromium that Playwright starts.

It is the one that the variable CHROMIUM names, an installed one, or Playwright's own.
"""
# ruff: noqa: INP001 - a script, not part of a package

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium(playwright: Any) -> dict[str, Any] | None:
    """Return the arguments of `playwright.chromium.launch`; None if there is no Chromium."""
    given = os.environ.get("CHROMIUM")
    found = given or next(filter(None, map(shutil.which, NAMES)), None)
    found = found or playwright.chromium.executable_path
    if not Path(found).exists():
        return None
    # Without a sandbox, which containers and CI do not allow: only our own pages are opened.
    return {"executable_path": found, "args": ["--no-sandbox", "--disable-dev-shm-usage"]}
