"""The rows of workers, partitions and named leases, and the statements on them.

| table | content |
|---|---|
| `worker` | each process, and when its lease ends |
| `partition` | the owner and the epoch of each partition |
| `lease` | the owner and the epoch of each named lease |

An owner that is not in `worker` owns nothing. Each statement is a transaction of its own, so a
process that is frozen holds no lock. All times are of the database's clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from autoplay_rag.cluster.asking import execute
from autoplay_rag.content.keys import PARTITIONS
from autoplay_rag.errors import JournalError

if TYPE_CHECKING:
    from autoplay_rag.stores.postgres.link import Link

__all__ = ["CHANGED", "LEASE_TABLES", "LeaseRows", "Shares"]

T = TypeVar("T")

LEASE_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS worker (
        id text PRIMARY KEY, number bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
        name text NOT NULL, takes boolean NOT NULL,
        started timestamptz NOT NULL, expires timestamptz NOT NULL)""",
    # A row that many transactions read FOR SHARE: what changes often has no place in it.
    """CREATE TABLE IF NOT EXISTS partition (
        number int PRIMARY KEY, owner text, epoch bigint NOT NULL DEFAULT 0)""",
    f"""INSERT INTO partition (number) SELECT generate_series(0, {PARTITIONS - 1})
        ON CONFLICT DO NOTHING""",
    """CREATE TABLE IF NOT EXISTS lease (
        name text PRIMARY KEY, owner text, epoch bigint NOT NULL DEFAULT 0)""",
)
"""The statements that create these tables, for a schema in the search path."""

CHANGED: Final = "leases"
"""The notification after a process joined, or something was given back."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Who has what.

    Attributes:
        workers: The ids of live workers that take partitions, in the order of joining.
        owners: The live owner of each partition; None if it is free.
        epochs: The epoch of each partition.
        first_end: The seconds until the first lease of a worker ends.
    """

    workers: Sequence[str]
    owners: Mapping[int, str | None]
    epochs: Mapping[int, int]
    first_end: float

    def of(self, worker: str) -> dict[int, int]:
        """Return the partitions of a worker, with their epochs."""
        return {one: self.epochs[one] for one, owner in self.owners.items() if owner == worker}


