"""What the readers of a topic have in their journal, as they wrote it into PostgreSQL."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from autoplay_rag.errors import ConfigurationError, JournalError, MissingExtraError
from autoplay_rag.kafka.address import TopicAddress

if TYPE_CHECKING:
    from autoplay_rag.stores.postgres.link import Connection

__all__ = ["Readers"]

_TIMEOUT: Final = 5.0
_TABLE: Final = (
    "SELECT format('%%I.topic_offset', %s::text)::regclass::text "
    "WHERE to_regclass(format('%%I.topic_offset', %s::text)) IS NOT NULL"
)
_PLACES: Final = "SELECT topic_id, part, next_offset FROM {} WHERE group_name = %s AND topic = %s"


class Readers:
    """Asks how far the readers of a group are.

    Args:
        dsn: The database of their journal; see `parameters_of`.
        address: The topic, with the group.
        schema: The schema of their tables.

    Raises:
        ConfigurationError: If the address names no group, or the connection string cannot be parsed.
        MissingExtraError: If psycopg is not installed.
    """

    def __init__(self, dsn: str, address: TopicAddress, *, schema: str = "autoplay") -> None:
        if not address.group:
            raise ConfigurationError(
                "postgres needs the group of the readers: the offsets of a topic are those of a group"
            )
        try:
            from autoplay_rag.stores.postgres.dsn import parameters_of
            from autoplay_rag.stores.postgres.link import Link
        except ModuleNotFoundError:
            raise MissingExtraError("Asking the readers of a topic", "kafka") from None
        self._link = Link(parameters_of(dsn), 1, _TIMEOUT)
        self._address = address
        self._schema = schema

    async def places(self) -> list[tuple[str, int, int]]:
        """Return the id of the topic, partition and next offset of each partition that was read.

        Raises:
            JournalError: If the database does not answer, or refuses.
        """
        from autoplay_rag.cluster.asking import ask

        return await ask(self._link, self._places)

    async def _places(self, connection: Connection) -> list[tuple[str, int, int]]:
        table = await _rows(connection, _TABLE, self._schema, self._schema)
        if not table:
            return []  # no reader has started yet
        found = await _rows(
            connection, _PLACES.format(table[0][0]), self._address.group, self._address.topic
        )
        return [(str(topic_id), int(part), int(offset)) for topic_id, part, offset in found]

    async def aclose(self) -> None:
        """Close the connection."""

        async def nothing() -> None: ...

        with suppress(JournalError):
            await self._link.close(nothing)


async def _rows(connection: Connection, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(statement.encode(), parameters)
    return await cursor.fetchall()
