"""When a load is over."""

from __future__ import annotations

from dataclasses import dataclass, fields

from autoplay_rag._checks import check_above

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
        ConfigurationError: If a limit is not a number above 0.

    Example:
        >>> bool(Limits()), bool(Limits(idle_seconds=5))
        (False, True)
    """

    max_documents: int | None = None
    max_seconds: float | None = None
    idle_seconds: float | None = None

    def __post_init__(self) -> None:
        check_above("max_documents", self.max_documents, whole=True, optional=True)
        check_above("max_seconds", self.max_seconds, optional=True)
        check_above("idle_seconds", self.idle_seconds, optional=True)

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return any(getattr(self, field.name) is not None for field in fields(self))
