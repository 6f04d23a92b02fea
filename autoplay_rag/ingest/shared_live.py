"""Live sessions and subscribers of one process, of several that share a journal.

They follow what all processes accepted, in the order of sequence numbers. So each subscriber sees the
same stream, whichever process it is connected to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from autoplay_rag._background import BackgroundWork
from autoplay_rag.content.keys import session_lane
from autoplay_rag.journal.ownership import AcceptedPayload, Membership
from autoplay_rag.live import Feed, LiveSessions
from autoplay_rag.payloads import Payload

__all__ = ["SharedLive"]

_POLL_SECONDS: Final = 0.5
"""The interval of looking without a wake-up."""
_LEAST_SECONDS: Final = 0.02
"""The shortest time between two looks. What arrives meanwhile is read together."""
_RETRY_SECONDS: Final = 1.0
_PAGE: Final = 500
_AT_ONCE: Final = 100
"""How many payloads are added before other tasks get a turn."""


class SharedLive(BackgroundWork):
    """Follows what all processes accept.

    What this process accepted is shown at once, unless something of another process comes before.

    Args:
        membership: Reads the journal.
        live: The sessions to fill.
        feed: The subscribers.
        show: Adds a payload to the live sessions.
        on_other: Called with each payload that another process may have accepted.
        on_forgotten: Awaited when a person or a session was forgotten, in any process.
        begin: How many seconds back to begin, and the most payloads to begin with.
    """

    def __init__(
        self,
        membership: Membership,
        live: LiveSessions,
        feed: Feed,
        *,
        show: Callable[[AcceptedPayload], None],
        on_other: Callable[[Payload], None],
        on_forgotten: Callable[[], Awaitable[object]],
        begin: tuple[float, int],
    ) -> None:
        super().__init__(
            "live sessions are not updated",
            longest_pause=_RETRY_SECONDS,
            every=_POLL_SECONDS,
            spacing=_LEAST_SECONDS,
        )
        self._membership = membership
        self._live = live
        self._feed = feed
        self._show = show
        self._on_other = on_other
        self._on_forgotten = on_forgotten
        self._seconds, self._most = begin
        self._seen = 0
        self._erasures = 0
        # What was read before a request to forget in this process may hold what it deleted.
        self._forgotten = 0
        # While sessions are read again, nothing is shown at once.
        self._following = False

    async def begin(self, *, filling: bool) -> None:
        """Read what was accepted lately. The numbers of events begin after it.

        Args:
            filling: Whether to show it, because the live sessions are empty.
        """
        found = await self._membership.lately_accepted(time.time() - self._seconds, self._most)
        self._feed.begin(found.upto)
        if filling:
            for row in found.rows:
                self._show(row)
        self._know(found.rows)
        self._seen, self._erasures = found.upto, found.erasures
        self._following = True
        self.wake()

    def is_next(self, seq: int) -> bool:
        """Note that this process accepted a payload.

        Returns:
            Whether it is the next one: then the caller shows it. Otherwise the next look does, after
            what comes before it.
        """
        if not self._following or seq != self._seen + 1:
            self.wake()
            return False
        self._seen = seq
        return True

    def forgotten(self) -> None:
        """Note that this process has forgotten something. What is being read is read again."""
        self._forgotten += 1
        self.wake()

    async def _work(self) -> None:
        more = True
        while more:
            forgotten = self._forgotten
            found = await self._membership.accepted(self._seen, _PAGE)
            if forgotten != self._forgotten:
                continue
            if found.erasures != self._erasures:
                await self._forget()
                continue
            for number, row in enumerate(found.rows, 1):
                if row.seq > self._seen:  # it may have been shown meanwhile
                    self._seen = row.seq
                    self._add(row)
                if not number % _AT_ONCE:
                    await asyncio.sleep(0)
                    if forgotten != self._forgotten:
                        break
            else:
                self._seen = max(self._seen, found.upto)
                more = found.more

    def _add(self, row: AcceptedPayload) -> None:
        self._on_other(row.payload)
        self._show(row)
        self._feed.publish(row.seq, row.at, row.lane, row.payload, row.size)

    async def _forget(self) -> None:
        """Read the sessions again, without what was forgotten."""
        self._following = False
        try:
            while True:
                forgotten = self._forgotten
                fresh = self._live.like()
                found = await self._membership.lately_accepted(
                    time.time() - self._seconds, self._most
                )
                for number, row in enumerate(found.rows, 1):
                    fresh.add(row.payload, at=row.at)
                    if not number % _AT_ONCE:
                        await asyncio.sleep(0)
                self._feed.retain(await self._membership.kept(self._feed.kept))
                if forgotten == self._forgotten:
                    break
            self._live.replace(fresh)
            self._know(found.rows)
            for row in found.rows:  # those that came since the last look
                if row.seq > self._seen:
                    self._on_other(row.payload)
                    self._feed.publish(row.seq, row.at, row.lane, row.payload, row.size)
            self._seen, self._erasures = max(self._seen, found.upto), found.erasures
            await self._on_forgotten()
        finally:
            self._following = True

    def _know(self, rows: Iterable[AcceptedPayload]) -> None:
        for row in rows:
            if session_id := row.payload.session_id:
                self._feed.know(session_lane(row.payload.product_id, session_id), row.payload)
