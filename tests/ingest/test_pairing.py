"""Detection and repair of a journal and a store that do not belong together.

In most of these tests the store keeps its chunks in a dictionary that outlives it. Tests with real
Chroma folders are in `test_pairing_chroma.py`.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pairs import (
    DiskStore,
    Moments,
    copy_journal,
    held_by,
    ingest,
    lines_of,
    pipeline_of,
    visits,
)

from autoplay_rag.content.chunks import Chunk
from autoplay_rag.errors import ConfigurationError, StoreMismatchError, StoreUnavailableError
from autoplay_rag.ingest.pairing import Pairing, judge
from autoplay_rag.journal.base import Known, Notes
from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.stores import MemoryStore
from autoplay_rag.stores.base import StoreIdentity, TextStore


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal.db"


@pytest.fixture
def disk():
    return {}


def open_journal(journal, model="model-a"):
    return SqliteJournal(journal, model=model, on_entry=lambda *_: None, on_returned=lambda _: None)


async def notes_of(journal):
    opened = open_journal(journal)
    await opened.open()
    try:
        return await opened.notes(), await opened.known()
    finally:
        await opened.close()


async def refused(store, journal, says, **options):
    """Check that the start fails with this message."""
    with pytest.raises(StoreMismatchError, match=says) as error:
        await ingest(store, journal, **options)
    assert str(journal) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- comparing the two notes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "verdict"),
    [
        (StoreIdentity("s1", "j1", 4), "match"),
        (StoreIdentity("s1", "j1", 5), "match"),  # killed between the two notes
        (StoreIdentity("s1", "j1", 3), "older store"),
        (StoreIdentity("s1", "j1", 6), "older journal"),
        (StoreIdentity("s2", "j1", 5), "exchanged"),
        (StoreIdentity("s2", "j1", 9), "exchanged"),
        (StoreIdentity("s1", "j2", 5), "foreign"),
        (StoreIdentity("s2", "j2", 0), "foreign"),
        (None, "emptied"),
    ],
)
def test_what_the_notes_say(identity, verdict):
    known = Known(seq=9, batch=6, acknowledged=5, chunks=7)
    assert judge(Notes("j1", "s1", 4), known, identity) == verdict


def test_a_store_without_a_note_is_new_unless_it_should_have_chunks():
    nothing = Known(seq=9, batch=6, acknowledged=5, chunks=0)
    assert judge(Notes("j1", "s1", 4), nothing, None) == "new"
    assert judge(Notes("j1"), Known(9, 6, 5, 7), None) == "new"  # before the upgrade
    assert judge(Notes("j1"), Known(9, 6, 5, 7), StoreIdentity("s1", "j1", 2)) == "match"


# -- emptied, exchanged, older -----------------------------------------------------------------


async def test_both_note_each_other(journal, disk):
    await ingest(DiskStore(disk), journal, 1, 2)
    notes, known = await notes_of(journal)
    identity = disk["autoplay"].identity
    assert identity == StoreIdentity(notes.store_id, notes.journal_id, known.acknowledged)
    assert notes.store_batch == known.acknowledged > 0
    assert notes.model == "model-a"
    await ingest(DiskStore(disk), journal, 3)
    assert disk["autoplay"].identity.store_id == notes.store_id
    assert disk["autoplay"].identity.batch > known.acknowledged


@pytest.mark.parametrize("how", ["deleted", "another collection", "rows deleted"])
async def test_an_emptied_store_is_refused_and_filled_again(journal, disk, how):
    await ingest(DiskStore(disk), journal, *range(30))
    name = "other" if how == "another collection" else "autoplay"
    if how == "deleted":
        whole = copy.deepcopy(disk)
        disk.clear()
    elif how == "rows deleted":
        disk["autoplay"].delete(disk["autoplay"].ids())

    said = await refused(DiskStore(disk, name), journal, "none of the 30 chunks")
    assert f"<DiskStore {name}>" in said
    assert "rebuild=True" in said
    assert "--rebuild" in said
    assert await held_by(DiskStore(disk, name)) == {}
    if how != "rows deleted":  # the right store is still accepted
        right = whole if how == "deleted" else copy.deepcopy(disk)
        await ingest(DiskStore(right), copy_journal(journal, journal.parent / "2" / "j.db"))

    await ingest(DiskStore(disk, name), journal, rebuild=True)
    assert await held_by(DiskStore(disk, name)) == lines_of(*range(30))
    ledger = await ingest(DiskStore(disk, name), journal, *range(31))
    assert ledger.duplicate == 30
    assert await held_by(DiskStore(disk, name)) == lines_of(*range(31))


async def test_what_was_filled_again_is_found_by_search(journal, disk):
    await ingest(DiskStore(disk), journal, *range(5))
    disk.clear()
    async with pipeline_of(DiskStore(disk), journal, rebuild=True) as pipeline:
        await pipeline.drain()
        for number in range(5):
            hits = await pipeline.search(f"click {number}\nsave {number}", k=1)
            assert [hit.session_id for hit in hits] == [f"s{number}"]
            assert hits[0].dense_score == pytest.approx(1.0)


@pytest.mark.parametrize("dimension", [8, 12])
async def test_another_model_is_refused_and_never_mixed(journal, disk, dimension):
    await ingest(DiskStore(disk), journal, *range(20))
    other = {"model": "model-b", "dimension": dimension}
    with pytest.raises(StoreMismatchError, match=r"rebuild=True.*--rebuild") as error:
        await ingest(DiskStore(disk), journal, **other)
    assert "model-a" in str(error.value)
    assert "model-b" in str(error.value)
    await ingest(DiskStore(disk), journal, 20)  # nothing was changed

    async with pipeline_of(DiskStore(disk), journal, rebuild=True, **other) as pipeline:
        await pipeline.drain()
        hits = await pipeline.search("click 3\nsave 3", k=1)
        assert (hits[0].session_id, hits[0].dense_score) == ("s3", pytest.approx(1.0))
    assert await held_by(DiskStore(disk), "model-b") == lines_of(*range(21))
    with pytest.raises(StoreMismatchError, match="model-b"):
        await ingest(DiskStore(disk), journal)


async def test_another_model_is_noticed_where_the_store_does_not_look(journal, disk, monkeypatch):
    async def start(self, model):
        pass

    monkeypatch.setattr(DiskStore, "start", start)
    await ingest(DiskStore(disk), journal, *range(3))
    await refused(DiskStore(disk), journal, "'model-a'.*'model-b'", model="model-b")
    await ingest(DiskStore(disk), journal, model="model-b", dimension=12, rebuild=True)
    assert await held_by(DiskStore(disk)) == lines_of(*range(3))


async def test_an_older_copy_of_the_store_is_refused_and_made_anew(journal, disk):
    await ingest(DiskStore(disk), journal, *range(10))
    older = copy.deepcopy(disk)
    await ingest(DiskStore(disk), journal, *range(10, 20))
    # A chunk deleted since then must not come back with the copy.
    older["autoplay"].upsert([Chunk("f" * 32, "deleted since", {})], [[1.0] * 8])

    said = await refused(DiskStore(older), journal, "older copy: it lacks batches")
    assert "--rebuild" in said
    await ingest(DiskStore(disk), journal)
    await ingest(DiskStore(older), journal, rebuild=True)
    assert await held_by(DiskStore(older)) == lines_of(*range(20))


async def test_an_older_copy_of_the_journal_is_refused_and_adopts(journal, disk):
    await ingest(DiskStore(disk), journal, *range(10))
    older = copy_journal(journal, journal.parent / "older" / "journal.db")
    await ingest(DiskStore(disk), journal, *range(10, 20))

    said = await refused(DiskStore(disk), older, "the journal .* is an older copy")
    assert "adopt=True" in said
    assert "--adopt" in said
    await refused(DiskStore(disk), older, "older copy", rebuild=True)
    assert await held_by(DiskStore(disk)) == lines_of(*range(20))

    ledger = await ingest(DiskStore(disk), older, *range(25), adopt=True)
    assert ledger.duplicate == 20
    assert await held_by(DiskStore(disk)) == lines_of(*range(25))
    # The newer copy does not know the later payloads.
    await refused(DiskStore(disk), journal, "is not the store that the journal")
    ledger = await ingest(DiskStore(disk), older, *range(26))
    assert ledger.duplicate == 20 + 25

    disk.clear()  # the catalog has the adopted chunks with their texts
    await ingest(DiskStore(disk), older, rebuild=True)
    assert await held_by(DiskStore(disk)) == lines_of(*range(26))


async def test_an_older_journal_does_not_drop_what_it_does_not_know(journal, disk):
    await ingest(DiskStore(disk), journal, *range(3))
    older = copy_journal(journal, journal.parent / "older" / "journal.db")
    await ingest(DiskStore(disk), journal, 3)
    other = {"model": "model-b", "dimension": 12}
    await refused(DiskStore(disk), older, "older copy", rebuild=True, **other)
    assert await held_by(DiskStore(disk)) == lines_of(*range(4))
    await ingest(DiskStore(disk), older, rebuild=True, adopt=True, **other)
    assert await held_by(DiskStore(disk), "model-b") == lines_of(*range(4))


async def test_a_store_of_before_the_last_one_is_refused(journal, disk):
    await ingest(DiskStore(disk, "one"), journal, *range(3))
    await ingest(DiskStore(disk, "two"), journal, *range(3, 6), rebuild=True)
    await refused(DiskStore(disk, "one"), journal, "is not the store that the journal")
    await ingest(DiskStore(disk, "one"), journal, 6, rebuild=True)
    assert await held_by(DiskStore(disk, "one")) == lines_of(*range(7))


# -- another journal's store -------------------------------------------------------------------


async def test_a_foreign_store_is_never_rebuilt_and_can_be_adopted(journal, disk):
    theirs = journal.with_name("theirs.db")
    await ingest(DiskStore(disk, "theirs"), theirs, *range(10))
    await ingest(DiskStore(disk, "ours"), journal, *range(10, 15))
    before = copy.deepcopy(disk["theirs"].identity)

    for options in ({}, {"rebuild": True}):
        said = await refused(DiskStore(disk, "theirs"), journal, "another journal", **options)
        assert "check the path" in said
        assert "--adopt" in said
    assert disk["theirs"].identity == before
    assert await held_by(DiskStore(disk, "theirs")) == lines_of(*range(10))
    await ingest(DiskStore(disk, "theirs"), theirs)
    await ingest(DiskStore(disk, "ours"), journal)

    ledger = await ingest(DiskStore(disk, "theirs"), journal, *range(16), adopt=True)
    assert ledger.duplicate == 15
    # Chunks that this journal had stored elsewhere are in its new store too.
    assert await held_by(DiskStore(disk, "theirs")) == lines_of(*range(16))
    await refused(DiskStore(disk, "theirs"), theirs, "another journal")


@pytest.mark.parametrize("journal_knows", ["model-a", "model-b", None])
async def test_a_foreign_store_of_another_model_is_never_dropped(journal, disk, journal_knows):
    theirs = journal.with_name("theirs.db")
    await ingest(DiskStore(disk, "theirs"), theirs, *range(10))
    if journal_knows:
        await ingest(DiskStore(disk, "ours"), journal, 11, model=journal_knows)
    for model in ("model-a", "model-b"):
        for options in ({"rebuild": True}, {}):
            await refused(
                DiskStore(disk, "theirs"), journal, "another journal", model=model, **options
            )
    assert await held_by(DiskStore(disk, "theirs")) == lines_of(*range(10))
    await ingest(DiskStore(disk, "theirs"), theirs)

    with pytest.raises(StoreMismatchError, match="--adopt --rebuild"):
        await ingest(DiskStore(disk, "theirs"), journal, model="model-b", adopt=True)
    assert await held_by(DiskStore(disk, "theirs")) == lines_of(*range(10))
    both = {"rebuild": True, "adopt": True}
    await ingest(DiskStore(disk, "theirs"), journal, model="model-b", dimension=12, **both)
    expected = lines_of(*range(10), *([11] if journal_knows else []))
    assert await held_by(DiskStore(disk, "theirs"), "model-b") == expected


async def test_vectors_of_another_model_that_no_journal_owns_are_not_dropped(journal, disk):
    await ingest(DiskStore(disk), None, *range(3))
    said = await refused(DiskStore(disk), journal, "are not deleted", model="model-b", rebuild=True)
    assert "another collection" in said
    assert await held_by(DiskStore(disk)) == lines_of(*range(3))


async def test_a_store_that_no_journal_owns_can_be_adopted(journal, disk):
    await ingest(DiskStore(disk), None, *range(3))
    ledger = await ingest(DiskStore(disk), journal, *range(4), adopt=True)
    assert (ledger.duplicate, ledger.stored) == (3, 1)
    assert await held_by(DiskStore(disk)) == lines_of(*range(4))


async def test_adopting_does_not_take_back_what_is_to_be_deleted(journal, disk, monkeypatch):
    async def delete(self, ids):
        raise StoreUnavailableError("no deletes today")

    with monkeypatch.context() as patch:
        patch.setattr(DiskStore, "delete", delete)
        await ingest(DiskStore(disk), journal, 1)
    opened = open_journal(journal)
    await opened.open()
    try:
        await opened._writer.run(opened._catalog.remove, [1], "a test")
        (going,) = await opened.deletions(-1)
        held = DiskStore(disk)._table.get([going])
        assert len(held) == 1
        assert await opened.adopt(held) == 0
        assert not (await opened.notes()).adopted
    finally:
        await opened.close()


class Blind(DiskStore):
    """Cannot be scanned."""

    @property
    def capabilities(self):
        return super().capabilities - {"scan"}


async def test_adopting_a_store_that_cannot_be_scanned_says_so(journal, disk, caplog):
    await ingest(Blind(disk), journal.with_name("theirs.db"), 1)
    await refused(Blind(disk), journal, "another journal")
    assert not caplog.records
    ledger = await ingest(Blind(disk), journal, 1, 2, adopt=True)
    assert "cannot be scanned" in caplog.text
    assert "stored again if it is delivered again" in caplog.text
    assert ledger.stored == 2
    # The first payload determines a chunk's id, so the chunk was overwritten.
    assert await held_by(DiskStore(disk)) == lines_of(1, 2)


async def test_single_rows_missing_or_foreign_prevent_nothing(journal, disk):
    await ingest(DiskStore(disk), journal, *range(10))
    table = disk["autoplay"]
    table.delete(table.ids()[:9])
    table.upsert([Chunk("mine", "of somebody else", {})], [[1.0] * 8])
    await ingest(DiskStore(disk), journal, 10)
    assert (await held_by(DiskStore(disk)))["of somebody else"] == 1


async def test_without_a_journal_no_note_is_changed(journal, disk):
    await ingest(DiskStore(disk), journal, 1)
    before = disk["autoplay"].identity
    await ingest(DiskStore(disk), None, 2)
    assert disk["autoplay"].identity == before
    await ingest(DiskStore(disk), journal, 3)
    assert await held_by(DiskStore(disk)) == lines_of(1, 2, 3)


@pytest.mark.parametrize("option", ["rebuild", "adopt"])
def test_both_need_a_journal(option, disk):
    with pytest.raises(ConfigurationError, match=f"{option}=True needs a journal file"):
        pipeline_of(DiskStore(disk), None, **{option: True})


# -- stores in memory ----------------------------------------------------------------------------


async def test_a_store_in_memory_is_filled_again_without_a_warning(journal, caplog):
    caplog.set_level(logging.INFO)
    await ingest(MemoryStore(), journal, *range(7))
    caplog.clear()
    store = MemoryStore()
    await ingest(store, journal, 7)
    assert "7 chunks are embedded and stored again" in caplog.text
    assert not [one for one in caplog.records if one.levelno > logging.INFO]
    assert await held_by(store) == lines_of(*range(8))

    caplog.clear()
    await ingest(store, journal, 7)  # the same object
    assert "stored again" not in caplog.text
    assert await held_by(store) == lines_of(*range(8))


async def test_a_store_in_memory_is_filled_again_for_another_model(journal):
    await ingest(MemoryStore(), journal, *range(3))
    store = MemoryStore()
    await ingest(store, journal, model="model-b", dimension=12)
    assert await held_by(store, "model-b") == lines_of(*range(3))


async def test_an_earlier_store_in_memory_is_made_anew(journal):
    earlier, later = MemoryStore(), MemoryStore()
    await ingest(earlier, journal, 1)
    await ingest(later, journal, 2)
    await ingest(earlier, journal, 3)
    assert await held_by(earlier) == lines_of(1, 2, 3)


# -- stores without an identity ------------------------------------------------------------------


class Nameless(DiskStore):
    """Has no metadata of its own, and so no identity."""

    hidden: frozenset[str] = frozenset(("identity",))

    @property
    def capabilities(self):
        return super().capabilities - self.hidden

    async def identity(self):
        raise AssertionError("it has none")

    async def save_identity(self, identity):
        raise AssertionError("it has none")


class Nothing(Nameless):
    """Can only store and search."""

    hidden = frozenset(("identity", "get", "scan", "drop", "delete", "update_metadata"))


async def test_a_store_without_identity_is_noticed_when_it_was_emptied(journal, disk):
    await ingest(Nameless(disk), journal, *range(300))
    await ingest(Nameless(disk), journal, 300)
    table = disk["autoplay"]
    kept = table.ids()[::2]
    table.delete(kept)
    await ingest(Nameless(disk), journal)  # some chunks are missing, but the store is not empty
    disk.clear()
    await refused(Nameless(disk), journal, "none of the 301 chunks")
    await ingest(Nameless(disk), journal, rebuild=True)
    assert await held_by(Nameless(disk)) == lines_of(*range(301))


async def test_a_rebuild_of_a_store_without_identity_goes_on_after_a_kill(
    journal, disk, monkeypatch
):
    await ingest(Nameless(disk), journal, *range(300))
    disk.clear()
    moments = Moments(journal, disk, journal.parent / "moments")
    with monkeypatch.context() as patch:
        moments.watch(patch)
        await ingest(Nameless(disk), journal, rebuild=True)
    again = [one for one in moments.taken if one[0] == "after stored_again"]
    assert len(again) == 2  # pages of 200
    for _, killed, _, then in again:
        await ingest(Nameless(then), killed)
        assert await held_by(Nameless(then)) == lines_of(*range(300))


async def test_an_outage_at_start_keeps_no_payload_out(journal, disk, monkeypatch, caplog):
    await ingest(Nameless(disk), journal, 1)

    async def get(self, ids):
        raise RuntimeError("database is starting up")

    with monkeypatch.context() as patch:
        patch.setattr(Nameless, "get", get)
        await ingest(Nameless(disk), journal, 2)
    assert "could not be compared" in caplog.text
    assert "database is starting up" in caplog.text
    assert await held_by(Nameless(disk)) == lines_of(1, 2)


async def test_a_store_that_can_do_nothing_else_works(journal, disk):
    await ingest(Nothing(disk), journal, 1)
    disk.clear()
    await ingest(Nothing(disk), journal, 2)  # this cannot be detected
    assert await held_by(DiskStore(disk)) == lines_of(2)
    await ingest(Nothing(disk), journal, rebuild=True)
    assert await held_by(DiskStore(disk)) == lines_of(1, 2)


class Texts(TextStore):
    """Embeds texts itself and keeps them in a dictionary."""

    def __init__(self):
        self.held = {}

    async def add(self, chunks):
        self.held.update({chunk.id: chunk for chunk in chunks})

    async def search(self, text, k, filter):
        return []

    async def get(self, ids):
        return [self.held[one] for one in ids if one in self.held]


async def test_a_text_store_is_filled_again(journal):
    store = Texts()
    await ingest(store, journal, 1, 2)
    store.held.clear()
    await refused(store, journal, "none of the 2 chunks")
    await ingest(store, journal, 3, rebuild=True)
    assert sorted(chunk.text for chunk in store.held.values()) == [
        "click 1\nsave 1",
        "click 2\nsave 2",
        "click 3\nsave 3",
    ]


# -- texts that an older format did not keep -----------------------------------------------------


async def without_texts(journal):
    """Leave the journal as an upgrade does: the texts are only in the store, and there is no note."""
    opened = open_journal(journal)
    await opened.open()

    def drop(connection):
        connection.execute("UPDATE chunk SET text = NULL, metadata = NULL")
        connection.execute("DELETE FROM meta WHERE name IN ('store_id', 'store_batch', 'model')")

    await opened._writer.run(drop, opened._tables.file.connection)
    await opened.close()


async def upgraded(journal, disk):
    """Make a store and a journal of an older version, which knew only a payload's first chunk."""
    await ingest(DiskStore(disk), journal, *range(5))
    await without_texts(journal)
    disk["autoplay"].identity = None
    part = Chunk("e" * 32, "part 2", {"product_id": "acme", "session_id": "s1"})
    disk["autoplay"].upsert([part], [[1.0] * 8])


