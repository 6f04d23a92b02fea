"""The results of a search."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoplay_rag._html import table_html, when
from autoplay_rag.content.chunks import Metadata

__all__ = ["Hit", "Hits"]


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a search found.

    Attributes:
        id: The chunk's id.
        session_id: The session it belongs to; None if there is none.
        text: The text that was embedded.
        score: Cosine similarity to the question: 1 is identical, 0 is unrelated.
        metadata: As in `Chunk`.
    """

    id: str
    session_id: str | None
    text: str
    score: float
    metadata: Metadata = field(default_factory=dict)

    @classmethod
    def of(cls, id: str, text: str, score: float, metadata: Metadata) -> Hit:
        """Make a hit. The session id is taken from the metadata."""
        session_id = metadata.get("session_id")
        return cls(id, None if session_id is None else str(session_id), text, score, metadata)

    def _repr_html_(self) -> str:
        rows = [
            ("score", f"{self.score:.3f}"),
            ("text", self.text),
            ("when", when(self.metadata.get("ended_at"))),
            ("user", self.metadata.get("user_id", "")),
            ("session", self.session_id or ""),
            ("id", self.id),
        ]
        return table_html(("field", "value"), [row for row in rows if row[1]])


class Hits(list[Hit]):
    """The hits of a search: a list that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        if not self:
            return "<p>nothing found</p>"
        return table_html(
            ("score", "text", "when", "user", "session"),
            [
                (
                    f"{hit.score:.3f}",
                    hit.text,
                    when(hit.metadata.get("ended_at")),
                    hit.metadata.get("user_id", ""),
                    hit.session_id or "",
                )
                for hit in self
            ],
        )
