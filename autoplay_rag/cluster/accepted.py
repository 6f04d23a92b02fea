"""What all processes accepted, as they accept it: for live sessions and subscribers."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from autoplay_rag.cluster.asking import ask
from autoplay_rag.journal.bodies import decoded, unpack
from autoplay_rag.journal.ownership import Accepted, AcceptedPayload
from autoplay_rag.journal.queue import FOLLOWED
from autoplay_rag.payloads import Payload

if TYPE_CHECKING:
    from autoplay_rag.stores.postgres.link import Connection, Link

__all__ = ["AcceptedRows"]


class AcceptedRows:
    """Reads accepted payloads by their numbers. Bodies are decoded on the thread of the link.

    Args:
        link: The connections.
        schema: The quoted name of the schema.

    Raises:
        JournalError: By each method, if the database does not answer.
    """

    def __init__(self, link: Link, schema: str) -> None:
        self._link = link
        self._schema = schema
        # A forgotten payload is hidden from the moment of the request, and deleted later.
        self._visible = f"{FOLLOWED} AND NOT EXISTS (SELECT 1 FROM {schema}.forgetting AS f WHERE f.seq = p.seq)"
        self._end = (
            "SELECT last_seq, NULL::float8, NULL::bigint, NULL::int, NULL::bytea, "
            f"(SELECT coalesce(max(number), 0) FROM {schema}.erasure) FROM {schema}.progress"
        )

    async def after(self, seq: int, limit: int) -> Accepted:
        """Return what came after a number, oldest first."""
        # One statement, so that all rows are of the same time.
        statement = (
            f"(SELECT seq, at, lane, size, body, NULL::bigint FROM {self._schema}.payload AS p "
            f"WHERE seq > %s AND {self._visible} ORDER BY seq LIMIT %s) UNION ALL {self._end}"
        )
        return await self._read(statement, seq, limit, limit=limit)

    async def lately(self, since: float, limit: int) -> Accepted:
        """Return the last payloads that came at a time or later, oldest first."""
        statement = (
            "(SELECT * FROM (SELECT seq, at, lane, size, body, NULL::bigint "
            f"FROM {self._schema}.payload AS p WHERE {self._visible} "
            "ORDER BY seq DESC LIMIT %s) AS last WHERE at >= %s) "
            f"UNION ALL {self._end}"
        )
        return await self._read(statement, limit, since)

    async def kept(self, seqs: Collection[int]) -> set[int]:
        """Return those of these numbers that are not forgotten."""

        async def read(connection: Connection) -> set[int]:
            cursor = await connection.execute(
                (
                    f"SELECT seq FROM {self._schema}.payload AS p WHERE seq = ANY (%s::bigint[]) "
                    f"AND NOT EXISTS (SELECT 1 FROM {self._schema}.forgetting AS f "
                    "WHERE f.seq = p.seq)"
                ).encode(),
                [[*seqs]],
            )
            return {seq for (seq,) in await cursor.fetchall()}

        return await ask(self._link, read)

    async def _read(self, statement: str, *parameters: Any, limit: int | None = None) -> Accepted:
        async def read(connection: Connection) -> Accepted:
            cursor = await connection.execute(statement.encode(), parameters)
            return _accepted(await cursor.fetchall(), limit)

        return await ask(self._link, read)


def _accepted(rows: list[tuple[Any, ...]], limit: int | None) -> Accepted:
    found: list[tuple[int, float, int, int, Payload | None]] = []
    last, erasures = 0, 0
    for seq, at, lane, size, body, number in rows:
        if number is not None:
            last, erasures = seq, number
        else:
            found.append((seq, at, lane, size, decoded(unpack(bytes(body)))))
    found.sort(key=lambda row: row[0])
    more = len(found) == limit
    return Accepted(
        [
            AcceptedPayload(seq, at, lane, size, payload)
            for seq, at, lane, size, payload in found
            if payload is not None
        ],
        found[-1][0] if more else last,
        more,
        erasures,
    )
