"""Forgetting while something else is under way that may bring the text back, or keep it."""

from __future__ import annotations

import asyncio

import pytest

from autoplay_rag.content import render as render_module
from autoplay_rag.errors import StoreUnavailableError
from autoplay_rag.ingest.embedding import _digest
from autoplay_rag.maintenance import forgetting as forgetting_module
from autoplay_rag.payloads import ActionsPayload, SlimAction
from autoplay_rag.stores import MemoryStore


class Gated(MemoryStore):
    """A store whose upserts and deletions wait while they are told to."""

    def __init__(self):
        super().__init__()
        self.may_upsert, self.may_delete = asyncio.Event(), asyncio.Event()
        self.may_upsert.set()
        self.may_delete.set()
        self.upserting, self.deleting = asyncio.Event(), asyncio.Event()

    async def upsert(self, chunks, vectors):
        self.upserting.set()
        await self.may_upsert.wait()
        await super().upsert(chunks, vectors)

    async def delete(self, ids):
        self.deleting.set()
        await self.may_delete.wait()
        await super().delete(ids)


@pytest.fixture
def impatient(monkeypatch):
    """`forget` waits for the store for a moment only."""
    monkeypatch.setattr(forgetting_module, "_CONFIRM_SECONDS", 0.1)


async def until(check):
    async with asyncio.timeout(30):
        while not (found := await check()):  # noqa: ASYNC110 - others work
            await asyncio.sleep(0.01)
    return found


async def texts(store):
    return [chunk.text async for page in store.scan() for chunk in page]


def held(monkeypatch, owner, name):
    """Let a method wait before it does its work; returns (it was called, it may go on)."""
    called, go = asyncio.Event(), asyncio.Event()
    method = getattr(owner, name)

    async def hold(*given, **named):
        called.set()
        await go.wait()
        return await method(*given, **named)

    monkeypatch.setattr(owner, name, hold)
    return called, go


def done(monkeypatch, owner, name, go=None):
    """Return an event that is set once a method has ended. Then it waits for `go`, if given."""
    ended = asyncio.Event()
    method = getattr(owner, name)

    async def note(*given, **named):
        found = await method(*given, **named)
        ended.set()
        if go is not None:
            await go.wait()
        return found

    monkeypatch.setattr(owner, name, note)
    return ended


def unconfirmed(pipeline, number=1):
    async def check():
        state = await pipeline._run._journal.erasures.state(number)
        return state is not None and not state.waiting and state.unconfirmed

    return check


def complete(pipeline, number=1):
    async def check():
        return (await pipeline.receipt(number)).erased

    return check


async def test_a_chunk_that_is_stored_again_is_waited_for(
    make_pipeline, make_actions, tmp_path, monkeypatch
):
    store = Gated()
    async with make_pipeline(store, journal=tmp_path / "j.db") as pipeline:
        await pipeline.on_actions(make_actions("s", "private", user="ann"))
        await pipeline.drain()
        await MemoryStore.delete(store, [c.id async for page in store.scan() for c in page])
        store.upserting.clear()
        store.may_upsert.clear()
        assert (await pipeline.verify(repair=True)).queued == 1
        await store.upserting.wait()
        store.may_delete.clear()
        noted = done(monkeypatch, pipeline._run._journal, "stored_again")
        forgetting = asyncio.create_task(pipeline.forget(user_id="ann"))
        await until(unconfirmed(pipeline))
        store.may_upsert.set()
        await noted.wait()
        assert await unconfirmed(pipeline)()
        assert not forgetting.done()
        store.may_delete.set()
        assert (await forgetting).deleted
        assert await texts(store) == []


@pytest.mark.usefixtures("impatient")
async def test_chunks_that_only_the_store_knew_are_waited_for(make_pipeline, make_actions):
    store = Gated()
    async with make_pipeline(store) as pipeline:
        await pipeline.on_actions(make_actions("s", "private", user="ann"))
    async with make_pipeline(store) as pipeline:  # its journal begins empty
        store.may_delete.clear()
        receipt = await pipeline.forget(user_id="ann")
        assert not receipt.deleted
        assert await unconfirmed(pipeline)()
        store.may_delete.set()
        await until(complete(pipeline))
        assert (await pipeline.receipt(1)).deleted
        assert await texts(store) == []


@pytest.mark.usefixtures("impatient")
async def test_a_plan_that_may_still_store_is_waited_for(
    make_pipeline, make_actions, embedder, tmp_path, monkeypatch
):
    """The chunk is deleted before the plan stores it, and the embedder is slow."""
    store, embed, go = Gated(), asyncio.Event(), asyncio.Event()

    async def slow(texts):
        await embed.wait()

    embedder.script = slow
    async with make_pipeline(store, journal=tmp_path / "j.db") as pipeline:
        recorded = done(monkeypatch, pipeline._run._journal, "record_plans", go)
        await pipeline.accept(make_actions("s", "private", user="ann"))
        await recorded.wait()
        forgetting = asyncio.create_task(pipeline.forget(user_id="ann"))
        await store.deleting.wait()
        go.set()
        assert not (await forgetting).deleted
        assert await unconfirmed(pipeline)() == 1
        embed.set()
        await until(complete(pipeline))
        await pipeline.drain(20)
        assert await texts(store) == []


