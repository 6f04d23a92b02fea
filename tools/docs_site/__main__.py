"""Build the documentation site into `site/`, and fail on every warning."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools.docs_site.built import problems_of
from tools.docs_site.staging import stage

ROOT = Path(__file__).parents[2]
STAGED = ROOT / "build" / "docs"
SITE = ROOT / "site"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ISSUES = re.compile(r"\d+ issues? found")
_TRACEBACK = "Traceback (most recent call last):"
"""The generator raises once it has said which issues it found."""
_REMARKS = ("Build started", "No issues found", "Build finished")
"""How the lines begin that the generator writes when all is well."""


def main() -> int:
    """Build the site.

    Returns:
        The exit code: 1 if the generator says anything but that it is done, or if the site has a
        broken link or loads something from elsewhere.
    """
    stage(ROOT, STAGED)
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    process = subprocess.run(  # noqa: S603 - our own interpreter and arguments
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    said = _COLOURS.sub("", process.stdout).splitlines()
    if any(_ISSUES.fullmatch(line) for line in said):
        said = said[: said.index(_TRACEBACK)] if _TRACEBACK in said else said
    found = [line for line in said if line.strip() and not line.startswith(_REMARKS)]
    if process.returncode and not found:
        found = [f"zensical ended with exit code {process.returncode}"]
    found = found or problems_of(SITE)
    for line in found:
        print(line, file=sys.stderr)  # noqa: T201 - the output of a script
    if not found:
        print("built site/; look at it, with its search: python -m http.server -d site")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
