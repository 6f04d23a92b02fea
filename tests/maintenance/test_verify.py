"""`pipeline.verify`: reports exactly what was done to the store behind its back, and repairs it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoplay_rag.errors import (
    ConfigurationError,
    MissingCapabilityError,
    PipelineClosedError,
    StoreRejectedError,
)
from autoplay_rag.maintenance import verify as module
from autoplay_rag.stores import ChromaStore, MemoryStore
from autoplay_rag.stores.base import Chunk

pytestmark = pytest.mark.timeout(120)

KINDS = ("missing", "extra", "stale", "doubled", "undeleted")
DAMAGES = ("nothing", "delete", "text", "metadata", "added key", "lost key")


def counts(report) -> dict[str, int]:
    return {kind: count for kind in KINDS if (count := getattr(report, kind))}


async def fill(pipeline, make_actions, count, *, start=0):
    await asyncio.gather(
        *(
            pipeline.on_actions(make_actions(f"s{n}", f"click {n}", user=f"u{n}"))
            for n in range(start, start + count)
        )
    )
    await pipeline.drain()


async def content(store) -> dict[str, Chunk]:
    return {chunk.id: chunk async for page in store.scan() for chunk in page}


async def damage(store, embedder, chunk: Chunk, how: str) -> str | None:
    """Do something to a chunk behind the journal's back; returns what verify must find."""
    if how == "nothing":
        return None
    if how == "delete":
        await store.delete([chunk.id])
        return "missing"
    text, metadata = chunk.text, dict(chunk.metadata)
    if how == "text":
        text += "!"
    elif how == "metadata":
        metadata["user_id"] = "somebody else"
    elif how == "added key":
        metadata["odd"] = 1
    else:
        del metadata["user_id"]
    await store.upsert([Chunk(chunk.id, text, metadata)], [embedder.vector(text)])
    return "stale"


async def damage_all(store, embedder, hows, extra) -> tuple[dict[str, int], dict[str, Chunk]]:
    before = await content(store)
    expected: Counter[str] = Counter()
    for (_, chunk), how in zip(sorted(before.items()), hows, strict=True):
        if found := await damage(store, embedder, chunk, how):
            expected[found] += 1
    for n in range(extra):
        await store.upsert([Chunk(f"extra {n}", "x", {})], [embedder.vector("x")])
    expected["extra"] += extra
    return dict(+expected), before


async def check_repair(pipeline, store, hows, expected, before) -> None:
    report = await pipeline.verify()
    assert counts(report) == expected
    assert report.clean is not bool(expected)
    assert {kind: len(ids) for kind, ids in report.examples.items()} == {
        kind: min(count, 5) for kind, count in expected.items()
    }
    assert (report.queued, report.updated, report.deleted) == (0, 0, 0)
    assert counts(await pipeline.verify()) == expected  # nothing was changed

    repaired = await pipeline.verify(repair=True, delete_extra=True)
    assert counts(repaired) == expected
    assert repaired.queued == hows.count("delete") + hows.count("text")
    assert repaired.updated == expected.get("stale", 0) - hows.count("text")
    assert repaired.deleted == expected.get("extra", 0)
    await pipeline.drain()
    after = await pipeline.verify()
    assert after.clean
    assert counts(after) == {}
    assert await content(store) == before


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch):
    monkeypatch.setattr(module, "_PAGE", 4)


@settings(suppress_health_check=list(HealthCheck))
@given(
    hows=st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=12),
    extra=st.integers(0, 9),
    file=st.booleans(),
)
async def test_it_reports_exactly_what_was_done_and_repairs_it(  # noqa: PLR0917 - fixtures
    make_pipeline, make_actions, embedder, tmp_path_factory, hows, extra, file
):
    store = MemoryStore()
    journal = tmp_path_factory.mktemp("verify") / "journal.db" if file else None
    async with make_pipeline(store, journal=journal) as pipeline:
        await fill(pipeline, make_actions, len(hows))
        if file:
            expected, before = await damage_all(store, embedder, hows, extra)
        else:
            expected, before = await damage_all(store, embedder, hows, 0)
        assert (await pipeline.verify()).unchecked == (() if file else ("extra",))
        await check_repair(pipeline, store, hows, expected, before)


