"""Deletes what is older than the retention, in small steps beside the ingest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from autoplay_rag._background import BackgroundWork
from autoplay_rag.journal.expiring import AsyncExpiry, Days, Limits, limits_at

__all__ = ["Retention"]

_EVERY_SECONDS: Final = 600.0
_COMPLETE_SECONDS: Final = 24 * 3600.0
"""Seconds between two looks at all payloads. In between, only those that can be old are looked at. A
changed clock can make that wrong."""
_STEP: Final = 25
"""Payloads deleted in one transaction, while new payloads wait: some milliseconds. Measured beside 100
events a second: with 100 payloads, accepting takes 1.6 times as long at the median; with 25, 1.0."""
_KEYS_STEP: Final = 1000
_REST: Final = 4.0
"""The pause after a step, as a multiple of its duration. New payloads are accepted meanwhile."""
_MOST_DELETIONS: Final = 2000
"""With more chunks to be deleted from the store, retention waits for the store."""
_POLL_SECONDS: Final = 0.05


class Retention(BackgroundWork):
    """Deletes old payloads, their chunks, and keys that need not be known any more.

    The first run is at start. A run that is interrupted goes on with the next one: each step is
    complete in itself.

    Args:
        expiry: Finds and deletes what is old in the journal.
        days: How many days are kept.
        key_days: How many days after its receipt the key of a deleted payload is kept.
        delete: Deletes chunks that are in the outbox.
        deleting: Returns how many chunks are being deleted from the store.
        clock: Returns the time in Unix seconds.
    """

    def __init__(
        self,
        expiry: AsyncExpiry,
        *,
        days: Days,
        key_days: float,
        delete: Callable[[Sequence[str]], None],
        deleting: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        super().__init__("deleting what is older than the retention failed", every=_EVERY_SECONDS)
        self._expiry = expiry
        self._days = days
        self._key_days = key_days
        self._delete = delete
        self._deleting = deleting
        self._clock = clock
        self._looked_at_all: float | None = None
        self.wake()

    async def _work(self) -> None:
        now = self._clock()
        limits = limits_at(now, self._days, self._key_days)
        if self._days is None and not self._expiry.active:
            return
        last = self._looked_at_all
        complete = last is None or not 0.0 <= now - last < _COMPLETE_SECONDS
        await self._delete_received(limits, complete=complete)
        if complete:
            self._looked_at_all = now
        elif self._days is not None:
            await self._delete_late(limits)
        if await self._expiry.words_are_stale():
            await self._merge_words()

    async def _merge_words(self) -> None:
        """Free the space of deleted words, so that the file stops growing."""
        first = more = True
        while more:
            began = time.monotonic()
            more = await self._expiry.merge_words(first)
            first = False
            await self._rest(began)

    async def _delete_received(self, limits: Limits, *, complete: bool) -> None:
        after: int | None = None
        while page := await self._expiry.received(after, limits, complete=complete):
            await self._expire(page.due, limits)
            for start in range(0, len(page.keys), _KEYS_STEP):
                began = time.monotonic()
                await self._expiry.drop_keys(page.keys[start : start + _KEYS_STEP])
                await self._rest(began)
            after = page.after

    async def _delete_late(self, limits: Limits) -> None:
        after: int | None = None
        while page := await self._expiry.late(after, limits):
            await self._expire(page.due, limits)
            after = page.after

    async def _expire(self, seqs: Sequence[int], limits: Limits) -> None:
        for start in range(0, len(seqs), _STEP):
            began = time.monotonic()
            await self._expiry.expire(seqs[start : start + _STEP], limits, self._delete)
            await self._rest(began)
            while self._deleting() > _MOST_DELETIONS:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(_POLL_SECONDS)

    @staticmethod
    async def _rest(began: float) -> None:
        await asyncio.sleep(_REST * (time.monotonic() - began))
