"""A notebook as a page: its text, its code, and the outputs that were saved with it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["notebook_page"]

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_STYLE = re.compile(r"<style.*?</style>", re.DOTALL)
_TABLE = re.compile(r"<table[^>]*>")
_ABOUT = "This page is a notebook: [{name}]({name}) runs in Jupyter.\n"


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Make the page of a notebook.

    Args:
        path: The notebook. The page links to it, so put both into the same folder.

    Returns:
        The page as Markdown, and the images it shows, by their names.
    """
    images: dict[str, bytes] = {}
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = _joined(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source.strip():
            parts.append(_fence("python", source))
            for output in cell["outputs"]:
                parts.extend(_shown(output, f"{path.stem}-", images))
    title, _, rest = "\n\n".join(parts).partition("\n")
    return f"{title}\n\n{_ABOUT.format(name=path.name)}\n{rest}\n", images


def _shown(output: dict[str, Any], prefix: str, images: dict[str, bytes]) -> Iterator[str]:
    data = output.get("data", {})
    if output["output_type"] == "stream":
        yield _output(_joined(output["text"]))
    elif png := data.get("image/png"):
        name = f"{prefix}{len(images) + 1}.png"
        images[name] = base64.b64decode(_joined(png))
        yield f"![The output of the cell above]({name})"
    elif "<table" in (html := _joined(data.get("text/html", ""))):
        # The site has a style of its own. A blank line would end the block of HTML.
        plain = _TABLE.sub("<table>", _STYLE.sub("", html))
        lines = [line.strip() for line in plain.splitlines()]
        yield '<div class="output" tabindex="0">' + "\n".join(filter(None, lines)) + "</div>"
    elif text := _joined(data.get("text/plain", "")):
        yield _output(text)


def _output(text: str) -> str:
    return _fence("{ .text .output }", _COLOURS.sub("", text))


def _fence(language: str, code: str) -> str:
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{ticks}{language}\n{code.rstrip()}\n{ticks}"


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)
