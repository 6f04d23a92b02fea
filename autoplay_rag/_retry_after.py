"""How long a server asks to be left alone, in the words of HTTP."""

from __future__ import annotations

import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

__all__ = ["LONGEST_PAUSE", "parse_retry_after"]

LONGEST_PAUSE: Final = 3600.0
"""Seconds. What a service that embeds or stores asks for is followed up to here."""

# RFC 9110 has whole seconds; rate limiters also send parts of one.
_SECONDS: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def parse_retry_after(
    value: str | None, *, longest: float, now: float | None = None
) -> float | None:
    """Seconds to wait by a `Retry-After` header (RFC 9110, section 10.2.3).

    Args:
        value: The header: seconds or an HTTP date.
        longest: The most seconds that count, so that a wrong number in one answer cannot
            silence us for days.
        now: Unix seconds; by default what the clock says.

    Returns:
        Seconds between 0 and `longest`; None if there is no header or it makes no sense.

    Example:
        >>> parse_retry_after("7", longest=300.0), parse_retry_after("soon", longest=300.0)
        (7.0, None)
        >>> parse_retry_after("Thu, 01 Jan 1970 00:01:40 GMT", longest=300.0, now=10.0)
        90.0
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), longest)
    try:
        at = parsedate_to_datetime(text)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        seconds = at.timestamp() - (time.time() if now is None else now)
    except (ValueError, OverflowError, TypeError):
        return None
    return min(max(seconds, 0.0), longest)
