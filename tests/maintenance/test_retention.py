"""Retention: what is old leaves store and journal, and what is not stays."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from aging import DAY, NOW, Clock, actions, at_time, contents, sweep

from autoplay_rag.errors import ConfigurationError, StoreUnavailableError
from autoplay_rag.journal.file import JournalFile
from autoplay_rag.maintenance import retention
from autoplay_rag.payloads import SummaryPayload
from autoplay_rag.stores import ChromaStore, MemoryStore
from autoplay_rag.stores.base import TextStore


async def texts_of(store):
    return sorted([chunk.text async for page in store.scan() for chunk in page])


@pytest.fixture(params=["memory", "chroma"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else ChromaStore(tmp_path / "chroma")


async def test_old_chunks_leave_store_and_journal(make_pipeline, store, tmp_path):
    clock = Clock()
    options = {"journal": tmp_path / "j.db", "retention_days": 7}
    async with at_time(make_pipeline(store, **options), clock) as pipeline:
        await pipeline.on_actions(actions("s1", "oldword", at=NOW - 6 * DAY, user="ann"))
        await pipeline.on_actions(actions("s2", "newword", at=NOW - 1 * DAY, user="bob"))
        await sweep(pipeline)
        assert len(await texts_of(store)) == 2
        clock.now += 2 * DAY
        await sweep(pipeline)
        assert await texts_of(store) == ["newword"]
        assert [one.session_id for one in await pipeline.sessions()] == ["s2"]
        assert await pipeline.session("s1") is None
        assert not [hit for hit in await pipeline.search("oldword") if "oldword" in hit.text]
        assert "oldword" not in contents(tmp_path / "j.db")
        assert "newword" in contents(tmp_path / "j.db")
        assert (await pipeline.verify()).clean
        ledger, watermark = pipeline.ledger, pipeline.watermark
        assert (ledger.received, ledger.stored, ledger.balanced) == (2, 2, True)
        again = await pipeline.accept(actions("s1", "oldword", at=NOW - 6 * DAY))
        assert again == "duplicate"
        receipt = await pipeline.forget(user_id="ann")
        assert (receipt.payloads, receipt.chunks, receipt.deleted) == (0, 0, True)
    async with at_time(make_pipeline(store, **options), clock) as pipeline:
        assert pipeline.watermark >= watermark
        await pipeline.on_actions(actions("s3", "another", at=clock.now))
        await pipeline.drain(30)
        assert pipeline.ledger.stored == 3
        assert (await pipeline.verify()).clean


async def test_the_first_run_is_at_start(make_pipeline, tmp_path):
    clock, store = Clock(), MemoryStore()
    path = tmp_path / "j.db"
    async with at_time(make_pipeline(store, journal=path), clock) as pipeline:
        await pipeline.on_actions(actions("s", "old", at=NOW))
        await pipeline.drain(30)
    clock.now += 30 * DAY
    async with at_time(
        make_pipeline(store, journal=path, retention_days={"actions": 7}), clock
    ) as pipeline:
        await pipeline._run.retention.wait()
        await pipeline.drain(30)
        assert await texts_of(store) == []
        clock.now += 60 * DAY
    # Keys are also deleted after the retention was taken out of the settings.
    async with at_time(make_pipeline(store, journal=path), clock) as pipeline:
        await pipeline._run.retention.wait()
        assert await pipeline.accept(actions("s", "old", at=NOW)) == "accepted"
        await pipeline.drain(30)
        assert await texts_of(store) == ["old"]


async def test_what_arrives_old_is_stored_and_goes_with_the_next_run(make_pipeline, tmp_path):
    clock, store = Clock(), MemoryStore()
    path = tmp_path / "j.db"
    async with at_time(make_pipeline(store, journal=path, retention_days=7), clock) as pipeline:
        await sweep(pipeline)
        assert await pipeline.accept(actions("s", "late", at=NOW - 90 * DAY)) == "accepted"
        await pipeline.drain(30)
        assert await texts_of(store) == ["late"]
        clock.now += 600
        await sweep(pipeline)
        assert await texts_of(store) == []
        assert pipeline.ledger.stored == 1


async def test_replaced_actions_go_too(make_pipeline, tmp_path):
    clock, store = Clock(), MemoryStore()
    path = tmp_path / "j.db"
    options = {"journal": path, "retention_days": 7, "summaries": "replace"}
    async with at_time(make_pipeline(store, **options), clock) as pipeline:
        await pipeline.on_actions(actions("s", "replaced", at=NOW - 60))
        await pipeline.drain(30)
        await pipeline.on_summary(SummaryPayload("acme", "s", "Did all of it.", 1, NOW))
        await pipeline.drain(30)
        assert await texts_of(store) == ["Did all of it."]
        clock.now += 8 * DAY
        await sweep(pipeline)
        assert await texts_of(store) == []
        assert "replaced" not in contents(path)
        assert (await pipeline.verify()).clean


async def test_dead_letters_go_and_are_counted(make_pipeline, embedder, tmp_path):
    def refuse(texts):
        if any("poison" in text for text in texts):
            raise ValueError("poison")

    embedder.script = refuse
    clock = Clock()
    path = tmp_path / "j.db"
    options = {"journal": path, "retention_days": 7, "max_attempts": 1}
    async with at_time(make_pipeline(**options), clock) as pipeline:
        await pipeline.on_actions(actions("s", "poisonword", at=NOW))
        await sweep(pipeline)
        assert len(await pipeline.dead_letters.list()) == 1
        clock.now += 8 * DAY
        await sweep(pipeline)
        assert await pipeline.dead_letters.list() == []
        assert (pipeline.ledger.dead, pipeline.ledger.discarded) == (0, 1)
        assert "poisonword" not in contents(path)


@pytest.mark.parametrize(
    "days", [0, -1, float("nan"), "7", {"actions": 0}, {"clicks": 7}, {"chat": None}]
)
def test_wrong_values_are_refused(make_pipeline, tmp_path, days):
    with pytest.raises(ConfigurationError, match="retention_days"):
        make_pipeline(journal=tmp_path / "j.db", retention_days=days)


def test_a_journal_file_is_needed(make_pipeline):
    with pytest.raises(ConfigurationError, match="journal file"):
        make_pipeline(retention_days=7)
    with pytest.raises(ConfigurationError, match="remember_keys_days"):
        make_pipeline(remember_keys_days=-1)


async def test_a_store_that_cannot_delete_is_refused(make_pipeline, tmp_path):
    class OnlyAdds(TextStore):
        async def add(self, chunks):
            raise AssertionError

        async def search(self, text, k, filter):
            return []

    pipeline = make_pipeline(OnlyAdds(), journal=tmp_path / "j.db", retention_days=7)
    with pytest.raises(ConfigurationError, match="OnlyAdds cannot"):
        await pipeline.start()


async def test_an_outage_of_the_store_delays_the_deletion_and_bounds_the_outbox(
    make_pipeline, tmp_path, monkeypatch, eventually
):
    monkeypatch.setattr(retention, "_STEP", 1)
    monkeypatch.setattr(retention, "_MOST_DELETIONS", 3)
    clock, store = Clock(), MemoryStore()
    delete = store.delete

    async def out(_ids):
        raise StoreUnavailableError("refused")

    path = tmp_path / "j.db"
    async with at_time(make_pipeline(store, journal=path, retention_days=7), clock) as pipeline:
        for number in range(10):
            await pipeline.on_actions(actions(f"s{number}", f"old{number}", at=NOW))
        await sweep(pipeline)
        clock.now += 8 * DAY
        monkeypatch.setattr(store, "delete", out)
        work = pipeline._run.retention
        work.wake()
        await eventually(lambda: pipeline._run._upkeep.deleting == 4)
        await eventually(lambda: pipeline.health.state == "degraded")
        assert not work.idle
        assert len(await texts_of(store)) == 10
        assert len(await pipeline.sessions(limit=20)) == 6
        await pipeline.on_actions(actions("new", "new", at=clock.now))  # is accepted meanwhile
        monkeypatch.setattr(store, "delete", delete)
        async with asyncio.timeout(30):
            await work.wait()
        await pipeline.drain(30)
        assert await texts_of(store) == ["new"]
        assert pipeline.health.state == "ok"


# -- interrupted --------------------------------------------------------------------------------


class RecordingStore(MemoryStore):
    """Remembers its operations, so that another store can repeat them."""

    persistent = True

    def __init__(self):
        super().__init__()
        self.operations = []

    async def upsert(self, chunks, vectors):
        await super().upsert(chunks, vectors)
        self.operations.append(("upsert", list(chunks), list(vectors)))

    async def delete(self, ids):
        await super().delete(ids)
        self.operations.append(("delete", list(ids)))

    async def save_identity(self, identity):
        await super().save_identity(identity)
        self.operations.append(("save_identity", identity))


class Moments:
    """The journal's files, and the number of the store's operations, after every commit."""

    def __init__(self, path, store):
        self.path, self.store = path, store
        self.found: list[tuple[Mapping[str, bytes], int]] = []

    @contextmanager
    def recorded(self):
        original = JournalFile.transaction

        @contextmanager
        def transaction(file):
            with original(file):
                yield
            names = (self.path, self.path.with_name(self.path.name + "-wal"))
            files = {one.name: one.read_bytes() for one in names if one.exists()}
            self.found.append((files, len(self.store.operations)))

        JournalFile.transaction = transaction
        try:
            yield
        finally:
            JournalFile.transaction = original


async def test_a_run_that_was_killed_goes_on_at_the_next_start(
    make_pipeline, embedder, tmp_path, monkeypatch
):
    monkeypatch.setattr(retention, "_STEP", 2)
    clock, store = Clock(), RecordingStore()
    path = tmp_path / "j.db"
    options = {"max_batch_actions": 3, "retention_days": 7}
    async with at_time(make_pipeline(store, journal=path, **options), clock) as pipeline:
        for number in range(8):
            await pipeline.on_actions(actions(f"s{number % 3}", f"old{number}", at=NOW))
        await pipeline.drain(30)
        clock.now += 8 * DAY
        await pipeline.on_actions(actions("s1", "new", at=clock.now))
        moments = Moments(path, store)
        with moments.recorded():
            await sweep(pipeline)
        assert await texts_of(store) == ["new"]
    assert len(moments.found) > 6
    for number, (files, done) in enumerate(moments.found):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        copy = RecordingStore()
        await copy.start(embedder.model)
        for name, *arguments in store.operations[:done]:
            await getattr(copy, name)(*arguments)
        journal = folder / path.name
        async with at_time(make_pipeline(copy, journal=journal, **options), clock) as pipeline:
            await sweep(pipeline)
            assert await texts_of(copy) == ["new"], number
            assert "old" not in contents(journal).replace("older", "")
            assert (pipeline.ledger.stored, pipeline.ledger.balanced) == (9, True)
            assert (await pipeline.verify()).clean
