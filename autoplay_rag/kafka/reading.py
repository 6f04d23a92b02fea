"""Reads a topic as a member of its group, and hands the messages to the journal.

The life of a partition here:

- assigned: this process becomes its reader in the database, which ends the right of the former one,
  and then asks where to begin.
- messages: their payloads and the offset after them are committed together. Then Kafka's own offset
  follows, for tools that show the lag.
- revoked: nothing is under way then, and the partition is released.
- lost (this process was away for too long): what it had begun to write is refused by the database,
  because the epoch of the partition is another one. Without a new reader, it is released.
- refused, but not lost: one of two processes knows too little. A process that was away learns that
  with its next heartbeat. The one that has the partition still takes it again a moment later.
- the topic was made anew: everything is read from its first message.
- messages were deleted before they were read: their number is said and counted, and reading goes on
  with the first message that is there.

A message is read again after any of these. The journal knows its payload by its key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from autoplay_rag._backoff import grown_delay
from autoplay_rag.cluster.topic_rows import UNREAD, Held, TopicRows
from autoplay_rag.errors import (
    BrokerError,
    DecodeError,
    FencedError,
    JournalError,
    JournalFullError,
    PipelineClosedError,
    UnknownPayloadError,
)
from autoplay_rag.journal.base import Entry, Outcome
from autoplay_rag.journal.inflow import Enter, Inflow, TopicStatus
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.admin import Topic
from autoplay_rag.kafka.consumer import Consumer, MakeConsumer, make_consumer
from autoplay_rag.kafka.messages import payload_of
from autoplay_rag.kafka.settings import ClientSettings

__all__ = ["Describes", "TakeIn", "TopicReader"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

TakeIn = Callable[[Held, int, Sequence[Entry]], asyncio.Future[list[Outcome]]]
"""Commits entries together with the offset after them."""

_NO_OFFSET: Final = "_AUTO_OFFSET_RESET"
_AT_THE_END: Final = "_PARTITION_EOF"
_POLL_SECONDS: Final = 0.25
"""How long one call waits for a message. `stop` is noticed after it."""
_MOST: Final = 1_000
"""The most messages that are read together."""
_TOGETHER: Final = 250
_TOGETHER_BYTES: Final = 4 * 2**20
"""The most messages and bytes in one transaction. Others wait for it."""
_LOOK_SECONDS: Final = 1.0
"""The interval of asking for the topic's id, and of telling how far this process is."""
_RETRY_SECONDS: Final = 1.0
_LONGEST_PAUSE: Final = 10.0
_AGAIN_SECONDS: Final = 3.0
"""How long after a refusal a partition is taken again: some heartbeats, each a second."""
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


class Describes(Protocol):
    """Asks the broker about the topic."""

    async def describe(self) -> Topic | None:
        """Return the topic; None if there is none."""