async def test_texts_are_read_from_the_store_after_an_upgrade(journal, disk):
    await upgraded(journal, disk)
    await ingest(DiskStore(disk), journal)
    disk.clear()
    await ingest(DiskStore(disk), journal, rebuild=True)
    assert await held_by(DiskStore(disk)) == lines_of(*range(5)) + Counter(["part 2"])


async def test_texts_are_read_before_the_store_is_dropped(journal, disk):
    await upgraded(journal, disk)
    await ingest(DiskStore(disk), journal, model="model-b", dimension=12, rebuild=True)
    held = await held_by(DiskStore(disk), "model-b")
    assert held == lines_of(*range(5)) + Counter(["part 2"])


async def test_texts_that_are_in_the_store_alone_are_not_dropped(journal, disk):
    await ingest(Blind(disk), journal, *range(5))
    await without_texts(journal)
    await refused(Blind(disk), journal, "are not deleted", model="model-b", rebuild=True)
    assert await held_by(DiskStore(disk)) == lines_of(*range(5))


async def test_texts_that_are_lost_are_counted(journal, disk, caplog):
    await ingest(DiskStore(disk), journal, *range(5))
    await without_texts(journal)
    disk.clear()
    await refused(DiskStore(disk), journal, "none of the 5 chunks")
    await ingest(DiskStore(disk), journal, 5, rebuild=True)
    assert "5 chunks are not stored again: only the store had their texts" in caplog.text
    assert await held_by(DiskStore(disk)) == lines_of(5)


