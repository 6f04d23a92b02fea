"""Sends the payloads of an outbox to the topic, in order, and sends again what was not confirmed.

All functions block for a moment at most. They run on the relay's own thread.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from autoplay_rag.errors import BrokerError, ConfigurationError
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.messages import headers_of
from autoplay_rag.kafka.settings import ClientSettings, explained
from autoplay_rag.relay.outbox import Outbox, Row

__all__ = ["Sender"]

_log = logging.getLogger(__name__)

_CHUNK: Final = 500
"""Payloads that are read from the outbox at once."""
_MOST: Final = 10_000
"""Payloads on their way at once."""
_MOST_BYTES: Final = 32 * 2**20
_DEFAULTS: Final = {"message.timeout.ms": 10_000, "linger.ms": 5, "log_level": 0}
_REFUSALS: Final = {
    "MSG_SIZE_TOO_LARGE": "it is too large: raise message.max.bytes of the relay and max.message.bytes "
    "of the topic",
    "RECORD_LIST_TOO_LARGE": "it is too large for a segment of the topic: raise segment.bytes",
    "INVALID_RECORD": "the broker refuses its form: a compacted topic takes no payload without a session",
}
"""Errors that are about one payload, which is never taken as it is."""


class _Sent(NamedTuple):
    """A payload on its way: by which producer, its number and size, whether nothing else is on its way."""

    generation: int
    seq: int
    size: int
    alone: bool


class Sender:
    """Sends what waits in an outbox.

    Within a session the order is that of the outbox. A payload that was sent and not confirmed is sent
    again, with all after it, so it may be in the topic twice. Its key tells.

    Args:
        outbox: Has the payloads.
        address: The topic.
        settings: The properties of the producer.
        keeps: Whether delivered payloads are kept until they were read.
        on_settled: Called with the number of a payload and whether it was delivered; False means that
            the topic refuses it.

    Attributes:
        reports: How many payloads were delivered since the start. May be read from any thread.
        problem: Why nothing is delivered now; "" if nothing is wrong.
    """

    def __init__(
        self,
        outbox: Outbox,
        address: TopicAddress,
        settings: ClientSettings,
        *,
        keeps: bool,
        on_settled: Callable[[int, bool], None],
    ) -> None:
        self.reports = 0
        self.problem = ""
        self._outbox = outbox
        self._address = address
        self._keeps = keeps
        self._on_settled = on_settled
        self._properties = settings.joined(
            _DEFAULTS,
            bootstrap_servers=address.bootstrap,
            enable_idempotence=True,
            enable_gapless_guarantee=True,
            acks="all",
            partitioner="murmur2_random",
            # A topic that was deleted would come back with the broker's number of partitions.
            allow_auto_create_topics=False,
        )
        _new_producer(self._properties)  # so that a wrong property is said at the start
        self._producer: Any = None
        self._generation = 0
        self._topic_id = ""
        self._sent = 0
        self._ahead: deque[Row] = deque()
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._alone_until = 0
        self._has_alone = False
        self._failure = ""
        self._refused: list[tuple[int, int, str]] = []
        # Delivered: number of the report, number, partition, offset.
        self._delivered: list[tuple[int, int, int, int]] = []

    @property
    def in_flight(self) -> int:
        """How many payloads are on their way."""
        return self._in_flight

    @property
    def undelivered(self) -> int:
        """How many payloads of the outbox the topic does not have yet."""
        return self._outbox.counts.waiting - len(self._delivered)

    # -- the topic ----------------------------------------------------------------------------

    def topic_seen(self, topic_id: str, as_of: int) -> None:
        """Note that the topic is there, and start to send, unless it was.

        Args:
            topic_id: Its id.
            as_of: `reports` when the broker was asked. What was delivered before is in the topic with
                this id; what came after may be in a newer one.

        Raises:
            JournalError: If the outbox cannot be written.
        """
        if topic_id == self._topic_id and self._producer is not None:
            self._note_places(as_of)
            return
        if topic_id != self._topic_id:
            known = bool(self._topic_id)
            self._drop_producer()
            again = self._outbox.send_again(topic_id)
            if known:
                _log.warning(
                    "the %s was made anew: %d delivered payloads that its readers do not have are sent "
                    "again",
                    self._address,
                    again,
                )
            self._topic_id = topic_id
        try:
            self._producer = _new_producer(self._properties)
        except ConfigurationError as error:  # a file with a certificate may be gone for a moment
            self._say(str(error))

    def topic_gone(self) -> None:
        """Give up what is on its way, before the topic is made anew.

        Otherwise it could be in the new topic before what was in the old one is sent again.
        """
        self._drop_producer()

    def _note_places(self, as_of: int) -> None:
        places = [(seq, part, at) for n, seq, part, at in self._delivered if n <= as_of]
        if places:
            self._outbox.keep_until_read(self._topic_id, places)
            self._delivered = [one for one in self._delivered if one[0] > as_of]

    # -- sending ------------------------------------------------------------------------------

    def work(self) -> None:
        """Send what there is room for, and take in what was reported.

        Raises:
            JournalError: If the outbox cannot be used.
        """
        if self._producer is None:
            return
        self._send()
        self._poll()
        self._settle()

    def _send(self) -> None:
        while self._in_flight < _MOST and (row := self._next()) is not None:
            alone = row.seq <= self._alone_until
            size = len(row.value)
            is_full = self._in_flight_bytes + size > _MOST_BYTES
            if self._in_flight and (alone or self._has_alone or is_full):
                return
            try:
                self._produce(row, size, alone=alone)
            except BufferError:
                return  # the producer is full until something was delivered
            except BrokerError as error:
                if error.code not in _REFUSALS:
                    self._failure = self._failure or error.code
                    return
                self._refused.append((row.seq, size, error.code))
            else:
                self._in_flight += 1
                self._in_flight_bytes += size
                self._has_alone = alone
            self._sent = row.seq
            self._ahead.popleft()

    def _next(self) -> Row | None:
        if not self._ahead and self._sent < self._outbox.last:
            self._ahead.extend(self._outbox.waiting_after(self._sent, _CHUNK))
            if not self._ahead:
                self._sent = self._outbox.last
        return self._ahead[0] if self._ahead else None

    def _produce(self, row: Row, size: int, *, alone: bool) -> None:
        from confluent_kafka import KafkaException

        report = functools.partial(self._reported, _Sent(self._generation, row.seq, size, alone))
        try:
            self._producer.produce(
                self._address.topic,
                row.value,
                key=row.key,
                headers=list(headers_of(row.kind)),
                on_delivery=report,
            )
        except KafkaException as error:
            raise BrokerError("", code=error.args[0].name()) from None

    def _poll(self) -> None:
        """Take in reports. A producer that cannot go on raises that here; the next one goes on."""
        from confluent_kafka import KafkaException

        try:
            self._producer.poll(0)
        except KafkaException as error:
            self._failure = self._failure or error.args[0].name()

    def _reported(self, sent: _Sent, error: Any, message: Any) -> None:
        """Take in what became of a message. Called by `poll`."""
        if sent.generation != self._generation:
            return  # it is sent again by the producer of now
        seq = sent.seq
        self._in_flight -= 1
        self._in_flight_bytes -= sent.size
        if error is None:
            self.reports += 1
            self._delivered.append((self.reports, seq, message.partition(), message.offset()))
            self._on_settled(seq, True)
            return
        name = error.name()
        if name in _REFUSALS and sent.alone:
            self._refused.append((seq, sent.size, name))
        elif name in _REFUSALS:
            # A whole request is refused. Sent one by one, only those go that the topic refuses.
            self._alone_until = max(self._alone_until, seq)
        # After it, the idempotent producer cannot go on without a gap.
        self._failure = self._failure or name

    def _settle(self) -> None:
        if self._delivered:
            self.problem = ""
            if not self._keeps:
                self._outbox.forget(seq for _, seq, _, _ in self._delivered)
                self._delivered.clear()
        while self._refused:
            seq, size, code = self._refused[-1]
            self._outbox.set_aside(seq)
            self._refused.pop()
            _log.error(
                "a payload of %d bytes is set aside, and tried again at the next start: %s",
                size,
                _REFUSALS[code],
            )
            self._on_settled(seq, False)
        if self._failure:
            if self._failure not in _REFUSALS:
                self._say(f"the {self._address}: {self._failure}")
            self._drop_producer()

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            _log.warning("payloads are not delivered, and sent again: %s", problem)
        self.problem = problem

    def _drop_producer(self) -> None:
        """Forget all that is on its way. The next producer sends it again, from the first one on."""
        self._generation += 1
        self._failure = ""
        self._in_flight = self._in_flight_bytes = self._sent = 0
        self._ahead.clear()
        self._delivered.clear()
        if self._producer is not None:
            self._producer.purge(blocking=False)
            self._poll()
            self._failure = ""
            self._producer = None

    def close(self) -> None:
        """End the producer. What was not confirmed stays in the outbox."""
        self._drop_producer()


def _new_producer(properties: dict[str, Any]) -> Any:
    from confluent_kafka import KafkaException, Producer

    try:
        return Producer(properties)
    except KafkaException as error:
        raise explained(error) from None