@pytest.mark.parametrize(
    ("place", "times"),
    [pytest.param("chroma", 5, marks=pytest.mark.slow), ("postgres", 2)],
)
async def test_it_does_so_with(  # noqa: PLR0917 - fixtures
    make_pipeline, make_actions, embedder, tmp_path, request, place, times
):
    if place == "chroma":
        store, journal = ChromaStore(tmp_path / "chroma"), tmp_path / "journal.db"
    else:
        store = request.getfixturevalue("make_pg_store")()
        journal = request.getfixturevalue("postgres").dsn
    chance = random.Random(1)
    async with make_pipeline(store, journal=journal) as pipeline:
        await fill(pipeline, make_actions, 30)
        assert (await pipeline.verify()).clean
        for _ in range(times):
            hows = [chance.choice(DAMAGES) for _ in range(30)]
            expected, before = await damage_all(store, embedder, hows, chance.randint(0, 6))
            await check_repair(pipeline, store, hows, expected, before)
        assert pipeline.ledger.balanced
    async with make_pipeline(store, journal=journal) as pipeline:
        assert (await pipeline.verify()).clean


class NoUpdates(MemoryStore):
    capabilities = frozenset({"delete", "get", "scan", "identity"})


async def test_a_store_that_cannot_change_metadata_gets_the_chunks_again(
    make_pipeline, make_actions, embedder, tmp_path
):
    store = NoUpdates()
    async with make_pipeline(store, journal=tmp_path / "journal.db") as pipeline:
        await fill(pipeline, make_actions, 3)
        expected, before = await damage_all(store, embedder, ["metadata", "nothing", "text"], 0)
        report = await pipeline.verify(repair=True)
        assert counts(report) == expected == {"stale": 2}
        assert (report.queued, report.updated) == (2, 0)
        await pipeline.drain()
        assert (await pipeline.verify()).clean
        assert await content(store) == before


class Refusing(MemoryStore):
    refuses = True

    async def update_metadata(self, changes):
        if self.refuses:
            raise StoreRejectedError("not this one")
        await super().update_metadata(changes)

    async def delete(self, ids):
        if self.refuses:
            raise StoreRejectedError("upserts only")
        await super().delete(ids)


async def test_metadata_that_the_store_refuses_to_change_are_stored_again(
    make_pipeline, make_actions, embedder, tmp_path
):
    store = Refusing()
    async with make_pipeline(store, journal=tmp_path / "journal.db") as pipeline:
        await fill(pipeline, make_actions, 2)
        await damage_all(store, embedder, ["metadata", "nothing"], 0)
        report = await pipeline.verify(repair=True)
        assert (report.stale, report.queued, report.updated) == (1, 1, 0)
        await pipeline.drain()
        assert (await pipeline.verify()).clean


async def test_refused_deletions_are_undeleted_and_repeated(
    make_pipeline, make_actions, embedder, tmp_path, eventually
):
    store = Refusing()
    async with make_pipeline(store, journal=tmp_path / "journal.db") as pipeline:
        await fill(pipeline, make_actions, 30)
        await store.upsert([Chunk("extra", "x", {})], [embedder.vector("x")])
        report = await pipeline.verify(repair=True)
        assert (counts(report), report.deleted) == ({"extra": 1}, 1)
        await pipeline.drain()
        report = await pipeline.verify()
        assert counts(report) == {"undeleted": 1}
        assert report.examples == {"undeleted": ("extra",)}
        store.refuses = False
        assert (await pipeline.verify(repair=True)).deleted == 1
        await pipeline.drain()
        assert (await pipeline.verify()).clean
        assert len(await content(store)) == 30


# -- what a store lacks -----------------------------------------------------------------------


class Growing(MemoryStore):
    """A store without scan."""

    capabilities = frozenset({"delete", "get", "update_metadata", "identity"})