# -- kills and power losses ----------------------------------------------------------------------


async def goes_on(moments, numbers, *, since="", **options):
    """Check that after each kill or power loss the next start finds no mismatch."""
    names = [name for name, *_ in moments.taken]
    begin = names.index(since) if since else 0
    assert len(names) - begin > 4
    for name, killed, off, disk in moments.taken[begin:]:
        after_power_loss = copy.deepcopy(disk)
        await ingest(DiskStore(disk), killed, *numbers, **options)
        held = await held_by(DiskStore(disk), options.get("model", "model-a"))
        assert held == lines_of(*numbers), name
        await ingest(DiskStore(after_power_loss), off, *numbers, **options)
        held = await held_by(DiskStore(after_power_loss), options.get("model", "model-a"))
        assert held == lines_of(*numbers), f"{name}, power lost"


async def test_a_kill_of_the_first_run_is_no_mismatch(journal, disk, monkeypatch, tmp_path):
    moments = Moments(journal, disk, tmp_path / "moments")
    with monkeypatch.context() as patch:
        moments.watch(patch)
        async with pipeline_of(DiskStore(disk), journal) as pipeline:
            for payload in visits(1, 2, 3):
                await pipeline.on_actions(payload)
                await pipeline.drain()
                await pipeline._run._pairing.note()
    await goes_on(moments, [1, 2, 3])


