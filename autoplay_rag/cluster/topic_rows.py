"""The rows of a topic's partitions: who reads each, and up to which message.

| table | content |
|---|---|
| `topic_part` | the owner and the epoch of each partition of a topic, for each consumer group |
| `topic_offset` | the topic's id, and the offset of the next message to be taken in |

Owner and offset are apart: each transaction that takes messages in reads its row of `topic_part`
`FOR SHARE`, and so never waits for the change of an offset.

An offset is saved in the transaction that saves the payloads of the messages before it. So the
payloads are there once, whatever happens between the broker and the database.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from autoplay_rag.cluster.asking import ask, execute
from autoplay_rag.cluster.presence import lock_of
from autoplay_rag.errors import FencedError
from autoplay_rag.journal.inflow import TopicPart

if TYPE_CHECKING:
    from autoplay_rag.cluster.connection import Server
    from autoplay_rag.stores.postgres.link import Connection, Link

__all__ = ["TOPIC_TABLES", "UNREAD", "Held", "LeftBehind", "TopicRows"]

TOPIC_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS topic_part (
        group_name text, topic text, part int, owner text, epoch bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (group_name, topic, part))""",
    """CREATE TABLE IF NOT EXISTS topic_offset (
        group_name text, topic text, part int, topic_id text NOT NULL,
        next_offset bigint NOT NULL, end_offset bigint, missed bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (group_name, topic, part))""",
)
"""The statements that create these tables, for a schema in the search path."""

UNREAD: Final = -1
"""The offset of a partition before its first message."""


@dataclass(slots=True)
class Held:
    """A partition that this process reads.

    Attributes:
        part: Its number.
        epoch: Its epoch. Another process that takes it over increases it.
        topic_id: The id of the topic to which the offset belongs.
        offset: The offset of the next message to be taken in; `UNREAD` before the first.
        is_anew: Whether an earlier topic of this name was read before.
    """

    part: int
    epoch: int
    topic_id: str
    offset: int
    is_anew: bool = False


class LeftBehind(NamedTuple):
    """A partition whose reader has ended, as it seems.

    Attributes:
        part: Its number.
        epoch: Its epoch.
        owner: The name of that reader.
    """

    part: int
    epoch: int
    owner: str


