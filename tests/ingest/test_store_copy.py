"""`copy_store`: the chunks of one store in another one."""

from __future__ import annotations

import pytest

from autoplay_rag import copy_store
from autoplay_rag.errors import ConfigurationError, EmbedderRejectedError, MissingCapabilityError
from autoplay_rag.stores import ChromaStore, MemoryStore
from autoplay_rag.stores.base import Chunk, TextStore, VectorStore

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def other(scripted_embedder):
    class Other(scripted_embedder):
        model = "other"

    return Other(12)


class Texts(TextStore):
    def __init__(self) -> None:
        self.chunks: dict[str, Chunk] = {}

    async def add(self, chunks):
        self.chunks |= {chunk.id: chunk for chunk in chunks}

    async def search(self, text, k, filter):
        return []


async def content(store) -> dict[str, Chunk]:
    return {chunk.id: chunk async for page in store.scan() for chunk in page}


async def filled(embedder, count=5) -> MemoryStore:
    store = MemoryStore()
    await store.start(embedder.model)
    for n in range(count):
        chunk = Chunk(f"c{n}", f"text {n}", {"user_id": "ann", "ended_at": 5.0 + n})
        await store.upsert([chunk], [embedder.vector(chunk.text)])
    return store


@pytest.mark.parametrize("kind", ["memory", "chroma"])
async def test_a_store_is_copied_and_a_second_time_there_is_nothing_to_do(
    embedder, other, tmp_path, kind
):
    source = await filled(embedder)
    target = MemoryStore() if kind == "memory" else ChromaStore(tmp_path / "chroma")
    told = []
    report = await copy_store(source, target, other, on_progress=told.append)
    assert (report.chunks, report.copied, report.same) == (5, 5, 0)
    assert told[-1].done == 5
    assert await content(target) == await content(source)
    again = await copy_store(source, target, other)
    assert (again.chunks, again.copied, again.same) == (5, 0, 5)
    await source.upsert([Chunk("c1", "another text", {})], [embedder.vector("x")])
    third = await copy_store(source, target, other)
    assert (third.copied, third.same) == (1, 4)
    assert (await content(target))["c1"].text == "another text"
    await target.aclose()


async def test_a_text_store_embeds_for_itself(embedder):
    source, target = await filled(embedder), Texts()
    assert (await copy_store(source, target)).copied == 5
    assert target.chunks == await content(source)


async def test_with_a_journal_the_pipeline_goes_on_with_the_other_store(
    make_pipeline, make_actions, other, tmp_path
):
    source, journal = ChromaStore(tmp_path / "one"), tmp_path / "journal.db"
    async with make_pipeline(source, journal=journal) as pipeline:
        for n in range(5):
            await pipeline.on_actions(make_actions(f"s{n}", f"click {n}"))
        await pipeline.drain()
    foreign = ChromaStore(tmp_path / "one")
    await foreign.upsert([Chunk("mine", "not of the journal", {})], [[0.5] * 8])
    await foreign.aclose()
    target = ChromaStore(tmp_path / "two")
    report = await copy_store(ChromaStore(tmp_path / "one"), target, other, journal=journal)
    assert (report.chunks, report.copied, report.skipped, report.missing) == (6, 5, 1, 0)
    async with make_pipeline(target, journal=journal, embedder=other) as pipeline:
        await pipeline.on_actions(make_actions("s5", "click 5"))
        await pipeline.drain()
        assert (await pipeline.verify()).clean
        assert await target.count() == 6


async def test_a_refused_chunk_does_not_stop_the_others(embedder, other):
    def refuse(texts):
        if "text 2" in texts:
            raise EmbedderRejectedError("too long")

    other.script = refuse
    report = await copy_store(await filled(embedder), MemoryStore(), other)
    assert (report.copied, report.refused) == (4, 1)


async def test_what_cannot_be_copied_is_said(embedder, other):
    class Blind(VectorStore):
        async def upsert(self, chunks, vectors):
            raise NotImplementedError

        async def query(self, vector, k, filter):
            raise NotImplementedError

    with pytest.raises(MissingCapabilityError, match="scan"):
        await copy_store(Blind(), MemoryStore(), other)
    with pytest.raises(ConfigurationError, match="needs an embedder"):
        await copy_store(MemoryStore(), MemoryStore())
    with pytest.raises(ConfigurationError, match="embeds texts itself"):
        await copy_store(MemoryStore(), Texts(), other)


@pytest.mark.parametrize("has_journal", [True, False])
async def test_a_running_pipeline_copies_its_chunks_and_goes_on_with_its_own_store(
    make_pipeline, make_actions, other, tmp_path, has_journal
):
    source, target = MemoryStore(), MemoryStore()
    journal = tmp_path / "journal.db" if has_journal else None
    async with make_pipeline(store=source, journal=journal) as pipeline:
        for n in range(3):
            await pipeline.on_actions(make_actions(f"s{n}", "x"))
        await pipeline.drain()
        told = []
        report = await pipeline.copy_to(target, other, on_progress=told.append)
        assert (report.chunks, report.copied, report.missing) == (3, 3, 0)
        assert (told[-1].done, told[-1].total) == (3, 3 if has_journal else 0)
        assert await content(target) == await content(source)
        await pipeline.on_actions(make_actions("s9", "y"))
        await pipeline.drain()
        assert len(await content(source)) == 4
        assert len(await content(target)) == 3
        assert (await pipeline.copy_to(target, other)).copied == 1
        assert (await pipeline.verify()).clean
        with pytest.raises(ConfigurationError, match="needs an embedder"):
            await pipeline.copy_to(target)
        with pytest.raises(ConfigurationError, match="own store"):
            await pipeline.copy_to(source, other)


async def test_a_running_pipeline_copies_no_chunk_that_its_journal_forgot(
    make_pipeline, make_actions, other, tmp_path
):
    source, target = MemoryStore(), MemoryStore()
    async with make_pipeline(store=source, journal=tmp_path / "journal.db") as pipeline:
        await pipeline.on_actions(make_actions("s1", "x"))
        await pipeline.drain()
        await source.upsert([Chunk("stray", "unknown", {})], [[0.0] * 8])
        report = await pipeline.copy_to(target, other)
    assert (report.copied, report.skipped) == (1, 1)
    assert "stray" not in await content(target)


async def test_a_pipeline_without_a_scannable_store_cannot_copy(make_pipeline, other):
    async with make_pipeline(store=Texts(), embedder=None) as pipeline:
        with pytest.raises(MissingCapabilityError):
            await pipeline.copy_to(MemoryStore(), other)
