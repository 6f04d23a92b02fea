"""Puts all pages of the site into one folder.

The pages in `docs/` read well in the repository, too. Three things are added here: files from other
folders, links as they have to be on the site, and what is generated, in place of a marker such as
`<!-- generated: http -->`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tools.docs_site.commands import command_reference
from tools.docs_site.http_api import http_reference
from tools.docs_site.links import relink
from tools.docs_site.mcp_tools import mcp_reference
from tools.docs_site.metrics import metrics_reference
from tools.docs_site.notebooks import notebook_page

__all__ = ["GENERATED", "places", "stage"]

GENERATED: Final[dict[str, Callable[[], str]]] = {
    "http": http_reference,
    "mcp": mcp_reference,
    "metrics": metrics_reference,
    "command": command_reference,
}
"""What makes the part of a page, by the name in its marker."""

_ADDED: Final = {
    "README.md": "project/readme.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "deploy/README.md": "project/deploy.md",
    "SECURITY.md": "project/security.md",
    "integrations/langchain-autoplay/README.md": "integrations/langchain-autoplay.md",
    "integrations/llama-index-readers-autoplay/README.md": "integrations/llama-index.md",
}
_MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
# The tests need a second word after the language; the site's generator takes none.
_FENCE = re.compile(r"^( *```\w+) [\w ]+$", re.MULTILINE)


def stage(root: Path, target: Path) -> None:
    """Write all pages of the site, and what they show.

    Args:
        root: The folder of the repository.
        target: The folder to write, which is emptied first.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(root / "docs", target)
    there = places(root)
    for notebook in sorted(root.glob("notebooks/*.ipynb")):
        page, images = notebook_page(notebook)
        source = notebook.relative_to(root).as_posix()
        folder = target / "notebooks"
        folder.mkdir(exist_ok=True)
        shutil.copy(notebook, folder)
        for name, image in images.items():
            (folder / name).write_bytes(image)
        (target / there[source]).write_text(
            relink(page, source, there[source], {**there, source: source}), encoding="utf-8"
        )
    for source, place in there.items():
        if source.endswith(".md"):
            text = _FENCE.sub(r"\1", (root / source).read_text(encoding="utf-8"))
            text = _MARKER.sub(lambda found: GENERATED[found[1]](), text)
            (target / place).parent.mkdir(exist_ok=True)
            (target / place).write_text(relink(text, source, place, there), encoding="utf-8")


def places(root: Path) -> dict[str, str]:
    """Return the path on the site for each file that is there, by its path in the repository.

    Args:
        root: The folder of the repository.
    """
    docs = root / "docs"
    files = [file for file in sorted(docs.rglob("*")) if file.is_file()]
    return {
        **{file.relative_to(root).as_posix(): file.relative_to(docs).as_posix() for file in files},
        **{
            f"notebooks/{one.name}": f"notebooks/{one.stem}.md"
            for one in root.glob("notebooks/*.ipynb")
        },
        **_ADDED,
    }