async def test_without_scan_extra_chunks_are_not_found(
    make_pipeline, make_actions, embedder, tmp_path
):
    store = Growing()
    async with make_pipeline(store, journal=tmp_path / "journal.db") as pipeline:
        await fill(pipeline, make_actions, 6)
        hows = ["delete", "text", "metadata", "nothing", "nothing", "lost key"]
        expected, before = await damage_all(store, embedder, hows, 3)
        assert expected == {"missing": 1, "stale": 3, "extra": 3}
        report = await pipeline.verify(repair=True)
        assert counts(report) == {"missing": 1, "stale": 3}
        assert report.unchecked == ("extra",)
        assert report.checked == 6
        await pipeline.drain()
        assert (await pipeline.verify()).clean
        assert before.items() <= (await content(store)).items()


class OnlyScan(MemoryStore):
    capabilities = frozenset({"delete", "scan", "identity"})


async def test_without_get_a_scan_is_enough(make_pipeline, make_actions, embedder, tmp_path):
    store = OnlyScan()
    async with make_pipeline(store, journal=tmp_path / "journal.db") as pipeline:
        await fill(pipeline, make_actions, 6)
        hows = ["delete", "text", "metadata", "nothing", "nothing", "lost key"]
        expected, before = await damage_all(store, embedder, hows, 3)
        report = await pipeline.verify(repair=True, delete_extra=True)
        assert counts(report) == expected
        await pipeline.drain()
        assert (await pipeline.verify()).clean
        assert await content(store) == before


class Blind(MemoryStore):
    capabilities = frozenset({"delete"})


async def test_a_store_that_shows_nothing_cannot_be_compared(make_pipeline, make_actions, tmp_path):
    async with make_pipeline(Blind(), journal=tmp_path / "journal.db") as pipeline:
        await fill(pipeline, make_actions, 1)
        with pytest.raises(MissingCapabilityError, match="Blind"):
            await pipeline.verify()


class Doubling(MemoryStore):
    """A store that may hold an id twice."""

    def __init__(self):
        super().__init__()
        self.copies: dict[str, Chunk] = {}

    async def get(self, ids):
        return [
            *await super().get(ids),
            *(self.copies[one] for one in ids if one in self.copies),
        ]

    async def scan(self, page=500):
        async for chunks in super().scan(page):
            yield chunks
        if self.copies:
            yield list(self.copies.values())

    async def delete(self, ids):
        await super().delete(ids)
        for one in ids:
            self.copies.pop(one, None)


class DoublingWithoutScan(Doubling):
    capabilities = frozenset({"delete", "get"})


@pytest.mark.parametrize("make_store", [Doubling, DoublingWithoutScan])
async def test_doubled_chunks_are_stored_once_again(
    make_pipeline, make_actions, tmp_path, make_store
):
    store = make_store()
    async with make_pipeline(store, journal=tmp_path / "journal.db") as pipeline:
        await fill(pipeline, make_actions, 6)
        before = await content(store)
        some = sorted(before)[:2]
        store.copies |= {one: before[one] for one in some}
        report = await pipeline.verify(repair=True)
        assert counts(report) == {"doubled": 2}
        assert sorted(report.examples["doubled"]) == some
        await pipeline.drain()
        assert (await pipeline.verify()).clean
        assert not store.copies
        assert await content(store) == before


# -- extra chunks -----------------------------------------------------------------------------


class Shared(MemoryStore):
    """A collection that somebody else created."""

    async def is_own(self):
        return False


@pytest.mark.parametrize("extra", [1, 2])
async def test_few_extra_chunks_are_deleted_and_many_only_if_asked(
    make_pipeline, make_actions, embedder, tmp_path, extra
):
    store = MemoryStore()
    async with make_pipeline(store, journal=tmp_path / "journal.db") as pipeline:
        await fill(pipeline, make_actions, 25)
        await damage_all(store, embedder, ["nothing"] * 25, extra)
        report = await pipeline.verify(repair=True)
        await pipeline.drain()
        many = extra > 1
        assert report.extra == extra
        assert report.deleted == (0 if many else extra)
        assert len(await content(store)) == (25 + extra if many else 25)
        assert any("--delete-extra" in remark for remark in report.remarks) is many


async def test_extra_chunks_of_others_stay(make_pipeline, make_actions, embedder, tmp_path):
    store = Shared()
    async with make_pipeline(store, journal=tmp_path / "journal.db") as pipeline:
        await fill(pipeline, make_actions, 25)
        await damage_all(store, embedder, ["nothing"] * 25, 1)
        report = await pipeline.verify(repair=True, delete_extra=True)
        await pipeline.drain()
        assert report.remarks == ("1 extra chunks stay: this package did not make the collection",)
        assert len(await content(store)) == 26