class TopicReader(Inflow):
    """A member of the consumer group.

    Args:
        address: The topic and the group.
        settings: The properties of the client.
        rows: The owners and offsets of the partitions.
        admin: Asks the broker about the topic.
        name: The name of this process for people.
        take_in: Commits entries.
        make: Makes the client.
    """

    def __init__(
        self,
        address: TopicAddress,
        settings: ClientSettings,
        rows: TopicRows,
        admin: Describes,
        *,
        name: str,
        take_in: TakeIn,
        make: MakeConsumer = make_consumer,
    ) -> None:
        self._address = address
        self._settings = settings
        self._rows = rows
        self._admin = admin
        self._name = name
        self._take_in = take_in
        self._make = make
        self._held: dict[int, Held] = {}
        # Partitions of this member that another process has taken, and when to take them again.
        self._taken_away: dict[int, float] = {}
        self._stopping = asyncio.Event()
        self._problem: str | None = None
        # What the member was told itself, such as that the group refuses it. That the broker answers
        # questions about the topic says nothing about it.
        self._refusal: str | None = None
        self._listed: Topic | None = None
        # Whether the topic may have been made anew since its id was asked for.
        self._doubtful = True
        self._look_at = 0.0
        self._ends: dict[int, int] = {}
        self._enter: Enter
        self._on_taken: Callable[[], None]

    @property
    def problems(self) -> list[str]:
        """As in `Inflow`."""
        found = dict.fromkeys(why for why in (self._problem, self._refusal) if why)
        return [f"the {self._address}: {why}" for why in found]

    async def status(self) -> TopicStatus:
        """As in `Inflow`."""
        return TopicStatus(self._address.topic, self._address.group, tuple(await self._rows.read()))

    def stop(self) -> None:
        """As in `Inflow`."""
        self._stopping.set()

    async def run(self, enter: Enter, on_taken: Callable[[], None]) -> None:
        """As in `Inflow`.

        Raises:
            ConfigurationError: If the client refuses its settings.
        """
        self._enter, self._on_taken = enter, on_taken
        failures = 0
        while not self._stopping.is_set():
            consumer = self._make(self._address, self._settings, self._troubled)
            try:
                await self._read(consumer)
            except (BrokerError, JournalError) as error:
                self._fail(str(error))
                failures += 1
            except KafkaException as error:
                self._fail(_reason(error.args[0]))
                failures += 1
            else:
                failures = 0
            finally:
                await self._close(consumer)
            if failures:
                await self._pause(grown_delay(failures - 1, _RETRY_SECONDS, _LONGEST_PAUSE))

    # -- one membership -----------------------------------------------------------------------

    async def _read(self, consumer: Consumer) -> None:
        await consumer.subscribe(
            [self._address.topic],
            on_assign=self._assigned,
            on_revoke=self._revoked,
            on_lost=self._lost,
        )
        while not self._stopping.is_set():
            first = await consumer.poll(_POLL_SECONDS)
            messages = [] if first is None else [first, *await consumer.consume(_MOST - 1, 0)]
            messages, deleted = self._sorted(messages)
            now = asyncio.get_running_loop().time()
            due = now >= self._look_at
            if due or (messages and self._doubtful):
                begun = await self._begun_anew(consumer)
                # It belongs to the topic before, or comes again.
                messages = [one for one in messages if one.partition() not in begun]
                deleted = [part for part in deleted if part not in begun]
            await self._take(consumer, messages)
            for part in deleted:
                await self._restart(consumer, part)
            if due:
                self._look_at = now + _LOOK_SECONDS
                await self._take_again(consumer, now)
                await self._tell(consumer)

    async def _close(self, consumer: Consumer) -> None:
        """Leave the group, also if this is cancelled: a member that stays holds up the others."""
        closing = asyncio.ensure_future(consumer.close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait([closing])
            raise
        finally:
            self._held.clear()
            self._taken_away.clear()
            self._ends.clear()
            self._doubtful = True
            self._refusal = None

    def _sorted(self, messages: Sequence[Any]) -> tuple[list[Any], list[int]]:
        """Return the messages that carry something, and the partitions whose next one was deleted."""
        good, deleted = [], []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            elif error.name() == _NO_OFFSET:
                deleted.append(message.partition())
            elif error.name() != _AT_THE_END:
                self._refused(_reason(error))
        return good, deleted

    # -- assignment of partitions --------------------------------------------------------------

    async def _assigned(self, consumer: Consumer, parts: Sequence[Any]) -> None:
        self._refusal = None
        numbers = [part.partition for part in parts]
        if not numbers:
            return
        held = await self._until_stopped(lambda: self._become_reader(numbers))
        if held is None:
            return
        _log.info("reads the partitions %s of the %s", _listed(numbers), self._address)
        if any(one.is_anew for one in held):
            self._say_anew()
        self._held.update({one.part: one for one in held})
        await consumer.incremental_assign([self._place(one) for one in held])

    async def _become_reader(self, numbers: Sequence[int]) -> list[Held]:
        topic = await self._described()
        return await self._rows.take(self._name, topic.id, numbers)

    async def _revoked(self, consumer: Consumer, parts: Sequence[Any]) -> None:
        if gone := self._drop(parts):
            await self._release(gone)
            await self._commit(consumer, gone)
        await consumer.incremental_unassign(list(parts))

    async def _lost(self, consumer: Consumer, parts: Sequence[Any]) -> None:
        if gone := self._drop(parts):
            _log.warning(
                "lost the partitions %s of the %s, because this process was away for too long",
                _listed([one.part for one in gone]),
                self._address,
            )
            await self._release(gone)
        await consumer.incremental_unassign(list(parts))

    async def _release(self, gone: Sequence[Held]) -> None:
        with suppress(JournalError, TimeoutError):
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._rows.release(gone)

    def _drop(self, parts: Sequence[Any]) -> list[Held]:
        gone = [self._held.pop(p.partition) for p in parts if p.partition in self._held]
        for part in parts:
            self._taken_away.pop(part.partition, None)
        for one in gone:
            self._ends.pop(one.part, None)
        return gone

    # -- messages -----------------------------------------------------------------------------

    async def _take(self, consumer: Consumer, messages: Sequence[Any]) -> None:
        of_part: dict[int, list[Any]] = {}
        for message in messages:
            of_part.setdefault(message.partition(), []).append(message)
        # In one order in all processes: their transactions do not wait for each other then.
        ended = await asyncio.gather(
            *(
                self._take_part(consumer, held, of_part[part])
                for part in sorted(of_part)
                if (held := self._held.get(part)) is not None
            ),
            return_exceptions=True,  # all have ended before one's error ends the membership
        )
        for error in ended:
            if error is not None:
                raise error

    async def _take_part(self, consumer: Consumer, held: Held, messages: Sequence[Any]) -> None:
        fresh = [message for message in messages if message.offset() >= held.offset]
        begin = 0
        try:
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
                if not await self._commit_some(consumer, held, some):
                    return
        except FencedError as error:
            _log.warning("%s", error)
            await self._resume(consumer, held)

    def _entries(self, held: Held, message: Any) -> list[Entry]:
        try:
            return self._enter.payload(payload_of(message.value()))
        except UnknownPayloadError as error:
            why = str(error)
        except DecodeError as error:
            why = f"it is no payload: {error}"
        place = f"offset {message.offset()} of partition {held.part} of the topic"
        _log.warning("the message at %s %s: %s", place, self._address.topic, why)
        identity = f"{held.topic_id} {held.part} {message.offset()}".encode()
        key = blake2b(identity, digest_size=16).hexdigest()
        return [self._enter.broken(key, f"the message at {place} {self._address.topic}: {why}")]

    async def _commit_some(self, consumer: Consumer, held: Held, some: Sequence[_Read]) -> bool:
        """Commit what was read, and the offset after it. Wait while that cannot be.

        Returns:
            Whether to go on. If this is to stop, it may be a part of it.

        Raises:
            FencedError: If this process is not the reader any more.
        """
        most = len(some)
        while some and not self._stopping.is_set():
            now = some[:most]
            try:
                await self._take_in(
                    held, now[-1].after, [one for read in now for one in read.entries]
                )
            except FencedError:
                raise
            except PipelineClosedError:
                return False
            except JournalError as error:
                if isinstance(error, JournalFullError) and len(now) > 1:
                    most = len(now) // 2  # there may be room for these
                    continue
                if isinstance(error, JournalFullError):
                    size = sum(entry.size for entry in now[0].entries)
                    self._fail(
                        f"the message at offset {now[0].after - 1} of partition {held.part} waits "
                        f"({size:,} bytes): {error}"
                    )
                    await self._note_ends(consumer)
                else:
                    self._fail(str(error))
                await self._pause(_RETRY_SECONDS)
            else:
                held.offset = now[-1].after
                some = some[most:]
                self._problem = self._refusal = None
                self._on_taken()
        return not some

    async def _resume(self, consumer: Consumer, held: Held) -> None:
        """Go on where the database says, if this process is the reader still."""
        now = await self._rows.current(held.part)
        if now is None or now.epoch != held.epoch:
            self._set_aside(held)
            return
        held.topic_id, held.offset = now.topic_id, now.offset
        await consumer.seek(self._place(held))

    def _set_aside(self, held: Held) -> None:
        del self._held[held.part]
        self._ends.pop(held.part, None)
        self._taken_away[held.part] = asyncio.get_running_loop().time() + _AGAIN_SECONDS

    async def _take_again(self, consumer: Consumer, now: float) -> None:
        """Take partitions that were taken away, and which this member has still."""
        numbers = [part for part, at in self._taken_away.items() if at <= now]
        if not numbers:
            return
        held = await self._until_stopped(lambda: self._become_reader(numbers))
        for one in held or ():
            del self._taken_away[one.part]
            self._held[one.part] = one
            await consumer.seek(self._place(one))

    # -- the topic ----------------------------------------------------------------------------

    async def _begun_anew(self, consumer: Consumer) -> set[int]:
        """Look whether the topic was made anew.

        Returns:
            The partitions of which nothing that was read so far may be taken in. Those that were
            assigned since are not among them.
        """
        try:
            topic = await (self._until_stopped if self._doubtful else self._unless_stopped)(
                self._described
            )
        except (BrokerError, JournalError) as error:
            self._troubled(str(error))
            return set()
        if topic is None:
            return {*self._held}
        self._doubtful = False
        if self._held:
            self._refusal = None
        old = [one for one in self._held.values() if one.topic_id != topic.id]
        if old:
            self._say_anew()
        for held in old:
            begun = await self._until_stopped(partial(self._rows.begin_anew, held, topic.id))
            if begun:
                held.topic_id, held.offset = topic.id, UNREAD
                await consumer.seek(self._place(held))
            elif begun is False:
                self._set_aside(held)
        return {one.part for one in old}

    def _say_anew(self) -> None:
        _log.warning(
            "the %s was made anew: reading it from its first message; payloads that are known "
            "already count as duplicates",
            self._address,
        )

    async def _described(self) -> Topic:
        topic = await self._admin.describe()
        if topic is None:
            raise BrokerError("there is no such topic")
        if topic != self._listed:
            await self._rows.list_parts(topic.id, topic.partitions)
            self._listed = topic
        return topic

    async def _restart(self, consumer: Consumer, part: int) -> None:
        """Go on with the first message that is there: those before were deleted."""
        held = self._held.get(part)
        if held is None:
            return
        first, _ = await consumer.get_watermark_offsets(self._place(held), cached=False)
        missed = max(0, first - held.offset) if held.offset != UNREAD else 0
        if not await self._rows.restart(held, missed):
            self._set_aside(held)
            return
        held.offset = UNREAD
        if missed:
            _log.error(
                "the %s: %s messages of partition %d were deleted before they were read, and are "
                "LOST: keep messages for longer (retention.ms), or read faster",
                self._address,
                f"{missed:,}",
                part,
            )
        await consumer.seek(self._place(held))

    async def _tell(self, consumer: Consumer) -> None:
        """Tell the broker and the database how far this process is."""
        await self._note_ends(consumer)
        await self._commit(consumer, list(self._held.values()))

    async def _note_ends(self, consumer: Consumer) -> None:
        ends: list[tuple[Held, int]] = []
        for held in [*self._held.values()]:
            _, end = await consumer.get_watermark_offsets(self._place(held), cached=True)
            if end >= 0 and self._ends.get(held.part) != end:
                ends.append((held, end))
        if ends:
            with suppress(JournalError):
                await self._rows.note_ends(ends)
                self._ends.update((held.part, end) for held, end in ends)

    async def _commit(self, consumer: Consumer, held: Sequence[Held]) -> None:
        offsets = [
            TopicPartition(self._address.topic, one.part, one.offset)
            for one in held
            if one.offset != UNREAD
        ]
        if offsets:
            with suppress(KafkaException):  # nothing depends on it
                await consumer.commit(offsets=offsets, asynchronous=True)

    def _place(self, held: Held) -> Any:
        offset = OFFSET_BEGINNING if held.offset == UNREAD else held.offset
        return TopicPartition(self._address.topic, held.part, offset)

    # -- failures -----------------------------------------------------------------------------

    def _troubled(self, why: str) -> None:
        self._doubtful = True
        self._fail(why)

    def _refused(self, why: str) -> None:
        self._doubtful = True
        if self._refusal != why:
            _log.error("the %s: %s; trying again", self._address, why)
        self._refusal = why

    def _fail(self, why: str) -> None:
        if self._problem is None:
            _log.error("the %s: %s; trying again", self._address, why)
        self._problem = why

    async def _until_stopped(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """Repeat work until it succeeds; return None if this is to stop."""
        failures = 0
        while not self._stopping.is_set():
            try:
                return await self._unless_stopped(work)
            except (BrokerError, JournalError) as error:
                self._fail(str(error))
                await self._pause(grown_delay(failures, _RETRY_SECONDS, _LONGEST_PAUSE))
                failures += 1
        return None

    async def _unless_stopped(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        working = asyncio.ensure_future(work())
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                return None
            found = working.result()
            self._problem = None
            return found
        finally:
            for task in (working, stopped):
                task.cancel()
            await asyncio.wait([working, stopped])

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


def _reason(error: KafkaError) -> str:
    return str(error.str())


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
