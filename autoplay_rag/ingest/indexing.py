"""Indexes payloads of older versions and chunks read from a store, in the background."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from autoplay_rag._serial import SerialThread
from autoplay_rag.content.passages import Passage, passage_of, passage_of_text
from autoplay_rag.errors import JournalError
from autoplay_rag.journal.base import IndexEntry, Journal, Unindexed
from autoplay_rag.journal.bodies import decoded, unpack

__all__ = ["Indexer"]

_log = logging.getLogger(__name__)

_PAGE: Final = 200
_PROGRESS_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 1.0


class Indexer:
    """Adds payloads that are not in the full-text index yet, newest first.

    Args:
        journal: The journal with the payloads and the index.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._thread = SerialThread("autoplay-indexer")

    async def run(self) -> None:
        """Run until all payloads are indexed."""
        done, said = 0, time.monotonic()
        while True:
            try:
                page, left = await self._journal.unindexed(_PAGE)
                if not page:
                    break
                entries = await self._thread.run(_entries_of, page)
                await self._journal.index(entries, page[-1].seq)
            except JournalError as error:
                _log.error("full text of older payloads is not indexed now: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            done += len(page)
            if time.monotonic() - said >= _PROGRESS_SECONDS:
                said = time.monotonic()
                _log.info(
                    "full text: %s older payloads done, about %s left", f"{done:,}", f"{left:,}"
                )
        if done:
            _log.info("full text: %s older payloads can be found by their words", f"{done:,}")


def _entries_of(page: Sequence[Unindexed]) -> list[IndexEntry]:
    found = []
    for one in page:
        try:
            if (entry := _entry(one)) is not None:
                found.append(entry)
        except Exception as error:  # noqa: BLE001 - one payload must not stop the others
            _log.error("a payload is not found by its words: %s", type(error).__name__)
        time.sleep(0)  # releases the GIL for the event loop
    return found


def _entry(one: Unindexed) -> IndexEntry | None:
    payload = decoded(unpack(one.body))
    if payload is not None:
        return IndexEntry(
            one.seq, one.lane, payload.product_id, payload.session_id, passage_of(payload)
        )
    if one.chunk is None:
        return None
    text, product, session, user, conversation, started, ended, actions = one.chunk
    passage: Passage = passage_of_text(
        text,
        started=started,
        ended=ended,
        actions=actions,
        user_id=user,
        conversation_id=conversation,
    )
    return IndexEntry(one.seq, one.lane, product, session, passage)
