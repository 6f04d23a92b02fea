"""Runs statements on the journal's database, on the loop of a link."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from autoplay_rag.errors import ConfigurationError, JournalError, StoreError

if TYPE_CHECKING:
    from autoplay_rag.stores.postgres.link import Connection, Link

__all__ = ["ask", "execute"]

T = TypeVar("T")


async def ask(link: Link, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
    """Await `work(connection)`, which runs in the link's loop.

    Raises:
        JournalError: If the database does not answer, or refuses the statement.
    """

    async def with_connection() -> T:
        async with link.connection() as connection:
            return await work(connection)

    try:
        return await link.run(with_connection)
    except (StoreError, ConfigurationError) as error:
        raise JournalError(str(error)) from error


async def execute(link: Link, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run one statement, in a transaction of its own, and return its rows.

    Raises:
        JournalError: As `ask`.
    """

    async def run(connection: Connection) -> list[tuple[Any, ...]]:
        cursor = await connection.execute(statement.encode(), parameters)
        return await cursor.fetchall() if cursor.description else []

    return await ask(link, run)
