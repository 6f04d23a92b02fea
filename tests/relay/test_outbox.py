"""The outbox against a model, over any order of what happens to it; and its file."""

import sqlite3
import stat
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from autoplay_rag.errors import JournalDamagedError, JournalError
from autoplay_rag.relay.outbox import Outbox, Outgoing
from autoplay_rag.relay.remembered import SessionTimes

MOST = 3_000
ROW = 100


@dataclass
class Kept:
    seq: int
    value: bytes
    state: str = "waiting"
    place: tuple = ()

    @property
    def size(self):
        return ROW + len(self.value)


class OutboxMachine(RuleBasedStateMachine):
    """What is kept, and what was counted, is that of a list in memory."""

    seqs = Bundle("seqs")

    def __init__(self):
        super().__init__()
        import tempfile

        self._folder = tempfile.TemporaryDirectory()
        from pathlib import Path

        self.path = Path(self._folder.name) / "relay.db"
        self.outbox = Outbox(self.path, max_bytes=MOST)
        self.kept = []
        self.counts = dict.fromkeys(("received", "delivered", "overflow", "dead"), 0)
        self.highest = 0

    def teardown(self):
        self.outbox.close()
        self._folder.cleanup()

    # -- the model ------------------------------------------------------------------------------

    def of(self, state):
        return [one for one in self.kept if one.state == state]

    @property
    def bytes(self):
        return sum(one.size for one in self.kept)

    def make_room(self, size):
        for one in self.of("unread"):
            if self.bytes + size <= MOST or size > MOST:
                break
            self.kept.remove(one)
            self.counts["delivered"] += 1
        return self.bytes + size <= MOST

    # -- what happens -----------------------------------------------------------------------------

    @rule(target=seqs, sizes=st.lists(st.integers(0, 900), min_size=1, max_size=6))
    def put(self, sizes):
        found = self.outbox.put([Outgoing("actions", None, b"x" * size) for size in sizes])
        for size, seq in zip(sizes, found, strict=True):
            self.counts["received"] += 1
            if self.make_room(ROW + size):
                assert seq is not None
                assert seq > self.highest
                self.highest = seq
                self.kept.append(Kept(seq, b"x" * size))
            else:
                assert seq is None
                self.counts["overflow"] += 1
        return found[-1] or 0

    @rule(seq=seqs)
    def forget(self, seq):
        self.outbox.forget([seq])
        for one in [one for one in self.kept if one.seq == seq and one.state != "dead"]:
            self.kept.remove(one)
            self.counts["delivered"] += 1

    @rule(seq=seqs, part=st.integers(0, 1), offset=st.integers(0, 5), topic=st.sampled_from("ab"))
    def keep_until_read(self, seq, part, offset, topic):
        self.outbox.keep_until_read(topic, [(seq, part, offset)])
        for one in self.of("waiting"):
            if one.seq == seq:
                one.state, one.place = "unread", (topic, part, offset)

    @rule(part=st.integers(0, 1), offset=st.integers(0, 6), topic=st.sampled_from("ab"))
    def forget_read(self, part, offset, topic):
        read = [
            one
            for one in self.of("unread")
            if one.place[:2] == (topic, part) and one.place[2] < offset
        ]
        assert self.outbox.forget_read(topic, part, offset) == len(read)
        for one in read:
            self.kept.remove(one)
            self.counts["delivered"] += 1

    @rule(topic=st.sampled_from("ab"))
    def send_again(self, topic):
        again = [one for one in self.of("unread") if one.place[0] != topic]
        assert self.outbox.send_again(topic) == len(again)
        for one in again:
            one.state = "waiting"

    @rule(seq=seqs)
    def set_aside(self, seq):
        self.outbox.set_aside(seq)
        for one in self.of("waiting"):
            if one.seq == seq:
                one.state = "dead"
                self.counts["dead"] += 1
        dead = self.of("dead")
        while sum(one.size for one in dead) > MOST // 10:
            self.kept.remove(dead.pop(0))

    @rule()
    def restart(self):
        self.outbox.close()
        self.outbox = Outbox(self.path, max_bytes=MOST)
        for one in self.of("dead"):
            one.state = "waiting"
            self.counts["dead"] -= 1

    # -- what holds always ------------------------------------------------------------------------

    @invariant()
    def it_has_what_the_model_has(self):
        waiting = [(one.seq, one.value) for one in self.of("waiting")]
        found = self.outbox.waiting_after(0, 1000)
        assert [(row.seq, row.value) for row in found] == waiting

    @invariant()
    def the_counts_balance(self):
        counts = self.outbox.counts
        assert {name: getattr(counts, name) for name in self.counts} == self.counts
        assert counts.waiting == len(self.of("waiting"))
        assert counts.unread == len(self.of("unread"))
        assert counts.bytes == self.bytes <= MOST
        assert counts.received == (
            counts.delivered + counts.overflow + counts.dead + counts.waiting + counts.unread
        )


