"""The results of a search."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Any, TypeVar

from autoplay_rag._html import Markup, table_html, when
from autoplay_rag.content.chunks import Metadata
from autoplay_rag.search.lexical import Matched

__all__ = ["Hit", "Hits", "Matched", "SessionHit"]

_NOTHING = Matched("")


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a search found, or a payload that is not embedded yet.

    Attributes:
        id: The chunk's id.
        session_id: The session it belongs to; None if there is none.
        text: Its text.
        score: The score for the ranking; higher is better. In "dense" mode the cosine similarity to
            the question. Otherwise not a cosine and only comparable within one search; see
            `autoplay_rag.search.fusion`.
        metadata: As in `Chunk`.
        dense_score: The store's score; None if the store did not return it.
        text_score: The full-text score; None if no word matches.
        matched: The lines that answer the question, with the positions of its words.
        embedded: Whether it is in the store. False if only full text can find it: it was accepted just
            now, or a summary replaced it.
        sessions: The number of candidate sessions with the same text; 1 unless the search collapses
            equal texts.
    """

    id: str
    session_id: str | None
    text: str
    score: float
    metadata: Metadata = field(default_factory=dict)
    dense_score: float | None = None
    text_score: float | None = None
    matched: Matched = _NOTHING
    embedded: bool = True
    sessions: int = 1

    @classmethod
    def of(cls, id: str, text: str, score: float, metadata: Metadata, **others: Any) -> Hit:
        """Make a hit. The session id is taken from the metadata."""
        session_id = metadata.get("session_id")
        session = None if session_id is None else str(session_id)
        return cls(id, session, text, score, metadata, **others)

    @property
    def user_id(self) -> str | None:
        """The person it belongs to; None if unknown."""
        found = self.metadata.get("user_id")
        return None if found is None else str(found)

    def _repr_html_(self) -> str:
        rows = [
            ("score", f"{self.score:.3f}"),
            ("matched", _marked(self.matched)),
            ("text", self.text),
            ("when", when(self.metadata.get("ended_at"))),
            ("user", self.user_id or ""),
            ("session", self.session_id or ""),
            ("id", self.id),
        ]
        return table_html(("field", "value"), [row for row in rows if row[1]])


@dataclass(frozen=True, slots=True)
class SessionHit:
    """A session that a search found.

    Attributes:
        session_id: The session; None for a chunk without one, which is a separate result.
        product_id: Its product.
        user_id: The person it belongs to; None if unknown, or if several people used it.
        started_at: Unix seconds of its first known action; None if unknown. In a search for one
            person, of that person's first action.
        ended_at: Unix seconds of its last known action, in the same way; None if unknown.
        score: The score of its best hit.
        hits: Its best hits, ordered by time.
        text: The text of the session from its start, truncated.
    """

    session_id: str | None
    product_id: str
    user_id: str | None
    started_at: float | None
    ended_at: float | None
    score: float
    hits: list[Hit]
    text: str

    @property
    def best(self) -> Hit:
        """The hit with the highest score."""
        return max(self.hits, key=lambda hit: hit.score)

    def _repr_html_(self) -> str:
        return Hits([self])._repr_html_()


H = TypeVar("H", bound=Hit | SessionHit)


class Hits(list[H]):
    """The hits of a search, best first. A list; notebooks show it as a table.

    Args:
        hits: The hits.
        watermark: See `watermark`.
        unembedded: See `unembedded`.
        scope_known: See `scope_known`.
        problem: See `problem`.

    Attributes:
        watermark: All payloads up to this sequence number were settled when the search began.
        unembedded: The number of accepted payloads that were not embedded yet, so that only full
            text could find them. Of the selected sessions; of all sessions if many are selected.
        scope_known: False if the session, person or chat thread of the filter was never seen. Then
            an empty result may mean a wrong id, not a user without activity.
        problem: Why a hybrid search used full text only, in one line: the embedder or the store
            was unavailable. None if both sides answered.
    """

    def __init__(
        self,
        hits: Iterable[H] = (),
        *,
        watermark: int = 0,
        unembedded: int = 0,
        scope_known: bool = True,
        problem: str | None = None,
    ) -> None:
        super().__init__(hits)
        self.watermark = watermark
        self.unembedded = unembedded
        self.scope_known = scope_known
        self.problem = problem

    def _repr_html_(self) -> str:
        if not self:
            return "<p>nothing found</p>" if self.scope_known else "<p>not known here</p>"
        return table_html(("score", "found", "when", "user", "session"), map(_row, self))


def _row(hit: Hit | SessionHit) -> tuple[object, ...]:
    best = hit.best if isinstance(hit, SessionHit) else hit
    ended = hit.ended_at if isinstance(hit, SessionHit) else best.metadata.get("ended_at")
    return (
        f"{hit.score:.3f}",
        _marked(best.matched) if best.matched.text else best.text,
        when(ended),
        hit.user_id or "",
        hit.session_id or "",
    )


def _marked(matched: Matched) -> Markup:
    """The matched lines with the words of the question in bold."""
    html, at = "", 0
    for start, end in matched.places:
        html += f"{escape(matched.text[at:start])}<b>{escape(matched.text[start:end])}</b>"
        at = end
    return Markup((html + escape(matched.text[at:])).replace("\n", "<br>"))
