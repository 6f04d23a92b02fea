"""Reads a topic as a member of its group, and hands the messages to the journal.

The life of a partition here:

- assigned: this process becomes its reader in the database, which ends the right of the former one,
  and then asks where to begin.
- messages: their payloads and the offset after them are committed together. Then Kafka's own offset
  follows, for tools that show the lag.
- revoked: nothing is under way then, and the partition is released.
- lost (this process was away for too long): what it had begun to write is refused by the database,
  because the epoch of the partition is another one. Without a new reader, it is released.
- read by another process, which took this one for ended (see `standing_in`): refused as well.
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
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaException, TopicPartition

from autoplay_rag.cluster.topic_rows import UNREAD, Held, TopicRows
from autoplay_rag.errors import BrokerError, FencedError, JournalError
from autoplay_rag.journal.inflow import Enter, Inflow, TopicStatus
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.admin import Describes, Topic
from autoplay_rag.kafka.consumer import (
    Consumer,
    MakeConsumer,
    by_part,
    close,
    make_consumer,
    place_of,
    read_some,
    reason_of,
)
from autoplay_rag.kafka.settings import ClientSettings
from autoplay_rag.kafka.standing_in import StandIn
from autoplay_rag.kafka.taking import TakeIn, Taker, release
from autoplay_rag.kafka.trying import Attempts

__all__ = ["TopicReader"]

_log = logging.getLogger(__name__)

_NO_OFFSET: Final = "_AUTO_OFFSET_RESET"
_AT_THE_END: Final = "_PARTITION_EOF"
_LOOK_SECONDS: Final = 1.0
"""The interval of asking for the topic's id, and of telling how far this process is."""
_AGAIN_SECONDS: Final = 3.0
"""How long after a refusal a partition is taken again: some heartbeats, each a second."""


