"""One JSON line for each request that reads or deletes someone's data: who, route, scope, counts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

__all__ = ["AUDIT", "AuditRecord", "AuditSink", "log_line"]

AUDIT = "autoplay_rag.audit"
"""The logger that gets the lines by default, at level INFO."""

AuditSink: TypeAlias = Callable[[str], None]
"""Takes one line of JSON, without a line break. Called on the event loop: it must not block."""

_log = logging.getLogger(AUDIT)


@dataclass(slots=True)
class AuditRecord:
    """What one request did.

    Attributes:
        who: The key or token.
        route: Method and path of the route, without ids.
        scope: The ids that select the data; empty for everyone's.
        counts: How much was returned or deleted.
        status: The outcome as an HTTP status, if it is not that of the answer: a tool call that is
            refused is answered with 200.
    """

    who: str
    route: str
    scope: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    status: int | None = None

    def about(self, ids: Mapping[str, str | None]) -> None:
        """Note the ids that select the data."""
        self.scope.update({name: value for name, value in ids.items() if value is not None})

    def line(self, status: int) -> str:
        """Return the line of JSON.

        Args:
            status: The HTTP status of the answer; `self.status` wins if it is set.
        """
        made: dict[str, Any] = {
            "at": round(time.time(), 3),
            "who": self.who,
            "route": self.route,
            "scope": {
                name: value.encode("utf-8", "replace").decode()
                for name, value in self.scope.items()
            },
            "counts": self.counts,
            "status": status if self.status is None else self.status,
        }
        return msgspec.json.encode(made).decode()


def log_line(line: str) -> None:
    """Log a line with the logger `autoplay_rag.audit`."""
    _log.info("%s", line)
