"""Reads values of events that anyone may have sent: nothing here fails for what it is given. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from autoplay_rag.content.times import own_time

__all__ = ["at_of", "first_text", "id_of", "list_of", "object_of", "text_of", "uuid7_time"]

_LONGEST_ID: Final = 512
_LONGEST_TEXT: Final = 400
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
"""A clock that says less was never set."""
_LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC).timestamp()
_DIGITS: Final = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?")
_UUID7: Final = 7
_JOINERS: Final = "\u200c\u200d"
"""Part of words in Persian and other languages, and of some emoji."""


def text_of(value: Any, longest: int = _LONGEST_TEXT) -> str:
    r"""A text on one line, without control characters; "" for what is not text.

    Example:
        >>> text_of("  Export\n now "), text_of(None), text_of({"a": 1})
        ('Export now', '', '')
        >>> text_of("\u202eabc\u200b")
        'abc'
    """
    if not isinstance(value, str) or not value:
        return ""
    text = value[: 4 * longest]
    if not text.isascii():
        # JSON allows a lone surrogate, but no store and no model takes one.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _replacement(char) for char in text)
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"


def _replacement(char: str) -> str:
    """What stands for a character that is not printed."""
    if char in _JOINERS:
        return char
    # Marks of direction and the like join nothing and separate nothing.
    return "" if unicodedata.category(char) == "Cf" else " "


def id_of(value: Any) -> str:
    """An id: a text or a whole number; "" for what is neither, and for one that is too long.

    Example:
        >>> id_of("u1"), id_of(17), id_of(True), id_of("null")
        ('u1', '17', '', '')
    """
    if isinstance(value, bool):
        return ""
    if isinstance(value, int):
        value = str(value) if abs(value) < 2**63 else ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = str(int(value))
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_ID:
        return ""
    text = text_of(value, _LONGEST_ID)
    return "" if text.lower() in _NOT_IDS else text


_NOT_IDS: Final = frozenset(("null", "undefined", "none", "nan", "[object object]"))
"""What scripts make of a missing id. It would put many people into one session."""


def object_of(value: Any) -> Mapping[str, Any]:
    """An object, or a text with the JSON of one, as exports have it; empty for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        try:
            value = msgspec.json.decode(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def list_of(value: Any) -> list[Any]:
    """A list, or a text with the JSON of one; empty for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = msgspec.json.decode(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return []
    return value if isinstance(value, list) else []


def first_text(values: Mapping[str, Any], *names: str) -> str:
    """The first of several values that is a text and not blank.

    Example:
        >>> first_text({"title": " ", "name": "Pricing"}, "title", "name")
        'Pricing'
    """
    return next(_texts(values, names), "")


def has_words(text: str) -> bool:
    """Whether a text has a letter or a digit. An icon has none.

    Example:
        >>> has_words("→"), has_words("保存")
        (False, True)
    """
    return any(map(str.isalnum, text))


def _texts(values: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        if text := text_of(values.get(name)):
            yield text


def at_of(value: Any) -> float:
    """A time as Unix seconds; 0 if it is missing, unreadable, or from a clock that was never set.

    Args:
        value: ISO 8601, in UTC if it names no zone; or a number (also as text) of seconds,
            milliseconds or smaller units since 1970.

    Example:
        >>> at_of("2024-04-05T21:34:38.500+02:00"), at_of("2024-04-05 19:34:38.5"), at_of(1712345678500)
        (1712345678.5, 1712345678.5, 1712345678.5)
        >>> at_of("yesterday"), at_of(0), at_of("1970-01-01T00:00:05Z")
        (0.0, 0.0, 0.0)
    """
    try:
        at = _seconds(value)
    except (ValueError, OverflowError):
        return 0.0
    return at if _EARLIEST <= at < _LATEST else 0.0


def _seconds(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        # Rounded, because own_time divides: 1712345678512 ms are not always .512 s.
        return round(own_time(float(value)), 6)
    if not isinstance(value, str) or len(value) > _LONGEST_ID:
        return 0.0
    text = value.strip()
    if _DIGITS.fullmatch(text):
        return round(own_time(float(text)), 6)
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def uuid7_time(value: str) -> float:
    """The time in a UUID of version 7; 0 for another one.

    Example:
        >>> uuid7_time("018eaf6d-0a0b-7cc1-8e0a-5a7c1d1e2f30")
        1712340142.603
    """
    try:
        found = UUID(value)
    except ValueError:
        return 0.0
    return at_of(found.int >> 80) if found.version == _UUID7 else 0.0
