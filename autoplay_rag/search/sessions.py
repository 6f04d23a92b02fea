"""Makes the session results of a search, with best hits and text. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from autoplay_rag.content.chunks import Chunk, Metadata
from autoplay_rag.journal.base import Visit
from autoplay_rag.search.hits import Hit, SessionHit
from autoplay_rag.stores.base import Match

__all__ = ["CHARACTERS", "JoinedLines", "Whole", "joined_lines", "session_hit", "time_of"]

CHARACTERS: Final = 4000
"""The most characters of a session's text."""


@dataclass(slots=True)
class Whole:
    """What is known of a session from all of its parts that may be shown.

    Attributes:
        users: The people whose parts these are.
        times: When parts started and ended, in Unix seconds.
        text: Its text from the start, truncated.
    """

    users: set[str] = field(default_factory=set)
    times: list[float] = field(default_factory=list)
    text: str = ""

    @classmethod
    def of(cls, parts: Iterable[Chunk | Match | Hit]) -> Self:
        """Return what these parts show, in their order."""
        found = cls()
        for part in parts:
            found.add(part.metadata)
        found.text = joined_lines((part.text for part in parts), CHARACTERS)
        return found

    def add(self, metadata: Metadata) -> None:
        """Add what the metadata of a part says."""
        if user := metadata.get("user_id"):
            self.users.add(str(user))
        times = (time_of(metadata, name) for name in ("started_at", "ended_at"))
        self.times += [at for at in times if at]


def session_hit(hits: Sequence[Hit], visit: Visit | None, whole: Whole | None) -> SessionHit:
    """Make a session result.

    Args:
        hits: Its best hits, best first; at least one.
        visit: The session in the catalog; None if it is unknown there.
        whole: All parts of the session that may be shown; None if these are the hits.
    """
    whole = whole or Whole.of(hits)
    first, last = (visit.first, visit.last) if visit else (None, None)
    return SessionHit(
        session_id=hits[0].session_id,
        product_id=str(hits[0].metadata.get("product_id", visit.product_id if visit else "")),
        user_id=next(iter(whole.users)) if len(whole.users) == 1 else None,
        started_at=first or min(whole.times, default=None),
        ended_at=last or max(whole.times, default=None),
        score=hits[0].score,
        hits=sorted(hits, key=lambda hit: time_of(hit.metadata, "started_at") or 0.0),
        text=whole.text,
    )


def joined_lines(texts: Iterable[str], most: int) -> str:
    r"""Join texts, truncated. Skips lines that repeat the previous line, and repeated site lines.

    Example:
        >>> joined_lines(["acme.test\nopened billing", "acme.test\npaid"], 100)
        'acme.test\nopened billing\npaid'
    """
    joined = JoinedLines(most)
    for text in texts:
        joined.add(text)
        if joined.is_full:
            break
    return joined.text


class JoinedLines:
    """Texts joined as by `joined_lines`, added one after another.

    Args:
        most: The most characters.

    Attributes:
        is_full: Whether nothing more is added.
    """

    def __init__(self, most: int) -> None:
        self.is_full = False
        self._most = most
        self._lines: list[str] = []
        self._headings: set[str] = set()
        self._size = 0

    @property
    def text(self) -> str:
        """The text so far."""
        return "\n".join(self._lines)

    def add(self, text: str) -> None:
        """Add a text, as far as there is room."""
        for line in text.split("\n"):
            site = " " not in line and "." in line
            if (site and line in self._headings) or (self._lines and self._lines[-1] == line):
                continue
            if site:
                self._headings.add(line)
            self._size += len(line) + 1
            if self._size > self._most:
                self._lines.append("…")
                self.is_full = True
                return
            self._lines.append(line)


def time_of(metadata: Metadata, name: str) -> float | None:
    """A time in a chunk's metadata; None if it is unknown."""
    found = metadata.get(name)
    return float(found) if isinstance(found, int | float) else None
