"""Deletion by age, in the journal's tables."""

from __future__ import annotations

import pytest

from autoplay_rag.content.chunks import Chunk
from autoplay_rag.journal.expiring import ExpiryTables, Limits, Part, due, late, limits_at, received
from autoplay_rag.journal.finding import Finder
from autoplay_rag.journal.schema import PayloadState
from autoplay_rag.journal.unindexed import entries_of
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction, SummaryPayload

DAY = 24 * 3600.0
NOW = 1_000 * DAY


def actions(session, title, *, at, user=None):
    """A batch of one action. `at` 0 is an unknown time."""
    click = SlimAction(title, title, "https://app.test/p", 0, "click", at, at)
    return ActionsPayload("acme", session, user, None, [click], 1, at)


@pytest.fixture
def tables(opened):
    made = opened()
    made.now = NOW
    made.file.clock = lambda: made.now
    made.expiry = ExpiryTables(made.file, made.catalog)
    return made


def expire(tables, days, *, keys=30.0, complete=True):
    """Run one sweep; returns the ids added to the outbox."""
    limits = limits_at(tables.now, days, keys)
    ids, after = [], None
    while page := received(tables.connection, after, limits, complete=complete):
        with tables.file.transaction():
            ids += tables.expiry.expire(page.due, limits)
            tables.expiry.drop_keys(page.keys)
        after = page.after
    after = None
    while not complete and (page := late(tables.connection, after, limits)):
        with tables.file.transaction():
            ids += tables.expiry.expire(page.due, limits)
        after = page.after
    return ids


def states(tables):
    return {seq: PayloadState(state).name for seq, state in rows(tables, "seq, state", "payload")}


def rows(tables, columns, table):
    return tables.connection.execute(f"SELECT {columns} FROM {table} ORDER BY 1").fetchall()


def test_a_chunk_goes_once_its_newest_part_is_old(tables, entries, store):
    old, newer = actions("s", "one", at=NOW - 9 * DAY), actions("s", "two", at=NOW - 6 * DAY)
    tables.accept(entries(old, newer))
    store(tables, 1, 2)
    assert expire(tables, 7) == []
    tables.now += 2 * DAY
    (chunk,) = rows(tables, "id", "chunk")
    assert expire(tables, 7) == [chunk[0]]
    assert states(tables) == {1: "EXPIRED", 2: "EXPIRED"}
    for table in ("chunk", "chunk_payload", "passage", "words_docsize", "visit", "belongs"):
        assert rows(tables, "*", table) == [], table
    assert rows(tables, "chunk, reason", "deletion") == [(chunk[0], "older than the retention")]
    assert rows(tables, "body, kind, error", "payload") == [(None, None, None)] * 2
    assert tables.counts == {"received": 2, "stored": 2}


@pytest.mark.parametrize("complete", [True, False])
def test_an_unknown_or_future_time_counts_from_the_receipt(tables, entries, store, complete):
    tables.now = NOW - 8 * DAY
    unknown, future = actions("a", "unknown", at=0.0), actions("b", "future", at=NOW + 99 * DAY)
    tables.accept(entries(unknown, future))
    tables.now = NOW
    tables.accept(entries(actions("c", "late", at=NOW - 8 * DAY), first=3))
    tables.accept(entries(actions("d", "new unknown", at=0.0), first=4))
    for seq in (1, 2, 3, 4):
        store(tables, seq, number=seq)
    expire(tables, 7, complete=complete)
    assert states(tables) == {1: "EXPIRED", 2: "EXPIRED", 3: "EXPIRED", 4: "STORED"}


def test_kinds_have_their_own_retention(tables, entries, store):
    at = NOW - 40 * DAY
    given = [
        actions("s", "one", at=at),
        SummaryPayload("acme", "s", "Did it.", 0, at),
        ChatTurn("acme", "s", None, "t", "why?", "because", forwarded_at=at),
    ]
    tables.accept(entries(*given))
    store(tables, 1, 2, 3)
    expire(tables, {"actions": 30, "chat": 50})
    assert states(tables) == {1: "EXPIRED", 2: "STORED", 3: "STORED"}
    tables.now += 20 * DAY
    expire(tables, {"actions": 30, "chat": 50})
    assert states(tables) == {1: "EXPIRED", 2: "STORED", 3: "EXPIRED"}
    (visit,) = rows(tables, "payloads, actions", "visit")
    assert visit == (1, 0)


