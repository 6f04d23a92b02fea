"""Updates the metadata of chunks that were stored before their person was known."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from autoplay_rag._backoff import grown_delay
from autoplay_rag.errors import JournalError
from autoplay_rag.ingest.chunk_writer import ChunkWriter, Operation, UpdateMetadata
from autoplay_rag.journal.base import Journal, Outdated

__all__ = ["Linker"]

_log = logging.getLogger(__name__)

_PAGE: Final = 500
_FIRST_REPEAT_SECONDS: Final = 1.0
_LONGEST_REPEAT_SECONDS: Final = 600.0


class Linker:
    """Copies metadata changes from the catalog to the store.

    The changes are in the journal, so they survive a restart. An update that the store rejects is
    retried with growing pauses. In a store that cannot update metadata, the chunks do not change.

    Args:
        journal: The journal with the changes.
        writer: Executes the updates, in order with other operations on the same chunk.
        able: Whether the store can update metadata.
    """

    def __init__(self, journal: Journal, writer: ChunkWriter, *, able: bool) -> None:
        self._journal = journal
        self._writer = writer
        self._able = able
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._problem: str | None = None

    @property
    def problems(self) -> list[str]:
        """Current failures, one line each. Readable from any thread."""
        return [self._problem] if self._problem else []

    @property
    def idle(self) -> bool:
        """Whether no change is pending. Changes that the store rejects do not count."""
        return self._idle.is_set()

    async def wait(self) -> None:
        """Wait until `idle`."""
        await self._idle.wait()

    def changed(self) -> None:
        """Check the catalog for changes.

        Call it after putting the operations of the plan that caused them, because those must run
        first.
        """
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Run until cancelled."""
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self._pause(failures)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                failed = await self._update_all()
            except JournalError as error:
                failed = str(error)
            if failed is None:
                failures = 0
            else:
                if self._problem is None:
                    _log.error("metadata of stored chunks is not up to date: %s", failed)
                failures += 1
            self._problem = failed and f"metadata of stored chunks is not up to date: {failed}"
            if not self._wake.is_set():
                self._idle.set()

    @staticmethod
    def _pause(failures: int) -> float | None:
        if not failures:
            return None
        return grown_delay(failures - 1, _FIRST_REPEAT_SECONDS, _LONGEST_REPEAT_SECONDS)

    async def _update_all(self) -> str | None:
        """Execute all pending changes. Returns an error if one failed; None otherwise."""
        while page := await self._journal.outdated(_PAGE):
            done, error = await self._update(page) if self._able else (page, None)
            await self._journal.updated(done)
            if error is not None:
                return error
        return None

    async def _update(self, page: Sequence[Outdated]) -> tuple[list[Outdated], str | None]:
        by_id = {one.id: one for one in page}
        done: list[Outdated] = []
        errors: list[str] = []
        ended = asyncio.Event()

        def update_ended(operation: Operation, error: str | None) -> None:
            assert isinstance(operation, UpdateMetadata)
            if error is None:
                done.append(by_id[operation.id])
            else:
                errors.append(error)
            if len(done) + len(errors) == len(by_id):
                ended.set()

        self._writer.put([UpdateMetadata(one.id, one.changes) for one in page], update_ended)
        await ended.wait()
        return done, errors[0] if errors else None
