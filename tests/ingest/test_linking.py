"""Late identity: stored chunks get the person without being embedded again."""

from __future__ import annotations

import asyncio

import pytest

from autoplay_rag import SummaryPayload
from autoplay_rag.errors import StoreUnavailableError
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction
from autoplay_rag.stores import MemoryStore
from autoplay_rag.stores.base import TextStore
from autoplay_rag.stores.chroma import ChromaStore

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["memory", "chroma"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else ChromaStore(tmp_path / "chroma")


async def people_of(store, name="user_id"):
    """The metadata value of each chunk in the store, by text."""
    return {chunk.text: chunk.metadata.get(name) async for page in store.scan() for chunk in page}


async def test_stored_chunks_get_the_first_person_of_their_session(
    make_pipeline, embedder, make_actions, store, tmp_path
):
    async with make_pipeline(store, batch_window=0.0, journal=tmp_path / "j.db") as pipeline:
        await pipeline.on_actions(make_actions("s1", "one", at=1000.0))
        await pipeline.drain()
        await pipeline.on_actions(make_actions("s1", "two", at=2000.0))
        await pipeline.on_actions(make_actions("other", "elsewhere"))
        await pipeline.drain()
        texts = sum(map(len, embedder.requests))
        assert set((await people_of(store)).values()) == {None}
        await pipeline.on_actions(make_actions("s1", "three", at=3000.0, user="ann"))
        await pipeline.on_chat(ChatTurn("acme", "s1", None, "thread-1", "why?", "because"))
        await pipeline.drain()
        users = await people_of(store)
        assert {users[text] for text in ("one", "two", "three")} == {"ann"}
        assert users["elsewhere"] is None
        threads = await people_of(store, "conversation_id")
        assert {threads[text] for text in ("one", "two", "three")} == {"thread-1"}
        assert sum(map(len, embedder.requests)) == texts + 2, "nothing is embedded again"
        found = await pipeline.search("one", 9, user_id="ann", mode="dense")
        assert {"one", "two", "three"} <= {hit.text for hit in found}


async def test_a_second_person_reverts_the_links(make_pipeline, make_actions, store):
    async with make_pipeline(store, batch_window=0.0) as pipeline:
        for text, user in (("before", None), ("of ann", "ann"), ("of bob", "bob")):
            await pipeline.on_actions(make_actions("s1", text, user=user))
            await pipeline.drain()
            if user == "ann":
                assert (await people_of(store))["before"] == "ann"
        assert await people_of(store) == {"before": None, "of ann": "ann", "of bob": "bob"}
        assert [hit.text for hit in await pipeline.search("before", user_id="ann")] == ["of ann"]


async def test_a_batch_links_its_first_payloads_unless_it_has_two_people(
    make_pipeline, make_actions, store
):
    async with make_pipeline(store, batch_window=60.0, max_batch_actions=1) as pipeline:
        for text, user in (("a1", None), ("a2", "ann")):
            await pipeline.on_actions(make_actions("alone", text, user=user))
        for text, user in (("b1", None), ("b2", "ann"), ("b3", "bob")):
            await pipeline.on_actions(make_actions("shared", text, user=user))
        await pipeline.drain()
        users = {"a1": "ann", "a2": "ann", "b1": None, "b2": "ann", "b3": "bob"}
        assert await people_of(store) == users
        await pipeline.on_actions(make_actions("alone", "a3", user="bob"))
        await pipeline.drain()
        assert await people_of(store) == users | {"a1": None, "a3": "bob"}


async def test_an_address_is_linked_if_addresses_are_kept(make_pipeline, make_actions, store):
    async with make_pipeline(store, batch_window=0.0, include_email=True) as pipeline:
        await pipeline.on_actions(make_actions("s1", "one"))
        await pipeline.drain()
        click = SlimAction("two", "two", "https://app.test/p", 0, "click", 1.0, 1.0)
        await pipeline.on_actions(ActionsPayload("acme", "s1", "u", "ann@acme.test", [click]))
        await pipeline.drain()
        assert set((await people_of(store, "email")).values()) == {"ann@acme.test"}


async def test_a_link_survives_an_outage_and_a_restart(
    make_pipeline, make_actions, tmp_path, monkeypatch
):
    store = MemoryStore()
    update = store.update_metadata

    async def out(_changes):
        raise StoreUnavailableError("refused")

    options = {"journal": tmp_path / "j.db", "batch_window": 0.0, "drain_timeout": 0.0}
    async with make_pipeline(store, **options) as pipeline:
        await pipeline.on_actions(make_actions("s1", "one"))
        await pipeline.drain()
        monkeypatch.setattr(store, "update_metadata", out)
        await pipeline.on_actions(make_actions("s1", "two", user="ann"))
        async with asyncio.timeout(20):
            while pipeline.ledger.stored < 2 or pipeline.health.state == "ok":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await people_of(store))["one"] is None
    monkeypatch.setattr(store, "update_metadata", update)
    async with make_pipeline(store, **options) as pipeline:
        await pipeline.drain()
        assert (await people_of(store))["one"] == "ann"
        assert pipeline.health.state == "ok"


class OnlyAdds(TextStore):
    """A store that can only add and search."""

    def __init__(self):
        self.chunks = {}

    async def add(self, chunks):
        self.chunks |= {chunk.id: chunk for chunk in chunks}

    async def search(self, text, k, filter):
        return []


async def test_drain_does_not_wait_for_a_store_that_cannot_update_metadata(
    make_pipeline, make_actions, caplog
):
    caplog.set_level("INFO")
    async with make_pipeline(OnlyAdds(), batch_window=0.0) as pipeline:
        await pipeline.on_actions(make_actions("s1", "one"))
        await pipeline.drain()
        await pipeline.on_summary(SummaryPayload("acme", "s1", "Did one.", 0, 5.0))
        await pipeline.on_actions(make_actions("s1", "two", user="ann"))
        await pipeline.drain(10)
        assert pipeline.health.state == "ok"
        # The catalog has the link.
        assert await pipeline.search("one", user_id="ann", mode="text")
    assert "no 'update_metadata'" in caplog.text
