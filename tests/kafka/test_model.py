"""Readers of a topic under any order of events, with a model of the broker and a real database.

A process may be told nothing, be frozen with messages in its hands, be declared dead and go on, or
end without a word. Messages come again, the topic begins anew, old messages are deleted. Whatever
happens, each payload is in the journal once and each session in its order.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from hashlib import blake2b
from uuid import uuid4

import pytest
from confluent_kafka import OFFSET_BEGINNING, TopicPartition
from hypothesis import example, given, note, settings
from hypothesis import strategies as st
from pipelines import make_actions

from autoplay_rag.cluster.journal import PostgresJournal
from autoplay_rag.cluster.topic_rows import UNREAD, LeftBehind, TopicRows
from autoplay_rag.content.keys import payload_key
from autoplay_rag.errors import JournalError
from autoplay_rag.ingest.inflowing import Entries
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.journal.ledger import COUNTERS
from autoplay_rag.kafka import standing_in, trying
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.admin import Topic
from autoplay_rag.kafka.messages import message_of
from autoplay_rag.kafka.queue import KafkaQueue
from autoplay_rag.kafka.reading import TopicReader
from autoplay_rag.kafka.settings import ClientSettings
from autoplay_rag.kafka.standing_in import StandIn
from autoplay_rag.stores.postgres.dsn import parameters_of
from autoplay_rag.stores.postgres.link import Link

PARTS = 3
PROCESSES = 3
SESSIONS = 5
NEVER = float("inf")


class Error:
    def __init__(self, name):
        self._name = name

    def name(self):
        return self._name

    str = name


@dataclass(frozen=True)
class Delivered:
    """A message, as confluent-kafka returns it."""

    part: int
    at: int
    content: bytes | None = None
    failure: Error | None = None

    def partition(self):
        return self.part

    def offset(self):
        return self.at

    def value(self):
        return self.content

    def error(self):
        return self.failure


@dataclass
class Broker:
    """The topic, its partitions, and which member has each."""

    name: str
    id: int = 0
    logs: list[list[bytes]] = field(default_factory=lambda: [[] for _ in range(PARTS)])
    first: list[int] = field(default_factory=lambda: [0] * PARTS)
    owners: list[Member | None] = field(default_factory=lambda: [None] * PARTS)

    @property
    def topic_id(self):
        return f"{self.name}-{self.id}"

    async def describe(self):
        return Topic(self.topic_id, PARTS)


class Gate:
    """Where a process is frozen: "describe", "before" or "after" a commit."""

    def __init__(self):
        self.at: str | None = None
        self.frozen = False
        self._opened = asyncio.Event()

    async def passing(self, point, changed):
        if self.at == point:
            self.frozen = True
            changed.set()
            await self._opened.wait()

    def open(self):
        self.at, self.frozen = None, False
        self._opened.set()
        self._opened = asyncio.Event()


class Member:
    """A member of the group: what `TopicReader` takes for its client."""

    def __init__(self, process, on_trouble):
        self.process = process
        self.broker = process.broker
        self.positions: dict[int, int] = {}
        self.expired = self.crashed = False
        self.idle = False
        self._trouble = on_trouble
        self._events = asyncio.Queue()
        self._rest: list[Delivered] = []
        self._topic_id = self.broker.id

    # -- as `Consumer` ------------------------------------------------------------------------

    async def subscribe(self, _topics, on_assign, on_revoke, on_lost):
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost

    async def poll(self, _seconds):
        self.idle = True
        self.process.changed.set()
        kind, given = await self._events.get()
        if self._topic_id != self.broker.id:
            # The connection was lost, or the id of the topic is another one. The client says so
            # before it returns messages of the new topic.
            self._topic_id = self.broker.id
            self._trouble("the topic is another one")
        if kind == "lost":
            await self._on_lost(self, [TopicPartition("t", part) for part in self.positions])
        elif kind == "revoke":
            await self._on_revoke(self, [TopicPartition("t", part) for part in given])
        elif kind == "assign":
            await self._on_assign(self, [TopicPartition("t", part) for part in given])
        elif kind == "deliver":
            return self._next(*given)
        return None

    async def consume(self, _count, _seconds):
        rest, self._rest = self._rest, []
        return rest

    async def incremental_assign(self, parts):
        for part in parts:
            await self.seek(part)

    async def incremental_unassign(self, parts):
        for part in parts:
            self.positions.pop(part.partition, None)

    async def seek(self, part):
        begins = part.offset == OFFSET_BEGINNING
        self.positions[part.partition] = (
            self.broker.first[part.partition] if begins else part.offset
        )

    async def commit(self, *, offsets, asynchronous):
        assert asynchronous
        assert all(one.offset >= 0 for one in offsets)

    async def get_watermark_offsets(self, part, *, cached):
        return self.broker.first[part.partition], len(self.broker.logs[part.partition])

    async def close(self):
        if not (self.crashed or self.expired):
            mine = [part for part, owner in enumerate(self.broker.owners) if owner is self]
            await self._on_revoke(self, [TopicPartition("t", part) for part in mine])
            for part in mine:
                self.broker.owners[part] = None

    # -- for the test -------------------------------------------------------------------------

    def _next(self, count, back, double):
        """Return messages of all its partitions, some of them again."""
        found: list[Delivered] = []
        for part, position in self.positions.items():
            log, first = self.broker.logs[part], self.broker.first[part]
            if not first <= position <= len(log):
                found.append(Delivered(part, -1, failure=Error("_AUTO_OFFSET_RESET")))
                continue
            end = min(position + count, len(log))
            some = [Delivered(part, at, log[at]) for at in range(max(first, position - back), end)]
            found += some * (2 if double else 1)
            self.positions[part] = end
        if not found:
            return None
        self._rest = found[1:]
        return found[0]

    async def tell(self, kind, given=None):
        """Let something happen at the next poll; wait until the process polls again, or cannot."""
        self.idle = False
        self._events.put_nowait((kind, given))
        await self.process.settle()


class Substitute(Member):
    """The client of one that stands in: it is no member of the group."""

    async def close(self):
        self.positions.clear()

    async def tell(self, kind, given=None):
        self.idle = False
        self._events.put_nowait((kind, given))
        await self.process.settle_stand_in()


class Process:
    """A process with a reader and a journal. It outlives its reader, as a machine does."""

    def __init__(self, number, broker, journal, rows, address):
        self.number, self.broker, self.journal, self.rows = number, broker, journal, rows
        self._address = address
        self.gate = Gate()
        self.changed = asyncio.Event()
        self.member: Member | None = None
        self.reader: TopicReader | None = None
        self.task: asyncio.Task[None] | None = None
        self.beside: StandIn | None = None
        self.substitute: Substitute | None = None
        self.standing_in: asyncio.Task[None] | None = None
        self.loses_answers = 0
        self._seq = 0

    @property
    def runs(self):
        return self.task is not None and not self.task.done()

    @property
    def awake(self):
        return self.runs and not self.gate.frozen

    async def join(self):
        self.gate = Gate()
        journal = self.journal
        journal._rows = self.rows

        async def take_in(held, offset, entries):
            await self.gate.passing("before", self.changed)
            outcomes = await KafkaQueue._take_in(journal, held, offset, entries)
            await self.gate.passing("after", self.changed)
            if self.loses_answers:
                self.loses_answers -= 1
                raise JournalError("the connection was lost")
            return outcomes

        def make(_address, _settings, on_trouble):
            self.member = Member(self, on_trouble)
            return self.member

        self.reader = TopicReader(
            self._address,
            ClientSettings({}, {}),
            self.rows,
            self,
            name=f"p{self.number}",
            take_in=take_in,
            make=make,
        )
        self.reader._look_at = NEVER
        entries = Entries(Intake(None, None), NothingPulled(), self._next_seq, lambda: None)
        self.task = asyncio.create_task(self.reader.run(entries, lambda: None))
        await self.settle()

    async def stand_in(self, part, epoch):
        """Read a partition beside the group, whether its reader has ended or not."""
        journal = self.journal
        journal._rows = self.rows

        async def take_in(held, offset, entries):
            outcomes = await KafkaQueue._take_in(journal, held, offset, entries)
            if self.loses_answers:
                self.loses_answers -= 1
                raise JournalError("the connection was lost")
            return outcomes

        def make(_address, _settings, on_trouble):
            self.substitute = Substitute(self, on_trouble)
            return self.substitute

        self.beside = stand_in = StandIn(
            self._address,
            ClientSettings({}, {}),
            self.rows,
            self.broker,
            NoPresence(),
            name=f"p{self.number}",
            take_in=take_in,
            make=make,
        )
        taker = stand_in._taker
        taker.enter = Entries(Intake(None, None), NothingPulled(), self._next_seq, lambda: None)
        taker.on_taken = lambda: None
        self.substitute = None
        left = [LeftBehind(part, epoch, "ended")]
        self.standing_in = asyncio.create_task(stand_in._stand_in(left))
        await self.settle_stand_in()

    async def settle_stand_in(self):
        """Wait until the one that stands in polls, or has ended."""
        async with asyncio.timeout(30):
            while not (self.standing_in.done() or (self.substitute and self.substitute.idle)):
                self.changed.clear()
                waiting = asyncio.ensure_future(self.changed.wait())
                await asyncio.wait([waiting, self.standing_in], return_when="FIRST_COMPLETED")
                waiting.cancel()
        if self.standing_in.done():
            self.standing_in.result()

    @property
    def stands_in(self):
        return self.standing_in is not None and not self.standing_in.done()

    async def end_stand_in(self):
        if self.stands_in:
            self.standing_in.cancel()
            await asyncio.wait([self.standing_in])

    def _next_seq(self):
        self._seq += 1
        return self._seq

    async def describe(self):
        topic = await self.broker.describe()
        await self.gate.passing("describe", self.changed)
        return topic

    async def settle(self):
        """Wait until the process polls, is frozen, or has ended."""
        async with asyncio.timeout(30):
            while not (self.task.done() or self.gate.frozen or (self.member and self.member.idle)):
                self.changed.clear()
                waiting = asyncio.ensure_future(self.changed.wait())
                await asyncio.wait([waiting, self.task], return_when="FIRST_COMPLETED")
                waiting.cancel()
        if self.task.done() and not self.task.cancelled():
            self.task.result()

    async def crash(self):
        if self.stands_in:
            self.beside._held.clear()  # nothing is released
        await self.end_stand_in()
        self.member.crashed = True
        self.expire()
        self.task.cancel()
        await asyncio.wait([self.task])

    def expire(self):
        """The broker takes the process for dead, and tells it at the next poll."""
        self.member.expired = True
        owners = self.broker.owners
        for part, owner in enumerate(owners):
            if owner is self.member:
                owners[part] = None

    async def rejoin(self):
        """Let an expired member know that it is none any more. It becomes a new one."""
        await self.member.tell("lost")
        if not self.gate.frozen:
            self.member.expired = False


class NoPresence:
    """All processes look as if they had ended."""


class NothingPulled:
    def unknown(self, payload):
        return payload


class World:
    """All processes, and what must be true."""

    def __init__(self, postgres, schema, journals, link):
        name = f"t-{uuid4().hex[:8]}"
        self.postgres, self.schema, self.name = postgres, schema, name
        self.broker = Broker(name)
        rows = TopicRows(link, f'"{schema}"', name, "g")
        address = TopicAddress("model.test:9092", name, "g")
        self.processes = [
            Process(number, self.broker, journal, rows, address)
            for number, journal in enumerate(journals)
        ]
        self.sent = [0] * SESSIONS
        self.keys: dict[bytes, str] = {}
        self.gone: set[str] = set()
        self.bad: set[str] = set()
        self.before = self.counts()
        ((self.first_seq,),) = self.run("SELECT last_seq FROM {}.progress")

    def run(self, statement, *parameters):
        return self.postgres.execute(
            statement.replace("{}", self.schema).encode(), parameters or None
        ).fetchall()

    def counts(self):
        return dict(
            zip(
                COUNTERS, self.run(f"SELECT {', '.join(COUNTERS)} FROM {{}}.counts")[0], strict=True
            )
        )

    def kept(self):
        """The keys of the payloads in the journal, in their order."""
        rows = self.run(
            "SELECT encode(key, 'hex') FROM {}.payload WHERE seq > %s ORDER BY seq", self.first_seq
        )
        return [key for (key,) in rows]

    def state(self):
        """All that a reader may write."""
        return (
            self.kept(),
            self.counts(),
            self.run(
                "SELECT part, owner, epoch, topic_id, next_offset, missed FROM {}.topic_offset "
                "JOIN {}.topic_part USING (group_name, topic, part) WHERE topic = %s ORDER BY part",
                self.name,
            ),
        )

    # -- what may happen ----------------------------------------------------------------------

    def value(self, session, number):
        payload = make_actions(f"{self.name}-{session}", f"{number}", at=1000.0 + number)
        value = message_of(payload).value
        self.keys[value] = payload_key(payload)
        return value

    async def send(self, session, count):
        for _ in range(count):
            self._append(session, self.sent[session])
            self.sent[session] += 1

    async def send_again(self, session, number):
        """As a producer that does not know whether its messages arrived."""
        for again in range(min(number, self.sent[session]), self.sent[session]):
            self._append(session, again)

    def _append(self, session, number):
        self.broker.logs[session % PARTS].append(self.value(session, number))

    async def send_bad(self, part):
        log = self.broker.logs[part]
        identity = f"{self.broker.topic_id} {part} {len(log)}".encode()
        self.bad.add(blake2b(identity, digest_size=16).hexdigest())
        log.append(b"not a payload")

    async def make_anew(self, everything):
        """The topic is empty. The producer sends what is not in the journal, or everything."""
        kept = {*self.kept()}
        if any(process.gate.frozen for process in self.processes):
            # One may have a message in its hands, and take it in as one of the topic before.
            self.gone |= self.bad - kept
        self.bad &= kept
        self.broker.id += 1
        for part in range(PARTS):
            self.broker.logs[part], self.broker.first[part] = [], 0
        for session in range(SESSIONS):
            values = [self.value(session, number) for number in range(self.sent[session])]
            missing = [n for n, value in enumerate(values) if self.keys[value] not in kept]
            await self.send_again(session, 0 if everything else min(missing, default=10**6))

    async def delete(self, part, count):
        """Messages are deleted, read or not."""
        log, first = self.broker.logs[part], self.broker.first[part]
        end = min(first + count, len(log))
        kept = {*self.kept()}
        later = {self.keys.get(value) for value in log[end:]}
        for at in range(first, end):
            identity = f"{self.broker.topic_id} {part} {at}".encode()
            key = self.keys.get(log[at]) or blake2b(identity, digest_size=16).hexdigest()
            if key not in kept | later:
                self.gone.add(key)
        self.broker.first[part] = end

    async def join(self, number):
        if not self.processes[number].runs:
            await self.processes[number].join()

    async def leave(self, number):
        process = self.processes[number]
        if process.awake and not process.member.expired:
            process.reader.stop()
            await process.member.tell("nothing")

    async def crash(self, number):
        if self.processes[number].runs:
            await self.processes[number].crash()

    async def freeze(self, number, point):
        if self.processes[number].awake:
            self.processes[number].gate.at = point

    async def lose_answer(self, number):
        """What it commits next is committed, but it does not learn so."""
        self.processes[number].loses_answers = 1

    async def wake(self, number):
        process = self.processes[number]
        if not process.gate.frozen:
            return
        held = [*process.reader._held.values()]
        epochs = dict(self.run("SELECT part, epoch FROM {}.topic_part WHERE topic = %s", self.name))
        fenced = process.gate.at == "before" and all(epochs[h.part] != h.epoch for h in held)
        before = self.state()
        process.gate.open()
        await process.settle()
        if fenced:
            assert self.state() == before

    async def expire(self, number):
        if self.processes[number].runs:
            self.processes[number].expire()

    async def rejoin(self, number):
        process = self.processes[number]
        if process.awake and process.member.expired:
            await process.rejoin()

    async def stand_in(self, number, part):
        """A process takes the reader of a partition for ended, rightly or not."""
        process = self.processes[number]
        rows = self.run(
            "SELECT epoch FROM {}.topic_part WHERE topic = %s AND part = %s", self.name, part
        )
        if process.awake and not process.stands_in and rows:
            await process.stand_in(part, rows[0][0])

    async def deliver_beside(self, number, count, back, double):
        process = self.processes[number]
        if process.awake and process.stands_in:
            await process.substitute.tell("deliver", (count, back, double))

    async def assign(self, wanted):
        """Give each partition to one of the members; first it is revoked from the one before."""
        members = [p.member for p in self.processes if p.runs and not p.member.expired]
        if not members:
            return
        chosen = {part: members[number % len(members)] for part, number in enumerate(wanted)}
        moved = {
            part: member
            for part, member in chosen.items()
            if self.broker.owners[part] is not member
            and member.process.awake
            and (self.broker.owners[part] is None or self.broker.owners[part].process.awake)
        }
        for member in members:
            theirs = [part for part in moved if self.broker.owners[part] is member]
            if theirs:
                await member.tell("revoke", theirs)
        for member in members:
            theirs = [part for part, new in moved.items() if new is member]
            if theirs:
                for part in theirs:
                    self.broker.owners[part] = member
                await member.tell("assign", theirs)

    async def deliver(self, number, count, back, double, looks):
        process = self.processes[number]
        if process.awake:
            process.reader._look_at = 0.0 if looks else NEVER
            for part in process.reader._taken_away if looks else ():
                process.reader._taken_away[part] = 0.0
            await process.member.tell("deliver", (count, back, double))
            process.reader._look_at = NEVER

    # -- what must be true --------------------------------------------------------------------

    def check(self):
        """No offset is ahead of the payloads, and nothing is there twice."""
        kept = self.kept()
        assert len(kept) == len({*kept})
        rows = self.run(
            "SELECT part, topic_id, next_offset FROM {}.topic_offset WHERE topic = %s", self.name
        )
        for part, topic_id, offset in rows:
            if topic_id == self.broker.topic_id and offset != UNREAD:
                log = self.broker.logs[part][self.broker.first[part] : offset]
                assert {self.keys[value] for value in log if value in self.keys} <= {*kept}

    async def finish(self):
        """Let everybody wake up and read on. Then everything must be there."""
        for process in self.processes:
            process.gate.at = process.gate.at if process.gate.frozen else None
            await self.wake(process.number)
            await process.end_stand_in()
            await self.rejoin(process.number)
        await self.join(0)
        # More than once: what a process took away from another one is taken again.
        for _ in range(3):
            await self.assign([0, 1, 2])
            for process in self.processes:
                await self.deliver(process.number, 10**6, 0, False, True)
        self.check()
        kept = self.kept()
        wanted = {self.keys[self.value(s, n)] for s in range(SESSIONS) for n in range(self.sent[s])}
        assert (wanted | self.bad) - self.gone <= {*kept} <= wanted | self.bad | self.gone
        place = {key: number for number, key in enumerate(kept)}
        for session in range(SESSIONS):
            keys = [self.keys[self.value(session, number)] for number in range(self.sent[session])]
            if not self.gone.intersection(keys):
                places = [place[key] for key in keys]
                assert places == sorted(places)
        change = {name: count - self.before[name] for name, count in self.counts().items()}
        assert change["pending"] + change["dead"] == len(kept)
        assert change["received"] == len(kept) + change["duplicate"]
        for process in self.processes:
            if process.runs:
                await self.leave(process.number)
        owners = self.run("SELECT owner FROM {}.topic_part WHERE topic = %s", self.name)
        assert {owner for (owner,) in owners} <= {None}

    async def end(self):
        for process in self.processes:
            await process.end_stand_in()
            if process.runs:
                process.member.crashed = True
                process.task.cancel()
                await asyncio.wait([process.task])


numbers = st.integers
process = numbers(0, PROCESSES - 1)
part = numbers(0, PARTS - 1)
session = numbers(0, SESSIONS - 1)


def step(name, *arguments):
    return st.tuples(st.just(name), st.tuples(*arguments))


STEPS = st.lists(
    st.one_of(
        step("send", session, numbers(1, 4)),
        step("deliver", process, numbers(1, 5), numbers(0, 3), st.booleans(), st.booleans()),
        step("deliver", process, numbers(1, 5), st.just(0), st.just(False), st.just(False)),
        step("assign", st.tuples(process, process, process)),
        step("join", process),
        step("leave", process),
        step("crash", process),
        step("freeze", process, st.sampled_from(["describe", "before", "after"])),
        step("wake", process),
        step("lose_answer", process),
        step("expire", process),
        step("rejoin", process),
        step("stand_in", process, part),
        step("deliver_beside", process, numbers(1, 5), numbers(0, 3), st.booleans()),
        step("send_again", session, numbers(0, 6)),
        step("send_bad", part),
        step("make_anew", st.booleans()),
        step("delete", part, numbers(1, 4)),
    ),
    max_size=40,
)
BEGIN = [
    ("join", (0,)),
    ("join", (1,)),
    ("assign", ((0, 1, 0),)),
    *(("send", (s, 3)) for s in range(5)),
]
ALL = (10**6, 0, False, False)


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trying, "_RETRY_SECONDS", 0.01)
        patch.setattr(standing_in, "_LOOK_SECONDS", NEVER)
        yield


@pytest.fixture(scope="module")
def opened(postgres):
    """One schema and one journal for each process, for all examples."""
    import psycopg

    schema = f"t_{uuid4().hex[:12]}"
    with asyncio.Runner() as runner, psycopg.connect(postgres.dsn, autocommit=True) as connection:

        async def open_all():
            journals = []
            for _ in range(PROCESSES):
                journal = PostgresJournal(
                    postgres.dsn,
                    schema=schema,
                    on_entry=lambda _entry, _outcome: None,
                    on_returned=lambda _back: None,
                )
                await journal.open()
                journals.append(journal)
            return journals, Link(parameters_of(postgres.dsn), 2, 10.0)

        journals, link = runner.run(open_all())
        yield runner, connection, schema, journals, link

        async def close_all():
            async def nothing():
                pass

            await link.close(nothing)
            for journal in journals:
                await journal.close()

        runner.run(close_all())


@settings(max_examples=settings.default.max_examples // 2)
@given(STEPS)
# A process is frozen with messages in its hands, loses its partitions, and goes on.
@example(
    [
        ("freeze", (0, "before")),
        ("deliver", (0, *ALL)),
        ("expire", (0,)),
        ("assign", ((1, 1, 1),)),
        ("deliver", (1, *ALL)),
        ("wake", (0,)),
        ("send", (0, 2)),
    ]
)
# It takes a partition away from its new reader, because it does not know yet.
@example(
    [
        ("freeze", (0, "describe")),
        ("assign", ((0, 0, 0),)),
        ("expire", (0,)),
        ("assign", ((1, 1, 1),)),
        ("deliver", (1, *ALL)),
        ("wake", (0,)),
        ("send", (1, 2)),
    ]
)
# The topic begins anew while a former reader is frozen.
@example(
    [
        ("deliver", (0, *ALL)),
        ("expire", (0,)),
        ("assign", ((1, 1, 1),)),
        ("make_anew", (False,)),
        ("deliver", (1, *ALL)),
        ("send", (0, 2)),
        ("deliver", (0, 9, 0, False, True)),
    ]
)
# The topic begins anew between two assignments to one process.
@example(
    [
        ("crash", (0,)),
        ("make_anew", (False,)),
        ("assign", ((1, 1, 1),)),
        ("deliver", (1, *ALL)),
    ]
)
# A process stands in for one that still reads, and loses the partition to it again.
@example(
    [
        ("deliver", (0, 1, 0, False, False)),
        ("stand_in", (1, 0)),
        ("deliver_beside", (1, 1, 0, False)),
        ("deliver", (0, *ALL)),
        ("deliver_beside", (1, 1, 0, False)),
        ("deliver", (0, 1, 0, False, True)),
        ("deliver_beside", (1, 9, 0, False)),
    ]
)
# The topic begins anew while a process stands in.
@example(
    [
        ("stand_in", (1, 0)),
        ("deliver_beside", (1, 1, 0, False)),
        ("make_anew", (False,)),
        ("deliver_beside", (1, 9, 0, False)),
        ("send", (0, 2)),
    ]
)
# The topic begins anew while a process is frozen with a message that is no payload.
@example(
    [
        ("send_bad", (2,)),
        ("freeze", (0, "describe")),
        ("deliver", (0, 4, 0, False, False)),
        ("make_anew", (False,)),
    ]
)
# Messages are deleted behind those that the client has already.
@example([("deliver", (0, 2, 0, False, False)), ("delete", (0, 4)), ("deliver", (0, *ALL))])
def test_each_payload_is_taken_in_once_whatever_happens(opened, steps):
    note(f"{steps}")
    play(opened, steps)


def play(opened, steps):
    """Let steps happen, and check everything; return the world at its end."""
    runner, connection, schema, journals, link = opened

    async def run():
        world = World(connection, schema, journals, link)
        try:
            for name, arguments in (*BEGIN, *steps):
                await getattr(world, name)(*arguments)
                world.check()
            await world.finish()
            return world
        finally:
            await world.end()

    return runner.run(run())


def test_messages_that_were_deleted_unread_are_counted_and_said(opened, caplog):
    """Partition 0 has six messages. Two are read, then the first four are deleted."""
    steps = [("deliver", (0, 2, 0, False, False)), ("delete", (0, 4)), ("deliver", (0, *ALL))]
    world = play(opened, steps)
    parts = opened[0].run(world.processes[0].reader.status()).parts
    assert [part.missed for part in parts] == [2, 0, 0]
    assert [part.lag for part in parts] == [0, 0, 0]
    assert (
        "2 messages of partition 0 were deleted before they were read, and are LOST" in caplog.text
    )


def test_a_former_reader_says_that_it_took_nothing_in(opened, caplog):
    steps = [
        ("freeze", (0, "before")),
        ("deliver", (0, *ALL)),
        ("expire", (0,)),
        ("assign", ((1, 1, 1),)),
        ("deliver", (1, *ALL)),
        ("wake", (0,)),
    ]
    play(opened, steps)
    assert "another process reads partition 0" in caplog.text
    assert "nothing was taken in here" in caplog.text


def test_a_commit_without_an_answer_is_not_repeated(opened):
    world = play(opened, [("lose_answer", (0,)), ("deliver", (0, *ALL)), ("deliver", (1, *ALL))])
    assert world.counts()["duplicate"] == world.before["duplicate"]