async def test_a_kill_of_a_later_run_is_no_mismatch(journal, disk, monkeypatch, tmp_path):
    await ingest(DiskStore(disk), journal, 1)
    moments = Moments(journal, disk, tmp_path / "moments")
    with monkeypatch.context() as patch:
        moments.watch(patch)
        await ingest(DiskStore(disk), journal, 2)
    await goes_on(moments, [1, 2])


@pytest.mark.parametrize("how", ["emptied", "older store", "other model", "exchanged"])
async def test_a_kill_of_a_rebuild_goes_on_by_itself(journal, disk, how, monkeypatch, tmp_path):
    await ingest(DiskStore(disk), journal, *range(5))
    older = copy.deepcopy(disk)
    options = {}
    if how == "emptied":
        disk.clear()
    elif how == "other model":
        options = {"model": "model-b", "dimension": 12}
    elif how == "exchanged":
        await ingest(DiskStore({}), journal, 5, rebuild=True)
    else:
        await ingest(DiskStore(disk), journal, 5)
        disk = older
    numbers = range(6) if how in ("exchanged", "older store") else range(5)
    moments = Moments(journal, disk, tmp_path / "moments")
    with monkeypatch.context() as patch:
        moments.watch(patch)
        await ingest(DiskStore(disk), journal, rebuild=True, **options)
    await goes_on(moments, numbers, since="after acknowledged_for_good", **options)


