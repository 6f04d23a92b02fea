"""The catalog's tables: chunks, sessions, the outbox, and what is filled in from a store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoplay_rag.content.chunks import Chunk
from autoplay_rag.content.identity import People
from autoplay_rag.content.keys import chunk_id, payload_key, session_lane
from autoplay_rag.journal import catalog as catalog_module
from autoplay_rag.journal.base import Acknowledgement, Plan, PlannedChunk, Session
from autoplay_rag.journal.catalog import read_chunks
from autoplay_rag.journal.rows import json_list

LANE = session_lane("acme", "s")


@pytest.fixture
def add(make_actions, entries):
    """Store chunks, each with its own payload."""

    def make(db, *chunks, first=1):
        payloads = [make_actions("s", f"{one.id} {first}") for one in chunks]
        db.accept(entries(*payloads, first=first))
        planned = [PlannedChunk(chunk, (seq,), 0) for seq, chunk in enumerate(chunks, first)]
        plan = Plan(first, LANE, planned)
        db.record_plans([plan], [])
        db.acknowledge([Acknowledgement(plan, {})])

    return make


def chunk(id, text="text", **metadata):
    return Chunk(id, text, metadata)


def said(session="s", user=None, conversation=None, started=5.0, ended=6.0):
    """Metadata of a chunk, as in a store."""
    found = {
        "product_id": "acme", "session_id": session, "user_id": user,
        "conversation_id": conversation, "started_at": started, "ended_at": ended,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


# -- chunks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "kill"])
def test_chunks_are_as_they_were_given(opened, add, end):
    chunks = [
        chunk("a"),
        chunk("b", "with \0 and \U0001f600", product_id="", session_id="s", kind="summary"),
        chunk("c", product_id="acme", session_id="s", user_id="u", conversation_id="t",
              email="ann@example.com", kind="actions", started_at=1764163848.7364554, ended_at=2.5,
              forwarded_at=3.5, action_count=7, urls="https://a.example.com b", extra=0),
    ]  # fmt: skip
    db = opened()
    add(db, *chunks)
    getattr(db, end)()
    db = opened()
    db.queue_all()
    found = [one.chunk for one in db.queued(0, 9)]
    assert found == chunks
    read = read_chunks(db.connection, json_list(["a", "b", "c", "d"]), "TRUE")
    assert sorted(read, key=lambda one: one.id) == chunks
    assert type(found[2].metadata["action_count"]) is int
    assert type(found[2].metadata["extra"]) is int


def test_the_model_of_a_chunk_is_known(opened, add):
    db = opened()
    add(db, chunk("a"), chunk("b"))
    db.queue.model = "other"
    db.queue_all()
    (first,) = db.queued(0, 1)
    db.stored_again({first.number: first.chunk.id}, {})
    rows = db.connection.execute(
        "SELECT id, name FROM chunk JOIN model ON model.number = model ORDER BY id"
    )
    assert rows.fetchall() == [("a", "other"), ("b", "m")]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000])
def test_a_sample_spreads_over_a_catalog_with_gaps(opened, add, count):
    db = opened()
    chunks = [chunk(f"c{i}") for i in range(300)]
    add(db, *chunks)
    db.remove([number for number in range(1, 301) if number % 10 or 100 < number < 200])
    left = {one.id for i, one in enumerate(chunks, 1) if not (i % 10 or 100 < i < 200)}
    found = db.sample(count)
    assert 0 < len(found) <= min(count, len(left))
    assert set(found) <= left
    if count == 10:
        numbers = sorted(int(one[1:]) for one in found)
        assert numbers[0] < 50
        assert numbers[-1] > 250


def test_a_sample_is_taken_without_reading_everything(opened, add):
    db = opened()
    add(db, *(chunk(f"c{i}") for i in range(2000)))
    statements = []
    db.connection.set_trace_callback(statements.append)
    db.sample(20)
    assert len(statements) < 25
    for statement in statements:
        if "FROM chunk" in statement:
            plan = db.connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
            assert not any("SCAN chunk" in row[3] and "min(" not in statement for row in plan)


# -- the outbox -------------------------------------------------------------------------------


def test_the_outbox_is_kept_until_it_is_confirmed(opened, add):
    db = opened()
    add(db, chunk("a"), chunk("b"), chunk("c"))
    assert db.remove(db.numbers_of([1]), "forgotten") == ["a"]
    assert db.remove(db.numbers_of([2, 3]), "forgotten") == ["b", "c"]
    assert db.remove([], "forgotten") == []
    db.kill()
    db = opened()
    assert db.deletions(1) == ["a"]
    assert sorted(db.deletions(-1)) == ["a", "b", "c"]
    db.deleted(["a", "unknown"])
    db.deleted([])
    assert sorted(db.deletions(-1)) == ["b", "c"]


def test_a_chunk_stored_again_leaves_the_outbox(opened, add):
    db = opened()
    add(db, chunk("a"), chunk("b"))
    db.remove(db.numbers_of([1, 2]), "forgotten")
    add(db, chunk("a", "new"), first=3)
    assert db.deletions(-1) == ["b"]
    assert db.known().chunks == 1


# -- sessions ---------------------------------------------------------------------------------


def test_a_session_without_times_gets_them_later(opened):
    """A session from an older format has neither times nor names."""
    db = opened()
    db.connection.execute(
        "INSERT INTO visit (lane, product, session, user, seen) VALUES (?, '', '', 'ann', 1.0)",
        (LANE,),
    )
    unknown = Session(LANE, "", "", People("ann"), ambiguous=False, first=0.0, last=0.0)
    assert db.sessions([LANE]) == {LANE: unknown}
    known = Session(LANE, "acme", "s", People("ann", "t"), ambiguous=False, first=5.0, last=6.0)
    db.record_plans([], [known])
    assert db.sessions([LANE]) == {LANE: known}
    db.record_plans([], [known._replace(first=0.0, last=0.0)])
    assert db.sessions([LANE]) == {LANE: known}


def test_memory_holds_only_so_many_sessions(opened, monkeypatch):
    monkeypatch.setattr(catalog_module, "_MEMORY_SESSIONS", 3)
    db = opened(path=None)
    for lane in range(1, 6):
        one = Session(lane, "acme", f"s{lane}", People(), ambiguous=False, first=1.0, last=2.0)
        db.record_plans([], [one])
    db.tidy()
    assert sorted(db.sessions([1, 2, 3, 4, 5])) == [3, 4, 5]


# -- from a store -----------------------------------------------------------------------------


@pytest.fixture
def bare(opened, add):
    """A journal after an upgrade: chunks without texts, and nothing else is known of them."""
    db = opened()
    add(db, chunk("a"), chunk("b"), chunk("c"))
    db.connection.execute("UPDATE chunk SET text = NULL, lane = NULL")
    db.connection.execute("UPDATE payload SET body = NULL")
    with db.file.transaction():
        db.catalog.fulltext.remove([1, 2, 3])
    return db


def test_texts_are_filled_once_where_they_are_missing(bare):
    assert bare.missing_texts() == 3
    assert bare.queue_all() == 0  # nothing can be stored again yet
    given = [chunk("a", "text of a", **said()), chunk("x", "unknown")]
    assert bare.fill([given[0], given[0], given[1]]) >= 1
    assert bare.fill(given) == 0
    assert bare.missing_texts() == 2
    assert bare.queue_all() == 1
    (queued,) = bare.queued(0, 9)
    assert queued.chunk == given[0]
    assert bare.seqs_of(queued.number) == [1]
    assert bare.counts == {"received": 3, "stored": 3}
    rows = bare.connection.execute("SELECT id, lane FROM chunk WHERE text IS NOT NULL").fetchall()
    assert rows == [("a", LANE)]


@pytest.mark.parametrize("order", [1, -1])
def test_a_store_says_who_a_session_belongs_to_whatever_the_order(bare, order):
    """Scans are unordered."""
    chunks = [
        chunk("a", **said(conversation="t", started=1.0, ended=2.0)),
        chunk("b", **said(user="ann", started=3.0, ended=4.0)),
        chunk("c", **said(started=5.0, ended=9.0)),
    ][::order]
    bare.fill(chunks)
    ann = Session(LANE, "acme", "s", People("ann", "t"), ambiguous=False, first=1.0, last=4.0)
    assert bare.sessions([LANE]) == {LANE: ann}


@pytest.mark.parametrize("order", [1, -1])
def test_a_session_that_changed_hands_is_ambiguous(bare, order):
    chunks = [
        chunk("a", **said(user="ann", conversation="t", started=1.0, ended=2.0)),
        chunk("b", **said(user="bob", started=3.0, ended=4.0)),
    ][::order]
    bare.fill(chunks)
    bob = Session(LANE, "acme", "s", People("bob"), ambiguous=True, first=1.0, last=4.0)
    assert bare.sessions([LANE]) == {LANE: bob}


def test_what_the_journal_knows_of_a_session_is_newer_than_what_a_store_says(bare):
    known = Session(LANE, "acme", "s", People("bob"), ambiguous=False, first=50.0, last=60.0)
    bare.record_plans([], [known])
    bare.fill([chunk("a", **said(user="ann", conversation="t"))])
    assert bare.sessions([LANE]) == {LANE: known._replace(first=5.0)}
    bare.fill([chunk("b", **said(user="bob", conversation="t2", started=55.0, ended=70.0))])
    found = bare.sessions([LANE])[LANE]
    assert (found.people, found.first, found.last) == (People("bob", "t2"), 5.0, 70.0)


@pytest.mark.parametrize("order", [1, -1])
def test_later_parts_of_a_long_payload_are_found_by_the_first(opened, make_actions, entries, order):
    """An older format kept only the first chunk of a payload."""
    long, other = make_actions("s", "a"), make_actions("s", "b")
    metadata = {**said(user="ann"), "kind": "actions"}
    parts = [
        chunk(chunk_id(long, payload_key(long), part), f"part {part}", **metadata)
        for part in range(3)
    ]
    foreign = chunk("0" * 32, "theirs", **metadata)
    db = opened()
    db.accept(entries(long, other))
    plan = Plan(1, LANE, [PlannedChunk(parts[0], (1,), 0)])
    db.record_plans([plan], [])
    db.acknowledge([Acknowledgement(plan, {})])
    db.connection.execute(
        "UPDATE chunk SET text = NULL, lane = NULL, session = NULL, product = NULL, kind = NULL"
    )
    pages = [[foreign], *([part] for part in parts)][::order]
    assert sum(db.fill(page) for page in pages * 2) == 1
    db.queue_all()
    queued = db.queued(0, 9)
    assert {one.chunk.text for one in queued} == {"part 0", "part 1", "part 2"}
    assert [db.seqs_of(one.number) for one in queued] == [[1], [1], [1]]
    assert db.counts == {"received": 2, "stored": 1, "pending": 1}


def test_adopted_chunks_are_known_after_a_restart(opened, make_actions, entries):
    payload = make_actions("s", "a")
    db = opened()
    adopted = chunk(chunk_id(payload, payload_key(payload)), **said(user="ann"))
    assert db.adopt([adopted, chunk("not 32 digits"), chunk("z" * 32)], "m") == 3
    assert db.counts == {}
    db.kill()
    db = opened()
    assert db.notes().adopted
    assert db.known().seq == 0
    given = [replace(one, first_chunk=adopted.id) for one in entries(payload)]
    assert db.accept(given) == ["duplicate"]
    assert db.sessions([LANE])[LANE].people == People("ann")
    assert db.counts == {"received": 1, "duplicate": 1}
