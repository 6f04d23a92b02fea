"""The queue's tables: what persists over restarts, and what is forgotten when."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from autoplay_rag.journal import queue as queue_module
from autoplay_rag.journal.base import Health, Plan
from autoplay_rag.journal.bodies import decoded
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload

MANY = 2**30
HOUR = 3600.0


@pytest.fixture
def clock(monkeypatch):
    """Set the time, in seconds from now."""
    now = time.time()
    return lambda later: monkeypatch.setattr(time, "time", lambda: now + later)


# -- restarts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "kill"])
def test_what_waits_is_taken_up_again_in_order(opened, make_actions, entries, end):
    db = opened()
    payloads = [make_actions(f"s{i % 3}", str(i), at=1000.0 - i) for i in range(50)]
    assert db.accept(entries(*payloads)) == ["accepted"] * 50
    getattr(db, end)()
    again = opened()
    waiting = again.waiting(0, 100)
    assert [seq for seq, _, _ in waiting] == list(range(1, 51))
    assert again.waiting(40, 3) == waiting[40:43]
    assert len({lane for _, lane, _ in waiting}) == 3
    assert (again.known().seq, again.known().batch) == (50, 0)
    assert again.counts == {"received": 50, "pending": 50}


def test_a_plan_is_taken_up_as_it_was_recorded(opened, make_actions, entries, plan):
    db = opened()
    db.accept(entries(make_actions("s", "a"), make_actions("s", "b"), make_actions("t", "c")))
    planned = [plan(db, 1, 2, number=7), plan(db, 3, number=8)]
    assert planned[0].chunks[0].tokens == len("a\nb")
    db.kill()
    again = opened()
    # Tokens are counted again: the embedder may have changed.
    bare = [
        Plan(one.number, one.lane, [replace(chunk, tokens=0) for chunk in one.chunks])
        for one in planned
    ]
    assert again.plans() == bare
    assert again.known().batch == 8
    lanes = [one.lane for one in planned]
    assert [one.session_id for one in again.sessions(lanes).values()] == ["s", "t"]


def test_a_duplicate_is_known_after_a_crash_and_after_storing(opened, make_actions, entries, store):
    db = opened()
    payload = make_actions("s", "a")
    assert db.accept(entries(payload, payload)) == ["accepted", "duplicate"]
    db.kill()
    db = opened()
    assert db.accept(entries(payload, first=3)) == ["duplicate"]
    store(db, 1)
    db.close()
    db = opened()
    assert db.accept(entries(payload, first=4)) == ["duplicate"]
    assert db.counts == {"received": 4, "stored": 1, "duplicate": 3}


def test_bytes_that_wait_are_known_after_a_restart(opened, make_actions, entries):
    payloads = entries(*(make_actions("s", str(i)) for i in range(3)))
    db = opened(max_bytes=2 * payloads[0].size)
    assert db.accept(payloads) == ["accepted", "accepted", "overflow"]
    db.kill()
    db = opened(max_bytes=2 * payloads[0].size)
    assert db.accept([replace(payloads[2], seq=4)]) == ["overflow"]


# -- contents of payloads ---------------------------------------------------------------------


def test_nul_surrogates_and_megabytes_pass_through(opened, entries, store):
    odd = SlimAction("a\0b", "\ud800 half a pair \U0001f600", "https://app.example.com/\0")
    big = SummaryPayload("p\0", "s\0\ud800", "x" * 8_000_000, 1, 5.0)
    payloads = [ActionsPayload("p\0", "s\0\ud800", "u\0", None, [odd], 1, 5.0), big]
    db = opened()
    assert db.accept(entries(*payloads)) == ["accepted", "accepted"]
    bodies = [decoded(one.body) for one in db.read([1, 2], MANY)]
    assert bodies[0].actions[0].title == "a\0b"
    assert bodies[0].actions[0].description == "\ufffd half a pair \U0001f600"
    assert bodies[1].summary == big.summary
    made = store(db, 1, 2, dead={2: "store: it said \0 and more"})
    assert made.chunks[0].chunk.text == "a\0b"
    (session,) = db.sessions([made.lane]).values()
    assert session.people.user_id == "u\ufffd"
    (letter,) = db.dead_letters(9)
    assert letter.payload.summary == big.summary
    assert letter.error == "store: it said \0 and more"
    assert db.accept(entries(*payloads, first=3)) == ["duplicate", "duplicate"]


def test_nothing_stays_of_a_payload_on_which_redact_failed(opened, make_actions, entry):
    db = opened()

    def fail(payload):
        raise ValueError(payload.actions[0].title)

    assert db.accept([entry(make_actions("s", "secret"), 1, redact=fail)]) == ["dead"]
    (letter,) = db.dead_letters(9)
    assert (letter.payload, letter.error) == (None, "redact failed: ValueError")
    assert b"secret" not in db.connection.serialize()


@pytest.mark.parametrize("keep", [True, False])
def test_bodies_stay_after_storing_if_they_may(opened, make_actions, entries, store, keep):
    db = opened(keep_payloads=keep)
    db.accept(entries(make_actions("s", "a"), make_actions("s", "b")))
    store(db, 1)
    kept = db.scalar("SELECT count(*) FROM payload WHERE state = 1 AND body IS NOT NULL")
    assert kept == int(keep)
    assert [payload.actions[0].title for _, payload in db.recent(0.0, 9)] == ["a", "b"][not keep :]


def test_recent_payloads_are_found_by_time(opened, make_actions, entries, clock):
    db = opened()
    for minute in range(10):
        clock(60 * minute)
        db.accept(entries(make_actions("s", str(minute)), first=minute + 1))
    now = time.time()
    for minutes, found in ((3.5, "6789"), (0.5, "9"), (-1, ""), (99, "0123456789")):
        titles = [p.actions[0].title for _, p in db.recent(now - 60 * minutes, 99)]
        assert "".join(titles) == found
    clock(-HOUR)  # a clock that was set back
    db.accept(entries(make_actions("s", "late"), first=11))
    assert [p.actions[0].title for _, p in db.recent(now - 30, 99)] == ["9"]


# -- forgetting -------------------------------------------------------------------------------


def test_a_payload_only_in_memory_is_known_for_a_day(opened, make_actions, entries, store, clock):
    db = opened(path=None)
    payload = make_actions("s", "a")
    db.accept(entries(payload))
    store(db, 1)
    clock(23 * HOUR)
    db.tidy()
    assert db.accept(entries(payload, first=2)) == ["duplicate"]
    clock(25 * HOUR)
    db.tidy()
    assert db.scalar("SELECT count(*) FROM chunk") == 0
    assert db.scalar("SELECT count(*) FROM chunk_payload") == 0
    assert db.scalar("SELECT count(*) FROM visit") == 0
    assert db.accept(entries(payload, first=3)) == ["accepted"]
    assert db.counts == {"received": 3, "stored": 1, "duplicate": 1, "pending": 1}


def test_memory_holds_only_so_much_of_what_was_stored(
    opened, make_actions, entries, store, monkeypatch
):
    monkeypatch.setattr(queue_module, "_MEMORY_PAYLOADS", 10)
    db = opened(path=None)
    payloads = [make_actions("s", str(i)) for i in range(30)]
    db.accept(entries(*payloads))
    store(db, *range(1, 5))  # one chunk
    store(db, *range(5, 26), number=2)
    db.tidy()
    assert db.accept(entries(payloads[19], payloads[20], payloads[29], first=31)) == [
        "accepted", "duplicate", "duplicate"
    ]  # fmt: skip
    assert db.scalar("SELECT count(*) FROM chunk") == 2  # of 5 to 24, and of 25
    assert [seq for seq, _, _ in db.waiting(0, 99)] == [26, 27, 28, 29, 30, 31]


def test_a_file_knows_what_was_stored_for_good(opened, make_actions, entries, store, clock):
    db = opened()
    db.accept(entries(make_actions("s", "a"), make_actions("s", "b"), make_actions("s", "c")))
    store(db, 1)
    store(db, 2, number=2, dead={2: "store: no"})
    clock(10_000 * HOUR)
    db.tidy()
    assert (
        db.accept(
            entries(make_actions("s", "a"), make_actions("s", "b"), make_actions("s", "c"), first=4)
        )
        == ["duplicate"] * 3
    )
    assert db.known().chunks == 1


def test_a_discarded_key_is_known_for_a_day_and_its_number_for_good(
    opened, make_actions, entries, store, clock
):
    db = opened()
    payload = make_actions("s", "a")
    db.accept(entries(payload))
    store(db, 1, dead={1: "store: no"})
    db.discard(None)
    clock(23 * HOUR)
    db.tidy()
    assert db.accept(entries(payload, first=2)) == ["duplicate"]
    clock(25 * HOUR)
    db.tidy()
    assert db.scalar("SELECT count(*) FROM payload") == 0
    db.close()
    db = opened()
    assert (db.known().seq, db.known().batch) == (1, 1)
    assert db.accept(entries(payload, first=2)) == ["accepted"]


# -- full durability --------------------------------------------------------------------------


def test_full_durability_stores_again_after_an_unclean_end_only(
    opened, make_actions, entries, store
):
    db = opened("full")
    db.accept(entries(make_actions("s", "a")))
    made = store(db, 1)
    db.close()
    db = opened("full")
    assert db.queue_unconfirmed() == 0
    db.kill()
    db = opened("full")
    assert db.queue_unconfirmed() == 1
    (queued,) = db.queued(0, 9)
    assert queued.chunk == made.chunks[0].chunk
    # It stays queued until the store has taken it, over time and restarts.
    db.tidy()
    db.close()
    db = opened("full")
    assert db.queue_unconfirmed() == 0
    assert db.queued(0, 9) == [queued]
    assert db.stored_again({queued.number: queued.chunk.id}, {}) == []
    assert db.counts == {"received": 1, "stored": 1}
    db.close()
    assert opened("full").count_queued() == 0


def test_what_is_refused_when_it_is_stored_again_is_dead_and_not_counted_as_stored(
    opened, make_actions, entries, store
):
    db = opened("full")
    db.accept(entries(make_actions("s", "a"), make_actions("s", "b"), make_actions("t", "c")))
    store(db, 1, 2)
    store(db, 3, number=2)
    db.kill()
    db = opened("full")
    assert db.queue_unconfirmed() == 2
    first, second = db.queued(0, 9)
    stored = {second.number: second.chunk.id}
    assert db.stored_again(stored, {first.number: "store: no"}) == [first.chunk.id]
    assert [(one.id, one.error) for one in db.dead_letters(9)] == [
        (1, "store: no"),
        (2, "store: no"),
    ]
    assert db.counts == {"received": 3, "stored": 1, "dead": 2}


def test_a_replay_never_brings_back_what_was_deleted_since(opened, make_actions, entries, store):
    db = opened("full")
    db.accept(entries(make_actions("s", "a"), make_actions("t", "b")))
    gone = store(db, 1)
    store(db, 2, number=2)
    db.remove(db.numbers_of([1]), "forgotten")
    db.kill()
    db = opened("full")
    assert db.queue_unconfirmed() == 1
    assert gone.chunks[0].chunk.id not in [one.chunk.id for one in db.queued(0, 9)]
    assert db.deletions(9) == [gone.chunks[0].chunk.id]


def test_full_durability_keeps_what_it_acknowledged_for_ten_minutes(
    opened, make_actions, entries, store, clock
):
    db = opened("full")
    db.accept(entries(make_actions("s", "a")))
    store(db, 1)
    for minutes, kept in ((9, 1), (11, 0)):
        clock(60 * minutes)
        db.tidy()
        assert db.scalar("SELECT count(*) FROM plan") == kept
    assert db.plans() == []


def test_normal_durability_keeps_nothing_of_what_it_acknowledged(
    opened, make_actions, entries, store
):
    db = opened("normal")
    db.accept(entries(make_actions("s", "a")))
    store(db, 1)
    assert db.scalar("SELECT count(*) FROM plan") == 0
    db.kill()
    assert opened("normal").queue_unconfirmed() == 0


# -- requests ---------------------------------------------------------------------------------


def test_requests_of_other_processes_are_carried_out_in_order(
    opened, path, make_actions, entries, store
):
    db = opened()
    db.accept(entries(*(make_actions("s", title) for title in "abc")))
    store(db, 1, 2, 3, dead=dict.fromkeys((1, 2, 3), "store: no"))
    reader = JournalReader(path)
    assert not reader.ask("discard", [1])
    reader.ask("retry", [1, 2])
    reader.ask("discard", None)
    assert [seq for _, seq in db.carry_out_requests()] == [2]
    assert db.counts == {"received": 3, "pending": 1, "discarded": 2}
    assert db.carry_out_requests() == []
    assert db.scalar("SELECT count(*) FROM request") == 0


def test_health_and_tokens_are_noted(opened, path):
    db = opened()
    health = Health("degraded", ("store: ConnectionError: refused", "embedder: it is slow"))
    db.note_health(health)
    assert JournalReader(path).status().health == health
    db.note_tokens("2026-01-31", 5)
    db.note_tokens("2026-02-01", 7)
    assert (db.tokens("2026-01-31"), db.tokens("2026-02-01")) == (0, 7)