class TopicRows:
    """The statements on these tables, for one topic and group.

    Args:
        link: The connections.
        schema: The quoted name of the schema.
        topic: The name of the topic.
        group: The name of the consumer group.

    Raises:
        JournalError: By each method, if the database does not answer, or refuses the statement.
    """

    def __init__(self, link: Link, schema: str, topic: str, group: str) -> None:
        self._link = link
        self._schema = schema
        self._part = f"{schema}.topic_part"
        self._offset = f"{schema}.topic_offset"
        self._topic = topic
        self._group = group

    async def take(self, owner: str, topic_id: str, parts: Collection[int]) -> list[Held]:
        """Make this process the reader of partitions.

        It waits for the transaction of a former reader, which counts. No later one does. If the
        topic was made anew, its first message is the next one.

        Args:
            owner: The name of this process.
            topic_id: The id of the topic.
            parts: The numbers of the partitions.
        """

        async def take(connection: Connection) -> list[Held]:
            # A transaction for each. One for all would wait for a former reader's transaction while
            # that waits for it.
            return [await self._take(connection, owner, topic_id, part) for part in sorted(parts)]

        return await ask(self._link, take)

    async def _take(self, connection: Connection, owner: str, topic_id: str, part: int) -> Held:
        where = (self._group, self._topic, part)
        async with connection.transaction():
            cursor = await connection.execute(
                f"INSERT INTO {self._part} AS p (group_name, topic, part, owner, epoch) "
                "VALUES (%s, %s, %s, %s, 1) ON CONFLICT (group_name, topic, part) DO UPDATE "
                "SET owner = excluded.owner, epoch = p.epoch + 1 RETURNING epoch".encode(),
                (*where, owner),
            )
            ((epoch,),) = await cursor.fetchall()
            # Statements of their own: they see what the former reader has committed meanwhile.
            cursor = await connection.execute(
                f"SELECT topic_id FROM {self._offset} WHERE group_name = %s AND topic = %s "
                "AND part = %s".encode(),
                where,
            )
            before = await cursor.fetchone()
            cursor = await connection.execute(
                f"INSERT INTO {self._offset} AS o (group_name, topic, part, topic_id, next_offset) "
                "VALUES (%s, %s, %s, %s, %s) ON CONFLICT (group_name, topic, part) DO UPDATE SET "
                "topic_id = excluded.topic_id, next_offset = CASE WHEN "
                "o.topic_id = excluded.topic_id THEN o.next_offset ELSE excluded.next_offset "
                "END, end_offset = CASE WHEN o.topic_id = excluded.topic_id THEN o.end_offset "
                "END RETURNING next_offset".encode(),
                (*where, topic_id, UNREAD),
            )
            ((offset,),) = await cursor.fetchall()
        return Held(part, epoch, topic_id, offset, before not in (None, (topic_id,)))

    async def left_behind(self, owner: str) -> list[LeftBehind]:
        """Return partitions whose readers hold no lock of a running process; see `presence`.

        Args:
            owner: The name of this process, which has not ended.
        """
        rows = await self._execute(
            "WITH reader AS MATERIALIZED (SELECT part, epoch, owner "
            f"FROM {self._part} WHERE group_name = %s AND topic = %s AND owner <> %s), "
            "other AS MATERIALIZED (SELECT DISTINCT owner FROM reader), "
            # Free again at the end of this statement.
            "ended AS MATERIALIZED (SELECT owner FROM other "
            "WHERE pg_try_advisory_xact_lock(hashtextextended(%s || owner, 0))) "
            "SELECT part, epoch, owner FROM reader JOIN ended USING (owner) ORDER BY part",
            owner,
            lock_of(self._schema, ""),
        )
        return [LeftBehind(*row) for row in rows]

    async def take_over(self, owner: str, topic_id: str, left: LeftBehind) -> Held | None:
        """Make this process the reader of one partition, unless another one was quicker.

        Args:
            owner: The name of this process.
            topic_id: The id of the topic.
            left: The partition, as it was found.

        Returns:
            The partition; None if its epoch is another one, or its offset is of another topic.
        """
        where = (self._group, self._topic, left.part)

        async def take(connection: Connection) -> Held | None:
            async with connection.transaction():
                cursor = await connection.execute(
                    f"UPDATE {self._part} SET owner = %s, epoch = epoch + 1 WHERE group_name = %s "
                    "AND topic = %s AND part = %s AND epoch = %s "
                    f"AND (SELECT topic_id FROM {self._offset} WHERE group_name = %s "
                    "AND topic = %s AND part = %s) = %s RETURNING epoch".encode(),
                    (owner, *where, left.epoch, *where, topic_id),
                )
                if (row := await cursor.fetchone()) is None:
                    return None
                # A statement of its own, as in `take`.
                cursor = await connection.execute(
                    f"SELECT topic_id, next_offset FROM {self._offset} WHERE group_name = %s "
                    "AND topic = %s AND part = %s".encode(),
                    where,
                )
                ((now, offset),) = await cursor.fetchall()
            return Held(left.part, row[0], now, offset)

        return await ask(self._link, take)

    async def owner(self, part: int) -> str | None:
        """Return the name of the reader of a partition; None if there is none."""
        rows = await self._execute(
            f"SELECT owner FROM {self._part} WHERE group_name = %s AND topic = %s AND part = %s",
            part,
        )
        return rows[0][0] if rows else None

    async def list_parts(self, topic_id: str, count: int) -> None:
        """Note which partitions the topic has: one that nobody reads is known then.

        What an earlier topic of this name had beyond them is not listed any more.

        Args:
            topic_id: The id of the topic.
            count: The number of its partitions.
        """
        await self._execute(
            f"DELETE FROM {self._offset} WHERE group_name = %s AND topic = %s AND part >= %s "
            "AND topic_id <> %s",
            count,
            topic_id,
        )
        await self._execute(
            f"INSERT INTO {self._offset} (group_name, topic, part, topic_id, next_offset) "
            "SELECT %s, %s, part, %s, %s FROM generate_series(0, %s::int - 1) AS one (part) "
            "ON CONFLICT DO NOTHING",
            topic_id,
            UNREAD,
            count,
        )

    async def current(self, part: int) -> Held | None:
        """Return the epoch and the offset of a partition; None if it was never read."""
        rows = await self._execute(
            "SELECT p.part, p.epoch, o.topic_id, o.next_offset "
            f"FROM {self._part} AS p JOIN {self._offset} AS o USING (group_name, topic, part) "
            "WHERE p.group_name = %s AND p.topic = %s AND p.part = %s",
            part,
        )
        return Held(*rows[0]) if rows else None

    async def release(self, held: Collection[Held]) -> None:
        """Note that nobody reads partitions any more, unless another process does already."""
        await self._execute(
            f"UPDATE {self._part} SET owner = NULL WHERE group_name = %s AND topic = %s "
            "AND (part, epoch) IN (SELECT * FROM unnest(%s::int[], %s::bigint[]))",
            [one.part for one in held],
            [one.epoch for one in held],
        )

    async def restart(self, held: Held, missed: int) -> bool:
        """Go on with the first message that the topic has.

        Args:
            held: The partition.
            missed: How many messages were deleted before they were read.

        Returns:
            Whether this process is the reader still. Otherwise nothing was written.
        """
        return await self._as_reader(held, "next_offset = %s, missed = missed + %s", UNREAD, missed)

    async def begin_anew(self, held: Held, topic_id: str) -> bool:
        """Begin with the first message of a topic that was made anew.

        Args:
            held: The partition.
            topic_id: The id of the new topic.

        Returns:
            As in `restart`.
        """
        change = "topic_id = %s, next_offset = %s, end_offset = NULL"
        return await self._as_reader(held, change, topic_id, UNREAD)

    async def _as_reader(self, held: Held, change: str, *values: Any) -> bool:
        where = (self._group, self._topic, held.part)

        async def change_row(connection: Connection) -> bool:
            async with connection.transaction():
                cursor = await connection.execute(
                    f"SELECT 1 FROM {self._part} WHERE group_name = %s AND topic = %s "
                    "AND part = %s AND epoch = %s FOR SHARE".encode(),
                    (*where, held.epoch),
                )
                if await cursor.fetchone() is None:
                    return False
                await connection.execute(
                    f"UPDATE {self._offset} SET {change} WHERE group_name = %s AND topic = %s "
                    "AND part = %s".encode(),
                    (*values, *where),
                )
            return True

        return await ask(self._link, change_row)

    async def note_ends(self, ends: Sequence[tuple[Held, int]]) -> None:
        """Note which offset the next new message of each of these partitions gets."""
        await self._execute(
            f"UPDATE {self._offset} AS o SET end_offset = n.last "
            "FROM unnest(%s::int[], %s::bigint[], %s::bigint[]) AS n (part, epoch, last) "
            f"JOIN {self._part} AS p USING (part, epoch) "
            "WHERE p.group_name = %s AND p.topic = %s AND o.group_name = p.group_name "
            "AND o.topic = p.topic AND o.part = n.part AND o.end_offset IS DISTINCT FROM n.last",
            before=(
                [held.part for held, _ in ends],
                [held.epoch for held, _ in ends],
                [end for _, end in ends],
            ),
        )

    async def read(self) -> list[TopicPart]:
        """Return all partitions, in their order."""
        rows = await self._execute(
            "SELECT o.part, p.owner, o.next_offset, o.end_offset, o.missed "
            f"FROM {self._offset} AS o LEFT JOIN {self._part} AS p USING (group_name, topic, part) "
            "WHERE o.group_name = %s AND o.topic = %s ORDER BY o.part"
        )
        return [
            TopicPart(part, owner, None if offset == UNREAD else offset, end, missed)
            for part, owner, offset, end, missed in rows
        ]

    def advance(self, server: Server, held: Held, offset: int) -> None:
        """Save in a transaction that the messages before an offset are taken in.

        Args:
            server: The connection, in the transaction that saves their payloads.
            held: The partition, as it was before these messages.
            offset: The offset after them.

        Raises:
            FencedError: If this process is not the reader any more, or the offset is another one
                than it knows. The transaction must be rolled back.
        """
        where = (self._group, self._topic, held.part)
        cursor = server.execute(
            f"SELECT 1 FROM {self._part} WHERE group_name = %s AND topic = %s AND part = %s "
            "AND epoch = %s FOR SHARE".encode(),
            (*where, held.epoch),
        )
        if cursor.fetchone() is None:
            raise FencedError(
                f"another process reads partition {held.part} of the topic {self._topic}; nothing "
                "was taken in here",
                partitions=[held.part],
            )
        cursor = server.execute(
            f"UPDATE {self._offset} SET next_offset = %s, "
            "end_offset = greatest(end_offset, %s) WHERE group_name = %s AND topic = %s "
            "AND part = %s AND topic_id = %s AND next_offset = %s".encode(),
            (offset, offset, *where, held.topic_id, held.offset),
        )
        if not cursor.rowcount:
            raise FencedError(
                f"the offset of partition {held.part} of the topic {self._topic} is not "
                f"{held.offset} any more; nothing was taken in",
                partitions=[held.part],
            )

    async def _execute(
        self, statement: str, *after: Any, before: Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        """Run a statement whose parameters name group and topic between others."""
        return await execute(self._link, statement, *before, self._group, self._topic, *after)
