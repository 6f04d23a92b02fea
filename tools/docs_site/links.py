"""Links in Markdown: finding, rewriting and checking them, without touching code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

__all__ = ["anchors", "broken_links", "links", "relink"]

_FENCED = re.compile(r"^( *)(`{3,})[^\n]*\n.*?^\1\2$", re.DOTALL | re.MULTILINE)
# A code span comes first, so that a link inside of it is no link. The text of a link may be an image.
_LINK = re.compile(
    r"(?P<code>`+)(?:.+?)(?P=code)"
    r"|(?P<text>!?\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\])\((?P<target>[^()\s]+)\)",
    re.DOTALL,
)
# A picture for light and dark pages can only be written in HTML.
_ATTRIBUTE = re.compile(r'\b(?P<name>src|srcset)="(?P<target>[^"\s]+)"')
_HEADING = re.compile(r"^#{1,6} +(.+?)(?: +\{[^}]*\})?$", re.MULTILINE)
_IDENTIFIER = re.compile(r"^::: (\S+)$", re.MULTILINE)
_ELSEWHERE = re.compile(r"^(?:[a-z]+:|//)")


def links(markdown: str) -> Iterator[str]:
    """Yield the targets of the links and images outside of code."""
    for prose, _ in _split(markdown):
        for pattern in (_LINK, _ATTRIBUTE):
            for found in pattern.finditer(prose):
                if found["target"]:
                    yield found["target"]


def anchors(markdown: str) -> set[str]:
    """Return the anchors of the headings, as GitHub and the site make them, and of Python's names."""
    made = set(_IDENTIFIER.findall(markdown))
    for prose, _ in _split(markdown):
        for title in _HEADING.findall(prose):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
            kept = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            number = 1
            name = kept
            while name in made:
                name, number = f"{kept}-{number}", number + 1
            made.add(name)
    return made


def broken_links(markdown: str, source: str, root: Path) -> Iterator[str]:
    """Yield a line for each link of a page that leads to no file or to no heading.

    Args:
        markdown: The page.
        source: Its path in the repository.
        root: The folder of the repository.
    """
    for target in links(markdown):
        if _ELSEWHERE.match(target):
            continue
        path, _, anchor = target.partition("#")
        file = root / normpath(PurePosixPath(source).parent / path) if path else root / source
        if not file.exists() or not file.resolve().is_relative_to(root.resolve()):
            yield f"{source}: {target}: no such file"
        elif anchor and file.suffix == ".md":
            text = markdown if file == root / source else file.read_text(encoding="utf-8")
            if anchor not in anchors(text):
                yield f"{source}: {target}: no such heading"


def relink(markdown: str, source: str, place: str, places: Mapping[str, str]) -> str:
    """Return a page with its links as they have to be on the site.

    A link to a file that is not on the site becomes its text alone.

    Args:
        markdown: The page.
        source: Its path in the repository.
        place: Its path on the site.
        places: For each file that is on the site, by its path in the repository, the path there.
    """

    def moved(found: re.Match[str]) -> str:
        if found["code"] or _ELSEWHERE.match(found["target"]) or found["target"].startswith("#"):
            return found[0]
        path, _, anchor = found["target"].partition("#")
        there = places.get(normpath(PurePosixPath(source).parent / path))
        if there is None:
            return found["text"].strip("[]")
        target = relpath(there, PurePosixPath(place).parent)
        return f"{found['text']}({target}{'#' + anchor if anchor else ''})"

    def moved_picture(found: re.Match[str]) -> str:
        there = places.get(normpath(PurePosixPath(source).parent / found["target"]))
        target = relpath(there, PurePosixPath(place).parent) if there else found["target"]
        return f'{found["name"]}="{target}"'

    return _outside_code(
        markdown, lambda prose: _ATTRIBUTE.sub(moved_picture, _LINK.sub(moved, prose))
    )


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    return "".join(change(prose) + code for prose, code in _split(markdown))


def _split(markdown: str) -> Iterator[tuple[str, str]]:
    """Yield prose, and the fenced code after it; the code is empty at the end."""
    at = 0
    for found in _FENCED.finditer(markdown):
        yield markdown[at : found.start()], found[0]
        at = found.end()
    yield markdown[at:], ""
