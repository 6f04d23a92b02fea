"""Checks the finished site: its links, and that it loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

__all__ = ["problems_of"]

_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}
_LOADING_LINKS = ("stylesheet", "preload", "modulepreload", "preconnect", "icon")


class _Page(HTMLParser):
    """The anchors of a page, where its links lead, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if (loaded := given.get(_LOADS.get(tag, ""))) is not None:
            self.loads.append(loaded)
        if (target := given.get("href")) is not None:
            loading = tag == "link" and given.get("rel", "").split()[:1] in [
                [rel] for rel in _LOADING_LINKS
            ]
            (self.loads if loading else self.links).append(target)


def problems_of(site: Path) -> list[str]:
    """Return a line for each broken link, and for each thing that is loaded from elsewhere.

    Args:
        site: The folder of the site.
    """
    pages = {path: _parsed(path) for path in sorted(site.rglob("*.html"))}
    return [
        f"{path.relative_to(site)}: {problem}"
        for path, page in pages.items()
        for problem in _problems(path, page, pages)
    ]


def _problems(path: Path, page: _Page, pages: dict[Path, _Page]) -> Iterator[str]:
    # The server shows this page at any address, so its own addresses begin with a slash.
    anywhere = path.name == "404.html"
    for target in page.loads:
        if _leaves(target):
            yield f"loads {target}"
        elif not anywhere and not _file(path, target).is_file():
            yield f"loads {target}, which does not exist"
    for target in page.links:
        if anywhere or _leaves(target):
            continue
        address, anchor = urldefrag(target)
        file = _file(path, address) if address else path
        if not file.is_file():
            yield f"links to {target}, which does not exist"
        elif anchor and file in pages and unquote(anchor) not in pages[file].anchors:
            yield f"links to {target}, which has no such anchor"


def _leaves(target: str) -> bool:
    parts = urlsplit(target)
    return bool(parts.netloc or (parts.scheme and parts.scheme != "file"))


def _file(page: Path, target: str) -> Path:
    file = (page.parent / unquote(urlsplit(target).path)).resolve()
    return file / "index.html" if file.is_dir() else file


def _parsed(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page
