"""Gives a person everything that is held about them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from autoplay_rag.journal.exporting import chunks_of, payloads_of, select_all
from autoplay_rag.journal.rows import Connection
from autoplay_rag.journal.selecting import Asked
from autoplay_rag.maintenance.asked import check_products

__all__ = ["export_records"]

T = TypeVar("T")

_PAGE: Final = 200


class Read(Protocol):
    """Runs a blocking read of the journal."""

    def __call__(self, read: Callable[[Connection], T], /) -> Awaitable[T]:
        """Await `read(connection)`."""


async def export_records(read: Read, asked: Asked) -> AsyncIterator[dict[str, Any]]:
    """Yield everything that the journal holds about a request's ids; see `IngestPipeline.export`."""
    selected, seqs = await read(lambda connection: select_all(connection, asked))
    check_products(asked, selected)
    for start in range(0, len(seqs), _PAGE):
        part = seqs[start : start + _PAGE]
        for record in await read(partial(payloads_of, seqs=part)):
            yield record
    last = 0
    for start in range(0, len(seqs), _PAGE):
        part = seqs[start : start + _PAGE]
        # Chunks have the order of their payloads, so none of them is returned twice.
        found = await read(partial(chunks_of, seqs=part, after=last))
        for number, chunk in found:
            last = max(last, number)
            yield chunk
