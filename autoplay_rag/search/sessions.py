"""Makes the session results of a search, with best hits and text. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from autoplay_rag.content.chunks import Chunk, Metadata
from autoplay_rag.journal.base import Visit
from autoplay_rag.search.hits import Hit, SessionHit
from autoplay_rag.stores.base import Match

__all__ = ["joined_lines", "session_hit", "time_of"]

_CHARACTERS: Final = 4000
"""The most characters of a session's text."""


def session_hit(
    hits: Sequence[Hit], visit: Visit | None, parts: Sequence[Chunk | Match]
) -> SessionHit:
    """Make a session result.

    Args:
        hits: Its best hits, best first; at least one.
        visit: The session in the catalog; None if it is unknown there.
        parts: All parts of the session that may be shown, in order.
    """
    parts = parts or [Chunk(hit.id, hit.text, hit.metadata) for hit in hits]
    people = {user for part in parts if (user := part.metadata.get("user_id"))}
    times = [time_of(part.metadata, name) for part in parts for name in ("started_at", "ended_at")]
    known = [at for at in times if at]
    first, last = (visit.first, visit.last) if visit else (None, None)
    return SessionHit(
        session_id=hits[0].session_id,
        product_id=str(hits[0].metadata.get("product_id", visit.product_id if visit else "")),
        user_id=str(people.pop()) if len(people) == 1 else None,
        started_at=first or min(known, default=None),
        ended_at=last or max(known, default=None),
        score=hits[0].score,
        hits=sorted(hits, key=lambda hit: time_of(hit.metadata, "started_at") or 0.0),
        text=joined_lines((part.text for part in parts), _CHARACTERS),
    )


def joined_lines(texts: Iterable[str], most: int) -> str:
    r"""Join texts, truncated. Skips lines that repeat the previous line, and repeated site lines.

    Example:
        >>> joined_lines(["acme.test\nopened billing", "acme.test\npaid"], 100)
        'acme.test\nopened billing\npaid'
    """
    lines: list[str] = []
    headings: set[str] = set()
    size = 0
    for text in texts:
        for line in text.split("\n"):
            site = " " not in line and "." in line
            if (site and line in headings) or (lines and lines[-1] == line):
                continue
            if site:
                headings.add(line)
            size += len(line) + 1
            if size > most:
                return "\n".join([*lines, "…"])
            lines.append(line)
    return "\n".join(lines)


def time_of(metadata: Metadata, name: str) -> float | None:
    """A time in a chunk's metadata; None if it is unknown."""
    found = metadata.get(name)
    return float(found) if isinstance(found, int | float) else None
