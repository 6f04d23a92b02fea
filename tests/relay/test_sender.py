"""The sender against a model of producer and broker that fail in any order."""

import tempfile
from collections import deque
from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.settings import ClientSettings
from autoplay_rag.relay.outbox import Outbox, Outgoing
from autoplay_rag.relay.sender import Sender

ADDRESS = TopicAddress("broker.test:9092", "events")
TIMED_OUT, TOO_LARGE = KafkaError._MSG_TIMED_OUT, KafkaError.MSG_SIZE_TOO_LARGE


class Report:
    """What a delivery report has of a message."""

    def __init__(self, offset):
        self._offset = offset

    def partition(self):
        return 0

    def offset(self):
        return self._offset


class ModelBroker:
    """A topic with one partition, and how its producers fare.

    `script` has what happens at each `poll`: how many of the waiting messages are written and confirmed;
    whether one more is written without a report; whether the rest then fails, as gapless producers do.
    """

    def __init__(self, script=(), *, room=10_000, refuses=()):
        self.log = []
        self.topic_id = "first"
        self.script = deque(script)
        self.room = room
        self.refuses = set(refuses)

    def producer(self, _properties):
        return ModelProducer(self)


class ModelProducer:
    def __init__(self, broker):
        self._broker = broker
        self._waiting = deque()
        self._fatal = False

    def produce(self, topic, value, *, key, headers, on_delivery):
        assert topic == "events"
        if self._fatal:
            raise KafkaException(KafkaError(KafkaError._FATAL))
        if len(self._waiting) >= self._broker.room:
            raise BufferError
        self._waiting.append((value, on_delivery))

    def purge(self, *, blocking):
        # What is purged on its way leaves a gap.
        self._fatal = self._fatal or bool(self._waiting)
        self._fail(len(self._waiting), KafkaError._PURGE_QUEUE)

    def poll(self, _seconds):
        if self._fatal:
            raise KafkaException(KafkaError(KafkaError._GAPLESS_GUARANTEE))
        if not self._waiting:
            return
        script = self._broker.script
        confirmed, written, fails = (
            script.popleft() if script else (len(self._waiting), False, False)
        )
        batch = [self._waiting.popleft() for _ in range(min(confirmed, len(self._waiting)))]
        if any(value in self._broker.refuses for value, _ in batch):
            # A request is refused as a whole.
            self._fatal = True
            for _, report in batch:
                report(KafkaError(TOO_LARGE), None)
            self._fail(len(self._waiting), KafkaError._FATAL)
            return
        for value, report in batch:
            self._broker.log.append(value)
            report(None, Report(len(self._broker.log) - 1))
        if written and self._waiting:
            self._broker.log.append(self._waiting[0][0])
            fails = True
        if fails and self._waiting:
            self._fatal = True
            self._fail(len(self._waiting), TIMED_OUT)

    def _fail(self, count, code):
        for _ in range(count):
            self._waiting.popleft()[1](KafkaError(code), None)


class Sending:
    """A sender, its outbox, and what it settled."""

    def __init__(self, broker, *, keeps=False):
        self._folder = tempfile.TemporaryDirectory()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(confluent_kafka, "Producer", broker.producer)
        self.broker = broker
        self.settled = {}
        self.outbox = Outbox(Path(self._folder.name) / "relay.db")
        self.sender = Sender(
            self.outbox, ADDRESS, ClientSettings({}, {}), keeps=keeps, on_settled=self.settle
        )

    def settle(self, seq, delivered):
        self.settled[seq] = delivered

    def put(self, *values):
        return self.outbox.put([Outgoing("actions", b"k", value) for value in values])

    def see_topic(self):
        self.sender.topic_seen(self.broker.topic_id, self.sender.reports)

    def finish(self, turns=200):
        """Go on, as the relay does every second, until nothing waits."""
        for _ in range(turns):
            if not self.sender.undelivered:
                return
            self.see_topic()
            self.sender.work()
        raise AssertionError("something waits forever")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sender.close()
        self.outbox.close()
        self._patch.undo()
        self._folder.cleanup()


def values(*numbers):
    return [b"%d" % n for n in numbers]


steps = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), max_size=12)


@given(
    script=steps,
    puts=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    room=st.integers(1, 5),
    keeps=st.booleans(),
    anew=st.sets(st.integers(0, 7), max_size=2),
)
def test_everything_arrives_in_order(script, puts, room, keeps, anew):
    """The first of each in the topic are in order, however often producer, broker or topic fail."""
    broker = ModelBroker(script, room=room)
    count = 0
    with Sending(broker, keeps=keeps) as sending:
        for turn, more in enumerate(puts):
            sending.put(*values(*range(count, count + more)))
            count += more
            if turn in anew:
                sending.sender.topic_gone()
                broker.topic_id += "+"
                if keeps:  # without, what was delivered is lost with the topic
                    broker.log.clear()
                sending.sender.work()  # the relay works while it makes the topic
            sending.see_topic()
            sending.sender.work()
        sending.finish()
        assert list(dict.fromkeys(broker.log)) == values(*range(count))
        assert sending.settled == dict.fromkeys(range(1, count + 1), True)
        sending.see_topic()
        counts = sending.outbox.counts
        assert (counts.unread if keeps else counts.delivered) == count
        assert counts.waiting == 0


@given(
    refused=st.sets(st.integers(0, 9), max_size=3),
    confirmed=st.lists(st.integers(1, 5), max_size=6),
)
def test_a_request_that_is_refused_costs_only_what_is_too_large(refused, confirmed):
    """Together with them, others are refused as well: these go when they are sent one by one."""
    broker = ModelBroker([(n, False, False) for n in confirmed], refuses=values(*refused))
    with Sending(broker) as sending:
        sending.put(*values(*range(10)))
        sending.finish()
        assert broker.log == values(*(n for n in range(10) if n not in refused))
        assert sending.outbox.counts.dead == len(refused)
        assert {seq for seq, delivered in sending.settled.items() if not delivered} == {
            n + 1 for n in refused
        }


def test_what_was_delivered_before_the_topic_was_asked_for_counts(monkeypatch):
    """A report may be about a newer topic than the one that is known: then it does not count."""
    broker = ModelBroker()
    with Sending(broker, keeps=True) as sending:
        sending.see_topic()
        sending.put(b"0")
        as_of = sending.sender.reports
        sending.sender.work()
        assert sending.sender.undelivered == 0
        sending.sender.topic_seen("first", as_of)
        assert sending.outbox.counts.unread == 0
        sending.sender.topic_seen("first", sending.sender.reports)
        assert sending.outbox.counts.unread == 1


def test_a_producer_that_cannot_be_made_is_made_later(monkeypatch):
    broker = ModelBroker()
    with Sending(broker) as sending:
        sending.put(b"0")

        def refuse(_properties):
            raise KafkaException(KafkaError(KafkaError._INVALID_ARG, 'property: "ssl.ca.location"'))

        with monkeypatch.context() as patch:
            patch.setattr(confluent_kafka, "Producer", refuse)
            sending.see_topic()
            assert "ssl.ca.location" in sending.sender.problem
            sending.sender.work()
        sending.finish()
        assert broker.log == [b"0"]
        assert sending.sender.problem == ""
