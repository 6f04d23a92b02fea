"""When a load is over."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from autoplay_rag.errors import ConfigurationError

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to end a load: at the first limit that is reached.

    Attributes:
        max_documents: Documents to give; None for any number.
        max_seconds: Seconds to listen. What came by then is still given.
        idle_seconds: Seconds that brought no event after which nothing more is awaited. A
            recording is never idle.

    Raises:
        ConfigurationError: If a limit is no number above 0.

    Example:
        >>> bool(Limits()), bool(Limits(idle_seconds=5))
        (False, True)
    """

    max_documents: int | None = None
    max_seconds: float | None = None
    idle_seconds: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            kind = Integral if field.name == "max_documents" else Real
            if value is not None and (not isinstance(value, kind) or not float(value) > 0):
                what = "a whole number" if kind is Integral else "a number"
                raise ConfigurationError(
                    f"{field.name} must be {what} above 0, or None, not {value!r}"
                )

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return any(getattr(self, field.name) is not None for field in fields(self))
