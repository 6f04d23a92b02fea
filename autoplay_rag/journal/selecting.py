"""Which payloads a request to forget concerns. All functions block and only read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from autoplay_rag.content.identity import People, people_of
from autoplay_rag.content.keys import session_lane
from autoplay_rag.content.passages import storable
from autoplay_rag.journal.bodies import decoded, unpack
from autoplay_rag.journal.rows import Connection, json_list
from autoplay_rag.journal.schema import PayloadState

__all__ = [
    "CLOCK_SECONDS",
    "CONCERNED",
    "PERSONAL",
    "Asked",
    "Selected",
    "Sizes",
    "concerned",
    "count",
    "parameters_of",
    "select",
    "sessions_of",
]

_FIELDS: Final = ("product_id", "session_id", "user_id", "conversation_id")
PERSONAL: Final = ("user_id", "conversation_id")
CLOCK_SECONDS: Final = 300.0
"""How much the clock of a page may be ahead. A later time is in the future, which is impossible."""
_TIME: Final = (
    "CASE WHEN passage.started IS NULL OR passage.started > "
    f"payload.at + {CLOCK_SECONDS} THEN payload.at ELSE passage.started END"
)
"""When a payload happened; its arrival if that is unknown or in the future."""
_UNTIL: Final = f"(:until IS NULL OR {_TIME} <= :until)"
_LANES: Final = "IN (SELECT value FROM json_each(:lanes))"
CONCERNED: Final = (
    "SELECT passage.seq FROM passage LEFT JOIN payload ON payload.seq = passage.seq "
    f"WHERE passage.lane {_LANES} AND {_UNTIL} "
    "UNION SELECT chunk_payload.seq FROM chunk "
    "CROSS JOIN chunk_payload ON chunk_payload.chunk = chunk.number "
    "LEFT JOIN payload ON payload.seq = chunk_payload.seq "
    "LEFT JOIN passage ON passage.seq = chunk_payload.seq "
    f"WHERE chunk.lane {_LANES} AND {_UNTIL} "
    + " ".join(
        "UNION SELECT payload.seq FROM payload LEFT JOIN passage ON passage.seq = payload.seq "
        f"WHERE payload.state = {state:d} AND payload.lane {_LANES} AND {_UNTIL}"
        for state in (PayloadState.WAITING, PayloadState.DEAD, PayloadState.DISCARDED)
    )
    + " UNION SELECT CAST(value AS INTEGER) FROM json_each(:seqs)"
)
"""The payloads of whole sessions, and those of parts of sessions. Each part uses an index."""


class Asked(NamedTuple):
    """What is to be forgotten: all that is given must hold.

    Attributes:
        user_id: The person.
        session_id: The session.
        product_id: The product.
        conversation_id: The chat thread.
        until: Only what happened up to then, in Unix seconds.
    """

    user_id: str | None = None
    session_id: str | None = None
    product_id: str | None = None
    conversation_id: str | None = None
    until: float | None = None

    def given(self) -> dict[str, str]:
        """The ids that are given, by name."""
        found = {name: getattr(self, name) for name in _FIELDS}
        return {name: storable(value) for name, value in found.items() if value is not None}


@dataclass(slots=True)
class Selected:
    """The payloads that a request concerns.

    Attributes:
        products: The products of the sessions.
        lanes: Sessions that belong to the request as a whole.
        shared: Sessions that other people or chat threads used as well.
        seqs: The payloads in `shared` that belong to the request.
        kept: (field, value, lane): who the other payloads in `shared` belong to.
        last: The last payload in `shared`. If there is a later one, the selection is outdated.
    """

    products: set[str] = field(default_factory=set)
    lanes: list[int] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    kept: set[tuple[str, str, int]] = field(default_factory=set)
    last: int = 0


class Sizes(msgspec.Struct, frozen=True):
    """How much a request concerns."""

    payloads: int = 0
    chunks: int = 0
    sessions: int = 0
    pending: int = 0
    dead_letters: int = 0


def select(connection: Connection, asked: Asked) -> Selected:
    """Return the payloads that a request concerns, as of one moment."""
    found = sessions_of(connection, asked)
    if found.shared:
        _divide(connection, asked, found)
    return found


def concerned(connection: Connection, asked: Asked, selected: Selected) -> list[int]:
    """Return the sequence numbers of all payloads of a selection, in order."""
    rows = connection.execute(
        f"SELECT seq FROM ({CONCERNED}) AS found ORDER BY seq", parameters_of(asked, selected)
    )
    return [seq for (seq,) in rows]


def count(connection: Connection, asked: Asked, selected: Selected) -> Sizes:
    """Return how much a selection concerns."""
    given = parameters_of(asked, selected)
    states: dict[int, int] = dict(
        connection.execute(
            f"SELECT coalesce(payload.state, -1), count(*) FROM ({CONCERNED}) AS found "
            "LEFT JOIN payload ON payload.seq = found.seq GROUP BY 1",
            given,
        ).fetchall()
    )
    chunks, sessions = (
        connection.execute(sql.format(CONCERNED), given).fetchone()[0]
        for sql in (
            "SELECT count(DISTINCT chunk) FROM chunk_payload WHERE seq IN ({})",
            "SELECT count(DISTINCT lane) FROM payload WHERE lane >= 0 AND seq IN ({})",
        )
    )
    states.pop(PayloadState.DISCARDED, None)  # only their keys are left
    return Sizes(
        payloads=sum(states.values()),
        chunks=chunks,
        sessions=sessions,
        pending=states.get(PayloadState.WAITING, 0),
        dead_letters=states.get(PayloadState.DEAD, 0),
    )


def parameters_of(asked: Asked, selected: Selected) -> dict[str, Any]:
    """Return the parameters of `CONCERNED`."""
    return {
        "until": asked.until,
        "lanes": json_list(selected.lanes),
        "seqs": json_list(selected.seqs),
    }


def sessions_of(connection: Connection, asked: Asked) -> Selected:
    """Return the sessions of a request, without the payloads of shared ones."""
    ids = asked.given()
    tables: list[str] = []
    terms: list[str] = []
    given: list[Any] = []
    for name in PERSONAL:
        if name in ids:
            tables.append(f"belongs AS {name}")
            terms.append(f"{name}.field = ? AND {name}.value = ?")
            given += [name, ids[name]]
            terms.append(f"visit.lane = {name}.lane")
    tables.append("visit")
    for name, column in (("session_id", "visit.session"), ("product_id", "visit.product")):
        if name in ids:
            terms.append(f"{column} = ?")
            given.append(ids[name])
    rows = connection.execute(
        # In this order, or the sessions of all people would be read.
        f"SELECT visit.lane, visit.product, visit.ambiguous FROM {' CROSS JOIN '.join(tables)} "
        f"WHERE {' AND '.join(terms)}",
        given,
    ).fetchall()
    found = Selected({product for _, product, _ in rows})
    lanes = {lane for lane, _, _ in rows}
    if asked.product_id is not None and asked.session_id is not None and len(ids) == 2:  # noqa: PLR2004
        # Dead letters whose body was not kept are known by their lane alone.
        lanes.add(session_lane(asked.product_id, asked.session_id))
    shared: set[int] = set()
    for name in PERSONAL:
        if name in ids:
            shared |= {
                lane
                for (lane,) in connection.execute(
                    "SELECT lane FROM belongs WHERE lane IN (SELECT value FROM json_each(?)) "
                    "AND field = ? GROUP BY lane HAVING count(*) > 1",
                    (json_list(lanes), name),
                )
            }
    if "user_id" in ids:
        shared |= {lane for lane, _, ambiguous in rows if ambiguous}
    found.shared = sorted(shared)
    found.lanes = sorted(lanes - shared)
    found.last = connection.execute(
        "SELECT coalesce(max(seq), 0) FROM passage WHERE lane IN (SELECT value FROM json_each(?))",
        (json_list(found.shared),),
    ).fetchone()[0]
    return found


def _divide(connection: Connection, asked: Asked, found: Selected) -> None:
    """Find out which payloads of shared sessions belong to the request."""
    ids = asked.given()
    rows = connection.execute(
        "SELECT passage.lane, passage.seq, payload.body, chunk.user, chunk.conversation, "
        f"coalesce({_TIME}, 0) FROM passage LEFT JOIN payload ON payload.seq = passage.seq "
        "LEFT JOIN chunk ON chunk.number = "
        "(SELECT min(chunk) FROM chunk_payload WHERE chunk_payload.seq = passage.seq) "
        "WHERE passage.lane IN (SELECT value FROM json_each(?)) ORDER BY passage.lane, passage.seq",
        (json_list(found.shared),),
    )
    lane, current = None, People()
    for row_lane, seq, body, user, conversation, at in rows:
        if row_lane != lane:
            lane, current = row_lane, People()
        payload = decoded(unpack(body))
        named = People(user, conversation)
        if payload is not None:
            current = current.after(payload)
            # A payload that names nobody belongs to the person who used the session before it.
            named = people_of(payload).or_else(named).or_else(current)
        owner = {name: storable(value) for name in PERSONAL if (value := getattr(named, name))}
        mine = all(owner.get(name) == ids[name] for name in PERSONAL if name in ids)
        if mine and (asked.until is None or at <= asked.until):
            found.seqs.append(seq)
        else:
            found.kept |= {(name, value, row_lane) for name, value in owner.items()}
