"""Reads sessions and their payloads in order, without a ranking.

All calls block and only read. `journal/finder.py` has the asynchronous interface.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from autoplay_rag.content.identity import people_of
from autoplay_rag.content.words import lookups
from autoplay_rag.journal.bodies import decoded, unpack
from autoplay_rag.journal.lag import Lag, lag_of
from autoplay_rag.journal.rows import Connection, json_list, quoted
from autoplay_rag.journal.schema import ChunkState, PayloadState
from autoplay_rag.payloads import ActionsPayload, Payload

__all__ = ["KeptPayload", "ListedSession", "Place", "Span", "Timeline", "Wanted", "terms_of"]

_SAID: Final = 5
"""The most passages of a session for its one-line description."""
_LATEST: Final = 20
"""The number of a session's last payloads among which its latest summary is searched."""
_MOST_CHARACTERS: Final = 2000
_MOST_TERMS: Final = 32
_PAGE: Final = 500
_COMMON: Final = 20_000
"""Words in more passages than this are looked up with `_HAS_COMMON_WORD`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Selects sessions to list, or payloads to read. All given conditions must hold.

    Attributes:
        user_id: Sessions that this person used.
        session_id: Sessions of this id.
        product_id: Sessions of this product.
        since: Sessions that ended at this time or later, in Unix seconds.
        until: Sessions that started at this time or earlier, in Unix seconds.
        matching: Sessions with all of these terms; see `terms_of`.
        without: Sessions in which at least one of these terms is missing.
        page: Sessions with this part in a visited URL; case-insensitive.
        shared: Whether to include sessions that several people used.
    """

    user_id: str | None = None
    session_id: str | None = None
    product_id: str | None = None
    since: float | None = None
    until: float | None = None
    matching: Sequence[str] = ()
    without: Sequence[str] = ()
    page: str | None = None
    shared: bool = True


class Place(NamedTuple):
    """The position of a session in a list. The next page starts after it.

    Attributes:
        last: Unix seconds of its last known action; None if unknown.
        lane: Its lane.
    """

    last: float | None
    lane: int


class ListedSession(NamedTuple):
    """One session of a list.

    Attributes:
        lane: Its lane.
        product_id: Its product.
        session_id: Its id.
        first: Unix seconds of its first known action; None if unknown.
        last: Unix seconds of its last known action; None if unknown.
        payloads: How many payloads it has.
        actions: How many actions they hold.
        users: The people it names.
        said: The text of its latest summary, or of its first payloads. If a person is given and
            several people used it: texts of this person only.
    """

    lane: int
    product_id: str
    session_id: str
    first: float | None
    last: float | None
    payloads: int
    actions: int
    users: tuple[str, ...]
    said: tuple[str, ...]


class Span(NamedTuple):
    """A session and its time.

    Attributes:
        session_id: Its id.
        first: Unix seconds of its first known action.
        last: Unix seconds of its last known action.
    """

    session_id: str
    first: float
    last: float


class KeptPayload(NamedTuple):
    """A payload with its session and owner.

    Attributes:
        seq: Its sequence number.
        product_id: Its product.
        session_id: Its session; None if it has none.
        kind: "actions", "summary" or "chat"; None if unknown.
        started: Unix seconds of its first action; None if unknown.
        ended: Unix seconds of its last action; None if unknown.
        text: Its rendered text.
        owner: The person it belongs to; None if unknown, or if it names nobody and several people
            used its session.
        payload: The payload; None if its body was not kept.
    """

    seq: int
    product_id: str
    session_id: str | None
    kind: str | None
    started: float | None
    ended: float | None
    text: str
    owner: str | None
    payload: Payload | None


def terms_of(text: str) -> tuple[str, ...]:
    """Return one FTS5 expression for each word of a text. The text has no operators.

    Returns:
        Expressions. Each matches any form of one word.

    Example:
        >>> terms_of('the "Export" OR three NEAR(')
        ('"Export"', '"three" OR "3"', '"NEAR"')
    """
    text = text.encode("utf-8", "replace").decode().replace("\0", " ")[:_MOST_CHARACTERS]
    found = list(lookups(text).values())[:_MOST_TERMS]
    return tuple(" OR ".join(map(quoted, raw)) for raw in found) or (quoted(text),)