async def test_a_chroma_collection_of_somebody_else_is_not_own(tmp_path):
    chromadb = pytest.importorskip("chromadb")
    client = chromadb.PersistentClient(str(tmp_path / "chroma"))
    client.create_collection(
        "theirs", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
    )
    del client
    theirs, ours = ChromaStore(tmp_path / "chroma", "theirs"), ChromaStore(tmp_path / "chroma")
    await theirs.start("m")
    await ours.start("m")
    try:
        assert not await theirs.is_own()
        assert await ours.is_own()
    finally:
        await theirs.aclose()
        await ours.aclose()


# -- beside a live ingest ---------------------------------------------------------------------


@pytest.mark.parametrize("make_store", [MemoryStore, Growing])
async def test_chunks_that_are_stored_and_deleted_meanwhile_are_not_reported(
    make_pipeline, make_actions, tmp_path, make_store
):
    store = make_store()
    dying = ["die"] * 2
    async with make_pipeline(
        store, journal=tmp_path / "journal.db", max_batch_actions=2
    ) as pipeline:
        reports = []

        async def ingest():
            n = 0
            while n < 150 or len(reports) < 4:  # until a few reports were made meanwhile
                await pipeline.on_actions(make_actions(f"s{n}", *dying, str(n), str(-n)))
                n += 1
            await pipeline.drain()
            return n

        running = asyncio.create_task(ingest())
        while not running.done():
            report = await pipeline.verify(repair=len(reports) % 2 == 1)
            assert report.clean, report
            reports.append(report)
        sent = await running
        report = await pipeline.verify()
        assert (report.clean, report.checked) == (True, 2 * sent)


class RefusingSome(MemoryStore):
    """Refuses some texts, so that the other parts of their payloads are deleted."""

    async def upsert(self, chunks, vectors):
        if any("refused" in chunk.text for chunk in chunks):
            raise StoreRejectedError("no")
        await asyncio.sleep(0.001)
        await super().upsert(chunks, vectors)

    async def delete(self, ids):
        await asyncio.sleep(0.005)
        await super().delete(ids)


async def test_parts_of_dead_payloads_are_not_reported(make_pipeline, make_actions, tmp_path):
    store = RefusingSome()
    async with make_pipeline(
        store, journal=tmp_path / "journal.db", max_batch_actions=1, max_attempts=1
    ) as pipeline:

        async def ingest():
            for n in range(60):
                last = "refused" if n % 3 == 0 else "fine"
                await pipeline.on_actions(make_actions(f"s{n}", f"a{n}", f"b{n}", f"{last} {n}"))
            await pipeline.drain()

        running = asyncio.create_task(ingest())
        while not running.done():
            report = await pipeline.verify(repair=True, delete_extra=True)
            assert report.clean, report
        await running
        assert pipeline.ledger.dead == 20
        assert (await pipeline.verify()).checked == 120


async def test_it_works_from_another_loop(make_pipeline, make_actions, tmp_path):
    async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
        await fill(pipeline, make_actions, 3)
        report = await asyncio.to_thread(asyncio.run, pipeline.verify())
        assert (report.clean, report.checked) == (True, 3)
        made = await asyncio.to_thread(asyncio.run, pipeline.backup(tmp_path / "copy"))
        assert made.files == 1


async def test_it_needs_a_running_pipeline(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    with pytest.raises(PipelineClosedError):
        await pipeline.verify()
    with pytest.raises(ConfigurationError, match="repair"):
        await pipeline.verify(delete_extra=True)


async def test_the_progress_is_told_after_each_page(make_pipeline, make_actions, tmp_path):
    async with make_pipeline(store=MemoryStore(), journal=tmp_path / "journal.db") as pipeline:
        for n in range(10):
            pipeline.accept(make_actions(f"s{n}", "x"))
        await pipeline.drain()
        told = []
        report = await pipeline.verify(on_progress=told.append)
    assert [one.done for one in told[:3]] == [4, 8, 10]
    assert {one.total for one in told} == {10}
    assert told[-1].done == report.checked == 10
    assert told[-1].rate > 0
