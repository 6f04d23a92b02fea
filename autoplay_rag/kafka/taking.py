"""Commits messages of a partition: their payloads, and the offset after them, in one transaction.

And gives partitions back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from autoplay_rag.cluster.topic_rows import Held, TopicRows
from autoplay_rag.errors import (
    DecodeError,
    FencedError,
    JournalError,
    JournalFullError,
    PipelineClosedError,
    UnknownPayloadError,
)
from autoplay_rag.journal.base import Entry, Outcome
from autoplay_rag.journal.inflow import Enter
from autoplay_rag.kafka.messages import payload_of
from autoplay_rag.kafka.trying import Attempts

__all__ = ["TakeIn", "Taker", "release"]

_log = logging.getLogger(__name__)

TakeIn = Callable[[Held, int, Sequence[Entry]], asyncio.Future[list[Outcome]]]
"""Commits entries together with the offset after them."""

_TOGETHER: Final = 250
_TOGETHER_BYTES: Final = 4 * 2**20
"""The most messages and bytes in one transaction. Others wait for it."""
_YIELD_EVERY: Final = 32
"""After so many messages others may use the event loop."""
_RELEASE_SECONDS: Final = 3.0
"""How long the release of partitions may take. Without it, another process takes them anyway."""


class _Read(NamedTuple):
    """A message, as the journal takes it.

    Attributes:
        after: The offset after it.
        entries: Its entries.
    """

    after: int
    entries: Sequence[Entry]


class Taker:
    """Makes entries of messages, and commits them.

    Args:
        topic: The name of the topic.
        take_in: Commits entries.
        attempts: Says when to stop, and is told of failures.

    Attributes:
        enter: Makes the entries. Set before `take` is called.
        on_taken: Called when something was taken in. Set before `take` is called.
    """

    enter: Enter
    on_taken: Callable[[], None]

    def __init__(self, topic: str, take_in: TakeIn, attempts: Attempts) -> None:
        self._topic = topic
        self._take_in = take_in
        self._attempts = attempts

    async def take(
        self,
        held: Held,
        messages: Sequence[Any],
        *,
        on_full: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Take messages in, and move the offset of their partition on.

        Wait while that cannot be. If this is to stop, a part of them may be left.

        Args:
            held: Their partition.
            messages: In the order of the partition. Those before its offset are left out.
            on_full: Called whenever there is no room for a message.

        Raises:
            FencedError: If this process is not the reader any more, or another offset is saved.
        """
        fresh = [message for message in messages if message.offset() >= held.offset]
        begin = 0
        while begin < len(fresh):
            some: list[_Read] = []
            size = 0
            while begin < len(fresh) and len(some) < _TOGETHER and size < _TOGETHER_BYTES:
                message = fresh[begin]
                size += len(message.value() or b"")
                some.append(_Read(message.offset() + 1, self._entries(held, message)))
                begin += 1
                if not begin % _YIELD_EVERY:
                    await asyncio.sleep(0)
            if not await self._commit(held, some, on_full):
                return

    def _entries(self, held: Held, message: Any) -> list[Entry]:
        try:
            return self.enter.payload(payload_of(message.value()))
        except UnknownPayloadError as error:
            why = str(error)
        except DecodeError as error:
            why = f"it is no payload: {error}"
        place = f"offset {message.offset()} of partition {held.part} of the topic"
        _log.warning("the message at %s %s: %s", place, self._topic, why)
        identity = f"{held.topic_id} {held.part} {message.offset()}".encode()
        key = blake2b(identity, digest_size=16).hexdigest()
        return [self.enter.broken(key, f"the message at {place} {self._topic}: {why}")]

    async def _commit(
        self, held: Held, some: Sequence[_Read], on_full: Callable[[], Awaitable[None]] | None
    ) -> bool:
        """Commit what was read, and the offset after it. Wait while that cannot be.

        Returns:
            Whether to go on. If this is to stop, it may be a part of it.

        Raises:
            FencedError: If this process is not the reader any more.
        """
        most = len(some)
        while some and not self._attempts.stopping.is_set():
            now = some[:most]
            try:
                await self._take_in(
                    held, now[-1].after, [one for read in now for one in read.entries]
                )
            except FencedError:
                raise
            except PipelineClosedError:
                return False
            except JournalFullError as error:
                if len(now) > 1:
                    most = len(now) // 2  # there may be room for these
                    continue
                size = sum(entry.size for entry in now[0].entries)
                self._attempts.fail(
                    f"the message at offset {now[0].after - 1} of partition {held.part} waits "
                    f"({size:,} bytes): {error}"
                )
                if on_full is not None:
                    await on_full()
                await self._attempts.pause_after(0)
            except JournalError as error:
                self._attempts.fail(str(error))
                await self._attempts.pause_after(0)
            else:
                held.offset = now[-1].after
                some = some[most:]
                self._attempts.succeed()
                self.on_taken()
        return not some


async def release(rows: TopicRows, gone: Sequence[Held]) -> None:
    """Give partitions back, if the database answers soon.

    Args:
        rows: Their rows.
        gone: The partitions; may be empty.
    """
    if not gone:
        return
    with suppress(JournalError, TimeoutError):
        async with asyncio.timeout(_RELEASE_SECONDS):
            await rows.release(gone)
