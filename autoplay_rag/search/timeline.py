"""Reads without a ranking: lists of sessions, one complete session, actions in order."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, Self

import msgspec

from autoplay_rag._checks import check_at_least
from autoplay_rag._html import table_html, when
from autoplay_rag.content.filters import Moment, moment
from autoplay_rag.content.marking import plain_line
from autoplay_rag.content.passages import storable
from autoplay_rag.content.render import action_line
from autoplay_rag.content.times import own_time
from autoplay_rag.errors import ConfigurationError, JournalError
from autoplay_rag.journal.base import Findable, FoundPassage
from autoplay_rag.journal.finder import AsyncTimeline
from autoplay_rag.journal.timeline import KeptPayload, ListedSession, Place, Wanted, terms_of
from autoplay_rag.payloads import ActionsPayload
from autoplay_rag.search.sessions import joined_lines

__all__ = [
    "Actions",
    "SessionChunk",
    "SessionEvent",
    "SessionPart",
    "SessionSummary",
    "Sessions",
    "WholeSession",
    "joined_parts",
    "list_sessions",
    "read_actions",
    "read_chunks",
    "read_part",
    "read_session",
    "wanted_of",
]

_log = logging.getLogger(__name__)

_WHAT_CHARACTERS: Final = 160
_TEXT_CHARACTERS: Final = 10_000_000


# -- results --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """One session of a list.

    Attributes:
        session_id: The session.
        product_id: Its product.
        user_id: The person it belongs to; None if unknown, or if several people used it.
        started_at: Unix seconds of its first known action; None if unknown.
        ended_at: Unix seconds of its last known action; None if unknown.
        payloads: The number of its payloads.
        actions: The number of its actions.
        what: A one-line description: its latest summary, or its beginning. Untrusted text.
        ambiguous: Whether several people used it.
    """

    session_id: str
    product_id: str
    user_id: str | None
    started_at: float | None
    ended_at: float | None
    payloads: int
    actions: int
    what: str
    ambiguous: bool = False

    def _repr_html_(self) -> str:
        return Sessions([self])._repr_html_()


class Sessions(list[SessionSummary]):
    """One page of a list of sessions, latest first.

    Args:
        sessions: The sessions.
        total: See `total`.
        next: See `next`.

    Attributes:
        total: The number of matching sessions on all pages; 0 if they were not counted.
        next: The `cursor` of the next page; None on the last page.
    """

    def __init__(
        self, sessions: Iterable[SessionSummary] = (), *, total: int = 0, next: str | None = None
    ) -> None:
        super().__init__(sessions)
        self.total = total
        self.next = next

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no sessions</p>"
        return table_html(
            ("ended", "session", "user", "actions", "what"),
            [
                (when(one.ended_at), one.session_id, one.user_id or "", one.actions, one.what)
                for one in self
            ],
        )


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """One action, summary or chat turn.

    Attributes:
        session_id: Its session; None if it has none.
        product_id: Its product.
        user_id: The person; None if unknown, or if it names nobody and several people used the
            session.
        kind: "actions", "summary" or "chat".
        started_at: Unix seconds; None if unknown.
        ended_at: Unix seconds; None if unknown.
        page: The URL, with dynamic segments as `:id`; "" if there is none.
        type: An action's type, such as "click"; "" if it is not an action.
        title: An action's title.
        description: An action's description, or the text of a summary or a chat turn.
        seq: The sequence number of its payload in the journal.
        index: Its position in the payload.
    """

    session_id: str | None
    product_id: str
    user_id: str | None
    kind: str
    started_at: float | None
    ended_at: float | None
    page: str
    type: str
    title: str
    description: str
    seq: int
    index: int = 0


@dataclass(frozen=True, slots=True)
class WholeSession:
    """One complete session, in order.

    Attributes:
        session_id: The session.
        product_id: Its product.
        user_id: The given person, or the person it belongs to; None if unknown, or if several
            people used it.
        users: All people it names.
        ambiguous: Whether several people used it.
        started_at: Unix seconds of its first known action; None if unknown.
        ended_at: Unix seconds of its last known action; None if unknown.
        payloads: The number of its payloads.
        events: Its actions, summaries and chat turns, ordered by time. An event of unknown time
            follows the event that was accepted before it.
        text: Its text from the full-text index. Untrusted.
        missing: The number of payloads with actions but without events, because their bodies were
            not kept (`keep_payloads=False`, or no journal file). `text` contains their text.
    """

    session_id: str
    product_id: str
    user_id: str | None
    users: tuple[str, ...]
    ambiguous: bool
    started_at: float | None
    ended_at: float | None
    payloads: int
    events: tuple[SessionEvent, ...]
    text: str
    missing: int = 0

    @property
    def actions(self) -> list[SessionEvent]:
        """Its events that are actions."""
        return [event for event in self.events if event.kind == "actions"]

    def _repr_html_(self) -> str:
        return table_html(
            ("when", "kind", "what", "page"),
            [
                (
                    when(event.started_at),
                    event.type or event.kind,
                    event.description or event.title,
                    event.page,
                )
                for event in self.events
            ],
        )


@dataclass(frozen=True, slots=True)
class SessionPart:
    """One part of a session that is read in parts.

    Attributes:
        session: The session, with the events and the text of this part alone.
        actions: The number of its actions in all parts.
        next: The `after` of the next part; None if this is the last one.
    """

    session: WholeSession
    actions: int
    next: int | None


@dataclass(frozen=True, slots=True)
class SessionChunk:
    """Where some payloads of a session are.

    Attributes:
        id: Their chunk; None if they are in none: they wait, or they are dead letters.
        payloads: How many they are.
        started_at: Unix seconds of their first action; None if unknown.
        ended_at: Unix seconds of their last action; None if unknown.
        replaced: Whether the chunk left the store, because a summary replaces it. Full text still
            finds it.
    """

    id: str | None
    payloads: int
    started_at: float | None
    ended_at: float | None
    replaced: bool = False


class Actions(AsyncIterator[SessionEvent]):
    """Iterates over actions in the order of acceptance. They are read page by page.

    Includes only actions that were accepted before the first item was requested.

    Args:
        pages: Yields pages of actions. A number stands for as many payloads that were left out.

    Attributes:
        missing: The number of payloads left out so far, because their bodies were not kept.
    """

    def __init__(self, pages: AsyncGenerator[Sequence[SessionEvent | int], None]) -> None:
        self.missing = 0
        self._pages = pages
        self._items = self._read()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionEvent:
        return await anext(self._items)

    async def aclose(self) -> None:
        """Stop reading."""
        await self._items.aclose()

    async def _read(self) -> AsyncGenerator[SessionEvent, None]:
        found = False
        async with aclosing(self._pages) as pages:
            async for page in pages:
                for one in page:
                    if isinstance(one, int):
                        self.missing += one
                    else:
                        found = True
                        yield one
        if self.missing and not found:
            raise JournalError(
                f"no actions to read: {self.missing:,} payloads fit, and the journal kept none of "
                "their bodies (keep_payloads=False, or no journal file); start the pipeline with "
                "a journal file and keep_payloads=True to keep those to come"
            )
        if self.missing:
            _log.warning(
                "%d payloads are missing among the actions: the journal did not keep their bodies",
                self.missing,
            )


# -- reading --------------------------------------------------------------------------------------


def wanted_of(
    *,
    user_id: str | None = None,
    session_id: str | None = None,
    product_id: str | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
    matching: str | None = None,
    without: str | None = None,
    page: str | None = None,
    shared: bool = True,
) -> Wanted:
    """Check and convert the conditions of a list.

    Raises:
        ConfigurationError: If a time is invalid or a text is blank.
    """
    for name, text in (("matching", matching), ("without", without), ("page", page)):
        if text is not None and not text.strip():
            raise ConfigurationError(f"{name} is empty: leave it out, or name words to look for")
    return Wanted(
        user_id=_storable(user_id),
        session_id=_storable(session_id),
        product_id=_storable(product_id),
        since=None if since is None else moment("since", since),
        until=None if until is None else moment("until", until),
        matching=terms_of(matching) if matching is not None else (),
        without=terms_of(without) if without is not None else (),
        page=_storable(page.strip()) if page is not None else None,
        shared=shared,
    )


async def read_actions(
    timeline: AsyncTimeline, wanted: Wanted
) -> AsyncGenerator[Sequence[SessionEvent | int], None]:
    """Yield the pages of `Actions`."""
    last = await timeline.last_seq()
    after: int | None = None
    while page := await timeline.payloads(wanted, "actions", after, last):
        items: list[SessionEvent | int] = []
        for kept in page:
            if kept.payload is None:
                items.append(1)
            else:
                items += (event for event in _events(kept) if _passes(event, wanted))
        yield items
        after = page[-1].seq


async def list_sessions(
    timeline: AsyncTimeline,
    wanted: Wanted,
    limit: int,
    cursor: str | None,
    *,
    count: bool = True,
) -> Sessions:
    """Return one page of sessions; see `IngestPipeline.sessions`."""
    check_at_least("limit", limit, 1, whole=True)
    after = None if cursor is None else _place(cursor)
    total, rows = await timeline.sessions(wanted, limit + 1, after, count=count)
    shown = rows[:limit]
    more = _cursor(Place(shown[-1].last, shown[-1].lane)) if len(rows) > limit else None
    return Sessions((_summary(row) for row in shown), total=total, next=more)


async def read_session(
    timeline: AsyncTimeline, session_id: str, product_id: str | None, user_id: str | None
) -> WholeSession | None:
    """Return one complete session; see `IngestPipeline.session`."""
    lane = await _lane(timeline, session_id, product_id)
    if lane is None:
        return None
    found, kept = await timeline.whole(lane)
    if found is None or (user_id is not None and user_id not in found.users):
        return None
    if user_id is not None:
        kept = [one for one in kept if one.owner == user_id]
    return _whole(found, kept, user_id)


async def read_part(
    timeline: AsyncTimeline,
    session_id: str,
    product_id: str | None,
    *,
    user_id: str | None,
    after: int | None,
    limit: int,
) -> SessionPart | None:
    """Return one part of a session; see `IngestPipeline.session_part`."""
    check_at_least("limit", limit, 1, whole=True)
    lane = await _lane(timeline, session_id, product_id)
    if lane is None:
        return None
    chosen: list[KeptPayload] = []
    while True:
        found, kept = await timeline.whole(lane, after, limit + 1)
        if found is None or (user_id is not None and user_id not in found.users):
            return None
        # Where a part of a person ends must not depend on what others did.
        chosen += (one for one in kept if user_id is None or one.owner == user_id)
        part = _first(chosen, limit)
        if len(part) < len(chosen) or len(kept) <= limit:
            break
        after = kept[-1].seq
    more = part[-1].seq if len(part) < len(chosen) else None
    return SessionPart(_whole(found, part, user_id), found.actions, more)


def joined_parts(parts: Sequence[WholeSession]) -> WholeSession:
    """Join the sessions of all parts, in order, into the complete session."""
    first = parts[0]
    events = sorted(
        (event for part in parts for event in part.events),
        key=lambda event: (event.seq, event.index),
    )
    return replace(
        first,
        started_at=min((p.started_at for p in parts if p.started_at is not None), default=None),
        ended_at=max((p.ended_at for p in parts if p.ended_at is not None), default=None),
        # A token of a person counts the payloads of each part.
        payloads=max(first.payloads, len({event.seq for event in events})),
        events=tuple(_by_time(events)),
        text=joined_lines((part.text for part in parts), _TEXT_CHARACTERS),
        missing=sum(part.missing for part in parts),
    )


async def read_chunks(
    timeline: AsyncTimeline, catalog: Findable, session_id: str, product_id: str | None
) -> list[SessionChunk]:
    """Return where a session's latest payloads are; see `IngestPipeline.session_chunks`."""
    lane = await _lane(timeline, session_id, product_id)
    if lane is None:
        return []
    groups: dict[str | None, list[FoundPassage]] = {}
    for passage in await catalog.passages([lane]):
        groups.setdefault(passage.chunk, []).append(passage)
    return [
        SessionChunk(
            id=chunk,
            payloads=len({one.seq for one in passages}),
            started_at=min((p.started for p in passages if p.started is not None), default=None),
            ended_at=max((p.ended for p in passages if p.ended is not None), default=None),
            replaced=any(one.retired for one in passages),
        )
        for chunk, passages in groups.items()
    ]


