"""Random operations, crashes and failures: nothing is lost, and every count is correct."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from autoplay_rag.content.chunks import Chunk
from autoplay_rag.journal import deleting
from autoplay_rag.journal.base import Acknowledgement, Plan, PlannedChunk
from autoplay_rag.journal.ledger import COUNTERS, Ledger
from autoplay_rag.journal.schema import ChunkState, PayloadState

KEYS = 12
picks = st.integers(0, 2**16)


class InjectedError(Exception):
    """A failure in the middle of an operation."""


class Balance(RuleBasedStateMachine):
    """One journal and a model of it: the state of each payload by key."""

    tables_class = None
    make_entry = None
    make_actions = None

    @initialize(
        durability=st.sampled_from(["normal", "full"]),
        keep_payloads=st.booleans(),
        max_bytes=st.sampled_from([2**30, 1500]),
    )
    def open_new(self, durability, keep_payloads, max_bytes):
        self.folder = Path(tempfile.mkdtemp())
        self.options = {"keep_payloads": keep_payloads, "max_bytes": max_bytes}
        self.durability = durability
        self.path = self.folder / "journal.db"
        self.db = self.tables_class(self.path, durability, **self.options)
        self.seq = self.number = self.copies = 0
        self.outcomes = dict.fromkeys(("duplicate", "filtered", "overflow"), 0)
        self.state = {}  # key -> (seq, state)
        self.plans = {}  # number -> plan
        self.outbox = set()
        self.known_before = (0, 0)

    def teardown(self):
        if hasattr(self, "db"):
            self.db.close()
            shutil.rmtree(self.folder)

    # -- operations -----------------------------------------------------------------------------

    def entries(self, keys, outcomes):
        made = []
        for key, outcome in zip(keys, outcomes, strict=True):
            self.seq += 1
            entry = self.make_entry(self.make_actions(f"s{key % 3}", f"title {key}"), self.seq)
            if outcome == "filtered":
                entry = replace(entry, payload=None, body=None, outcome=outcome)
            elif outcome == "dead":
                entry = replace(entry, outcome=outcome, error="select failed")
            elif outcome == "unkept":
                entry = replace(
                    entry, payload=None, body=None, outcome="dead", error="redact failed"
                )
            made.append(entry)
        return made

    @rule(
        keys=st.lists(st.integers(1, KEYS), min_size=1, max_size=8),
        outcome=st.lists(
            st.sampled_from(["accepted", "accepted", "accepted", "dead", "unkept", "filtered"]),
            min_size=8,
            max_size=8,
        ),
    )
    def accept(self, keys, outcome):
        entries = self.entries(keys, outcome[: len(keys)])
        for entry, found in zip(entries, self.db.accept(entries), strict=True):
            if entry.outcome == "filtered":
                assert found == "filtered"
            elif entry.key in self.state:
                assert found == "duplicate"
            elif found != "overflow":
                assert found == entry.outcome
                state = PayloadState.WAITING if found == "accepted" else PayloadState.DEAD
                self.state[entry.key] = (entry.seq, state)
            if found in self.outcomes:
                self.outcomes[found] += 1

    def seqs_in(self, state):
        return sorted(seq for seq, found in self.state.values() if found == state)

    def move(self, seqs, state):
        wanted = set(seqs)
        self.state = {
            key: (seq, state if seq in wanted else found)
            for key, (seq, found) in self.state.items()
        }

    @precondition(lambda self: self.free())
    @rule(pick=picks, parts=st.integers(1, 3))
    def record_plan(self, pick, parts):
        source = random.Random(pick)
        seqs = sorted(source.sample(self.free(), source.randint(1, len(self.free()))))
        self.number += 1
        chunks = []
        while seqs:
            size = source.randint(1, 3)
            first, seqs = seqs[:size], seqs[size:]
            of_one = range(parts) if len(first) == 1 else range(1)
            chunks += [
                PlannedChunk(Chunk(f"{first[0]:024x}{part:08x}", "text", {}), tuple(first), 0)
                for part in of_one
            ]
        plan = Plan(self.number, 1, chunks)
        self.db.record_plans([plan], [])
        self.plans[plan.number] = plan

    def free(self):
        planned = {seq for plan in self.plans.values() for seq in plan.seqs}
        return [seq for seq in self.seqs_in(PayloadState.WAITING) if seq not in planned]

    @precondition(lambda self: self.plans)
    @rule(pick=picks)
    def divide(self, pick):
        number = random.Random(pick).choice(sorted(self.plans))
        plan = self.plans[number]
        apart = [
            PlannedChunk(Chunk(f"{seq:024x}{0:08x}", "alone", {}), (seq,), 0) for seq in plan.seqs
        ]
        self.plans[number] = Plan(number, 1, apart)
        self.db.replace_plan(self.plans[number])

    @precondition(lambda self: self.plans)
    @rule(pick=picks, fate=st.sampled_from(["stored", "some die", "all die"]))
    def acknowledge(self, pick, fate):
        source = random.Random(pick)
        numbers = sorted(self.plans)
        ended = [self.plans.pop(n) for n in source.sample(numbers, source.randint(1, len(numbers)))]
        settled = []
        for plan in ended:
            dead = {}
            for planned in plan.chunks:
                if fate == "all die" or (fate == "some die" and source.random() < 0.5):
                    dead |= dict.fromkeys(planned.seqs, "store: no")
            settled.append(Acknowledgement(plan, dead))
            self.move([seq for seq in plan.seqs if seq not in dead], PayloadState.STORED)
            self.move(dead, PayloadState.DEAD)
            self.outbox -= {one.chunk.id for one in plan.chunks if dead.keys().isdisjoint(one.seqs)}
        self.outbox.update(self.db.acknowledge(settled).outbox)

    @rule(ids=st.none() | st.lists(st.integers(1, 60), max_size=5))
    def retry(self, ids):
        back = [seq for _, seq in self.db.retry(ids)]
        dead = self.seqs_in(PayloadState.DEAD)
        assert set(back) <= {seq for seq in dead if ids is None or seq in ids}
        self.move(back, PayloadState.WAITING)

    @rule(ids=st.none() | st.lists(st.integers(1, 60), max_size=5))
    def discard(self, ids):
        gone = [seq for seq in self.seqs_in(PayloadState.DEAD) if ids is None or seq in ids]
        assert self.db.discard(ids) == len(gone)
        self.move(gone, PayloadState.DISCARDED)

    @rule(pick=picks, refuse=st.booleans())
    def store_again(self, pick, refuse):
        source = random.Random(pick)
        self.db.queue_all()
        queued = self.db.queued(0, source.randint(1, 5))
        refused = {one.number: "store: no" for one in queued if refuse and source.random() < 0.5}
        dying = {seq for number in refused for seq in self.db.seqs_of(number)}
        stored = {one.number: one.chunk.id for one in queued if one.number not in refused}
        self.outbox -= set(stored.values())
        self.outbox.update(self.db.stored_again(stored, refused))
        self.move(dying, PayloadState.DEAD)

    @precondition(lambda self: self.outbox)
    @rule(pick=picks)
    def delete(self, pick):
        gone = random.Random(pick).sample(sorted(self.outbox), 1)
        self.db.deleted(gone)
        self.outbox -= set(gone)

    @rule()
    def tidy(self):
        self.db.tidy()

    # -- closing and crashing -------------------------------------------------------------------

    @rule(end=st.sampled_from(["close", "kill", "copy"]))
    def reopen(self, end):
        if end == "copy":  # the state of the disk during a run
            self.copies += 1
            folder = self.folder / f"copy-{self.copies}"
            folder.mkdir()
            for suffix in ("", "-wal"):
                part = self.path.with_name(self.path.name + suffix)
                shutil.copy(part, folder / part.name)
            self.db.kill()
            self.path = folder / self.path.name
        else:
            getattr(self.db, end)()
        self.db = self.tables_class(self.path, self.durability, **self.options)
        self.db.queue_unconfirmed()
        assert self.db.plans() == [self.plans[number] for number in sorted(self.plans)]

    @rule(key=st.integers(1, KEYS), what=st.sampled_from(["accept", "plan", "discard", "retry"]))
    def fail_half_way(self, key, what):
        before = dict(self.db.file.counts), self.dump()

        def operate():
            queue = self.db.queue
            with self.db.file.transaction():
                if what == "accept":
                    queue.accept(self.entries([key] * 2, ["accepted"] * 2))
                elif what == "plan":
                    queue.record_plans([Plan(9999, 1, [])], [])
                elif what == "discard":
                    queue.discard(None)
                else:
                    queue.retry(None)
                raise InjectedError

        with pytest.raises(InjectedError):
            operate()
        assert (dict(self.db.file.counts), self.dump()) == before

    def dump(self):
        return [
            self.db.connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("payload", "chunk", "chunk_payload", "plan", "deletion", "counts")
        ]

    # -- invariants -----------------------------------------------------------------------------

    @invariant()
    def counts_are_true(self):
        if not hasattr(self, "db"):
            return
        counts = self.db.file.counts
        assert Ledger(**{name: counts[name] for name in COUNTERS}).balanced
        assert counts == self.db.file.committed
        rows = dict(
            self.db.connection.execute("SELECT state, count(*) FROM payload GROUP BY state")
        )
        names = ("pending", "stored", "dead", "discarded")
        for state, name in zip(PayloadState, names, strict=False):
            assert counts[name] == rows.get(state, 0) == len(self.seqs_in(state)), name
        for name, count in self.outcomes.items():
            assert counts[name] == count, name
        assert counts["bytes"] == self.db.scalar(
            "SELECT coalesce(sum(size), 0) FROM payload WHERE state IN (0, 2)"
        )
        assert counts["bytes"] <= self.options["max_bytes"] or self.db.scalar(
            "SELECT count(*) FROM payload WHERE state = 2 OR retried = 1"
        )  # a payload that dies when it is stored again returns even if there is no room

    @invariant()
    def rows_are_what_was_done(self):
        if not hasattr(self, "db"):
            return
        rows = self.db.connection.execute("SELECT hex(key), seq, state FROM payload").fetchall()
        assert {key.lower(): (seq, state) for key, seq, state in rows} == self.state
        assert len(rows) == len(self.state)  # each key once
        assert set(self.db.deletions(-1)) == self.outbox
        known = self.db.known()
        assert known.seq >= self.known_before[0]
        assert known.batch >= self.known_before[1]
        assert known.batch == max([self.known_before[1], *self.plans])
        self.known_before = (known.seq, known.batch)

    @invariant()
    def chunks_hold_what_is_stored_or_planned(self):
        if not hasattr(self, "db"):
            return
        held = {
            seq
            for (seq,) in self.db.connection.execute(
                "SELECT seq FROM chunk_payload JOIN chunk ON number = chunk WHERE state <> ?",
                (ChunkState.PLANNED,),
            )
        }
        assert held == set(self.seqs_in(PayloadState.STORED))
        planned = {seq for plan in self.plans.values() for seq in plan.seqs}
        assert planned == {
            seq
            for (seq,) in self.db.connection.execute(
                "SELECT seq FROM chunk_payload JOIN chunk ON number = chunk WHERE state = ?",
                (ChunkState.PLANNED,),
            )
        }
        assert not self.db.scalar(
            "SELECT count(*) FROM chunk WHERE number NOT IN (SELECT chunk FROM chunk_payload)"
        )


@pytest.fixture
def machine(opened, entry, make_actions):
    made = opened(path=None)
    made.close()

    class Machine(Balance):
        tables_class = type(made)

    Machine.make_entry = staticmethod(entry)
    Machine.make_actions = staticmethod(make_actions)
    return Machine


@pytest.mark.parametrize("large_bytes", [0, 4096])
def test_nothing_is_lost_and_every_count_is_true(machine, monkeypatch, large_bytes):
    """If 0 bytes count as large, every row is rewritten when its body is dropped."""
    monkeypatch.setattr(deleting, "_LARGE_BYTES", large_bytes)
    run_state_machine_as_test(machine)