async def test_a_cancelled_request_goes_on(make_pipeline, make_actions, tmp_path, monkeypatch):
    store = MemoryStore()
    async with make_pipeline(store, journal=tmp_path / "j.db") as pipeline:
        await pipeline.on_actions(make_actions("s", "private", user="ann"))
        await pipeline.drain()
        erasures = pipeline._run._journal.erasures
        with monkeypatch.context() as patched:
            called, _ = held(patched, erasures, "delete_all")
            forgetting = asyncio.create_task(pipeline.forget(user_id="ann"))
            await called.wait()
            patched.undo()
            forgetting.cancel()
            await asyncio.wait([forgetting])
        await until(complete(pipeline))
        assert await texts(store) == []


async def test_a_store_that_cannot_be_scanned_is_scanned_later(
    make_pipeline, make_actions, monkeypatch
):
    store = MemoryStore()
    async with make_pipeline(store) as pipeline:
        await pipeline.on_actions(make_actions("s", "private", user="ann"))
    async with make_pipeline(store) as pipeline:

        async def away(*given):
            raise StoreUnavailableError("away")
            yield

        with monkeypatch.context() as patched:
            patched.setattr(store, "scan", away)
            with pytest.raises(StoreUnavailableError):
                await pipeline.forget(user_id="ann")
            assert not (await pipeline.receipt(1)).deleted
        await until(complete(pipeline))
        assert await texts(store) == []


@pytest.mark.usefixtures("impatient")
async def test_a_vector_that_comes_late_is_not_remembered(
    make_pipeline, make_actions, embedder, tmp_path
):
    embed = asyncio.Event()

    async def slow(texts):
        await embed.wait()

    embedder.script = slow
    async with make_pipeline(journal=tmp_path / "j.db") as pipeline:
        await pipeline.accept(make_actions("s", "private", user="ann"))
        await embedder.requested.wait()
        assert not (await pipeline.forget(user_id="ann")).deleted
        embed.set()
        await until(complete(pipeline))
        assert _digest("private") not in pipeline._run.model.embedding._vectors


async def test_the_next_model_remembers_no_vector_either(
    make_pipeline, make_actions, scripted_embedder, tmp_path, monkeypatch
):
    new, store = scripted_embedder(), MemoryStore()
    new.model = "new"
    async with make_pipeline(store, journal=tmp_path / "j.db") as pipeline:
        await pipeline.on_actions(make_actions("s", "private", user="ann"))
        await pipeline.on_actions(make_actions("t", "public", user="bob"))
        await pipeline.drain()
        embedded, go = held(monkeypatch, pipeline._run._journal.copies, "filled")
        moving = asyncio.create_task(pipeline.reembed(new))
        await embedded.wait()
        assert (await pipeline.forget(user_id="ann")).deleted
        go.set()
        await moving
        await pipeline.drain(20)
        assert await texts(store) == ["public"]
        assert pipeline._run.model.embedder is new
        assert _digest("private") not in pipeline._run.model.embedding._vectors


async def test_a_text_that_was_rendered_again_is_not_kept(
    make_pipeline, make_actions, scripted_embedder, tmp_path, monkeypatch
):
    """The page was read before the request, and its texts are noted after it."""
    new, versions = scripted_embedder(), iter(range(100))
    new.model = "new"

    def render(payloads):
        return f"version {next(versions)} {payloads[0].actions[0].title}"

    options = {"journal": tmp_path / "j.db", "render": render}
    async with make_pipeline(MemoryStore(), **options) as pipeline:
        await pipeline.on_actions(make_actions("s", "private", user="ann"))
        await pipeline.on_actions(make_actions("t", "public", user="bob"))
        await pipeline.drain()
        journal = pipeline._run._journal
        embedded, go = held(monkeypatch, journal.copies, "filled")
        exchanging, end = held(monkeypatch, journal.copies, "exchanging")
        moving = asyncio.create_task(pipeline.reembed(new, render=True))
        await embedded.wait()
        assert (await pipeline.forget(user_id="ann")).deleted
        go.set()
        await exchanging.wait()
        kept = await journal._writer.look(
            lambda: journal._tables.file.connection.execute("SELECT text FROM rendered").fetchall()
        )
        end.set()
        await moving
        assert len(kept) == 1
        assert "public" in kept[0][0]


async def test_an_error_of_planning_is_not_kept(make_pipeline, make_actions, tmp_path, monkeypatch):
    def render(payloads):
        raise ValueError("cannot render private")

    options = {"journal": tmp_path / "j.db", "render": render, "durability": "full"}
    async with make_pipeline(MemoryStore(), **options) as pipeline:
        journal = pipeline._run._journal
        planned, go = held(monkeypatch, journal, "record_plans")
        await pipeline.accept(make_actions("s", "private", user="ann"))
        await planned.wait()
        deleted = done(monkeypatch, journal.erasures, "delete_all")
        forgetting = asyncio.create_task(pipeline.forget(user_id="ann"))
        await deleted.wait()
        go.set()
        assert (await forgetting).deleted
        await until(complete(pipeline))
        plans = await journal._writer.look(
            lambda: journal._tables.file.connection.execute("SELECT record FROM plan").fetchall()
        )
        assert len(plans) == 1
        assert b"private" not in plans[0][0]


async def test_caches_keep_no_address(make_pipeline, tmp_path):
    address = "https://app.test/team/private"
    action = SlimAction("x", "User clicked x", address, 0, "click", 1000.0, 1000.0)
    render_module._place.cache_clear()
    async with make_pipeline(journal=tmp_path / "j.db", render=render_module.render) as pipeline:
        await pipeline.on_actions(ActionsPayload("acme", "s", "ann", None, [action], 1, 1010.0))
        await pipeline.drain()
        assert render_module._place.cache_info().currsize == 1
        assert (await pipeline.forget(user_id="ann")).deleted
        assert render_module._place.cache_info().currsize == 0
