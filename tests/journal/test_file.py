"""The journal's file: what it holds over restarts, what it refuses, and how it ends up damaged."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
import time
from itertools import count

import pytest

from autoplay_rag.errors import JournalDamagedError, JournalError, JournalVersionError
from autoplay_rag.ingest import journal_db
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.ingest.journal_db import JournalDb
from autoplay_rag.ingest.journal_rows import COUNTERS
from autoplay_rag.ingest.plan import Planner
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload, decode

MANY = 2**30


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


@pytest.fixture
def opened(path):
    """Opens the journal at `path`; closes what a test leaves open."""
    dbs = []

    def open_(durability="normal", max_bytes=MANY, path=path):
        dbs.append(JournalDb(path, durability, max_bytes))
        return dbs[-1]

    yield open_
    for db in dbs:
        if not is_closed(db):
            db.close()


@pytest.fixture
def planner(titles):
    return Planner(titles, len, max_actions=20, include_email=False, model="m")


def is_closed(db):
    try:
        db._connection.total_changes  # noqa: B018 - it raises or it does not
    except sqlite3.ProgrammingError:
        return True
    return False


def entry(payload, seq, **rules):
    return Intake(rules.get("select"), rules.get("redact")).entry(payload, seq)


def accept(db, *payloads, first=1):
    with db.transaction():
        return db.accept([entry(p, seq) for seq, p in enumerate(payloads, first)])


def store(db, planner, *seqs, number=1, dead=()):
    """Plan these payloads as one batch and acknowledge it."""
    with db.transaction():
        (batch,) = db.plan([number], [list(seqs)], planner)
    with db.transaction():
        db.acknowledge(batch, list(dead))
    return batch


def end_uncleanly(db):
    """As `kill -9` would: nothing is noted."""
    db._connection.close()


def counts(db, **expected):
    return {name: db.counters[name] for name in COUNTERS if db.counters[name]} == expected


# -- restarts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [JournalDb.close, end_uncleanly])
def test_what_waits_is_taken_up_again_in_order(opened, make_actions, end):
    db = opened()
    payloads = [make_actions(f"s{i % 3}", str(i), at=1000.0 - i) for i in range(50)]
    assert accept(db, *payloads) == ["accepted"] * 50
    end(db)
    again = opened()
    assert [seq for seq, _ in again.waiting(0, 100)] == list(range(1, 51))
    assert again.waiting(40, 3) == again.waiting(0, 100)[40:43]
    assert len({lane for _, lane in again.waiting(0, 100)}) == 3
    assert again.last_numbers() == (50, 0)
    assert counts(again, received=50, pending=50)


def test_a_plan_is_taken_up_as_it_was_recorded(opened, planner, make_actions):
    db = opened()
    accept(db, make_actions("s", "a"), make_actions("s", "b"), make_actions("t", "c"))
    with db.transaction():
        planned = db.plan([7, 8], [[1, 2], [3]], planner)
    end_uncleanly(db)
    again = opened()
    with again.transaction():
        assert again.unfinished(planner) == planned
    assert again.last_numbers() == (3, 8)
    with again.transaction():
        again.acknowledge(planned[0], [])
    assert [seq for seq, _ in again.waiting(0, 9)] == [3]
    assert counts(again, received=3, stored=2, pending=1)


def test_a_duplicate_is_known_inside_a_commit_after_it_after_a_restart_and_after_storing(
    opened, planner, make_actions
):
    db = opened()
    payload = make_actions("s", "a")
    assert accept(db, payload, payload) == ["accepted", "duplicate"]
    assert accept(db, payload, first=3) == ["duplicate"]
    end_uncleanly(db)
    db = opened()
    assert accept(db, payload, first=4) == ["duplicate"]
    store(db, planner, 1)
    db.close()
    db = opened()
    assert accept(db, payload, first=5) == ["duplicate"]
    assert counts(db, received=5, stored=1, duplicate=4)


def test_a_transaction_that_fails_leaves_everything_as_it_was(opened, make_actions):
    db = opened()
    accept(db, make_actions("s", "a"))
    before = dict(db.counters), db._bytes, db.waiting(0, 9)

    def fail_half_way():
        with db.transaction():
            db.accept([entry(make_actions("s", "b"), 2)])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert (dict(db.counters), db._bytes, db.waiting(0, 9)) == before
    assert accept(db, make_actions("s", "b"), first=2) == ["accepted"]


def test_what_memory_alone_holds_is_known_for_a_day(opened, planner, make_actions, monkeypatch):
    db = opened(path=None)
    accept(db, make_actions("s", "a"))
    store(db, planner, 1)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 23 * 3600)
    db.forget()
    assert accept(db, make_actions("s", "a"), first=2) == ["duplicate"]
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    db.forget()
    assert accept(db, make_actions("s", "a"), first=3) == ["accepted"]
    end_uncleanly(db)  # what is forgotten on purpose would fail the check at the end


# -- what a payload may hold ------------------------------------------------------------------


def test_nul_surrogates_and_megabytes_pass_through(opened, planner):
    odd = SlimAction("a\0b", "\ud800 half a pair \U0001f600", "https://x.test/\0")
    big = SummaryPayload("p\0", "s\0\ud800", "x" * 8_000_000, 1, 5.0)
    payloads = [ActionsPayload("p\0", "s\0\ud800", "u\0", None, [odd], 1, 5.0), big]
    db = opened()
    assert accept(db, *payloads) == ["accepted", "accepted"]
    bodies = [decode(body) for _, _, _, body in db._queued([[1, 2]])]
    assert bodies[0].actions[0].title == "a\0b"
    assert bodies[0].actions[0].description == "\ufffd half a pair \U0001f600"
    assert bodies[1].summary == big.summary
    batch = store(db, planner, 1, 2, dead=[(2, "store: it said \0 and more")])
    assert batch.chunks[0].text == "a\0b"
    assert batch.chunks[0].metadata["user_id"] == "u\ufffd"
    (letter,) = db.dead_letters(9)
    assert letter.payload.summary == big.summary
    assert accept(db, *payloads, first=3) == ["duplicate", "duplicate"]


# -- bounds -----------------------------------------------------------------------------------


def test_more_bytes_than_allowed_is_overflow_until_there_is_room(opened, planner, make_actions):
    one = len(entry(make_actions("s", "0"), 1).body.encode())
    db = opened(max_bytes=3 * one)
    payloads = [make_actions("s", str(i)) for i in range(5)]
    assert accept(db, *payloads) == ["accepted"] * 3 + ["overflow"] * 2
    end_uncleanly(db)
    db = opened(max_bytes=3 * one)  # what waits is counted anew
    assert accept(db, payloads[3], first=6) == ["overflow"]
    store(db, planner, 1, 2, dead=[(1, "store: no")])
    # What is dead still takes its place, what is stored does not; overflow is no duplicate.
    assert accept(db, payloads[3], payloads[4], first=7) == ["accepted", "overflow"]
    with db.transaction():
        assert db.discard(None) == 1
    assert accept(db, payloads[4], first=9) == ["accepted"]
    assert counts(db, received=9, stored=1, pending=3, discarded=1, overflow=4)


def test_a_full_disk_can_be_read_and_its_losses_are_counted_once_there_is_room(
    opened, path, make_actions
):
    db = opened()
    accept(db, make_actions("s", "first"))
    pages = db._scalar("PRAGMA page_count")
    db._connection.execute(f"PRAGMA max_page_count = {pages}")
    large = [make_actions("s", "x" * 100_000, at=2000.0 + i) for i in range(3)]
    with pytest.raises(sqlite3.OperationalError) as failure:
        accept(db, *large, first=2)
    assert failure.value.sqlite_errorcode == sqlite3.SQLITE_FULL
    assert db.overflow([entry(p, 2) for p in large]) == ["overflow"] * 3
    assert (db.committed["received"], db.committed["overflow"]) == (4, 3)
    with db.transaction():
        assert db.count_waiting(9) == 1
        assert db.dead_letters(9) == []
    assert counts(db, received=1, pending=1)  # not on disk yet
    db._connection.execute("PRAGMA max_page_count = 1000000")
    assert accept(db, large[0], first=5) == ["accepted"]
    assert counts(db, received=5, pending=2, overflow=3)
    db.overflow([entry(large[1], 6)])
    db.close()
    assert counts(opened(), received=6, pending=2, overflow=4)


def test_only_so_many_bytes_are_planned_at_once_and_always_one_payload(
    opened, planner, make_actions, monkeypatch
):
    db = opened()
    accept(db, *(make_actions("s", f"{n}", "x" * 1000) for n in range(1, 5)))
    accept(db, make_actions("t", "5"), first=5)
    monkeypatch.setattr(journal_db, "_PLAN_BYTES", 8000)
    with db.transaction():
        (batch,) = db.plan([1, 2], [[1, 2, 3, 4], [5]], planner)
        assert batch.seqs == {1, 2, 3}
        two = db.plan([2, 3], [[4], [5]], planner)
        assert [batch.seqs for batch in two] == [{4}, {5}]
        monkeypatch.setattr(journal_db, "_PLAN_BYTES", 10)
        (one,) = db.plan([4, 5], [[5], [4]], planner)
        assert one.seqs == {5}
    assert [batch.id for batch in db.unfinished(planner)] == [1, 2, 3, 4]


def test_a_journal_that_was_cut_to_nothing_is_not_taken_for_a_new_one(opened, path):
    opened().close()
    path.write_bytes(b"")
    with pytest.raises(JournalDamagedError, match="in use before"):
        opened()
    assert not path.exists()
    opened()


def test_a_plan_made_for_another_embedder_is_counted_anew(opened, planner, make_actions):
    db = opened()
    accept(db, make_actions("s", "abc"))
    with db.transaction():
        (batch,) = db.plan([1], [[1]], planner)
    assert batch.chunks[0].tokens == 3
    other = dataclasses.replace(planner, model="other", count_tokens=lambda text: 7)
    (again,) = db.unfinished(other)
    assert (again.model, again.chunks[0].tokens) == ("other", 7)
    assert db.unfinished(planner) == [batch]


def test_space_comes_back(opened, path, planner, make_actions):
    db = opened()
    payloads = [make_actions(f"s{i}", "x" * 10_000) for i in range(2000)]
    accept(db, *payloads)
    db._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    full = path.stat().st_size
    seqs = [[seq] for seq in range(1, 2001)]
    while seqs:
        with db.transaction():
            batches = db.plan(range(1, 2001), seqs, planner)
        with db.transaction():
            for batch in batches:
                db.acknowledge(batch, [])
        del seqs[: len(batches)]
    free = db._scalar("PRAGMA freelist_count")
    for _ in range(100):  # commits, as a pipeline makes them anyway
        with db.transaction():
            pass
    assert db._scalar("PRAGMA freelist_count") == free - 2000
    db.close()
    assert full > 20_000_000
    assert path.stat().st_size < full / 10


# -- files that are not as they should be -----------------------------------------------------


def filled(opened, make_actions, end):
    db = opened()
    accept(db, *(make_actions(f"s{i % 7}", f"{i}" * 300) for i in range(300)))
    db._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    end(db)


def test_a_garbage_header_is_set_aside_and_never_overwritten(opened, path, make_actions):
    asides = []
    for n in range(3):  # also several in one second
        filled(opened, make_actions, JournalDb.close)
        data = bytearray(path.read_bytes())
        data[:16] = b"this is garbage!"
        data[-1] = n
        path.write_bytes(data)
        with pytest.raises(JournalDamagedError, match=r"journal\.db\.damaged-\d{8}-\d{6}") as error:
            opened()
        assert not path.exists()
        found = {p: p.read_bytes() for p in path.parent.glob("journal.db.damaged-*")}
        asides.append(bytes(data))
        assert sorted(found.values()) == sorted(asides)
        assert any(str(p) in str(error.value) for p, held in found.items() if held == data)
    assert counts(opened())  # a new one


def test_flipped_bytes_in_the_middle_are_found_after_an_unclean_end(opened, path, make_actions):
    filled(opened, make_actions, end_uncleanly)
    data = bytearray(path.read_bytes())
    for page in range(4096 * 3, len(data), 4096 * 5):
        data[page : page + 40] = bytes(b ^ 0xFF for b in data[page : page + 40])
    path.write_bytes(data)
    with pytest.raises(JournalDamagedError, match="damaged"):
        opened()
    (aside,) = path.parent.glob("journal.db.damaged-*")
    assert aside.read_bytes() == data


def test_damage_met_while_running_is_looked_for_at_the_next_start(opened, path, make_actions):
    filled(opened, make_actions, JournalDb.close)
    data = bytearray(path.read_bytes())
    table = sqlite3.connect(path)
    (root,) = table.execute("SELECT rootpage FROM sqlite_master WHERE name = 'requests'").fetchone()
    table.close()
    data[4096 * (root - 1)] = 0xFF
    path.write_bytes(data)
    db = opened()  # a clean end: nothing is checked, nothing of it read yet
    with pytest.raises(sqlite3.DatabaseError, match="malformed"), db.transaction():
        db.carry_out_requests(count(500))
    db.close()
    with pytest.raises(JournalDamagedError):
        opened()


def test_a_flipped_byte_in_a_body_costs_that_payload_alone(opened, path, planner, make_actions):
    db = opened()
    accept(db, make_actions("s", "good"), make_actions("s", "BROKEN"), make_actions("s", "fine"))
    db.close()
    assert path.read_bytes().count(b'"title":"BROKEN"') == 1
    path.write_bytes(path.read_bytes().replace(b'"title":"BROKEN"', b'"title":\xff"BROKEN"'[:16]))
    db = opened()
    with db.transaction():
        (batch,) = db.plan([1], [[1, 2, 3]], planner)
    assert [chunk.text for chunk in batch.chunks] == ["good\nfine"]
    with db.transaction():
        db.acknowledge(batch, batch.unplanned)
    (letter,) = db.dead_letters(9)
    assert (letter.id, letter.payload, letter.kind) == (2, None, "unknown")
    assert "damaged" in letter.error
    with db.transaction():
        assert [seq for _, seq in db.retry(None, count(4))] == [4]
    store(db, planner, 4, number=2, dead=[(4, "damaged")])
    assert counts(db, received=3, stored=2, dead=1)


def test_another_programs_database_is_refused_untouched(opened, path):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("INSERT INTO theirs VALUES (1)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="another program's"):
        opened()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["journal.db"]


def test_an_unknown_format_is_refused_untouched(opened, path, make_actions):
    filled(opened, make_actions, JournalDb.close)
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    before = path.read_bytes()
    with pytest.raises(JournalVersionError, match="format 99, this version reads 2"):
        opened()
    assert path.read_bytes() == before


def test_a_folder_in_its_place_is_an_error_that_names_it(opened, path):
    path.mkdir()
    with pytest.raises(JournalError, match=r"journal\.db cannot be opened"):
        opened()


def test_the_schema_gives_space_back_and_is_marked_as_ours(opened, path):
    db = opened("full")
    assert db._scalar("PRAGMA auto_vacuum") == 2
    assert db._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert db._scalar("PRAGMA synchronous") == 2
    db.close()
    db = opened("normal")
    assert db._scalar("PRAGMA synchronous") == 1
    assert db._scalar("PRAGMA application_id") == int.from_bytes(b"APRG")


# -- full durability --------------------------------------------------------------------------


def test_full_durability_stores_again_after_an_unclean_end_alone(opened, planner, make_actions):
    db = opened("full")
    accept(db, make_actions("s", "a"))
    batch = store(db, planner, 1)
    db.close()
    db = opened("full")
    assert db.unfinished(planner) == []
    end_uncleanly(db)
    db = opened("full")
    with db.transaction():
        (again,) = db.unfinished(planner)
    assert again.replayed
    assert again.chunks == batch.chunks
    # Until the store has taken it, it stays noted, whatever time passes and however runs end.
    db.forget()
    db.close()
    db = opened("full")
    with db.transaction():
        (again,) = db.unfinished(planner)
        db.acknowledge(again, [])
    assert counts(db, received=1, stored=1)
    db.close()
    assert opened("full").unfinished(planner) == []


def test_full_durability_keeps_what_it_acknowledged_for_ten_minutes(
    opened, planner, make_actions, monkeypatch
):
    db = opened("full")
    accept(db, make_actions("s", "a"))
    store(db, planner, 1)
    now = time.time()
    for minutes, kept in ((9, 1), (11, 0)):
        monkeypatch.setattr(time, "time", lambda m=minutes: now + 60 * m)
        db.forget()
        assert db._scalar("SELECT count(*) FROM batches") == kept


def test_normal_durability_keeps_nothing_of_what_it_acknowledged(opened, planner, make_actions):
    db = opened("normal")
    accept(db, make_actions("s", "a"))
    store(db, planner, 1)
    assert db._scalar("SELECT count(*) FROM batches") == 0


# -- dead letters -----------------------------------------------------------------------------


def test_dead_letters_can_be_retried_and_discarded(opened, planner, make_actions):
    db = opened()
    accept(db, *(make_actions("s", name) for name in "abc"), make_actions(None, "d"))
    store(db, planner, 1, 2, 3, dead=[(1, "no"), (2, "no"), (3, "no")])
    store(db, planner, 4, number=2, dead=[(4, "no")])
    assert [letter.id for letter in db.dead_letters(9)] == [1, 2, 3, 4]
    assert [letter.id for letter in db.dead_letters(2)] == [1, 2]
    numbers = count(10)
    with db.transaction():
        assert db.retry([], numbers) == []
        assert db.discard([]) == 0
        assert [seq for _, seq in db.retry([2], numbers)] == [10]
        assert db.retry([4, 99], numbers) == [(-11, 11)]  # without a session: a lane of its own
        assert db.discard([1]) == 1
    assert [letter.id for letter in db.dead_letters(9)] == [3]
    assert [seq for seq, _ in db.waiting(0, 99)] == [10, 11]
    assert accept(db, make_actions("s", "a"), first=20) == ["duplicate"]
    assert counts(db, received=5, pending=2, dead=1, discarded=1, duplicate=1)


def test_what_redact_left_nothing_of_can_be_discarded_only(opened, make_actions):
    db = opened()

    def fail(payload):
        raise ValueError(payload.actions[0].title)

    with db.transaction():
        assert db.accept([entry(make_actions("s", "secret"), 1, redact=fail)]) == ["dead"]
        assert db.retry(None, count(2)) == []
    (letter,) = db.dead_letters(9)
    assert (letter.payload, letter.error) == (None, "redact failed: ValueError")
    assert b"secret" not in db._connection.serialize()
    with db.transaction():
        assert db.discard(None) == 1


def test_a_copy_taken_in_the_middle_is_a_journal(opened, path, tmp_path, make_actions):
    db = opened()
    accept(db, make_actions("s", "a"))
    (tmp_path / "copy").mkdir()
    for part in path.parent.glob("journal.db*"):
        shutil.copy(part, tmp_path / "copy" / part.name)
    copied = opened(path=tmp_path / "copy" / "journal.db")
    assert copied.unclean
    assert counts(copied, received=1, pending=1)
