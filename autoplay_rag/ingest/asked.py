"""Tells the other processes of a journal who asked the assistant: one of them pulls what they did."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from contextlib import suppress
from typing import Final

from autoplay_rag.errors import JournalError
from autoplay_rag.journal.ownership import Membership

__all__ = ["SharedAsked"]

_log = logging.getLogger(__name__)

_AGAIN_SECONDS: Final = 60.0
"""A person who asks again within this time is not told again. Sources watch them for an hour."""
_MOST: Final = 10_000


class SharedAsked:
    """Passes on who asked, at most once a minute for each person.

    Args:
        membership: Tells the other processes.
        loop: The event loop that runs `run`.
    """

    def __init__(self, membership: Membership, loop: asyncio.AbstractEventLoop) -> None:
        self._membership = membership
        self._loop = loop
        self._told: OrderedDict[tuple[str, str | None], float] = OrderedDict()
        self._waiting: OrderedDict[tuple[str, str | None], None] = OrderedDict()
        self._woken = asyncio.Event()

    def note(self, user_id: str, product_id: str | None) -> None:
        """Note that somebody asked. May be called from any thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._note, user_id, product_id)

    def _note(self, user_id: str, product_id: str | None) -> None:
        who, now = (user_id, product_id), time.monotonic()
        if now - self._told.pop(who, float("-inf")) < _AGAIN_SECONDS:
            return
        self._told[who] = now
        self._waiting[who] = None
        for known in (self._told, self._waiting):
            if len(known) > _MOST:
                known.popitem(last=False)
        self._woken.set()

    def forget(self) -> None:
        """Forget who asked."""
        self._told.clear()
        self._waiting.clear()

    async def run(self) -> None:
        """Tell until cancelled. Nobody is told while the journal does not answer."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                (user_id, product_id), _ = self._waiting.popitem(last=False)
                try:
                    await self._membership.tell_asked(user_id, product_id)
                except JournalError as error:
                    _log.debug("others were not told who asked: %s", error)