async def _lane(timeline: AsyncTimeline, session_id: str, product_id: str | None) -> int | None:
    """Return the lane of a session; None if it is unknown.

    Raises:
        ConfigurationError: If several products have a session of this id.
    """
    wanted = wanted_of(session_id=session_id, product_id=product_id)
    lanes = await timeline.lanes(str(wanted.session_id), wanted.product_id)
    if len(lanes) > 1:
        raise ConfigurationError(
            f"{len(lanes)} products have a session of this id: give product_id, one of "
            f"{', '.join(map(repr, sorted(lanes)))}"
        )
    return next(iter(lanes.values()), None)


def _first(kept: Sequence[KeptPayload], limit: int) -> Sequence[KeptPayload]:
    """Return the first payloads, until they have so many events. At least one."""
    events = 0
    for number, one in enumerate(kept, 1):
        payload = one.payload
        events += len(payload.actions) if isinstance(payload, ActionsPayload) else 1
        if events >= limit:
            return kept[:number]
    return kept


def _summary(row: ListedSession) -> SessionSummary:
    return SessionSummary(
        session_id=row.session_id,
        product_id=row.product_id,
        user_id=row.users[0] if len(row.users) == 1 else None,
        started_at=row.first,
        ended_at=row.last,
        payloads=row.payloads,
        actions=row.actions,
        what=_what(row.said),
        ambiguous=len(row.users) > 1,
    )


