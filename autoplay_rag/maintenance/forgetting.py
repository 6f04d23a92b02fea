"""Forgets people and sessions: deletes what is held about them, and follows up until it is gone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, Protocol

from autoplay_rag.content.passages import storable
from autoplay_rag.errors import ConfigurationError, PipelineError
from autoplay_rag.journal.base import Catalog
from autoplay_rag.journal.erasing import AsyncErasures
from autoplay_rag.journal.forgetting import Begun, Deleted, ErasureState
from autoplay_rag.journal.selecting import Asked, Selected, Sizes
from autoplay_rag.maintenance.asked import check_products
from autoplay_rag.maintenance.erasing import Eraser
from autoplay_rag.maintenance.receipt import Receipt
from autoplay_rag.stores.base import Store

__all__ = ["Forgetter"]

_log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.05
_CONFIRM_SECONDS: Final = 10.0
"""How long `forget` waits for the store without any progress."""
_ATTEMPTS: Final = 20
_COPIES: Final = (
    "Recordings, and backups made before, are files of their own and are not changed: delete them."
)


class _Upkeep(Protocol):
    def delete(self, ids: Sequence[str]) -> None:
        """Start to delete chunks that are in the outbox."""


class Forgetter:
    """Carries out requests to forget.

    Args:
        erasures: The requests in the journal.
        catalog: The chunks that the journal knows.
        store: The store of the chunks.
        upkeep: Deletes chunks from the store.
        eraser: Writes the files anew in the background.
        complete: Whether the catalog has all chunks of the store. A journal in memory may begin
            beside a store that is full already.
        busy: Returns those of these sessions of which a batch is under way.
        on_deleted: Called after each page of deleted payloads.
        on_forgotten: Called when the payloads of a request are deleted, to clear caches.
    """

    def __init__(
        self,
        erasures: AsyncErasures,
        catalog: Catalog,
        store: Store,
        upkeep: _Upkeep,
        eraser: Eraser,
        *,
        complete: bool,
        busy: Callable[[Collection[int]], Awaitable[set[int]]],
        on_deleted: Callable[[Deleted], None],
        on_forgotten: Callable[[Asked, Collection[int]], None],
    ) -> None:
        self._erasures = erasures
        self._catalog = catalog
        self._store = store
        self._upkeep = upkeep
        self._eraser = eraser
        self._complete = complete
        self._busy = busy
        self._on_deleted = on_deleted
        self._on_forgotten = on_forgotten
        self._one_at_a_time = asyncio.Lock()
        self._cut_off: dict[int, tuple[Asked, Begun]] = {}
        eraser.goes_on_with(self._go_on)

    async def forget(self, asked: Asked, *, dry_run: bool, block: bool) -> Receipt:
        """Forget what a request concerns; see `IngestPipeline.forget`."""
        await self._wait_for_index()
        if dry_run:
            _, sizes = await self._select(asked)
            return Receipt(
                number=0,
                asked_at=time.time(),
                until=asked.until,
                block=block,
                dry_run=True,
                payloads=sizes.payloads,
                chunks=sizes.chunks,
                sessions=sizes.sessions,
                pending=sizes.pending,
                dead_letters=sizes.dead_letters,
            )
        async with self._one_at_a_time:
            begun = await self._begin(asked, block=block)
            self._eraser.hold(begun.number)
            try:
                scanned = await self._delete(asked, begun)
            except BaseException:
                self._cut_off[begun.number] = asked, begun
                self._eraser.wake()
                raise
            try:
                await self._wait_until_confirmed(begun, scanned)
                self._on_forgotten(asked, begun.lanes)
            finally:
                self._eraser.release(begun.number)
        return await self.receipt(begun.number)

    async def _delete(self, asked: Asked, begun: Begun) -> set[str]:
        """Delete what a request concerns, and return the chunks that only the store knew."""
        self._on_forgotten(asked, begun.lanes)
        await self._erasures.delete_all(self._on_deleted)
        scanned = await self._delete_unknown(asked)
        self._on_forgotten(asked, begun.lanes)
        return scanned

    async def _go_on(self) -> None:
        """Delete what calls of `forget` that failed or were cancelled have left."""
        while self._cut_off:
            number, (asked, begun) = next(iter(self._cut_off.items()))
            async with self._one_at_a_time:
                await self._delete(asked, begun)
            del self._cut_off[number]
            self._eraser.release(number)

    async def receipt(self, number: int) -> Receipt:
        """Return the receipt of a request as of now.

        Raises:
            ConfigurationError: If there is no such request.
        """
        state = await self._erasures.state(number)
        if state is None:
            raise ConfigurationError(f"there is no request number {number}")
        return _receipt(state, self._remaining(state))

    def _remaining(self, state: ErasureState) -> tuple[str, ...]:
        name = type(self._store).__name__
        found: list[str] = []
        if state.waiting:
            found.append(f"{state.waiting:,} payloads are not deleted yet; this goes on.")
        if state.unconfirmed:
            found.append(
                f"{name} has not confirmed {state.unconfirmed:,} deletions yet; they are repeated "
                "until it does."
            )
        if "delete" not in self._store.capabilities:
            found.append(f"{name} cannot delete chunks: delete them with its own tools.")
        if not self._complete and "scan" not in self._store.capabilities:
            found.append(
                f"{name} cannot be scanned, and there is no journal file: chunks that an earlier "
                "process stored are not known, and are not deleted."
            )
        if state.erased_at is None:
            found.append("The files are not written anew yet; this goes on in the background.")
        found += self._eraser.remaining
        # Journal and store may be in the same database.
        found += dict.fromkeys((*self._erasures.remains, *self._store.remains))
        found.append(_COPIES)
        return tuple(found)

    async def _wait_for_index(self) -> None:
        """An upgraded journal learns who its payloads belong to in the background."""
        while (await self._catalog.unindexed(1))[0]:  # noqa: ASYNC110 - the indexer has no event
            await asyncio.sleep(_POLL_SECONDS)

    async def _select(self, asked: Asked) -> tuple[Selected, Sizes]:
        selected, sizes = await self._erasures.select(asked)
        check_products(asked, selected)
        return selected, sizes

    async def _begin(self, asked: Asked, *, block: bool) -> Begun:
        for _ in range(_ATTEMPTS):
            selected, _ = await self._select(asked)
            begun = await self._erasures.begin(asked, selected, block=block)
            if begun is not None:
                return begun
        raise PipelineError("payloads of the sessions to forget arrive all the time; try again")

    async def _delete_unknown(self, asked: Asked) -> set[str]:
        """Delete chunks of the store that a journal in memory does not know."""
        can = self._store.capabilities
        if self._complete or not {"scan", "delete"} <= can:
            return set()
        wanted = asked.given()
        found: set[str] = set()
        async for page in self._store.scan():
            for chunk in page:
                at = chunk.metadata.get("started_at") or chunk.metadata.get("forwarded_at") or 0.0
                in_time = asked.until is None or float(at) <= asked.until
                if in_time and all(
                    storable(str(chunk.metadata.get(name, ""))) == value
                    for name, value in wanted.items()
                ):
                    found.add(chunk.id)
        self._upkeep.delete(await self._catalog.delete_unknown(sorted(found), forgotten=True))
        return found

    async def _wait_until_confirmed(self, begun: Begun, scanned: set[str]) -> None:
        busy = await self._busy(begun.lanes)
        left = -1
        deadline = time.monotonic() + _CONFIRM_SECONDS
        while time.monotonic() < deadline:
            busy &= await self._busy(busy)
            scanned = await self._catalog.in_outbox(sorted(scanned)) if scanned else scanned
            state = await self._erasures.state(begun.number)
            assert state is not None
            before, left = left, state.waiting + state.unconfirmed + len(busy) + len(scanned)
            if not left:
                await self._erasures.mark_deleted([begun.number])
                return
            if left != before:
                deadline = time.monotonic() + _CONFIRM_SECONDS
            await asyncio.sleep(_POLL_SECONDS)
        _log.warning("a request to forget is not confirmed by the store yet; it goes on")


def _receipt(state: ErasureState, remaining: tuple[str, ...]) -> Receipt:
    record = state.record
    return Receipt(
        number=state.number,
        asked=record.asked,
        asked_at=state.asked_at,
        until=record.until,
        block=record.block,
        payloads=record.sizes.payloads,
        chunks=record.sizes.chunks,
        sessions=record.sizes.sessions,
        pending=record.sizes.pending,
        dead_letters=record.sizes.dead_letters,
        text_only=record.text_only,
        deleted_at=state.deleted_at,
        erased_at=state.erased_at,
        remaining=remaining,
    )
