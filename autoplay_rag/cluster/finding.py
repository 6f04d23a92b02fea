"""Matching passages and sessions, by PostgreSQL's full-text index.

PostgreSQL's own ranking knows nothing of how rare a word is. So the candidates are ordered by the
words they have, each weighted as in BM25, and by their length. The search scores them again.

All calls block and only read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import log
from typing import Any, Final

from autoplay_rag.cluster.connection import PostgresConnection
from autoplay_rag.cluster.fulltext import query_of, tsquery
from autoplay_rag.content.filters import Condition
from autoplay_rag.journal.bodies import decoded, unpack
from autoplay_rag.journal.finding import (
    GROWTH,
    PARTS,
    PASSAGES,
    Asked,
    Finder,
    passages_where,
)
from autoplay_rag.journal.rows import json_list
from autoplay_rag.journal.schema import EXPIRED_COUNT, ChunkState, PayloadState
from autoplay_rag.journal.timeline import Timeline, Wanted
from autoplay_rag.payloads import ActionsPayload

__all__ = ["PostgresFinder", "PostgresTimeline"]

_MOST_MATCHES: Final = 10_000
"""Each match is read to be ranked. The rarest words select enough."""
_SATURATION: Final = 1.2
_BY_LENGTH: Final = 0.75
"""The usual values of BM25."""
_SAMPLE: Final = 500
_WAITING: Final = 20_000
"""The most queued payloads that are read for a list of sessions by page."""
_JOINS_OF_WHOLE_TABLES: Final = ("enable_hashjoin", "enable_mergejoin")
_QUOTED: Final = re.compile(r'"((?:[^"]|"")*)"')


class PostgresFinder(Finder):
    """Reads the catalog for a search. `Finder` has the rest."""

    _connection: PostgresConnection

    def __init__(self, connection: PostgresConnection) -> None:
        super().__init__(connection)
        self._most_matches = _MOST_MATCHES
        self._length: float | None = None
        self._length_at = 0

    def _matching(
        self, asked: Asked, conditions: Sequence[Condition], limit: int
    ) -> list[tuple[int, int]]:
        weights = _weights(asked)
        if not weights:
            return []
        where, given = passages_where(conditions)
        visits = "JOIN visit ON visit.lane = passage.lane " if conditions else ""
        hits = " + ".join(
            [f"CASE WHEN passage.words @@ {tsquery()} THEN ? ELSE 0 END"] * len(weights)
        )
        matched = query_of([*asked.phrases, *_flat(asked.lookups)])
        length = self._usual_length(asked.total)
        rows = self._connection.execute(
            f"SELECT passage.seq, passage.lane FROM passage {visits}"
            f"WHERE passage.words @@ {tsquery()} AND {where} "
            f"ORDER BY ({hits}) / (1 + {_SATURATION} * ({1 - _BY_LENGTH} + {_BY_LENGTH} * "
            f"length(passage.words) / {length})) DESC, passage.seq LIMIT ?",
            (matched, *given, *(each for pair in weights for each in pair), limit),
        )
        return rows.fetchall()

    def _latest(self, lanes: Sequence[int], most: int) -> list[Any]:
        """As in `Finder`, in one statement: each takes a round trip to the server."""
        return self._of_latest(PASSAGES, lanes, most)

    def _latest_parts(self, lanes: Sequence[int], most: int) -> list[Any]:
        """As in `Finder`."""
        return self._of_latest(PARTS, lanes, most)

    def _of_latest(self, selected: str, lanes: Sequence[int], most: int) -> list[Any]:
        # Without statistics of new tables, the server would read all chunks for each session.
        self._connection.run_all(*(f"SET LOCAL {name} = off" for name in _JOINS_OF_WHOLE_TABLES))
        rows = self._connection.execute(
            "SELECT own.* FROM unnest(?::bigint[]) AS given (lane) CROSS JOIN LATERAL "
            f"({selected.format('passage.lane = given.lane')} "
            "ORDER BY passage.seq DESC LIMIT ?) AS own",
            (json_list(lanes), most),
        )
        self._connection.run_all(*(f"SET LOCAL {name} = on" for name in _JOINS_OF_WHOLE_TABLES))
        return rows.fetchall()

    def _usual_length(self, total: int) -> float:
        if self._length is None or not self._length_at <= total <= self._length_at * GROWTH:
            ((found,),) = self._connection.execute(
                "SELECT avg(length(words))::float8 FROM "
                "(SELECT words FROM passage ORDER BY seq DESC LIMIT ?) AS latest",
                (_SAMPLE,),
            )
            self._length, self._length_at = max(1.0, found or 1.0), total
        return self._length

    def _count(self, asked: Sequence[Sequence[str]], most: int) -> list[int]:
        """As in `Finder`, in one statement."""
        one = (
            f"(SELECT count(*) FROM (SELECT 1 FROM passage WHERE words @@ {tsquery()} LIMIT ?) "
            "AS found)"
        )
        rows = self._connection.execute(
            f"SELECT {', '.join([one] * len(asked))}",
            [given for words in asked for given in (query_of(words), most)],
        )
        return list(rows.fetchall()[0])

    def _count_passages(self) -> int:
        received = self._scalar(
            "SELECT stored + pending + dead - coalesce((SELECT (value::text)::bigint FROM meta "
            "WHERE name = ?), 0) FROM counts",
            EXPIRED_COUNT,
        )
        return received + max(0, -self._scalar("SELECT coalesce(min(seq), 0) FROM passage"))


class PostgresTimeline(Timeline):
    """Lists sessions and reads payloads. `Timeline` has the rest."""

    @property
    def _has_page(self) -> str:
        return _HAS_PAGE

    def _page(self, wanted: Wanted) -> list[Any]:
        """As in `Timeline`. What is queued is decoded here: the server cannot read its body."""
        part = str(wanted.page).lower()
        terms = [f"payload.state = {PayloadState.WAITING:d}"]
        given: list[Any] = []
        for value, term in (
            (wanted.session_id, "visit.session = ?"),
            (wanted.product_id, "visit.product = ?"),
        ):
            if value is not None:
                terms.append(term)
                given.append(value)
        rows = self._connection.execute(
            "SELECT payload.lane, payload.body FROM payload JOIN visit ON visit.lane = payload.lane "
            f"WHERE {' AND '.join(terms)} "
            "ORDER BY payload.seq DESC LIMIT ?",
            (*given, _WAITING),
        )
        lanes = {lane for lane, body in rows if _visits_page(body, part)}
        return [part, json_list(lanes)]

    def _has_word(self, term: str, *, few: bool) -> str:  # noqa: ARG002 - as in `Timeline`
        return _HAS_WORD_OF_FEW if few else _HAS_WORD

    def _word(self, term: str) -> str:
        """As in `Timeline`. An expression for FTS5 as one for PostgreSQL."""
        return query_of(words.replace('""', '"') for words in _QUOTED.findall(term))


_HAS_WORD: Final = (
    f"visit.lane IN (SELECT found.lane FROM passage AS found WHERE found.words @@ {tsquery()})"
)
_HAS_WORD_OF_FEW: Final = (
    "EXISTS (SELECT 1 FROM passage AS own WHERE own.lane = visit.lane "
    f"AND own.words @@ {tsquery()})"
)
_HAS_PAGE: Final = (
    "(EXISTS (SELECT 1 FROM chunk WHERE chunk.lane = visit.lane "
    f"AND chunk.state <> {ChunkState.PLANNED:d} "
    "AND strpos(lower(chunk.metadata ->> '$.urls'), ?) > 0) "
    "OR visit.lane IN (SELECT value FROM json_each(?)))"
)


def _weights(asked: Asked) -> list[tuple[str, float]]:
    """The queries of the terms and phrases, each with its weight in BM25."""
    found = [
        (query_of(words), _rarity(asked.counts.get(term, 0), asked.total))
        for term, words in asked.lookups.items()
    ]
    found += [(query_of([phrase]), _rarity(1, asked.total)) for phrase in asked.phrases]
    return [(query, weight) for query, weight in found if query]


def _rarity(count: int, total: int) -> float:
    count = min(count, total)
    return log(1 + (total - count + 0.5) / (count + 0.5))


def _flat(lookups: Mapping[str, Sequence[str]]) -> list[str]:
    return [word for words in lookups.values() for word in words]


def _visits_page(body: bytes | None, part: str) -> bool:
    payload = decoded(unpack(body))
    if not isinstance(payload, ActionsPayload):
        return False
    return any(part in action.canonical_url.lower() for action in payload.actions)
