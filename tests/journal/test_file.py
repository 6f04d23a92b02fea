"""The journal's file: transactions, bounds, rejected files, damage, permissions."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import stat
from contextlib import closing

import pytest

from autoplay_rag.content.chunks import Chunk
from autoplay_rag.errors import JournalDamagedError, JournalError, JournalVersionError
from autoplay_rag.journal import bodies as journal_bodies
from autoplay_rag.journal.base import Acknowledgement, Plan, PlannedChunk
from autoplay_rag.journal.bodies import decoded
from autoplay_rag.journal.schema import PAGE_SIZE
from autoplay_rag.payloads import ActionsPayload, SlimAction

MANY = 2**30


@pytest.fixture
def noise():
    """Text that does not compress."""
    source = random.Random(1)
    return lambda size: source.randbytes(size // 2).hex()


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


# -- transactions -----------------------------------------------------------------------------


def test_a_transaction_that_fails_leaves_everything_as_it_was(opened, make_actions, entries):
    db = opened()
    db.accept(entries(make_actions("s", "a")))
    before = db.counts, db.bytes, db.waiting(0, 9)

    def fail_half_way():
        with db.file.transaction():
            db.queue.accept(entries(make_actions("s", "b"), first=2))
            db.file.set_meta("note", 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert (db.counts, db.bytes, db.waiting(0, 9)) == before
    assert db.file.committed == db.file.counts
    assert db.file.meta("note") is None
    assert db.accept(entries(make_actions("s", "b"), first=2)) == ["accepted"]


def test_other_threads_see_counts_only_once_they_are_committed(opened, make_actions, entries):
    db = opened()
    with db.file.transaction():
        db.queue.accept(entries(make_actions("s", "a")))
        assert (db.file.counts["received"], db.file.committed["received"]) == (1, 0)
    assert db.file.committed["received"] == 1
    db.index()


@pytest.mark.parametrize("end", ["close", "kill"])
def test_counts_are_kept(opened, make_actions, entries, end):
    db = opened()
    db.accept(entries(make_actions("s", "a"), make_actions("s", "a")))
    counts, size = db.counts, db.bytes
    getattr(db, end)()
    again = opened()
    assert again.file.unclean == (end == "kill")
    assert (again.counts, again.bytes) == (counts, size)
    assert size > 0


def test_a_copy_taken_in_the_middle_is_a_journal(opened, path, copied, make_actions, entries):
    db = opened()
    db.accept(entries(make_actions("s", "a")))
    copy = opened(path=copied(path))
    assert copy.file.unclean
    assert copy.counts == {"received": 1, "pending": 1}


# -- bounds -----------------------------------------------------------------------------------


def test_a_full_disk_can_be_read_and_its_losses_are_counted_once_there_is_room(
    opened, make_actions, entries, noise
):
    db = opened()
    db.accept(entries(make_actions("s", "first")))
    db.connection.execute(f"PRAGMA max_page_count = {db.scalar('PRAGMA page_count')}")
    large = entries(*(make_actions("s", noise(100_000), at=2000.0 + i) for i in range(3)), first=2)
    with pytest.raises(sqlite3.OperationalError) as failure:
        db.accept(large)
    assert failure.value.sqlite_errorcode == sqlite3.SQLITE_FULL
    assert [db.queue.overflow(one) for one in large] == ["overflow"] * 3
    assert (db.file.committed["received"], db.file.committed["overflow"]) == (4, 3)
    assert len(db.waiting(0, 9)) == 1
    assert db.dead_letters(9) == []
    assert db.counts == {"received": 1, "pending": 1}  # not on disk yet
    db.connection.execute("PRAGMA max_page_count = 1000000")
    assert db.accept(entries(make_actions("s", "later"), first=5)) == ["accepted"]
    assert db.counts == {"received": 5, "pending": 2, "overflow": 3}
    db.queue.overflow(large[1])
    db.close()
    assert opened().counts == {"received": 6, "pending": 2, "overflow": 4}


@pytest.mark.parametrize("end", ["stored", "discarded"])
def test_space_comes_back(  # noqa: PLR0917 - fixtures
    opened, path, make_actions, entries, store, noise, end
):
    db = opened(keep_payloads=False)
    payloads = [make_actions(f"s{i}", noise(14_000)) for i in range(2000)]
    db.accept(entries(*payloads))
    db.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    full = path.stat().st_size
    seqs = range(1, 2001)
    # The text of a chunk is kept as long as the chunk.
    plans = [Plan(seq, 1, [PlannedChunk(Chunk(f"{seq}", "short", {}), (seq,), 0)]) for seq in seqs]
    db.record_plans(plans, [])
    dies = end == "discarded"
    db.acknowledge([Acknowledgement(one, {one.number: "no"} if dies else {}) for one in plans])
    db.discard(None)
    assert db.counts[end] == 2000
    free = db.scalar("PRAGMA freelist_count")
    for _ in range(100):  # commits, as a pipeline makes them
        with db.file.transaction():
            pass
    assert db.scalar("PRAGMA freelist_count") == free - 2000
    db.close()
    assert full > 20_000_000
    assert path.stat().st_size < full / 10


# -- invalid files ----------------------------------------------------------------------------


@pytest.fixture
def fill(opened, make_actions, entries, noise):
    """Make a journal with 300 payloads and close or kill it."""

    def make(end):
        db = opened()
        db.accept(entries(*(make_actions(f"s{i % 7}", noise(600)) for i in range(300))))
        db.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        getattr(db, end)()

    return make


def test_a_journal_that_was_cut_to_nothing_is_not_taken_for_a_new_one(opened, path):
    opened().close()
    path.write_bytes(b"")
    with pytest.raises(JournalDamagedError, match="in use before"):
        opened()
    assert not path.exists()
    opened()


def test_a_garbage_header_is_set_aside_and_never_overwritten(opened, path, fill):
    asides = []
    for n in range(3):  # several within one second
        fill("close")
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
    assert opened().counts == {}  # a new one


def test_flipped_bytes_in_the_middle_are_found_after_an_unclean_end(opened, path, fill):
    fill("kill")
    data = bytearray(path.read_bytes())
    for page in range(PAGE_SIZE * 3, len(data), PAGE_SIZE * 5):
        data[page : page + 40] = bytes(b ^ 0xFF for b in data[page : page + 40])
    path.write_bytes(data)
    with pytest.raises(JournalDamagedError, match="damaged"):
        opened()
    (aside,) = path.parent.glob("journal.db.damaged-*")
    assert aside.read_bytes() == data


def test_damage_met_while_running_is_looked_for_at_the_next_start(opened, path, fill):
    fill("close")
    data = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as table:
        (root,) = table.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'request'"
        ).fetchone()
    data[PAGE_SIZE * (root - 1)] = 0xFF
    path.write_bytes(data)
    db = opened()  # after a clean close nothing is checked, and this part is not read yet
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        db.carry_out_requests()
    db.close()
    with pytest.raises(JournalDamagedError):
        opened()


@pytest.mark.parametrize("damage", ["flipped", "cut off", "gone", "text"])
def test_a_damaged_body_costs_that_payload_only(opened, make_actions, entries, store, damage):
    db = opened()
    db.accept(entries(*(make_actions("s", title) for title in ("good", "BROKEN", "fine"))))
    (body,) = db.connection.execute("SELECT body FROM payload WHERE seq = 2").fetchone()
    flipped = bytearray(body)
    flipped[0] ^= 0xFF
    broken = {
        "flipped": bytes(flipped), "cut off": body[:20], "gone": b"", "text": "\ufffd"
    }[damage]  # fmt: skip
    db.connection.execute("UPDATE payload SET body = ? WHERE seq = 2", (broken,))
    assert [decoded(one.body) is None for one in db.read([1, 2, 3], MANY)] == [False, True, False]
    made = store(db, 1, 2, 3)
    assert [planned.chunk.text for planned in made.chunks] == ["good\nfine"]
    (letter,) = db.dead_letters(9)
    assert (letter.id, letter.payload, letter.kind, letter.session_id) == (2, None, "actions", None)
    assert "damaged" in letter.error
    assert [seq for _, seq in db.retry(None)] == [2]
    store(db, 2, number=2)
    assert db.counts == {"received": 3, "stored": 2, "dead": 1}
    assert db.discard(None) == 1
    assert db.bytes == 0


def test_another_programs_database_is_refused_untouched(opened, path):
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("INSERT INTO theirs VALUES (1)")
    before = path.read_bytes()
    with pytest.raises(JournalError, match="another program's"):
        opened()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["journal.db"]


def test_a_newer_format_is_refused_untouched(opened, path, fill):
    fill("close")
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(
        JournalVersionError, match=r"format 99, .* reads up to 4: install the newer"
    ):
        opened()
    assert path.read_bytes() == before


def test_a_folder_in_its_place_is_an_error_that_names_it(opened, path):
    path.mkdir()
    with pytest.raises(JournalError, match=r"journal\.db cannot be opened"):
        opened()


def test_the_file_gives_space_back_and_is_marked_as_ours(opened):
    db = opened("full")
    assert db.scalar("PRAGMA auto_vacuum") == 2
    assert db.connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert db.scalar("PRAGMA synchronous") == 2
    db.close()
    db = opened("normal")
    assert db.scalar("PRAGMA synchronous") == 1
    assert db.scalar("PRAGMA application_id") == int.from_bytes(b"APRG")
    assert db.scalar("PRAGMA page_size") == PAGE_SIZE


def test_each_journal_has_a_name_of_its_own(opened, tmp_path):
    db, other = opened(), opened(path=tmp_path / "other.db")
    name = db.notes().journal_id
    assert len(name) == 32
    assert name != other.notes().journal_id
    db.close()
    assert opened().notes().journal_id == name


# -- permissions ------------------------------------------------------------------------------


def test_a_new_journal_is_for_its_owner_alone(opened, path, make_actions, entries):
    db = opened()
    db.accept(entries(make_actions("s", "a")))
    files = list(path.parent.iterdir())
    assert {one.name for one in files} == {"journal.db", "journal.db-wal", "journal.db-shm"}
    assert {mode_of(one) for one in files} == {0o600}


@pytest.mark.parametrize("include_email", [False, True])
async def test_the_file_contains_no_address_unless_allowed(make_pipeline, path, include_email):
    """Bodies are compressed, so they are also searched after decompression."""
    address = "ann.secret@example.com"
    action = SlimAction(
        "Paid", "Paid", "https://app.example.com", 0, "click", 5.0, 5.0, email=address
    )
    payloads = [
        ActionsPayload("acme", f"s{i}", "ann", address, [action], 1, 5.0 + i) for i in range(3)
    ]
    raw = b""
    pipeline = make_pipeline(
        journal=path,
        include_email=include_email,
        select=lambda payload: payload.session_id != "s2" or 1 / 0,
    )
    async with asyncio.timeout(30), pipeline:
        for payload in payloads:
            await pipeline.on_actions(payload)
        await pipeline.drain()
        assert (pipeline.ledger.stored, pipeline.ledger.dead) == (2, 1)
        assert (path.parent / "journal.db-wal").stat().st_size > 0
        raw = b"".join(one.read_bytes() for one in path.parent.glob("journal.db*"))
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT body FROM payload").fetchall()
    bodies = [journal_bodies.unpack(body) for (body,) in rows]
    assert len(bodies) == 3
    assert {b"ann.secret" in body for body in bodies} == {include_email}
    assert (b"ann.secret" in raw) == include_email  # in the chunks' metadata
    assert (b"ann.secret" in path.read_bytes()) == include_email