class LeaseRows:
    """The statements.

    Args:
        link: The connections.
        schema: The quoted name of the schema.
        channel: The channel on which other processes are told of changes. Without it, they notice
            at their next renewal.

    Raises:
        JournalError: By each method, if the database does not answer, or refuses the statement.
    """

    def __init__(self, link: Link, schema: str, channel: str | None = None) -> None:
        self._link = link
        self._worker = f"{schema}.worker"
        self._partition = f"{schema}.partition"
        self._lease = f"{schema}.lease"
        self._channel = channel

    # -- workers ------------------------------------------------------------------------------

    async def join(self, worker: str, name: str, *, takes: bool, seconds: float) -> None:
        """Add a worker."""
        await self._execute(
            f"INSERT INTO {self._worker} (id, name, takes, started, expires) VALUES "
            "(%s, %s, %s, clock_timestamp(), clock_timestamp() + make_interval(secs => %s))",
            worker,
            name,
            takes,
            seconds,
        )
        await self._tell_others()

    async def extend(self, worker: str, seconds: float) -> bool:
        """Renew the lease of a worker; return False if it has ended."""
        return bool(
            await self._execute(
                f"UPDATE {self._worker} "
                "SET expires = clock_timestamp() + make_interval(secs => %s) "
                "WHERE id = %s AND expires > clock_timestamp() RETURNING 1",
                seconds,
                worker,
            )
        )

    async def sweep(self) -> None:
        """Delete workers whose lease has ended. From then on, they cannot renew it."""
        await self._execute(
            f"DELETE FROM {self._worker} WHERE id IN (SELECT id FROM {self._worker} "
            "WHERE expires <= clock_timestamp() FOR UPDATE SKIP LOCKED)",
        )

    async def count_others(self, worker: str | None, *, working: bool) -> int:
        """Return the number of live workers besides this one.

        Args:
            worker: This one.
            working: Whether to count only those that take partitions.
        """
        rows = await self._execute(
            f"SELECT count(*) FROM {self._worker} "
            "WHERE expires > clock_timestamp() AND id IS DISTINCT FROM %s::text AND (takes OR NOT %s)",
            worker,
            working,
        )
        return int(rows[0][0])

    async def leave(self, worker: str) -> None:
        """Delete a worker. It owns nothing any more."""
        await self._execute(f"DELETE FROM {self._worker} WHERE id = %s", worker)
        await self._tell_others()

    # -- partitions ---------------------------------------------------------------------------

    async def shares(self) -> Shares:
        """Return who has what."""
        # One statement, so that no owner is newer than the list of workers.
        rows = await self._execute(
            "SELECT number::bigint, owner, epoch, NULL, NULL, NULL "
            f"FROM {self._partition} UNION ALL "
            "SELECT number, NULL, NULL, id, takes, "
            "extract(epoch FROM expires - clock_timestamp())::float8 "
            f"FROM {self._worker} ORDER BY 1"
        )
        live = {worker: takes for *_, worker, takes, _ in rows if worker is not None}
        found = [(number, owner, epoch) for number, owner, epoch, worker, *_ in rows if not worker]
        return Shares(
            [worker for worker, takes in live.items() if takes],
            {number: owner if owner in live else None for number, owner, _ in found},
            {number: epoch for number, _, epoch in found},
            min((left for *_, left in rows if left is not None), default=math.inf),
        )

    async def take(self, worker: str, wanted: Mapping[int, int]) -> dict[int, int]:
        """Take free partitions.

        Args:
            worker: The new owner.
            wanted: The epoch of each partition when it was free. Another epoch shows that another
                process was faster.

        Returns:
            The new epochs of those that were taken.
        """
        return dict(
            await self._execute(
                f"UPDATE {self._partition} SET owner = %s, epoch = epoch + 1 "
                f"WHERE number IN (SELECT number FROM {self._partition} "
                "WHERE (number, epoch) IN (SELECT * FROM unnest(%s::int[], %s::bigint[])) "
                # A transaction that checks its epoch holds the row for a moment.
                "ORDER BY number FOR UPDATE SKIP LOCKED) RETURNING number, epoch",
                worker,
                [*wanted.keys()],
                [*wanted.values()],
            )
        )

    async def release(self, worker: str, partitions: Iterable[int]) -> None:
        """Make partitions of a worker free."""
        await self._execute(
            f"UPDATE {self._partition} SET owner = NULL "
            "WHERE owner = %s AND number = ANY (%s::int[])",
            worker,
            [*partitions],
        )
        await self._tell_others()

    # -- named leases -------------------------------------------------------------------------

    async def take_named(self, worker: str, names: Sequence[str]) -> dict[str, int]:
        """Take those of these leases that are free; return the epochs of those that are its own."""
        await self._execute(
            f"INSERT INTO {self._lease} (name) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING",
            [*names],
        )
        rows = await self._execute(
            f"SELECT l.name, l.owner, l.epoch, w.id IS NULL FROM {self._lease} l "
            f"LEFT JOIN {self._worker} w ON w.id = l.owner WHERE l.name = ANY (%s::text[])",
            [*names],
        )
        own = {name: epoch for name, owner, epoch, _ in rows if owner == worker}
        if free := {name: epoch for name, _, epoch, is_free in rows if is_free}:
            own |= dict(
                await self._execute(
                    f"UPDATE {self._lease} SET owner = %s, epoch = epoch + 1 "
                    f"WHERE name IN (SELECT name FROM {self._lease} WHERE (name, epoch) IN "
                    "(SELECT * FROM unnest(%s::text[], %s::bigint[])) "
                    "ORDER BY name FOR UPDATE SKIP LOCKED) RETURNING name, epoch",
                    worker,
                    [*free.keys()],
                    [*free.values()],
                )
            )
        return own

    async def release_named(self, worker: str, name: str, epoch: int) -> None:
        """Make a named lease of a worker free."""
        await self._execute(
            f"UPDATE {self._lease} SET owner = NULL WHERE name = %s AND owner = %s AND epoch = %s",
            name,
            worker,
            epoch,
        )
        await self._tell_others()

    async def _tell_others(self) -> None:
        if self._channel is not None:
            with suppress(JournalError):  # they notice at their next renewal
                await self._execute("SELECT pg_notify(%s, %s)", self._channel, CHANGED)

    async def _execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return await execute(self._link, statement, *parameters)
