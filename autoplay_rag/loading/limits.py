"""The limits that end a load."""

from __future__ import annotations

from dataclasses import dataclass, fields

from autoplay_rag._checks import check_above

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to end a load: at the first limit that is reached.

    Attributes:
        max_documents: The most documents to return; None for no limit.
        max_seconds: Seconds to listen. Payloads received by then are still returned.
        idle_seconds: Seconds without an event after which the load ends. A recording is never
            idle.

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
        """Return whether any limit is set."""
        return any(getattr(self, field.name) is not None for field in fields(self))