def _what(said: Sequence[str]) -> str:
    """A one-line description from texts, without sites and pages."""
    lines: dict[str, None] = {}
    for text in said:
        own = [plain_line(line).rstrip(",") for line in text.split("\n")]
        for row, line in enumerate(own):
            if line and not _is_place(line, first=row == 0 and len(own) > 1):
                lines[line] = None
    return plain_line("; ".join(lines or map(plain_line, said)), _WHAT_CHARACTERS)


def _is_place(line: str, *, first: bool) -> bool:
    """Whether a line of `content.render` names a site or a page."""
    if " " not in line:
        return first or "." in line.strip(".")
    return line.startswith("on ") and '"' not in line


def _whole(found: ListedSession, kept: Sequence[KeptPayload], user_id: str | None) -> WholeSession:
    events: list[SessionEvent] = []
    missing = 0
    for one in kept:
        if one.payload is None and one.kind in (None, "actions"):
            missing += 1
        else:
            events += _events(one)
    single = found.users[0] if len(found.users) == 1 else None
    return WholeSession(
        session_id=found.session_id,
        product_id=found.product_id,
        user_id=user_id if user_id is not None else single,
        users=found.users,
        ambiguous=len(found.users) > 1,
        started_at=found.first,
        ended_at=found.last,
        payloads=found.payloads,
        events=tuple(_by_time(events)),
        text=joined_lines((one.text for one in kept), _TEXT_CHARACTERS),
        missing=missing,
    )


