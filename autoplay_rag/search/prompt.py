"""Builds the context about a user for a language model: recent activity and matching sessions.

The recent part and the past share one budget of characters. With both, the recent part first gets
at most half of the budget, then the past gets the rest, and the recent part what remains. All text
is marked as data (`autoplay_rag.content.marking`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from autoplay_rag.content.filters import Filter
from autoplay_rag.content.marking import as_data, escaped, plain_line, room_for_data
from autoplay_rag.content.times import said_time
from autoplay_rag.live.sessions import LiveSession, LiveSessions
from autoplay_rag.search.hits import Hit, SessionHit
from autoplay_rag.search.searcher import Searcher

__all__ = ["ELEMENT", "Asker", "context_text", "pulled_text"]

ELEMENT: Final = "user_activity"
"""The element around the context."""
_ABOUT: Final = "What the user did in the product."
_RECENT: Final = "Just now, oldest first:"
_PAST: Final = "Earlier, the best match first:"
_PAST_SESSIONS: Final = 10
_PARTS_OF_SESSION: Final = 3
_LONGEST_LINE: Final = 600
_SHORTEST_LINE: Final = 60
_LONGEST_PAGE: Final = 120
_LONGEST_ID: Final = 80


@dataclass(frozen=True, slots=True)
class Asker:
    """The person or session that a context describes.

    Attributes:
        user_id: The person.
        session_id: The session.
        product_id: The product.
        conversation_id: The chat thread.
    """

    user_id: str | None = None
    session_id: str | None = None
    product_id: str | None = None
    conversation_id: str | None = None

    @property
    def is_known(self) -> bool:
        """Whether a person, a session or a chat thread is given."""
        return any(one is not None for one in (self.user_id, self.session_id, self.conversation_id))

    @property
    def past(self) -> Filter:
        """The filter for the past: all of the person, or else of the session and thread."""
        if self.user_id is not None:
            return Filter(user_id=self.user_id, product_id=self.product_id)
        return Filter(
            session_id=self.session_id,
            product_id=self.product_id,
            conversation_id=self.conversation_id,
        )


async def context_text(
    live: LiveSessions,
    searcher: Searcher,
    query: str | None,
    asker: Asker,
    *,
    since_turn: bool,
    seconds: float,
    max_actions: int | None,
    max_chars: int,
    pulled: LiveSession | None = None,
) -> str:
    """Build the context for a prompt; see `IngestPipeline.context`.

    A session that was pulled just now stands in for the one in `live`, if it has recent events.
    """
    fresh = None if pulled is None else pulled.last(seconds=seconds)
    if fresh is not None and fresh.events:
        session: LiveSession | None = fresh
    else:
        fresh, session = None, _recent(live, asker, since_turn=since_turn, seconds=seconds)
    if session is not None:
        session = session.last(events=max_actions)
    recent = _recent_lines(session) if session else []
    past: list[str] = []
    if query and query.strip():
        hits = await searcher.search_sessions(query, _PAST_SESSIONS, asker.past)
        past = list(_past_lines(hits, session, seconds, is_pulled=fresh is not None))
    room = room_for_data(max_chars, ELEMENT, _ABOUT)
    return as_data("\n".join(_fitted(recent, past, room)), ELEMENT, _ABOUT)


def pulled_text(
    session: LiveSession | None, *, seconds: float, max_actions: int | None, max_chars: int
) -> str:
    """Return the recent events of a pulled session alone, as `context_text` writes them."""
    recent = None if session is None else session.last(seconds=seconds).last(events=max_actions)
    if recent is None or not recent.events:
        return ""
    room = room_for_data(max_chars, ELEMENT, _ABOUT)
    return as_data("\n".join(_fitted(_recent_lines(recent), [], room)), ELEMENT, _ABOUT)


# -- recent activity ------------------------------------------------------------------------------


def _recent(
    live: LiveSessions, asker: Asker, *, since_turn: bool, seconds: float
) -> LiveSession | None:
    """The latest session, reduced to its recent events; None if it is unknown."""
    if not asker.is_known:
        return None
    session = live.get(
        session_id=asker.session_id,
        user_id=asker.user_id,
        conversation_id=asker.conversation_id,
        product_id=asker.product_id,
    )
    if session is None:
        return None
    turns = [at for at, event in enumerate(session.events) if event.kind == "chat"]
    if since_turn and turns:
        kept = len(session.events) - turns[-1] - 1
        return session.last(events=kept)
    # Without chat turns: the conversation already contains them.
    return session.last(seconds=seconds, kinds=("actions", "summary"))


def _recent_lines(session: LiveSession) -> list[str]:
    """One line for each event, oldest first."""
    whose = f"session {plain_line(session.session_id, _LONGEST_ID)}"
    return [
        _line(_where(said_time(event.at), whose, event.url), event.text) for event in session.events
    ]


# -- the past -------------------------------------------------------------------------------------


def _past_lines(
    found: Sequence[SessionHit], recent: LiveSession | None, seconds: float, *, is_pulled: bool
) -> Iterator[str]:
    """One line for each hit, the best session first. Hits with equal text share a line.

    A pulled session may have another id than in the store: its texts are not repeated from any.
    """
    shown = {plain_line(event.text) for event in recent.events} if recent else set()
    same: dict[str, list[tuple[SessionHit, Hit]]] = {}
    for session in found:
        best = sorted(session.hits, key=lambda hit: -hit.score)[:_PARTS_OF_SESSION]
        for hit in sorted(best, key=_ended):
            is_here = recent is not None and recent.session_id == session.session_id
            if is_here and _is_of_this_chat(hit, recent, seconds):
                continue
            if text := _said(hit, shown if is_here or is_pulled else set()):
                same.setdefault(text, []).append((session, hit))
    for text, places in same.items():
        session, hit = max(places, key=lambda place: _ended(place[1]))
        others = len({one.session_id or part.id for one, part in places}) - 1
        whose = f"session {plain_line(hit.session_id or 'unknown', _LONGEST_ID)}"
        if others:
            whose += f" and {others} more"
        urls = str(hit.metadata.get("urls", "")).split()
        page = urls[0] if urls else ""
        yield _line(_where(said_time(_ended(hit) or session.ended_at), whose, page), text)


def _said(hit: Hit, shown: set[str]) -> str:
    """The matched lines of a hit, without lines that are already shown."""
    lines = (plain_line(line).rstrip(",") for line in hit.matched.text.split("\n"))
    return "; ".join(line for line in lines if line and line not in shown)


def _is_of_this_chat(hit: Hit, recent: LiveSession | None, seconds: float) -> bool:
    """Whether a hit is a recent chat turn, which the conversation already contains."""
    if recent is None or hit.metadata.get("kind") != "chat":
        return False
    return _ended(hit) >= recent.seen_at - seconds


def _ended(hit: Hit) -> float:
    found = hit.metadata.get("ended_at")
    return float(found) if isinstance(found, int | float) else 0.0


# -- the budget -----------------------------------------------------------------------------------


def _where(when: str, whose: str, page: str) -> str:
    return ", ".join(part for part in (when, whose, plain_line(page, _LONGEST_PAGE)) if part)


def _line(where: str, text: str) -> str:
    return f"[{where}] {plain_line(text, _LONGEST_LINE)}"


def _fitted(recent: Sequence[str], past: Sequence[str], room: int) -> list[str]:
    """The lines that fit, each part under its heading.

    Args:
        recent: Lines, oldest first. The newest are kept.
        past: Lines, best first. The best are kept.
        room: The most characters after escaping.
    """
    room -= len(now := f"Now it is {said_time(time.time())}.")
    newest = list(reversed(recent))
    kept = _as_many(newest, _RECENT, room // 2 if past else room)
    best = _as_many(past, _PAST, room - _size(kept, _RECENT))
    if len(kept) < len(newest):
        kept = _as_many(newest, _RECENT, room - _size(best, _PAST))
    lines = [_RECENT, *reversed(kept)] if kept else []
    if best:
        lines += [_PAST, *best]
    return [now, *lines] if lines else []


def _as_many(lines: Sequence[str], heading: str, room: int) -> list[str]:
    """The first lines that fit below a heading. If even the first is too long, it is truncated."""
    kept: list[str] = []
    for line in lines:
        left = room - _size(kept or [""], heading)
        if len(escaped(line)) + bool(kept) > left:
            if not kept and left >= _SHORTEST_LINE:
                kept.append(_cut(line, left))
            break
        kept.append(line)
    return kept


def _size(lines: Sequence[str], heading: str) -> int:
    """The number of characters of these lines and their heading, with a line break before each."""
    return sum(1 + len(escaped(line)) for line in (heading, *lines)) if lines else 0


def _cut(line: str, most: int) -> str:
    """Truncate a line to a number of characters after escaping."""
    line = line[: most - 1]
    while len(escaped(line)) > most - 1:
        line = line[:-1]
    return f"{line}…"