def test_what_waits_or_is_planned_stays_and_dead_letters_are_discarded(
    tables, entries, plan, store
):
    at = NOW - 9 * DAY
    tables.accept(entries(*(actions("s", title, at=at) for title in ("w", "p", "d"))))
    plan(tables, 2, number=1)
    store(tables, 3, number=2, dead={3: "ValueError: no"})
    before = tables.bytes
    assert expire(tables, 7) == []
    assert states(tables) == {1: "WAITING", 2: "WAITING", 3: "EXPIRED"}
    assert tables.counts == {"received": 3, "pending": 2, "discarded": 1}
    assert 0 < tables.bytes < before


def test_a_late_delivery_is_a_duplicate_until_its_key_is_forgotten(tables, entries, store):
    payload = actions("s", "one", at=NOW - 9 * DAY)
    tables.accept(entries(payload))
    store(tables, 1)
    expire(tables, 7)
    assert tables.accept(entries(payload, first=2)) == ["duplicate"]
    tables.now += 31 * DAY
    expire(tables, 7, complete=False)
    assert states(tables) == {}
    assert tables.known().seq == 1, "its number is not assigned again"
    assert tables.accept(entries(payload, first=3)) == ["accepted"]
    store(tables, 3, number=3)
    expire(tables, 7, complete=False)
    assert states(tables) == {3: "EXPIRED"}


def test_keys_of_what_is_stored_stay(tables, entries, store):
    tables.accept(entries(actions("s", "one", at=NOW)))
    store(tables, 1)
    tables.now += 100 * DAY
    expire(tables, None, keys=0.0)
    expire(tables, {"summary": 1}, keys=0.0)
    assert states(tables) == {1: "STORED"}


def test_a_session_keeps_what_is_not_old(tables, entries, store):
    tables.accept(entries(actions("s", "one", at=NOW - 9 * DAY, user="ann")))
    tables.accept(entries(actions("s", "two", at=NOW - 1 * DAY, user="ann"), first=2))
    store(tables, 1, number=1)
    store(tables, 2, number=2)
    expire(tables, 7, complete=False)
    assert rows(tables, "payloads, actions, first, last", "visit") == [(1, 1, NOW - DAY, NOW - DAY)]
    assert rows(tables, "value", "belongs") == [("ann",)]


def test_a_retired_chunk_is_not_deleted_from_the_store_again(tables, entries, store):
    tables.accept(entries(actions("s", "one", at=NOW - 9 * DAY)))
    store(tables, 1)
    tables.connection.execute("UPDATE chunk SET state = 3")
    assert expire(tables, 7) == []
    assert rows(tables, "*", "chunk") == rows(tables, "*", "deletion") == []


def test_what_is_being_forgotten_is_left_to_that(tables, entries, store):
    tables.accept(entries(actions("s", "one", at=NOW - 9 * DAY)))
    store(tables, 1)
    tables.connection.execute("INSERT INTO forgetting VALUES (1, 1)")
    assert expire(tables, 7) == []
    tables.connection.execute("DELETE FROM forgetting")
    assert len(expire(tables, 7)) == 1


def test_sessions_that_nothing_is_left_of_release_their_claims(tables, entries, store):
    tables.accept(entries(SummaryPayload("acme", "s", "Did it.", 3, NOW - 9 * DAY)))
    store(tables, 1)
    assert len(rows(tables, "*", "claim")) == 1
    expire(tables, 7)
    assert rows(tables, "*", "claim") == []


def test_due_keeps_together_what_shares_a_chunk():
    def part(seq, chunk, at):
        return Part(seq, chunk, "actions", at, None, settled=True)

    chain = [part(1, 1, 0.0), part(2, 1, 0.0), part(2, 2, 0.0), part(3, 2, 9.0), part(4, 3, 0.0)]
    assert due(chain, Limits(others=5.0)) == {4}
    assert due(chain, Limits(others=10.0)) == {1, 2, 3, 4}
    assert due([], Limits(others=10.0)) == set()


