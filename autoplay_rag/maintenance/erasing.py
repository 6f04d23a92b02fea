"""Writes the files of journal and store anew after deletions, so that no file holds the bytes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from autoplay_rag._backoff import grown_delay
from autoplay_rag._describe import describe
from autoplay_rag.journal.erasing import AsyncErasures
from autoplay_rag.stores.base import Store

__all__ = ["Eraser"]

_log = logging.getLogger(__name__)

_GATHER_SECONDS: Final = 0.5
"""How long a rewrite waits for further requests. They share it."""
_LOOK_SECONDS: Final = 1.0
_FIRST_REPEAT_SECONDS: Final = 2.0
_LONGEST_REPEAT_SECONDS: Final = 600.0
_READER: Final = (
    "A reader of another process keeps the journal's write-ahead log from being truncated: end it."
)


class Eraser:
    """Completes requests to forget in the background.

    A request is complete once its deletions are confirmed and the files were written anew after
    that. The requests are in the journal, so this goes on after a restart.

    Args:
        erasures: The requests in the journal.
        store: Has the chunks.
        copy_is_clean: Whether a copy of the store that is being made holds nothing deleted.
    """

    def __init__(
        self,
        erasures: AsyncErasures,
        store: Store,
        copy_is_clean: Callable[[], Awaitable[bool]],
    ) -> None:
        self._copy_is_clean = copy_is_clean
        self._erasures = erasures
        self._store = store
        self._go_on: Callable[[], Awaitable[None]] | None = None
        self._held: set[int] = set()
        self._rewritten: set[int] = set()
        self._wake = asyncio.Event()
        self._wake.set()
        self._idle = asyncio.Event()
        self._problem: str | None = None
        self._store_keeps = False

    @property
    def problems(self) -> list[str]:
        """Current failures, one line each. Readable from any thread."""
        return [f"erasing: {self._problem}"] if self._problem else []

    @property
    def remaining(self) -> list[str]:
        """What may still hold deleted data, a sentence each."""
        found = [self._problem] if self._problem else []
        if self._store_keeps:
            found.append(
                f"{type(self._store).__name__} may keep remains of deleted chunks in its own files."
            )
        return found

    def goes_on_with(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do what earlier calls have left before each look at the requests, until it succeeds."""
        self._go_on = work

    def wake(self) -> None:
        """Look at the requests now."""
        self._wake.set()

    def hold(self, number: int) -> None:
        """Leave a request alone until `release`: its deletions are under way."""
        self._held.add(number)
        self._idle.clear()

    def release(self, number: int) -> None:
        """Complete a request as soon as its deletions are confirmed."""
        self._held.discard(number)
        self._idle.clear()
        self.wake()

    async def wait(self) -> None:
        """Wait until all requests are complete."""
        await self._idle.wait()

    async def run(self) -> None:
        """Run until cancelled."""
        failures = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                left = await self._complete()
                failures = 0 if self._problem is None else failures + 1
            except Exception as error:  # noqa: BLE001 - of the journal or the store: retried
                failures += 1
                left = True
                if self._problem is None:
                    _log.error("erasing deleted data failed; retrying: %s", describe(error))
                self._problem = f"Deleting, or writing the files anew, failed and is repeated: {describe(error)}"
            if left:
                pause = _LOOK_SECONDS
                if failures:
                    pause = grown_delay(
                        failures - 1, _FIRST_REPEAT_SECONDS, _LONGEST_REPEAT_SECONDS
                    )
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    self._wake.set()
            elif not self._wake.is_set() and not self._held:
                self._idle.set()

    async def _complete(self) -> bool:
        """Complete the requests that can be completed; returns whether others are left."""
        if self._go_on is not None:
            await self._go_on()
        states = await self._erasures.open_requests()
        # A store that cannot delete confirms nothing. The journal is erased all the same.
        never = "delete" not in self._store.capabilities
        confirmed = [
            one.number
            for one in states
            if not one.waiting and (never or not one.unconfirmed) and one.number not in self._held
        ]
        if not confirmed or not await self._copy_is_clean():
            self._problem = None
            return bool(states)
        await self._erasures.mark_deleted(
            [one.number for one in states if one.number in confirmed and not one.unconfirmed]
        )
        if not self._rewritten.issuperset(confirmed):
            await asyncio.sleep(_GATHER_SECONDS)
            states = await self._erasures.open_requests()
            confirmed = [
                one.number
                for one in states
                if not one.waiting
                and (never or one.deleted_at is not None)
                and one.number not in self._held
            ]
            emptied = await self._erasures.rewrite()
            # A store that says what it keeps says so itself.
            self._store_keeps = not (await self._store.erase() or self._store.remains)
            self._rewritten.update(confirmed)
        else:
            emptied = await self._erasures.empty_log()
        if not emptied:
            self._problem = _READER
            return True
        self._problem = None
        await self._erasures.mark_erased(confirmed)
        self._rewritten.difference_update(confirmed)
        return len(confirmed) < len(states)
