"""The results of the tools: typed, bounded, and as text that is marked as data.

A client gives a model the text, the typed result, or both. So the texts of pages and people are
cleaned in both: one line each, without invisible characters, without `<` and `>`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, Field

from autoplay_rag.content.marking import DATA_NOTE, as_data, escaped, plain_line
from autoplay_rag.content.times import said_time
from autoplay_rag.loading.found import page_of
from autoplay_rag.search.hits import Hit, Matched
from autoplay_rag.serve.models import (
    HitModel,
    LiveAnswer,
    SessionHitModel,
    SessionHitsAnswer,
    SessionModel,
    SessionsAnswer,
)

__all__ = [
    "ActivityResult",
    "HistoryResult",
    "Result",
    "SearchResult",
    "SessionResult",
    "activity_result",
    "history_result",
    "search_result",
    "session_result",
]

_ELEMENT: Final = "user_activity"
_LONGEST_RESULT: Final = 8_000
"""The most characters of the rows of one result, written as JSON."""
_LONGEST_TEXT: Final = 600
_LONGEST_PAGE: Final = 200
_LONGEST_ID: Final = 512


class Row(BaseModel):
    """One line of a result."""

    def where(self) -> list[str]:
        """What stands in brackets before the text."""
        raise NotImplementedError

    def said(self) -> str:
        """The text."""
        raise NotImplementedError


class Result(BaseModel):
    """A result of a tool."""

    note: str = Field(default=DATA_NOTE, description="How to treat the texts.")
    left_out: bool = Field(
        default=False, description="Whether more was found than fits into the result."
    )

    def lines(self) -> list[str]:
        """The lines of the text."""
        raise NotImplementedError

    def about(self) -> str:
        """A sentence that describes the text."""
        raise NotImplementedError

    def text(self) -> str:
        """The result for a model, marked as data."""
        return as_data("\n".join(self.lines()), _ELEMENT, self.about())


class Passage(Row):
    """A passage that answers the question."""

    session_id: str | None
    product_id: str
    user_id: str | None
    at: str = Field(description="When it ended; empty if unknown.")
    kind: str = Field(description="actions, summary or chat.")
    page: str
    text: str

    def where(self) -> list[str]:
        """Time, session, user and page."""
        return [self.at, *_whose(self.session_id, self.user_id), _other(self.kind), self.page]

    def said(self) -> str:
        """The passage."""
        return self.text


class SearchResult(Result):
    """The passages that answer a question, those of the best session first."""

    passages: list[Passage]
    problem: str | None = Field(
        default=None, description="Why the search was incomplete; null if it was."
    )

    def lines(self) -> list[str]:
        """One line for each passage."""
        lines = [_line(row) for row in self.passages] or ["Nothing that was recorded matches."]
        if self.left_out:
            lines.append("More was found than fits: ask with a smaller k or a narrower query.")
        return [*lines, *([f"Incomplete: {self.problem}"] if self.problem else [])]

    def about(self) -> str:
        """A sentence that describes the text."""
        return "What was done before, the best session first."


class Event(Row):
    """One action, summary or chat turn of a session."""

    number: int
    user_id: str | None
    at: str = Field(description="When it started; empty if unknown.")
    kind: str = Field(description="actions, summary or chat.")
    page: str
    text: str

    def where(self) -> list[str]:
        """Number, time and page."""
        return [str(self.number), self.at, _other(self.kind), self.page]

    def said(self) -> str:
        """The event."""
        return self.text


class SessionResult(Result):
    """One session, or the part of it that fits."""

    session_id: str
    product_id: str
    users: list[str]
    started_at: str
    ended_at: str
    total: int = Field(description="The events of the whole session.")
    events: list[Event]
    next_start: int | None = Field(
        default=None, description="`start` of the next part; null at the end."
    )

    def lines(self) -> list[str]:
        """One line for each event, below a heading."""
        whose = _whose(self.session_id, ", ".join(self.users))
        span = f"{self.started_at} to {self.ended_at}" if self.started_at else ""
        lines = [_bracketed([span, *whose, f"{self.total} events"], "")]
        lines += [_line(row) for row in self.events]
        return [*lines, *([f"More: start={self.next_start}"] if self.next_start else [])]

    def about(self) -> str:
        """A sentence that describes the text."""
        return "One session, in order."


class RecentEvent(Row):
    """One event of the last minutes."""

    seconds_ago: int
    kind: str = Field(description="actions, summary or chat.")
    page: str
    text: str

    def where(self) -> list[str]:
        """Age and page."""
        return [f"{self.seconds_ago} s ago", _other(self.kind), self.page]

    def said(self) -> str:
        """The event."""
        return self.text


class ActivityResult(Result):
    """What happened in the last minutes, oldest first."""

    session_id: str | None
    product_id: str | None
    user_id: str | None
    events: list[RecentEvent]

    def lines(self) -> list[str]:
        """One line for each event."""
        if not self.events:
            return ["Nothing was recorded in that time."]
        heading = _bracketed(_whose(self.session_id, self.user_id), "")
        return [heading, *(_line(row) for row in self.events)]

    def about(self) -> str:
        """A sentence that describes the text."""
        return "What was done just now, oldest first."


class ListedSession(Row):
    """One session of a list."""

    session_id: str
    product_id: str
    user_id: str | None
    started_at: str
    ended_at: str
    actions: int
    what: str

    def where(self) -> list[str]:
        """Time, session, user and number of actions."""
        span = f"{self.started_at} to {self.ended_at}" if self.started_at else ""
        return [span, *_whose(self.session_id, self.user_id), f"{self.actions} actions"]

    def said(self) -> str:
        """What was done."""
        return self.what


class HistoryResult(Result):
    """One page of sessions, the latest first."""

    sessions: list[ListedSession]
    total: int = Field(description="The sessions that fit the question, on all pages.")
    next_cursor: str | None = Field(
        default=None, description="`cursor` of the next page; null at the end."
    )

    def lines(self) -> list[str]:
        """One line for each session, and where the list continues."""
        if not self.sessions:
            return ["No session fits."]
        lines = [_line(row) for row in self.sessions]
        lines.append(f"{len(self.sessions)} of {self.total} sessions.")
        return [*lines, *([f"More: cursor={self.next_cursor}"] if self.next_cursor else [])]

    def about(self) -> str:
        """A sentence that describes the text."""
        return "Sessions, the latest first."


# -- from the answers of the routes ---------------------------------------------------------------


def search_result(answer: SessionHitsAnswer) -> SearchResult:
    """Make the result of `search_sessions`."""
    rows = [_passage(session, hit) for session in answer.hits for hit in session.hits]
    kept = _fitting(rows)
    problem = _clean(answer.problem, _LONGEST_TEXT) if answer.problem else None
    return SearchResult(passages=kept, problem=problem, left_out=len(kept) < len(rows))


def session_result(answer: SessionModel, start: int) -> SessionResult:
    """Make the result of `read_session`.

    Args:
        answer: The session.
        start: The number of the first event, from 1.
    """
    if answer.missing:
        # The bodies of some payloads were not kept, but the full-text index has their text.
        rows = [
            Event(number=n, user_id=None, at="", kind="actions", page="", text=_clean(line))
            for n, line in enumerate(answer.text.split("\n"), 1)
        ]
    else:
        rows = [
            Event(
                number=n,
                user_id=_id(one.user_id),
                at=said_time(one.started_at),
                kind=one.kind,
                page=_clean(one.page, _LONGEST_PAGE),
                text=_clean(one.description or one.title),
            )
            for n, one in enumerate(answer.events, 1)
        ]
    kept = _fitting(rows[start - 1 :])
    end = start + len(kept)
    return SessionResult(
        session_id=str(_id(answer.session_id)),
        product_id=str(_id(answer.product_id)),
        users=[str(_id(user)) for user in answer.users[:20]],
        started_at=said_time(answer.started_at),
        ended_at=said_time(answer.ended_at),
        total=len(rows),
        events=kept,
        next_start=end if end <= len(rows) else None,
        left_out=end <= len(rows),
    )


def activity_result(answer: LiveAnswer) -> ActivityResult:
    """Make the result of `recent_activity`. If not all fits, the newest events are kept."""
    session = answer.session
    if session is None:
        return ActivityResult(session_id=None, product_id=None, user_id=None, events=[])
    rows = [
        RecentEvent(
            seconds_ago=max(0, math.floor(session.seen_at - one.at)),
            kind=one.kind,
            page=_clean(one.url, _LONGEST_PAGE),
            text=_clean(one.text),
        )
        for one in reversed(session.events)
    ]
    kept = _fitting(rows)
    return ActivityResult(
        session_id=_id(session.session_id),
        product_id=_id(session.product_id),
        user_id=_id(session.user_id),
        events=kept[::-1],
        left_out=len(kept) < len(rows),
    )


def history_result(answer: SessionsAnswer) -> HistoryResult:
    """Make the result of `user_history`.

    If not all sessions fit, `left_out` is true and `next_cursor` skips some: ask for as many as fit.
    """
    rows = [
        ListedSession(
            session_id=str(_id(one.session_id)),
            product_id=str(_id(one.product_id)),
            user_id=_id(one.user_id),
            started_at=said_time(one.started_at),
            ended_at=said_time(one.ended_at),
            actions=one.actions,
            what=_clean(one.what),
        )
        for one in answer.sessions
    ]
    kept = _fitting(rows)
    return HistoryResult(
        sessions=kept,
        total=answer.total,
        next_cursor=answer.next,
        left_out=len(kept) < len(rows),
    )


# -- rows -----------------------------------------------------------------------------------------

_R = TypeVar("_R", bound=Row)


def _fitting(rows: Sequence[_R]) -> list[_R]:
    """The first rows that fit into a result, at least one."""
    kept: list[_R] = []
    size = 0
    for row in rows:
        size += len(row.model_dump_json())
        if kept and size > _LONGEST_RESULT:
            break
        kept.append(row)
    return kept


def _passage(session: SessionHitModel, hit: HitModel) -> Passage:
    about: dict[str, Any] = hit.metadata
    found = Hit(
        hit.id, hit.session_id, hit.text, hit.score, hit.metadata, matched=Matched(hit.matched.text)
    )
    ended = about.get("ended_at")
    lines = (hit.matched.text or hit.text).split("\n")
    return Passage(
        session_id=_id(hit.session_id),
        product_id=str(_id(session.product_id)),
        user_id=_id(hit.user_id),
        at=said_time(ended if isinstance(ended, int | float) else None),
        kind=str(about.get("kind", "")),
        page=_clean(page_of(found) or "", _LONGEST_PAGE),
        text=_clean("; ".join(line.rstrip(",") for line in lines)),
    )


def _line(row: Row) -> str:
    return _bracketed(row.where(), row.said())


def _bracketed(where: Sequence[str], text: str) -> str:
    place = ", ".join(plain_line(part) for part in where if part)
    return f"[{place}] {text}".rstrip()


def _whose(session_id: str | None, user_id: str | None) -> list[str]:
    return [
        f"session {session_id}" if session_id else "no session",
        f"user {user_id}" if user_id else "",
    ]


def _other(kind: str) -> str:
    return "" if kind == "actions" else kind


def _clean(text: str, most: int = _LONGEST_TEXT) -> str:
    return escaped(plain_line(text, most))


def _id(value: str | None) -> str | None:
    # As it is: a model gives it back. JSON quotes it here, and `as_data` escapes it in the text.
    return None if value is None else value[:_LONGEST_ID]
