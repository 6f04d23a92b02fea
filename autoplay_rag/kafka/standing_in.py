"""Reads the partitions of processes that have ended, until the group assigns them to a member.

The broker learns that a process was killed only when its session has timed out, and then the group
needs seconds to assign its partitions again. PostgreSQL sees the end of its connection at once (see
`autoplay_rag/cluster/presence.py`). So another process reads on from the saved offset meanwhile, with
a client of its own that is no member of the group.

The epoch of the partition decides who may write, as everywhere:

- Of several processes that find the partition, the first one gets it.
- The member to which the group assigns it takes it over. What was read here since is refused.
- A process that has not ended, but looks so, takes it again. It is left alone from then on.

What is not simple ends the standing in, and is left to the member of the group: a topic that was made
anew, messages that were deleted, a broker that does not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from confluent_kafka import KafkaException

from autoplay_rag.cluster.presence import Presence
from autoplay_rag.cluster.topic_rows import Held, LeftBehind, TopicRows
from autoplay_rag.errors import BrokerError, FencedError, JournalError
from autoplay_rag.journal.inflow import Enter
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.admin import Describes
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
from autoplay_rag.kafka.taking import TakeIn, Taker, release
from autoplay_rag.kafka.trying import Attempts

__all__ = ["StandIn"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.5
"""The interval of looking for partitions whose readers have ended."""
_SURE_SECONDS: Final = 1.25
"""For how long a reader must seem to have ended. A live one is connected again within that."""
_CALM_SECONDS: Final = 5.0
"""The pause after a failure. After a restart of PostgreSQL, all processes seem to have ended."""


class StandIn:
    """Shows other processes that this one runs, and stands in for those that have ended.

    Args:
        address: The topic.
        settings: The properties of the client.
        rows: The owners and offsets of the partitions.
        admin: Asks the broker about the topic.
        presence: The lock of this process.
        name: The name of this process, as in `presence`.
        take_in: Commits entries.
        make: Makes the client.
    """

    def __init__(
        self,
        address: TopicAddress,
        settings: ClientSettings,
        rows: TopicRows,
        admin: Describes,
        presence: Presence,
        *,
        name: str,
        take_in: TakeIn,
        make: MakeConsumer = make_consumer,
    ) -> None:
        self._address = address
        self._settings = settings
        self._rows = rows
        self._admin = admin
        self._presence = presence
        self._name = name
        self._make = make
        self._attempts = Attempts(address)
        self._taker = Taker(address.topic, take_in, self._attempts)
        self._held: dict[int, Held] = {}
        # For whom this process reads each of them.
        self._owners: dict[int, str] = {}
        # Partitions whose readers seem to have ended, and since when.
        self._seen: dict[LeftBehind, float] = {}
        # Processes that seemed to have ended and had not.
        self._spared: set[str] = set()
        self._trouble: str | None = None

    @property
    def problem(self) -> str | None:
        """The current failure; None if there is none."""
        return self._attempts.problem

    def stop(self) -> None:
        """Let `run` end soon."""
        self._attempts.stop()

    async def run(self, enter: Enter, on_taken: Callable[[], None]) -> None:
        """Do it until `stop` is called; see `Inflow.run`."""
        self._taker.enter, self._taker.on_taken = enter, on_taken
        present = asyncio.create_task(self._presence.run(), name="autoplay-presence")
        try:
            while not self._attempts.stopping.is_set():
                pause = _LOOK_SECONDS
                try:
                    if left := await self._left_behind():
                        await self._stand_in(left)
                except (BrokerError, JournalError, KafkaException) as error:
                    _log.debug("not looking for partitions that nobody reads: %s", error)
                    self._seen.clear()
                    pause = _CALM_SECONDS
                await self._attempts.pause(pause)
        finally:
            present.cancel()
            await asyncio.wait([present])

    # -- which partitions ---------------------------------------------------------------------

    async def _left_behind(self) -> list[LeftBehind]:
        """Return partitions whose readers have seemed to have ended for a while."""
        now = asyncio.get_running_loop().time()
        found = await self._rows.left_behind(self._name)
        self._seen = {
            one: self._seen.get(one, now) for one in found if one.owner not in self._spared
        }
        return [one for one, since in self._seen.items() if now - since >= _SURE_SECONDS]

    async def _take_over(self, left: Sequence[LeftBehind]) -> list[Held]:
        """Become the reader of partitions, as far as nobody else was quicker."""
        topic = await self._admin.describe()
        if topic is None:
            return []
        found = []
        for one in left:
            held = await self._rows.take_over(self._name, topic.id, one)
            if held is None:
                continue
            _log.info(
                "reads partition %d of the %s for %s, which has ended, until the group assigns it",
                one.part,
                self._address,
                one.owner,
            )
            self._held[one.part], self._owners[one.part] = held, one.owner
            found.append(held)
        return found

    # -- reading ------------------------------------------------------------------------------

    async def _stand_in(self, left: Sequence[LeftBehind]) -> None:
        try:
            if found := await self._take_over(left):
                await self._read_beside(found)
        finally:
            await release(self._rows, [*self._held.values()])
            self._held.clear()
            self._owners.clear()

    async def _read_beside(self, found: Sequence[Held]) -> None:
        self._trouble = None
        consumer = self._make(self._address, self._settings, self._troubled)
        try:
            await self._begin(consumer, found)
            await self._read(consumer)
        finally:
            await close(consumer)

    async def _begin(self, consumer: Consumer, found: Sequence[Held]) -> None:
        await consumer.incremental_assign([place_of(self._address.topic, one) for one in found])

    async def _read(self, consumer: Consumer) -> None:
        loop = asyncio.get_running_loop()
        look_at = loop.time() + _LOOK_SECONDS
        while self._held and not self._attempts.stopping.is_set():
            # Before the messages are read: they are of what is held then.
            if loop.time() >= look_at:
                look_at = loop.time() + _LOOK_SECONDS
                await self._look(consumer)
            messages = await read_some(consumer)
            for message in messages:
                if message.error() is not None:
                    self._troubled(reason_of(message.error()))
            if self._trouble is not None:
                # What was read may be of another topic of this name.
                _log.debug("the %s: no longer standing in: %s", self._address, self._trouble)
                return
            await self._take(consumer, messages)

    async def _look(self, consumer: Consumer) -> None:
        await self._check_topic()
        await self._check_held(consumer)
        left = await self._left_behind()
        if left and (found := await self._take_over(left)):
            await self._begin(consumer, found)

    async def _check_topic(self) -> None:
        topic = await self._admin.describe()
        if topic is None or any(held.topic_id != topic.id for held in self._held.values()):
            self._troubled("the topic was made anew")

    async def _check_held(self, consumer: Consumer) -> None:
        """Drop what another process reads now. Without messages, nothing else would say so."""
        for held in [*self._held.values()]:
            now = await self._rows.current(held.part)
            if now is None or now.epoch != held.epoch:
                await self._drop(consumer, held)

    async def _take(self, consumer: Consumer, messages: Sequence[Any]) -> None:
        # One after the other: a member of the group reads most of them soon.
        for part, some in by_part(messages):
            if (held := self._held.get(part)) is None:
                continue
            try:
                await self._taker.take(held, some)
            except FencedError as error:
                _log.info("%s", error)
                await self._drop(consumer, held)

    async def _drop(self, consumer: Consumer, held: Held) -> None:
        del self._held[held.part]
        former = self._owners.pop(held.part)
        await consumer.incremental_unassign([place_of(self._address.topic, held)])
        await release(self._rows, [held])
        if await self._rows.owner(held.part) == former:
            self._spared.add(former)

    def _troubled(self, why: str) -> None:
        self._trouble = why
