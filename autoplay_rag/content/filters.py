"""The filter for chunks and sessions: one frozen value that every store translates. Pure."""

from __future__ import annotations

import math
import re
import time as clock
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, time
from typing import Any, Final, Literal, TypeAlias

from autoplay_rag.content.passages import storable
from autoplay_rag.errors import ConfigurationError

__all__ = ["Condition", "Filter", "Moment", "moment"]

Condition: TypeAlias = tuple[str, Literal["==", ">=", "<="], str | float]
"""Metadata key, comparison, value. A chunk without the key does not match."""

Moment: TypeAlias = float | date | str
"""A time: Unix seconds, a `datetime` with a time zone, a `date` (midnight UTC), an ISO string of
either, or an age: "90s", "30m", "12h", "7d", "2w"."""

_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_DAY: Final = re.compile(r"\d{4}-?\d{2}-?\d{2}")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Selects the chunks that a search may return. All given conditions must hold.

    Attributes:
        session_id: One session.
        user_id: One person.
        product_id: One product.
        conversation_id: One chat thread.
        kind: "actions", "summary" or "chat".
        since: Chunks that ended at this time or later; see `Moment`. Converted to Unix seconds.
        until: Chunks that started at this time or earlier. Converted in the same way.

    Raises:
        ConfigurationError: If a time is invalid: it has no time zone, is not finite, or is not a
            time.

    Example:
        >>> Filter(user_id="u1", since=100).conditions()
        [('user_id', '==', 'u1'), ('ended_at', '>=', 100.0)]
        >>> Filter(since=date(1970, 1, 2)).since
        86400.0
    """

    session_id: str | None = None
    user_id: str | None = None
    product_id: str | None = None
    conversation_id: str | None = None
    kind: str | None = None
    since: Moment | None = None
    until: Moment | None = None

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, moment(name, value))

    def conditions(self) -> list[Condition]:
        """The comparisons that a store translates; empty if the filter has no conditions.

        Texts have the form in which the journal and the stores keep them.
        """
        found: list[Condition] = [
            # A store refuses what is no text.
            (f.name, "==", storable(value) if isinstance(value, str) else value)
            for f in fields(self)
            if f.name not in ("since", "until") and (value := getattr(self, f.name)) is not None
        ]
        if self.since is not None:
            found.append(("ended_at", ">=", moment("since", self.since)))
        if self.until is not None:
            found.append(("started_at", "<=", moment("until", self.until)))
        return found

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Whether a chunk with this metadata passes."""
        return all(_holds(metadata.get(key), op, value) for key, op, value in self.conditions())


def moment(name: str, value: Any) -> float:
    """Convert a `Moment` to Unix seconds.

    Args:
        name: The name of the argument, for the error message.
        value: The time.

    Raises:
        ConfigurationError: If the time is invalid.

    Example:
        >>> moment("since", "1970-01-02"), moment("since", "1970-01-01T01:00:00+01:00")
        (86400.0, 0.0)
    """
    if isinstance(value, str):
        text = value.strip()
        if ago := _AGO.fullmatch(text):
            return clock.time() - float(ago[1]) * _UNITS[ago[2]]
        with suppress(ValueError):
            parse = date if _DAY.fullmatch(text) else datetime
            value = parse.fromisoformat(text)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ConfigurationError(
                f"{name} is a datetime without a time zone, so nobody can say which moment it is: "
                "give it one, as in datetime.now(timezone.utc)"
            )
        return value.timestamp()
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC).timestamp()
    try:
        seconds = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if math.isfinite(seconds):
        return seconds
    raise ConfigurationError(
        f"{name} must be Unix seconds, a datetime with a time zone, a date, an ISO text of one, "
        f"or how long ago, such as '7d', not {value!r}"
    )


def _holds(found: Any, op: str, wanted: str | float) -> bool:
    if found is None:
        return False
    if op == "==":
        return bool(found == wanted)
    return bool(found >= wanted if op == ">=" else found <= wanted)