class Timeline:
    """Lists sessions and reads payloads.

    Args:
        connection: A connection to the journal's database.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        if isinstance(connection, sqlite3.Connection):
            connection.create_function("visits_page", 2, _visits_page, deterministic=True)

    # -- sessions -----------------------------------------------------------------------------

    def sessions(
        self, wanted: Wanted, limit: int, after: Place | None, *, count: bool = True
    ) -> tuple[int, list[ListedSession]]:
        """List sessions by their last action, latest first.

        Args:
            wanted: Selects the sessions.
            limit: The most sessions.
            after: The last session of the previous page; None for the first page.
            count: Whether to count the matching sessions. That scans them.

        Returns:
            The total number of matching sessions, 0 if they are not counted; and those of this
            page.
        """
        tables, where, given = self._visits(wanted)
        with self._one_moment():
            total = 0
            if count:
                total = self._connection.execute(
                    f"SELECT count(*) FROM {tables} WHERE {where}", given
                ).fetchone()[0]
            if after is not None:
                beyond, place = _beyond(after)
                where, given = f"{where} AND {beyond}", [*given, *place]
            rows = self._connection.execute(
                "SELECT visit.lane, product, session, first, last, payloads, actions "
                f"FROM {tables} WHERE {where} ORDER BY last DESC NULLS LAST, visit.lane DESC LIMIT ?",
                (*given, limit),
            ).fetchall()
            users = self._users(row[0] for row in rows)
            found = []
            for row in rows:
                people = users.get(row[0], ())
                person = wanted.user_id if len(people) > 1 else None
                found.append(ListedSession._make((*row, people, self._said(row[0], person))))
        return total, found

    def _said(self, lane: int, person: str | None) -> tuple[str, ...]:
        """The text of a session's latest summary, or of its first payloads.

        Args:
            lane: The session.
            person: Only payloads of this person, in a session of several people; None for all.
        """
        columns = "passage.text, payload.kind" + (", payload.body" if person is not None else "")
        sql = (
            f"SELECT {columns} FROM passage LEFT JOIN payload ON payload.seq = passage.seq "
            "WHERE passage.lane = ? ORDER BY passage.seq "
        )
        latest = self._connection.execute(f"{sql} DESC LIMIT ?", (lane, _LATEST)).fetchall()
        if person is None:
            # Only for a single person: a summary does not name the person it describes.
            for text, kind in latest:
                if kind == "summary":
                    return (text,)
            if len(latest) < _LATEST:
                return tuple(text for text, _ in reversed(latest[-_SAID:]))
            rows = self._connection.execute(f"{sql} LIMIT ?", (lane, _SAID)).fetchall()
            return tuple(text for text, _ in rows)
        first = latest[::-1]
        if len(latest) == _LATEST:
            first = self._connection.execute(f"{sql} LIMIT ?", (lane, _LATEST)).fetchall() + first
        own = [text for text, _, body in first if _names(body, person)]
        return tuple(dict.fromkeys(own))[:_SAID]

    def _users(self, lanes: Iterator[int]) -> dict[int, tuple[str, ...]]:
        found: dict[int, tuple[str, ...]] = {}
        for lane, user in self._connection.execute(
            "SELECT lane, value FROM belongs WHERE field = 'user_id' "
            "AND lane IN (SELECT value FROM json_each(?))",
            (json_list(lanes),),
        ):
            found[lane] = (*found.get(lane, ()), user)
        return found

    def spans(self, wanted: Wanted, limit: int) -> list[Span]:
        """Return the sessions with a known time, the latest first, without their texts."""
        tables, where, given = self._visits(wanted)
        rows = self._connection.execute(
            f"SELECT visit.session, visit.first, visit.last FROM {tables} "
            f"WHERE {where} AND visit.first > 0 ORDER BY visit.last DESC NULLS LAST LIMIT ?",
            (*given, limit),
        )
        return [Span._make(row) for row in rows]

    def people_since(self, product_id: str, since: float, limit: int) -> list[str]:
        """Return the people with an action at this time or later, the latest first."""
        rows = self._connection.execute(
            "SELECT belongs.value FROM visit INDEXED BY visit_product "
            "JOIN belongs ON belongs.lane = visit.lane AND belongs.field = 'user_id' "
            "WHERE visit.product = ? AND visit.last >= ? "
            "GROUP BY belongs.value ORDER BY max(visit.last) DESC LIMIT ?",
            (product_id, since, limit),
        )
        return [user_id for (user_id,) in rows]

    def last_arrival(self) -> float | None:
        """Return when the last payload was received, in Unix seconds; None if none was."""
        row = self._connection.execute(
            "SELECT at FROM payload WHERE seq > 0 ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        return None if row is None else float(row[0])

    # -- payloads -----------------------------------------------------------------------------

    def beginning(self, prefix: str, since: float, limit: int) -> list[Payload]:
        """Return the kept payloads of sessions with ids that begin with a text.

        Args:
            prefix: The beginning, in ASCII.
            since: Only sessions that ended at this time or later.
            limit: The most payloads; the latest are returned.
        """
        rows = self._connection.execute(
            "SELECT payload.body FROM visit INDEXED BY visit_session "
            "JOIN passage ON passage.lane = visit.lane "
            "JOIN payload ON payload.seq = passage.seq "
            "WHERE visit.session >= ? AND visit.session < ? AND visit.session IS NOT NULL "
            "AND visit.last >= ? AND payload.body IS NOT NULL "
            "ORDER BY payload.seq DESC LIMIT ?",
            (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1), since, limit),
        )
        found = [decoded(unpack(body)) for (body,) in rows]
        return [payload for payload in found if payload is not None]

    def lanes(self, session_id: str, product_id: str | None) -> dict[str, int]:
        """Return the lanes of a session id, by product."""
        rows = self._connection.execute(
            "SELECT product, lane FROM visit WHERE session = ? AND (? IS NULL OR product = ?)",
            (session_id, product_id, product_id),
        )
        return dict(rows.fetchall())

    def products(
        self, user_id: str | None, session_id: str | None, conversation_id: str | None
    ) -> list[str]:
        """Return the products with sessions that all given ids belong to, in order."""
        terms, given = ["visit.payloads > 0"], []
        tables = "visit"
        for number, (field, value) in enumerate(
            (("user_id", user_id), ("conversation_id", conversation_id))
        ):
            if value is not None:
                tables = f"belongs AS b{number} CROSS JOIN {tables}"
                terms.append(
                    f"b{number}.lane = visit.lane AND b{number}.field = '{field}' "
                    f"AND b{number}.value = ?"
                )
                given.append(value)
        if session_id is not None:
            terms.append("visit.session = ?")
            given.append(session_id)
        rows = self._connection.execute(
            f"SELECT DISTINCT visit.product FROM {tables} WHERE {' AND '.join(terms)} "
            "ORDER BY visit.product",
            given,
        )
        return [product for (product,) in rows]

    def whole(
        self, lane: int, after: int | None = None, limit: int | None = None
    ) -> tuple[ListedSession | None, list[KeptPayload]]:
        """Return a session and its payloads, in the order of acceptance.

        Args:
            lane: The session.
            after: Only payloads with a greater sequence number; None for all.
            limit: The most payloads; None for all.
        """
        with self._one_moment():
            row = self._connection.execute(
                "SELECT lane, product, session, first, last, payloads, actions FROM visit "
                "WHERE lane = ?",
                (lane,),
            ).fetchone()
            if row is None:
                return None, []
            people = self._users(iter([lane])).get(lane, ())
            rows = self._connection.execute(
                f"{_READ} WHERE passage.lane = ? AND (? IS NULL OR passage.seq > ?) "
                "ORDER BY passage.seq LIMIT ?",
                (lane, after, after, -1 if limit is None else limit),
            ).fetchall()
        kept = [_kept(one[1:], {one[0]: people}, one[0]) for one in rows]
        return ListedSession._make((*row, people, ())), kept

    def last_seq(self) -> int:
        """Return the sequence number of the last payload."""
        found = self._connection.execute("SELECT max(seq) FROM passage").fetchone()[0]
        return 0 if found is None else int(found)

    def lag(self, watermark: int) -> Lag:
        """Return the seconds from received to stored; see `lag_of`."""
        return lag_of(self._connection, watermark)

    def pending(self, lanes: Sequence[int], last: int) -> int:
        """Return the number of queued payloads of sessions, up to a sequence number."""
        found = self._connection.execute(
            f"SELECT count(*) FROM payload WHERE state = {PayloadState.WAITING:d} AND seq <= ? "
            "AND lane IN (SELECT value FROM json_each(?))",
            (last, json_list(lanes)),
        )
        return int(found.fetchone()[0])

    def payloads(
        self, wanted: Wanted, kind: str, after: int | None, last: int
    ) -> list[KeptPayload]:
        """Return payloads in the order of acceptance.

        Args:
            wanted: Selects the payloads; `matching`, `without` and `page` select whole sessions.
            kind: Only payloads of this kind.
            after: The last sequence number of the previous page; None for the first page.
            last: The last sequence number to read.

        Returns:
            One page of at most 500 payloads; empty at the end.
        """
        tables, where, given = self._visits(wanted, sessions_only=False)
        terms = [where, "passage.seq <= ?", "payload.kind = ?"]
        given += [last, kind]
        for value, term in (
            (after, "passage.seq > ?"),
            (wanted.since, "passage.ended >= ?"),
            (wanted.until, "passage.started <= ?"),
        ):
            if value is not None:
                terms.append(term)
                given.append(value)
        few = wanted.user_id is not None or wanted.session_id is not None
        tables = (
            f"{tables} CROSS JOIN passage ON passage.lane = visit.lane"
            if few
            else f"passage CROSS JOIN {tables} ON visit.lane = passage.lane"
        )
        with self._one_moment():
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM {tables} "
                "CROSS JOIN payload ON payload.seq = passage.seq "
                f"WHERE {' AND '.join(terms)} ORDER BY passage.seq LIMIT ?",
                (*given, _PAGE),
            ).fetchall()
            users = self._users(iter({row[0] for row in rows}))
        return [_kept(row[1:], users, row[0]) for row in rows]

    def _visits(self, wanted: Wanted, *, sessions_only: bool = True) -> tuple[str, str, list[Any]]:
        """Tables, conditions and parameters that select sessions."""
        tables = "visit"
        # The `+` keeps SQLite from scanning the index of session ids, which reads rows in random
        # order.
        terms = ["+visit.session IS NOT NULL", "visit.payloads > 0"] if sessions_only else []
        given: list[Any] = []
        if wanted.user_id is not None:
            # CROSS JOIN fixes this order. Otherwise SQLite reads the sessions of all people by
            # time.
            tables = "belongs CROSS JOIN visit ON visit.lane = belongs.lane"
            terms.append("belongs.field = 'user_id' AND belongs.value = ?")
            given.append(wanted.user_id)
        for value, term in (
            (wanted.session_id, "visit.session = ?"),
            (wanted.product_id, "visit.product = ?"),
            (wanted.since, "visit.last >= ?"),
            (wanted.until, "visit.first <= ?"),
        ):
            if value is not None:
                terms.append(term)
                given.append(value)
        if wanted.page is not None:
            terms.append(self._has_page)
            given += self._page(wanted)
        if not wanted.shared:
            terms.append(_OF_ONE_PERSON)
        few = wanted.user_id is not None or wanted.session_id is not None
        terms += [self._has_word(term, few=few) for term in wanted.matching]
        given += [self._word(term) for term in wanted.matching]
        if wanted.without:
            has_words = " AND ".join(self._has_word(term, few=few) for term in wanted.without)
            terms.append(f"NOT ({has_words})")
            given += [self._word(term) for term in wanted.without]
        return tables, " AND ".join(terms) or "TRUE", given

    @property
    def _has_page(self) -> str:
        """The SQL condition that a session visited a page."""
        return _HAS_PAGE

    def _has_word(self, term: str, *, few: bool) -> str:
        """The SQL condition that a session contains a word.

        Args:
            term: One expression of `terms_of`.
            few: Whether other conditions select few sessions.
        """
        if few:
            return _HAS_WORD_OF_FEW
        count = self._connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)",
            (term, _COMMON + 1),
        ).fetchone()[0]
        return _HAS_COMMON_WORD if count > _COMMON else _HAS_WORD

    def _page(self, wanted: Wanted) -> list[Any]:
        """The parameters of `_has_page`."""
        return [wanted.page]

    def _word(self, term: str) -> str:
        """The parameter of `_has_word` for one expression of `terms_of`."""
        return term

    @contextmanager
    def _one_moment(self) -> Iterator[None]:
        """Read one snapshot: a transaction around the reads, unless one is open."""
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")


_COLUMNS: Final = (
    "passage.lane, passage.seq, visit.product, visit.session, payload.kind, passage.started, "
    "passage.ended, passage.text, payload.body"
)
_READ: Final = (
    f"SELECT {_COLUMNS} FROM passage JOIN visit ON visit.lane = passage.lane "
    "LEFT JOIN payload ON payload.seq = passage.seq"
)
_OF_ONE_PERSON: Final = (
    "(SELECT count(*) FROM belongs AS people WHERE people.lane = visit.lane "
    "AND people.field = 'user_id') < 2"
)
_HAS_WORD: Final = (
    "visit.lane IN (SELECT passage.lane FROM words "
    "CROSS JOIN passage ON passage.seq = words.rowid WHERE words MATCH ?)"
)
_HAS_COMMON_WORD: Final = (
    # Scans the index. Looking up each passage would take ten times as long; the `+` keeps SQLite
    # from doing so.
    "visit.lane IN (SELECT passage.lane FROM passage INDEXED BY passage_lane "
    "WHERE +passage.seq IN (SELECT rowid FROM words WHERE words MATCH ?))"
)
_HAS_WORD_OF_FEW: Final = (
    "EXISTS (SELECT 1 FROM passage AS own CROSS JOIN words ON words.rowid = own.seq "
    "WHERE own.lane = visit.lane AND words MATCH ?)"
)
_HAS_PAGE: Final = (
    "EXISTS (SELECT 1 FROM (SELECT ? AS part) WHERE "
    "EXISTS (SELECT 1 FROM chunk WHERE chunk.lane = visit.lane "
    f"AND chunk.state <> {ChunkState.PLANNED:d} "
    "AND instr(lower(chunk.metadata ->> '$.urls'), lower(part)) > 0) "
    "OR EXISTS (SELECT 1 FROM payload WHERE payload.lane = visit.lane "
    f"AND payload.state = {PayloadState.WAITING:d} AND visits_page(payload.body, part)))"
)
"""Stored chunks have the URLs in their metadata, queued payloads in their body."""


def _beyond(place: Place) -> tuple[str, list[Any]]:
    """The SQL condition for sessions after a place. Sessions of unknown time come last."""
    if place.last is None:
        return "(last IS NULL AND visit.lane < ?)", [place.lane]
    return "(last < ? OR (last = ? AND visit.lane < ?) OR last IS NULL)", [
        place.last,
        place.last,
        place.lane,
    ]


def _kept(row: Sequence[Any], users: dict[int, tuple[str, ...]], lane: int) -> KeptPayload:
    *columns, body = row
    payload = decoded(unpack(body))
    owner = people_of(payload).user_id if payload is not None else None
    if owner is None and len(people := users.get(lane, ())) == 1:
        owner = people[0]
    return KeptPayload._make((*columns, owner, payload))


def _visits_page(body: bytes | None, part: str) -> bool:
    payload = decoded(unpack(body))
    if not isinstance(payload, ActionsPayload):
        return False
    return any(part.lower() in action.canonical_url.lower() for action in payload.actions)


def _names(body: bytes | None, person: str) -> bool:
    payload = decoded(unpack(body))
    return payload is not None and people_of(payload).user_id == person
