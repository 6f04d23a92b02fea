"""The processes of a journal, for people who look after them: who has what, and what waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from autoplay_rag.cluster.asking import ask
from autoplay_rag.journal.ownership import Replica, Replicas
from autoplay_rag.journal.schema import PayloadState

if TYPE_CHECKING:
    from autoplay_rag.stores.postgres.link import Connection, Link

__all__ = ["ReplicaRows"]

_SOURCE: Final = "source:"


class _Share(NamedTuple):
    """The partitions of one owner, and when the oldest payload that waits there was accepted."""

    numbers: Sequence[int] = ()
    oldest: float | None = None


class ReplicaRows:
    """Reads who has what.

    Args:
        link: The connections.
        schema: The quoted name of the schema.
    """

    def __init__(self, link: Link, schema: str) -> None:
        self._link = link
        self._workers = (
            "SELECT id, name, takes, extract(epoch FROM started)::float8, "
            f"(SELECT array_agg(l.name ORDER BY l.name) FROM {schema}.lease AS l "
            f"WHERE l.owner = w.id AND starts_with(l.name, '{_SOURCE}')) "
            f"FROM {schema}.worker AS w WHERE expires > clock_timestamp() ORDER BY number"
        )
        self._shares = (
            "SELECT one.owner, array_agg(one.number ORDER BY one.number), min(first.at) "
            f"FROM {schema}.partition AS one LEFT JOIN LATERAL (SELECT at FROM {schema}.payload AS p "
            f"WHERE p.state = {PayloadState.WAITING:d} AND p.part = one.number "
            "ORDER BY p.seq LIMIT 1) AS first ON true GROUP BY one.owner"
        )

    async def read(self, me: str | None) -> Replicas:
        """Return all processes.

        Args:
            me: The id of this one.

        Raises:
            JournalError: If the database does not answer.
        """

        async def read(connection: Connection) -> Replicas:
            workers = await (await connection.execute(self._workers.encode())).fetchall()
            rows = await (await connection.execute(self._shares.encode())).fetchall()
            cursor = await connection.execute(
                "SELECT extract(epoch FROM clock_timestamp())::float8"
            )
            ((now,),) = await cursor.fetchall()
            return _replicas(workers, rows, me, now)

        return await ask(self._link, read)


def _replicas(
    workers: Sequence[tuple[Any, ...]], rows: Sequence[tuple[Any, ...]], me: str | None, now: float
) -> Replicas:
    shares = {owner: _Share(numbers, oldest) for owner, numbers, oldest in rows}
    found = []
    for worker, name, takes, started, leases in workers:
        share = shares.pop(worker, _Share())
        sources = tuple(lease.removeprefix(_SOURCE) for lease in leases or ())
        found.append(
            Replica(
                name,
                started,
                takes_work=takes,
                partitions=tuple(share.numbers),
                sources=sources,
                lag=_lag([share], now),
                is_this=worker == me,
            )
        )
    left = shares.values()
    unowned = tuple(sorted(number for share in left for number in share.numbers))
    return Replicas(tuple(found), unowned, _lag(left, now))


def _lag(shares: Iterable[_Share], now: float) -> float:
    return max((now - one.oldest for one in shares if one.oldest is not None), default=0.0)
