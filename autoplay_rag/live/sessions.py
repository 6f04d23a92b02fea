"""The latest events of each session, in bounded memory.

A pipeline (`IngestPipeline.live`) or a client alone fills it. Read it to answer a question with
knowledge of what the person who asks was doing. Nothing here waits, and time is injected.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from autoplay_rag._checks import check_above
from autoplay_rag._html import table_html
from autoplay_rag.content.identity import changes_hands, people_of
from autoplay_rag.content.keys import session_lane
from autoplay_rag.content.marking import escaped, plain_line
from autoplay_rag.content.render import action_line
from autoplay_rag.content.times import own_time
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SlimAction, SummaryPayload

__all__ = ["LiveEvent", "LiveSession", "LiveSessions"]

_TEXT_LENGTH = 1_000
"""The most characters kept of one event, so that a long description cannot fill the memory."""
_LONGEST_PAYLOAD_S = 3_600.0
"""A payload covers seconds or minutes. An action further from the others has a wrong clock."""


class LiveEvent(NamedTuple):
    """One event in a session.

    Attributes:
        at: Unix seconds: when the event's payload arrived. For a payload of several actions this
            is the time of the last one; the others are earlier by the differences of their own
            times. A time that is more than an hour from the payload's median counts as unknown.
            Never earlier than the event before it, because a fast replay delivers minutes
            within a second.
        kind: "actions", "summary" or "chat".
        text: A description of the event. Untrusted: it contains text of pages and people.
        url: The page; "" if there is none.
    """

    at: float
    kind: str
    text: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A snapshot of one session.

    Attributes:
        product_id: The product.
        session_id: The visit.
        user_id: The person; None until known.
        conversation_id: The chat thread; None until linked.
        events: The events, oldest first.
        seen_at: When the snapshot was taken, in Unix seconds.
    """

    product_id: str
    session_id: str
    user_id: str | None
    conversation_id: str | None
    events: tuple[LiveEvent, ...]
    seen_at: float

    def last(
        self,
        *,
        seconds: float | None = None,
        events: int | None = None,
        kinds: Collection[str] = ("actions", "summary", "chat"),
    ) -> LiveSession:
        """Return the same session with only its latest events.

        Args:
            seconds: The maximum age of an event; None for no limit.
            events: The most events; the newest are kept. None for no limit.
            kinds: Only events of these kinds.
        """
        since = float("-inf") if seconds is None else self.seen_at - seconds
        kept = tuple(e for e in self.events if e.at >= since and e.kind in kinds)
        if events is not None:
            kept = kept[len(kept) - events :] if 0 < events < len(kept) else kept * (events > 0)
        return replace(self, events=kept)

    def render(self, max_chars: int = 2000, *, escape: bool = False) -> str:
        """Return the events as text, one per line, oldest first; "" if there are none.

        If not all events fit, the newest are kept. The text is untrusted, like `LiveEvent.text`:
        mark it as data before a language model reads it.

        Args:
            max_chars: The most characters.
            escape: Write `<` and `>` as `&lt;` and `&gt;`, so that the text cannot close an element
                around it.

        Example:
            >>> clicks = (LiveEvent(95.0, "actions", "clicked Export", "https://a.test/reports"),)
            >>> LiveSession("acme", "s1", "u1", None, clicks, seen_at=100.0).render()
            '5 s ago: clicked Export (https://a.test/reports)'
        """
        lines: deque[str] = deque()
        room = max_chars
        for event in reversed(_in_order(self.events)):
            line = _line(event, self.seen_at)
            if escape:
                line = escaped(line)
            if len(line) > room:
                if not lines:
                    lines.append(_clipped(line, room))
                break
            lines.appendleft(line)
            room -= len(line) + 1
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return table_html(
            ("when", "kind", "text", "page"),
            [
                (f"{_age(self.seen_at - e.at)} ago", e.kind, plain_line(e.text), plain_line(e.url))
                for e in _in_order(self.events)
            ],
        )


class _Entry:
    __slots__ = ("conversation_id", "events", "last", "user_id")

    def __init__(self, max_actions: int) -> None:
        # The fields of each `LiveEvent`. The garbage collector leaves plain tuples of texts and
        # numbers alone; it walks through named tuples, up to 100,000 of them, in each collection.
        self.events: deque[tuple[float, str, str, str]] = deque(maxlen=max_actions)
        self.user_id: str | None = None
        self.conversation_id: str | None = None
        self.last = (0.0, 0)
        """When the last payload arrived, and its number. The number orders payloads that arrived at
        the same time."""