def _by_time(events: Iterable[SessionEvent]) -> list[SessionEvent]:
    timed: list[tuple[float, SessionEvent]] = []
    at = float("-inf")
    for event in events:
        at = event.started_at if event.started_at is not None else at
        timed.append((at, event))
    timed.sort(key=lambda pair: pair[0])
    return [event for _, event in timed]


def _events(kept: KeptPayload) -> Iterator[SessionEvent]:
    """The events of one payload, in order."""
    whole = SessionEvent(
        session_id=kept.session_id,
        product_id=kept.product_id,
        user_id=kept.owner,
        kind=kept.kind or "",
        started_at=kept.started,
        ended_at=kept.ended,
        page="",
        type="",
        title="",
        description=kept.text,
        seq=kept.seq,
    )
    if not isinstance(kept.payload, ActionsPayload):
        yield whole
        return
    for index, action in enumerate(kept.payload.actions):
        yield replace(
            whole,
            user_id=action.user_id or kept.owner,
            started_at=own_time(action.timestamp_start) or kept.started,
            ended_at=own_time(action.timestamp_end or action.timestamp_start) or kept.ended,
            page=action.canonical_url or action.raw_url,
            type=action.type,
            title=action.title,
            description=action.description or action_line(action),
            index=index,
        )


def _passes(event: SessionEvent, wanted: Wanted) -> bool:
    if wanted.user_id is not None and event.user_id != wanted.user_id:
        return False
    if wanted.since is not None and (event.ended_at is None or event.ended_at < wanted.since):
        return False
    return wanted.until is None or (
        event.started_at is not None and event.started_at <= wanted.until
    )


def _cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).decode().rstrip("=")


def _place(cursor: str) -> Place:
    try:
        packed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        last, lane = msgspec.msgpack.decode(packed, type=tuple[float | None, int])
    except (binascii.Error, msgspec.DecodeError, ValueError, TypeError, AttributeError):
        raise ConfigurationError("cursor must be `next` of the page before") from None
    if not -(2**63) <= lane < 2**63:
        raise ConfigurationError("cursor must be `next` of the page before")
    return Place(last, lane)


def _storable(text: str | None) -> str | None:
    """Convert an id to the form in the journal."""
    return None if text is None else storable(text)