@pytest.mark.parametrize("how", ["foreign", "older journal"])
async def test_a_kill_of_an_adoption_can_be_repeated(journal, disk, how, monkeypatch, tmp_path):
    older = tmp_path / "older" / "journal.db"
    await ingest(DiskStore(disk), journal, *range(3))
    if how == "foreign":
        await ingest(DiskStore({}), older, 5)
    else:
        copy_journal(journal, older)
        await ingest(DiskStore(disk), journal, 5)
    moments = Moments(older, disk, tmp_path / "moments")
    with monkeypatch.context() as patch:
        moments.watch(patch)
        await ingest(DiskStore(disk), older, adopt=True)
    await goes_on(moments, [0, 1, 2, 5], since="before adopt", adopt=True)


async def test_the_store_notes_only_what_no_power_loss_undoes(journal, disk, tmp_path):
    async with pipeline_of(DiskStore(disk), journal) as pipeline:
        for payload in visits(1, 2):
            await pipeline.on_actions(payload)
        await pipeline.drain()
        assert disk["autoplay"].identity.batch == 0
        await pipeline._run._pairing.note()
        off = copy_journal(journal, tmp_path / "off" / "journal.db", power_loss=True)
        noted = disk["autoplay"].identity.batch
    _, known = await notes_of(off)
    assert known.acknowledged >= noted > 0


