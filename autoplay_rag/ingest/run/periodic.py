"""The work of every second: requests of other processes, notes of the state, and what has expired."""

from __future__ import annotations

import asyncio
import logging

from autoplay_rag.errors import JournalError, StoreError
from autoplay_rag.ingest.linking import Linker
from autoplay_rag.ingest.pairing import Pairing
from autoplay_rag.ingest.partitions import Partitions
from autoplay_rag.ingest.reembedding import Reembedding
from autoplay_rag.ingest.retiring import Retirer
from autoplay_rag.ingest.run.condition import Condition
from autoplay_rag.ingest.settings import Settings
from autoplay_rag.ingest.upkeep import Upkeep
from autoplay_rag.journal.base import Health
from autoplay_rag.journal.on_tables import TableJournal

__all__ = ["PeriodicWork", "tidy"]

_log = logging.getLogger(__name__)

_REQUESTS_SECONDS = 1.0
"""The interval of checking the journal for requests of other processes."""
_TIDY_EVERY = 60
_NOTE_EVERY = 30
"""The intervals of `Journal.tidy` and `Pairing.note`, in seconds."""
_LAG_EVERY = 5
"""Seconds between two measurements of the lag."""


class PeriodicWork:
    """What each process of a journal does every second.

    Args:
        settings: The options of the pipeline.
        journal: Has the requests of other processes.
        condition: Says what to note.
        pairing: Notes the last batch in the store.
        noting: Held meanwhile. While somebody else holds it, nothing is noted.
        partitions: What this process owns; None if it is the only one.
        upkeep: Looks for deletions that other processes left.
        linker: Looks for metadata that other processes changed.
        retirer: Looks for summaries in partitions that were gained.
    """

    def __init__(
        self,
        settings: Settings,
        journal: TableJournal,
        condition: Condition,
        pairing: Pairing,
        noting: asyncio.Lock,
        *,
        partitions: Partitions | None,
        upkeep: Upkeep,
        linker: Linker,
        retirer: Retirer,
    ) -> None:
        self._journal = journal
        self._is_kept = settings.journal is not None
        self._condition = condition
        self._pairing = pairing
        self._noting = noting
        self._partitions = partitions
        self._upkeep = upkeep
        self._linker = linker
        self._retirer = retirer

    async def run(self) -> None:
        """Work until cancelled. A failure of journal or store is logged."""
        noted: Health | None = None
        seen: frozenset[int] = frozenset()
        second = 0
        while True:
            try:
                if self._is_kept:
                    await self._journal.carry_out_requests()
                    if (health := self._condition.health) != noted:
                        await self._journal.note_health(health)
                        noted = health
                if self._partitions is not None:
                    seen = await self._look_for_work(self._partitions, seen)
                if second % _LAG_EVERY == 0:
                    await self._condition.measure_lag()
                if second % _NOTE_EVERY == _NOTE_EVERY - 1 and not self._noting.locked():
                    async with self._noting:
                        await self._note()
            except (JournalError, StoreError) as error:
                _log.error("the periodic work failed; retrying: %s", error)
            second += 1
            await asyncio.sleep(_REQUESTS_SECONDS)

    async def _look_for_work(
        self, partitions: Partitions, before: frozenset[int]
    ) -> frozenset[int]:
        """Look for what other processes left for the owner of a session."""
        self._linker.wake()
        await self._upkeep.look()
        loaded = partitions.loaded
        if loaded - before:
            await self._retirer.resume()
        return loaded

    async def _note(self) -> None:
        if self._journal.membership is None:
            await self._pairing.note()
        else:
            await self._journal.membership.while_held("store", self._pairing.note)


async def tidy(journal: TableJournal, reembedding: Reembedding | None) -> None:
    """Delete expired data, until cancelled. One process of a journal does it."""
    second = 0
    while True:
        try:
            if second % _TIDY_EVERY == 0:
                await journal.tidy()
                if reembedding:
                    await reembedding.tidy()
        except (JournalError, StoreError) as error:
            _log.error("tidying failed; retrying: %s", error)
        second += 1
        await asyncio.sleep(_REQUESTS_SECONDS)
