"""Print the path of the Chromium for browser tests and screenshots. The exit code is 1 if there is none.

It is the one that the variable CHROMIUM names, an installed one, or Playwright's own.
"""
# ruff: noqa: INP001 - a script, not part of a package

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

__all__ = ["ARGUMENTS", "MISSING", "find_chromium"]

ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage"]
"""Without a sandbox, which containers and CI do not allow: only our own pages are opened."""
MISSING = (
    "No Chromium was found: install one with `make chromium`, or set the variable CHROMIUM to the path "
    "of one."
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """Return the path; None if there is none. Call it outside of an event loop."""
    if given := os.environ.get("CHROMIUM"):
        return shutil.which(given)
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


if __name__ == "__main__":
    path = find_chromium()
    if path is None:
        sys.exit(MISSING)
    sys.stdout.write(f"Chromium: {path}\n")
