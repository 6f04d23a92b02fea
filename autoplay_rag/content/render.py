"""The text of a chunk: what is embedded, searched and shown. Pure.

Plain words, chosen by what search finds (`benchmarks/retrieval.py` measures it): the site's
name, the page where it is not clear from what was done there, then what was done, a line each
with a comma between (an embedding model reads no line breaks). Session ids, positions, times and
repeated addresses are left out; to an embedding model they are noise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from autoplay_rag._text_cache import forgets
from autoplay_rag.payloads import ActionsPayload, Payload, SlimAction

__all__ = ["Render", "action_line", "render", "render_actions"]

Render: TypeAlias = Callable[[Sequence[Payload]], str]
"""Makes a chunk's text from its payloads: all of one session, and of one kind."""

_LINE_LENGTH = 300
"""Characters: one long description must not hide the others from a model that reads 256 tokens."""

_URL_LENGTH = 1000

# Moving between fields: with these in the text, R@1 falls by 2 to 4 points of 100.
_QUIET = {"focus", "blur"}

# `clicked the "Export" button` is found better as `clicked "Export"`.
_ROLE = re.compile(
    r'(?:the )?("[^"]*")(?: (?:button|link|element|image|icon|field|input|text box|text area|'
    r"combo box|search box|number field|list box|list item|checkbox|radio button|option|tab|"
    r"menu item|menu|heading|label|cell|row|card|dropdown|toggle|switch|slider|page)\b)?"
)
_NO_WORD = re.compile(r"[\W\d_]+")
_HOST_NOISE = re.compile(r"^(?:www|app)\.")


def render(payloads: Sequence[Payload]) -> str:
    """The text of one chunk.

    Args:
        payloads: Those of the chunk, in order: batches of actions of one session, one summary
            or one chat turn.

    Returns:
        The text; never empty.

    Example:
        >>> from autoplay_rag import SummaryPayload
        >>> render([SummaryPayload(summary="Exported a report.")])
        'Exported a report.'
    """
    parts: list[str] = []
    actions: list[SlimAction] = []
    for payload in payloads:
        if isinstance(payload, ActionsPayload):
            actions += payload.actions
        elif text := payload.to_text().replace("\0", " ").strip():
            parts.append(text)
    if actions or not parts:
        parts.append(render_actions(actions))
    return "\n".join(parts)


def render_actions(actions: Sequence[SlimAction]) -> str:
    """The text of a sequence of actions; a repeated line stands once.

    Example:
        >>> page = "https://app.acme.test/reports/:id"
        >>> print(
        ...     render_actions(
        ...         [
        ...             SlimAction(description='User clicked the "Export" button', canonical_url=page),
        ...             SlimAction(description='User typed "Q3" into "Name"', canonical_url=page),
        ...         ]
        ...     )
        ... )
        acme.test
        on reports,
        clicked "Export",
        typed "Q3" into "Name"
    """
    kept = [action for action in actions if not _says_little(action)] or actions
    return "\n".join(_lines(kept)).removesuffix(",").rstrip() or "no description"


def action_line(action: SlimAction) -> str:
    """What was done, in plain words, on one line; "" where nothing says it.

    Example:
        >>> action_line(SlimAction("Export", 'User clicked the "Export" button'))
        'clicked "Export"'
    """
    said = _flat(action.description)
    if said:
        said = said.removeprefix("User ")
        return _ROLE.sub(r"\1", said) if '"' in said else said
    title = _flat(action.title)
    return f'{_flat(action.type)} "{title}"'.lstrip() if title else _flat(action.type)


def _lines(actions: Sequence[SlimAction]) -> dict[str, None]:
    lines: dict[str, None] = {}
    last_site = last_page = ""
    for action in actions:
        site, page, words = _place((action.canonical_url or action.raw_url)[:_URL_LENGTH])
        if site and site != last_site:
            last_site, last_page = site, ""
            lines[site] = None
        line = action_line(action)
        if page and page != last_page:
            last_page = page
            said = line.casefold()
            if page.casefold() not in said and not all(word in said for word in words):
                lines[f"on {page},"] = None
        if line:
            lines[line if line[-1] in ".,;!?…" else f"{line},"] = None
    return lines


def _says_little(action: SlimAction) -> bool:
    said = action.description
    return action.type in _QUIET or ("an unlabeled" in said and '"' not in said)


def _flat(text: str) -> str:
    """One line: what a stranger typed starts no line of its own."""
    text = text[: 4 * _LINE_LENGTH]
    if text.isprintable() and "  " not in text:  # the usual case, and a quick one
        flat = text.strip()
    else:
        flat = " ".join(text.replace("\0", " ").split())
    return flat if len(flat) <= _LINE_LENGTH else f"{flat[:_LINE_LENGTH]}…"


@lru_cache(maxsize=1024)
def _place(url: str) -> tuple[str, str, Sequence[str]]:
    """The site's name, the page's path in words, and those words to compare with."""
    try:
        parts = urlsplit(url)
        site = _HOST_NOISE.sub("", parts.hostname or "")
    except ValueError:
        return "", "", ()
    if parts.scheme not in ("", "http", "https"):
        return "", "", ()
    words = [
        word
        for segment in unquote(parts.path).split("/")
        if not segment.startswith(":") and "@" not in segment  # an address names a person
        for word in _NO_WORD.split(segment)
        if word
    ]
    page = _flat(" ".join(dict.fromkeys(words)))
    return _flat(site), page, page.casefold().split()


forgets(_place.cache_clear)
