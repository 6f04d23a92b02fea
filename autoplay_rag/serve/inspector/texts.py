"""Values as a reader of a page sees them. Pure. Texts of people and pages are escaped here."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Final
from urllib.parse import quote

from markupsafe import Markup, escape

from autoplay_rag.content.marking import plain_line
from autoplay_rag.search.hits import Matched

__all__ = [
    "age",
    "anchor",
    "clock",
    "count",
    "day",
    "iso",
    "marked",
    "path_of",
    "place",
    "said",
    "span",
]

_LINE: Final = 300
_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86400.0


def said(text: str | None, most: int = _LINE) -> Markup:
    """Return untrusted text as one line inside an element that isolates its direction.

    Example:
        >>> said("<b>Pay</b>")
        Markup('<bdi>&lt;b&gt;Pay&lt;/b&gt;</bdi>')
    """
    return Markup("<bdi>{}</bdi>").format(plain_line(text or "", most))


def marked(matched: Matched) -> Markup:
    """Return the lines of a hit as one, with the words of the question marked.

    Example:
        >>> marked(Matched("paid <x>", [(0, 4)]))
        Markup('<bdi><mark>paid</mark> &lt;x&gt;</bdi>')
    """
    html, at = Markup(), 0
    for start, end in matched.places:
        html += escape(matched.text[at:start])
        html += Markup("<mark>{}</mark>").format(matched.text[start:end])
        at = end
    html += escape(matched.text[at:])
    return Markup("<bdi>{}</bdi>").format(html.strip().replace(",\n", " · ").replace("\n", " · "))


def count(value: int) -> str:
    """Return a number with separators.

    Example:
        >>> count(100_000)
        '100,000'
    """
    return f"{value:,}"


def span(seconds: float | None) -> str:
    """Return a length of time, in its largest unit; "" if it is unknown.

    Example:
        >>> span(0.04), span(75), span(7200), span(200_000), span(None)
        ('0.0 s', '75 s', '2.0 h', '2.3 d', '')
    """
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 10:  # noqa: PLR2004 - tenths matter below
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 1.5 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 1.5 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 1.5 * _DAY:
        return f"{seconds / _HOUR:.1f} h"
    return f"{seconds / _DAY:.1f} d"


def age(seconds: float) -> str:
    """Return how long ago something was, to the second.

    Example:
        >>> age(0.4), age(5.2), age(7200)
        ('now', '5 s ago', '2.0 h ago')
    """
    if seconds < 1:
        return "now"
    return f"{span(seconds) if seconds >= 10 else f'{seconds:.0f} s'} ago"  # noqa: PLR2004 - as in `span`


def place(url: str) -> str:
    """Return the address of a page without its scheme.

    Example:
        >>> place("https://app.test/reports"), place("app://x")
        ('app.test/reports', 'app://x')
    """
    return url.removeprefix("https://").removeprefix("http://")


def clock(at: float | None) -> str:
    """Return a time of day with its zone; "" if it is unknown.

    Example:
        >>> clock(1712345678.5)
        '19:34:38 UTC'
    """
    made = _utc(at)
    return f"{made:%H:%M:%S} UTC" if made else ""


def day(at: float | None) -> str:
    """Return the date and the time of day; "" if it is unknown.

    Example:
        >>> day(1712345678.5)
        '2024-04-05 19:34:38'
    """
    made = _utc(at)
    return f"{made:%Y-%m-%d %H:%M:%S}" if made else ""


def iso(at: float | None) -> str:
    """Return a time for `<time datetime>`; "" if it is unknown.

    Example:
        >>> iso(1712345678.5)
        '2024-04-05T19:34:38Z'
    """
    made = _utc(at)
    return f"{made:%Y-%m-%dT%H:%M:%SZ}" if made else ""


def path_of(session_id: str, product_id: str) -> str:
    """Return the address of a session, relative to the overview.

    Example:
        >>> path_of("a/b", "acme")
        'sessions/a%2Fb?product_id=acme'
    """
    product = quote(product_id, safe="")
    if session_id in (".", ".."):  # a browser would resolve it
        return f"sessions?session_id={session_id}&product_id={product}"
    return f"sessions/{_quoted(session_id)}?product_id={product}"


def anchor(*ids: str) -> str:
    """Return an id for an element, from ids that may have any characters.

    Example:
        >>> anchor("acme", "s1")
        'xb0b60f0060c5'
    """
    return "x" + blake2b("\0".join(ids).encode("utf-8", "replace"), digest_size=6).hexdigest()


def _quoted(text: str) -> str:
    return quote(text.encode("utf-8", "replace"), safe="")


def _utc(at: float | None) -> datetime | None:
    try:
        return datetime.fromtimestamp(at, UTC) if at else None
    except (OverflowError, ValueError, OSError):
        return None