class TopicReader(Inflow):
    """A member of the consumer group.

    Args:
        address: The topic and the group.
        settings: The properties of the client.
        rows: The owners and offsets of the partitions.
        admin: Asks the broker about the topic.
        name: The name of this process for people.
        take_in: Commits entries.
        stand_in: Reads for members that have ended; None for nobody.
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
        stand_in: StandIn | None = None,
        make: MakeConsumer = make_consumer,
    ) -> None:
        self._address = address
        self._settings = settings
        self._rows = rows
        self._admin = admin
        self._name = name
        self._stand_in = stand_in
        self._make = make
        self._attempts = Attempts(address)
        self._taker = Taker(address.topic, take_in, self._attempts)
        self._held: dict[int, Held] = {}
        # Partitions of this member that another process has taken, and when to take them again.
        self._taken_away: dict[int, float] = {}
        # What the member was told itself, such as that the group refuses it. That the broker answers
        # questions about the topic says nothing about it.
        self._refusal: str | None = None
        self._listed: Topic | None = None
        # Whether the topic may have been made anew since its id was asked for.
        self._doubtful = True
        self._look_at = 0.0
        self._ends: dict[int, int] = {}

    @property
    def problems(self) -> list[str]:
        """As in `Inflow`."""
        problems = [
            self._attempts.problem,
            self._refusal,
            self._stand_in and self._stand_in.problem,
        ]
        return [f"the {self._address}: {one}" for one in dict.fromkeys(problems) if one]

    async def status(self) -> TopicStatus:
        """As in `Inflow`."""
        return TopicStatus(self._address.topic, self._address.group, tuple(await self._rows.read()))

    def stop(self) -> None:
        """As in `Inflow`."""
        self._attempts.stop()
        if self._stand_in is not None:
            self._stand_in.stop()

    async def run(self, enter: Enter, on_taken: Callable[[], None]) -> None:
        """As in `Inflow`.

        Raises:
            ConfigurationError: If the client refuses its settings.
        """
        self._taker.enter, self._taker.on_taken = enter, on_taken
        if self._stand_in is None:
            return await self._be_member()
        standing_in = asyncio.create_task(
            self._stand_in.run(enter, on_taken), name="autoplay-stand-in"
        )
        try:
            await self._be_member()
        finally:
            standing_in.cancel()
            await asyncio.wait([standing_in])
            if not standing_in.cancelled():
                standing_in.result()

    async def _be_member(self) -> None:
        failures = 0
        while not self._attempts.stopping.is_set():
            consumer = self._make(self._address, self._settings, self._troubled)
            try:
                await self._read(consumer)
            except (BrokerError, JournalError) as error:
                self._attempts.fail(str(error))
                failures += 1
            except KafkaException as error:
                self._attempts.fail(reason_of(error.args[0]))
                failures += 1
            else:
                failures = 0
            finally:
                await self._close(consumer)
            if failures:
                await self._attempts.pause_after(failures - 1)

    # -- one membership -----------------------------------------------------------------------

    async def _read(self, consumer: Consumer) -> None:
        await consumer.subscribe(
            [self._address.topic],
            on_assign=self._assigned,
            on_revoke=self._revoked,
            on_lost=self._lost,
        )
        while not self._attempts.stopping.is_set():
            messages, deleted = self._sorted(await read_some(consumer))
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
        try:
            await close(consumer)
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
                self._refused(reason_of(error))
        return good, deleted

    # -- assignment of partitions --------------------------------------------------------------

    async def _assigned(self, consumer: Consumer, parts: Sequence[Any]) -> None:
        self._refusal = None
        numbers = [part.partition for part in parts]
        if not numbers:
            return
        held = await self._attempts.until_stopped(lambda: self._become_reader(numbers))
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
            await release(self._rows, gone)
            await self._commit(consumer, gone)
        await consumer.incremental_unassign(list(parts))

    async def _lost(self, consumer: Consumer, parts: Sequence[Any]) -> None:
        if gone := self._drop(parts):
            _log.warning(
                "lost the partitions %s of the %s, because this process was away for too long",
                _listed([one.part for one in gone]),
                self._address,
            )
            await release(self._rows, gone)
        await consumer.incremental_unassign(list(parts))

    def _drop(self, parts: Sequence[Any]) -> list[Held]:
        gone = [self._held.pop(p.partition) for p in parts if p.partition in self._held]
        for part in parts:
            self._taken_away.pop(part.partition, None)
        for one in gone:
            self._ends.pop(one.part, None)
        return gone

    # -- messages -----------------------------------------------------------------------------

    async def _take(self, consumer: Consumer, messages: Sequence[Any]) -> None:
        # In one order in all processes: their transactions do not wait for each other then.
        ended = await asyncio.gather(
            *(
                self._take_part(consumer, held, some)
                for part, some in by_part(messages)
                if (held := self._held.get(part)) is not None
            ),
            return_exceptions=True,  # all have ended before one's error ends the membership
        )
        for error in ended:
            if error is not None:
                raise error

    async def _take_part(self, consumer: Consumer, held: Held, messages: Sequence[Any]) -> None:
        try:
            await self._taker.take(held, messages, on_full=partial(self._note_ends, consumer))
            self._refusal = None
        except FencedError as error:
            _log.warning("%s", error)
            await self._resume(consumer, held)

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
        held = await self._attempts.until_stopped(lambda: self._become_reader(numbers))
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
            attempts = self._attempts
            topic = await (attempts.until_stopped if self._doubtful else attempts.unless_stopped)(
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
            begun = await self._attempts.until_stopped(
                partial(self._rows.begin_anew, held, topic.id)
            )
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

    def _place(self, held: Held) -> TopicPartition:
        return place_of(self._address.topic, held)

    # -- failures -----------------------------------------------------------------------------

    def _troubled(self, why: str) -> None:
        self._doubtful = True
        self._attempts.fail(why)

    def _refused(self, why: str) -> None:
        self._doubtful = True
        if self._refusal != why:
            _log.error("the %s: %s; trying again", self._address, why)
        self._refusal = why


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
