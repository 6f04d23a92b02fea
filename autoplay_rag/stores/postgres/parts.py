"""The parts of an open store."""

from __future__ import annotations

from collections.abc import Mapping

from autoplay_rag.stores.postgres.contents import Contents
from autoplay_rag.stores.postgres.indexing import IndexBuilder
from autoplay_rag.stores.postgres.link import Link
from autoplay_rag.stores.postgres.tables import Tables

__all__ = ["Parts"]


class Parts:
    """What a store has while it is open: connections, collection, index builder.

    Args:
        parameters: The parameters of a connection.
        schema: The name of the schema.
        table: The name of the collection.
        pool_size: The most connections.
        timeout: Seconds that a call may take.
    """

    def __init__(
        self, parameters: Mapping[str, str], schema: str, table: str, pool_size: int, timeout: float
    ) -> None:
        tables = Tables(schema, table, timeout)
        self.link = Link(parameters, pool_size, timeout)
        self.contents = Contents(self.link, tables)
        self.indexing = IndexBuilder(self.link, tables, self.contents)

    async def close(self) -> None:
        """Wait for running calls, then close the connections."""
        await self.link.close(self.indexing.close)