_Key: TypeAlias = tuple[str, str]
_Index: TypeAlias = dict[tuple[str, str], set[_Key]]


class LiveSessions:
    """Keeps the latest sessions and the latest actions of each.

    `add` may be called on the event loop: it takes microseconds. All methods may be called from
    any thread. Payloads without a session id are ignored.

    A session starts again empty when its person changes. If another `user_id` arrives under the
    same session id, no event of the first person is shown as the second person's.

    Args:
        max_sessions: The most sessions. Those inactive for longest are dropped first.
        max_actions: The most actions of one session, including summaries and chat turns.
        max_age: Seconds after which an action is no longer shown.
        clock: Returns the time in Unix seconds.

    Raises:
        ConfigurationError: If a bound is not above 0.

    Example:
        >>> from autoplay_rag.payloads import SlimAction
        >>> live = LiveSessions()
        >>> live.add(ActionsPayload("acme", "s1", "u1", actions=[SlimAction("Export")]))
        >>> print(live.get(user_id="u1").events[0].text)
        "Export"
    """

    def __init__(
        self,
        *,
        max_sessions: int = 1_000,
        max_actions: int = 100,
        max_age: float = 3_600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_above("max_sessions", max_sessions)
        check_above("max_actions", max_actions, whole=True)
        check_above("max_age", max_age)
        self._max_sessions = max_sessions
        self._max_actions = max_actions
        self._max_age = max_age
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        # In the order of `_Entry.last`.
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._index: _Index = {}

    def __len__(self) -> int:
        """The number of sessions kept."""
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<LiveSessions of {len(self)} sessions>"

    def add(self, payload: Payload, *, at: float | None = None) -> None:
        """Add a payload of any kind.

        Use `at` to add past payloads from a history, preferably in order and before new payloads
        arrive. A payload older than the session's last one is inserted at its place. It is left
        out if it may belong to another person than the session does now: if it names another
        person, or names none while the session's person is known.

        Args:
            payload: The payload.
            at: When it arrived, in Unix seconds. None means now; a time in the future counts as
                now. A payload older than `max_age` is left out.
        """
        if not payload.session_id:
            return
        now = self._clock()
        came = now if at is None else min(at, now)
        if not came >= now - self._max_age:
            return
        key = (payload.product_id, payload.session_id)
        with self._lock:
            known = self._entries.get(key)
            if at is not None and known is not None and came < known.last[0]:
                self._add_late(key, known, payload, came)
            else:
                entry = self._entry(key, payload, came)
                since = entry.events[-1][0] if entry.events else float("-inf")
                new = _events(payload, came, self._max_actions)
                entry.events.extend(map(_fields, _in_order(new, since)))
            self._drop_stale(now)

    async def on_actions(self, payload: ActionsPayload) -> None:
        """Like `add`, as a callback for `AsyncConnectorClient.on_actions`."""
        self.add(payload)

    async def on_summary(self, payload: SummaryPayload) -> None:
        """Like `add`, as a callback for `AsyncConnectorClient.on_summary`."""
        self.add(payload)

    def get(
        self,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        conversation_id: str | None = None,
        product_id: str | None = None,
    ) -> LiveSession | None:
        """Return the session that all given ids belong to; the most recently active one of several.

        Args:
            session_id: The visit.
            user_id: The person.
            conversation_id: The chat thread.
            product_id: The product; None for any.

        Returns:
            The session; None if no session matches all ids. A session without a known person
            does not match any `user_id`.

        Raises:
            ConfigurationError: If none of the first three ids is given.
        """
        wanted = {
            "session_id": session_id,
            "user_id": user_id,
            "conversation_id": conversation_id,
        }
        given = [(name, value) for name, value in wanted.items() if value is not None]
        if not given:
            raise ConfigurationError("get() needs a session_id, a user_id or a conversation_id")
        now = self._clock()
        with self._lock:
            keys = set.intersection(*(self._index.get(pair, set()) for pair in given))
            if product_id is not None:
                keys = {key for key in keys if key[0] == product_id}
            newest_first = sorted(keys, key=lambda key: self._entries[key].last, reverse=True)
            found = (self._snapshot(key, now) for key in newest_first)
            return next((session for session in found if session.events), None)

    def forget(
        self,
        lanes: Collection[int],
        *,
        user_id: str | None = None,
        conversation_id: str | None = None,
    ) -> None:
        """Drop forgotten sessions, except of other people who use them now.

        Args:
            lanes: The lanes of the sessions.
            user_id: The person to forget; None for any.
            conversation_id: The chat thread to forget; None for any.
        """
        with self._lock:
            for key, entry in list(self._entries.items()):
                if session_lane(*key) not in lanes:
                    continue
                if user_id is not None and entry.user_id not in (None, user_id):
                    continue
                if conversation_id is not None and entry.conversation_id not in (
                    None,
                    conversation_id,
                ):
                    continue
                self._drop(key)

    def like(self) -> LiveSessions:
        """Return an empty one with the same bounds."""
        return LiveSessions(
            max_sessions=self._max_sessions,
            max_actions=self._max_actions,
            max_age=self._max_age,
            clock=self._clock,
        )

    def replace(self, other: LiveSessions) -> None:
        """Take over all sessions of another one, instead of the own ones."""
        with self._lock:
            self._entries, self._index, self._numbers = (
                other._entries,
                other._index,
                other._numbers,
            )

    def sessions(
        self,
        limit: int | None = None,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        product_id: str | None = None,
    ) -> list[LiveSession]:
        """Return the sessions that have events, the most recently active first.

        Args:
            limit: The most sessions; None for all.
            user_id: Only sessions of this person. A session without a known person is nobody's.
            session_id: Only sessions of this id.
            product_id: Only sessions of this product.
        """
        now = self._clock()
        wanted = (("user_id", user_id), ("session_id", session_id))
        given = [(name, value) for name, value in wanted if value is not None]
        with self._lock:
            keys: Iterable[_Key] = reversed(self._entries)
            if given:
                chosen = set.intersection(*(self._index.get(pair, set()) for pair in given))
                keys = sorted(chosen, key=lambda key: self._entries[key].last, reverse=True)
            found = (self._snapshot(key, now) for key in keys if product_id in (None, key[0]))
            return list(islice((session for session in found if session.events), limit))

    def render(self, max_chars: int = 2000) -> str:
        """Return all sessions as text, each under its id, the most recently active first.

        Args:
            max_chars: The most characters. Sessions that do not fit are left out.
        """
        parts: list[str] = []
        room = max_chars
        for session in self.sessions():
            heading = f"Session {plain_line(session.session_id)}"
            space = room - len(heading) - 1
            if space <= 0:
                break
            parts.append(f"{heading}\n{session.render(space)}")
            room -= len(parts[-1]) + 2
        return "\n\n".join(parts)

    def _entry(self, key: _Key, payload: Payload, came: float) -> _Entry:
        """Return the session's entry, updated with the payload's people and moved to the end."""
        user_id, conversation_id, _ = people_of(payload)
        entry = self._entries.get(key)
        if entry is not None and changes_hands(entry.user_id, user_id):
            self._drop(key)
            entry = None
        if entry is None:
            entry = self._entries[key] = _Entry(self._max_actions)
        if conversation_id and conversation_id != entry.conversation_id:
            self._unlink(("conversation_id", entry.conversation_id), key)
            entry.conversation_id = conversation_id
        entry.user_id = user_id or entry.user_id
        self._link(key, entry)
        entry.last = (came, next(self._numbers))
        self._entries.move_to_end(
            key, last=False
        )  # so that the last entry is another one, if there is one
        latest = self._entries[next(reversed(self._entries))].last
        self._entries.move_to_end(key)
        if entry.last < latest:  # a past payload, out of order
            by_last = sorted(self._entries.items(), key=lambda item: item[1].last)
            self._entries = OrderedDict(by_last)
        return entry

    def _add_late(self, key: _Key, entry: _Entry, payload: Payload, came: float) -> None:
        """Add a payload that is older than the session's last one."""
        user_id, conversation_id, _ = people_of(payload)
        if entry.user_id not in (None, user_id):
            return  # it may belong to the previous person
        entry.user_id = user_id
        entry.conversation_id = entry.conversation_id or conversation_id
        self._link(key, entry)
        events = [*map(_fields, _events(payload, came, self._max_actions)), *entry.events]
        events.sort(key=itemgetter(0))
        entry.events.clear()
        entry.events.extend(events)

    def _link(self, key: _Key, entry: _Entry) -> None:
        for pair in _pairs(key, entry):
            self._index.setdefault(pair, set()).add(key)

    def _drop_stale(self, now: float) -> None:
        """Drop sessions beyond `max_sessions` and those inactive for longer than `max_age`."""
        while self._entries:
            key = next(iter(self._entries))
            if (
                len(self._entries) <= self._max_sessions
                and self._entries[key].last[0] >= now - self._max_age
            ):
                return
            self._drop(key)

    def _drop(self, key: _Key) -> None:
        for pair in _pairs(key, self._entries.pop(key)):
            self._unlink(pair, key)

    def _unlink(self, pair: tuple[str, str | None], key: _Key) -> None:
        name, value = pair
        keys = self._index.get((name, value)) if value else None
        if value and keys:
            keys.discard(key)
            if not keys:
                del self._index[name, value]

    def _snapshot(self, key: _Key, now: float) -> LiveSession:
        entry = self._entries[key]
        since = now - self._max_age
        events = tuple(LiveEvent(*fields) for fields in entry.events if fields[0] >= since)
        return LiveSession(*key, entry.user_id, entry.conversation_id, events, now)


def _pairs(key: _Key, entry: _Entry) -> Iterator[tuple[str, str]]:
    yield ("session_id", key[1])
    if entry.user_id:
        yield ("user_id", entry.user_id)
    if entry.conversation_id:
        yield ("conversation_id", entry.conversation_id)


def _events(payload: Payload, now: float, most: int) -> Iterator[LiveEvent]:
    if isinstance(payload, SummaryPayload):
        if payload.summary.strip():
            yield LiveEvent(now, payload.kind, payload.summary[:_TEXT_LENGTH])
    elif isinstance(payload, ChatTurn):
        half = _TEXT_LENGTH // 2
        question, answer = payload.question[:half], payload.answer[:half]
        yield LiveEvent(now, payload.kind, f"asked: {question} — was answered: {answer}")
    elif actions := payload.actions[-most:]:
        # Browser clocks may be wrong, and a replayed recording is old. So only the differences
        # between the times of a payload's actions are used.
        times = _times(actions)
        newest = max((time for time in times if time), default=0.0)
        # An action without a time happened between its neighbours: it takes the previous time.
        at = next((time for time in times if time), 0.0)
        for action, time in zip(actions, times, strict=True):
            at = time or at
            before = newest - at
            if text := action_line(action):
                url = action.canonical_url[:_TEXT_LENGTH]
                yield LiveEvent(now - before, payload.kind, text[:_TEXT_LENGTH], url)


def _fields(event: LiveEvent) -> tuple[float, str, str, str]:
    return event.at, event.kind, event.text, event.url


def _times(actions: Sequence[SlimAction]) -> list[float]:
    """Return the times of a payload's actions, in Unix seconds; 0 for unknown or wrong ones."""
    times = [own_time(action.timestamp_start or 0.0) for action in actions]
    known = sorted(time for time in times if time)
    if not known:
        return times
    median = known[(len(known) - 1) // 2]
    return [time if abs(time - median) <= _LONGEST_PAYLOAD_S else 0.0 for time in times]


def _in_order(events: Iterable[LiveEvent], since: float = float("-inf")) -> list[LiveEvent]:
    """Return the events with their times adjusted so that they never go back."""
    kept = []
    for event in events:
        since = max(since, event.at)
        kept.append(event if event.at == since else event._replace(at=since))
    return kept


def _line(event: LiveEvent, now: float) -> str:
    line = f"{_age(now - event.at)} ago: {plain_line(event.text)}"
    return f"{line} ({plain_line(event.url)})" if event.url else line


def _age(seconds: float) -> str:
    if seconds < 90:  # noqa: PLR2004 - the usual way to say it
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{round(minutes / 60)} h"  # noqa: PLR2004


def _clipped(line: str, length: int) -> str:
    return line if len(line) <= length else line[: max(0, length - 1)] + "…" * (length > 0)