@pytest.mark.parametrize("error", [StoreUnavailableError("down"), RuntimeError("of a library")])
async def test_a_store_that_cannot_note_goes_on_storing(journal, disk, error, monkeypatch, caplog):
    async with pipeline_of(DiskStore(disk), journal) as pipeline:
        await pipeline.on_actions(visits(1)[0])
        await pipeline.drain()

        async def save_identity(self, identity):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(DiskStore, "save_identity", save_identity)
            await pipeline._run._pairing.note()
            await pipeline._run._pairing.note()
        warned = [one for one in caplog.records if one.levelno == logging.WARNING]
        assert [str(error) in one.getMessage() for one in warned] == [True], "once"
        await pipeline.on_actions(visits(2)[0])
        await pipeline.drain()
    assert await held_by(DiskStore(disk)) == lines_of(1, 2)
    assert disk["autoplay"].identity.batch == 2


# -- messages ------------------------------------------------------------------------------------


async def test_no_message_gives_a_secret_away(journal, disk):
    class Remote(DiskStore):
        def __repr__(self):
            return "<Remote postgresql://me:hunter2@db.test/rag>"

    await ingest(Remote(disk), journal, 1)
    disk.clear()
    said = await refused(Remote(disk), journal, "none of the 1 chunks")
    assert "hunter2" not in said
    assert "db.test/rag" in said
    pairing = Pairing(None, object.__new__(Texts), "")
    assert "0x" not in str(pairing._mismatch("emptied", Notes("j"), Known(1, 1, 1, 1)))