def test_many_payloads_take_several_pages(tables, entries, store):
    many = [actions(f"s{n}", "x", at=NOW - 9 * DAY) for n in range(2500)]
    tables.now = NOW - 8 * DAY
    tables.accept(entries(*many))
    tables.now = NOW
    tables.connection.execute("UPDATE payload SET state = 1")
    tables.file.counts["stored"], tables.file.counts["pending"] = 2500, 0
    tables.file.counts["bytes"] = 0
    limits = limits_at(tables.now, 7, 30.0)
    first = received(tables.connection, None, limits, complete=False)
    assert len(first.due) == 2000
    expire(tables, 7, complete=False)
    assert set(states(tables).values()) == {"EXPIRED"}


def test_chunks_read_from_a_store_expire_by_their_own_time(tables):
    def chunk(number, **metadata):
        return Chunk(f"{number:032x}", f"text {number}", {"product_id": "acme", **metadata})

    old = {"kind": "actions", "started_at": NOW - 9 * DAY, "ended_at": NOW - 9 * DAY}
    found = [
        chunk(1, session_id="a", **old),
        chunk(2, session_id="b", kind="actions", ended_at=NOW - DAY),
        chunk(3, session_id="c", **old | {"kind": "summary"}),
    ]
    tables.adopt(found, "m")
    fulltext = tables.catalog.fulltext
    with tables.file.transaction():  # as the pipeline does in the background
        page, _ = fulltext.unindexed(9)
        fulltext.add_older(entries_of(page), page[-1].seq)
    assert expire(tables, {"actions": 7}) == [f"{1:032x}"]
    assert sorted(states(tables).values()) == ["ADOPTED", "ADOPTED", "EXPIRED"]
    assert rows(tables, "id", "chunk") == [(f"{2:032x}",), (f"{3:032x}",)]


def test_the_ranking_does_not_count_what_expired(tables, entries, store):
    times = (NOW - 9 * DAY, NOW - 9 * DAY, NOW)
    tables.accept(entries(*(actions(f"s{n}", "word", at=at) for n, at in enumerate(times))))
    for seq in (1, 2, 3):
        store(tables, seq, number=seq, dead={2: "ValueError: no"} if seq == 2 else None)
    expire(tables, 7)
    assert Finder(tables.connection)._count_passages() == len(rows(tables, "seq", "passage")) == 1


def test_a_page_has_the_payloads_of_a_chunk_beside_each_other(tables, entries, store):
    sessions = ("a", "b", "a", "b", "a")
    tables.now = NOW - 8 * DAY
    many = [actions(session, f"{n}", at=NOW - 9 * DAY) for n, session in enumerate(sessions)]
    tables.accept(entries(*many))
    store(tables, 2, 4, number=1)
    store(tables, 1, 3, 5, number=2)
    limits = limits_at(NOW, 7, 30.0)
    page = received(tables.connection, None, limits, complete=False)
    assert page.due == [2, 4, 1, 3, 5]


def test_deleted_words_are_merged_away_once_they_are_most_of_the_index(
    tables, entries, store, monkeypatch
):
    monkeypatch.setattr("autoplay_rag.journal.fulltext._FEW_REMOVED", 10)

    def size():
        return tables.connection.execute("SELECT sum(length(block)) FROM words_data").fetchone()[0]

    def text(number, at):
        words = " ".join(f"w{number}x{n}" for n in range(50))
        return actions(f"s{number}", words, at=at)

    for number in range(60):
        at = NOW - (9 if number < 30 else 1) * DAY
        tables.accept(entries(text(number, at), first=number + 1))
        store(tables, number + 1)
    before = size()
    assert not tables.expiry.words_are_stale()
    expire(tables, 7)
    assert not tables.expiry.words_are_stale()  # as many are left
    tables.now += 9 * DAY
    tables.accept(entries(text(60, tables.now), first=61))
    store(tables, 61)
    expire(tables, 7)
    assert tables.expiry.words_are_stale()
    first = True
    while tables.expiry.merge_words(first):
        first = False
    assert not tables.expiry.words_are_stale()
    assert size() < before / 5
    tables.connection.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 0)")