TestOutbox = OutboxMachine.TestCase


def message(value=b"{}", **more):
    return Outgoing("actions", b"acme/s1", value, **more)


def test_a_page_begins_after_a_number(tmp_path):
    outbox = Outbox(tmp_path / "relay.db")
    outbox.put([message(b"%d" % n) for n in range(10)])
    assert [row.value for row in outbox.waiting_after(3, 2)] == [b"3", b"4"]
    outbox.close()


def test_the_file_is_for_its_owner(tmp_path):
    outbox = Outbox(tmp_path / "relay.db")
    outbox.put([message()])
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    outbox.close()


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(JournalError, match="not the outbox of a relay"):
        Outbox(path)
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(JournalDamagedError, match="move it away"):
        Outbox(path)
    with pytest.raises(JournalError, match="cannot be opened"):
        Outbox(tmp_path / "nowhere" / "relay.db")


def test_a_failed_write_is_counted_as_lost(tmp_path):
    outbox = Outbox(tmp_path / "relay.db")
    outbox.put([message()])
    outbox.file.connection.execute("PRAGMA query_only = ON")
    with pytest.raises(JournalError, match="cannot be used"):
        outbox.put([message(), message()])
    outbox.file.connection.execute("PRAGMA query_only = OFF")
    counts = outbox.counts
    assert (counts.received, counts.overflow, counts.waiting) == (3, 2, 1)
    outbox.put([message()])
    outbox.close()
    outbox = Outbox(tmp_path / "relay.db")
    assert (outbox.counts.received, outbox.counts.overflow) == (4, 2)
    outbox.close()


def test_it_gives_the_disk_back(tmp_path):
    path = tmp_path / "relay.db"
    outbox = Outbox(path)
    outbox.forget(seq for seq in outbox.put([message(b"x" * 50_000)] * 200) if seq)
    outbox.file.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    full = path.stat().st_size
    outbox.file.shrink()
    outbox.file.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.stat().st_size < full
    outbox.close()


def test_sessions_and_actions_are_remembered_for_two_days(tmp_path):
    now = 1.7e9
    outbox = Outbox(tmp_path / "relay.db", clock=lambda: now)
    key = 2**64 - 5
    session = SessionTimes("acme", "cut_1", 10.0, 20.0)
    outbox.put([message(session=session, actions=(key,))])
    outbox.put([message(session=session._replace(first=5.0, last=15.0))])
    assert outbox.remembered.session_times("acme", ["cut_1", "cut_2"]) == {"cut_1": (5.0, 20.0)}
    assert outbox.remembered.session_times("other", ["cut_1"]) == {}
    assert outbox.remembered.known_actions([key, 1]) == {key}
    now += 3 * 86_400
    outbox.put([message()])
    assert outbox.remembered.session_times("acme", ["cut_1"]) == {}
    assert outbox.remembered.known_actions([key]) == set()
    outbox.close()
