"""`ServeClient` gives the answers of the pipeline, from any thread and event loop."""

import asyncio

import pytest
from serve_server import KEYS

from autoplay_rag import ServeClient
from autoplay_rag.errors import ServerAccessError


@pytest.fixture
async def client(running):
    async with ServeClient(running.server.url, KEYS.admin) as made:
        yield made


def about(found):
    return found.watermark, found.unembedded, found.scope_known, found.problem


async def test_every_reading_method_gives_equal_results(running, client):
    pipeline = running.pipeline
    for asked in (
        {"query": "export"},
        {"query": "export", "k": 2, "mode": "text", "product_id": "acme"},
        {"query": "ann", "user_id": "ann", "product_id": "acme", "since": "1970-01-01T00:20:00Z"},
        {"query": "nothing of this", "user_id": "nobody"},
    ):
        for method in ("search", "search_sessions"):
            found = await getattr(client, method)(**asked)
            expected = await getattr(pipeline, method)(**asked)
            assert found == expected
            assert about(found) == about(expected)
            assert type(found) is type(expected)
    page = await client.sessions(limit=2)
    expected = await pipeline.sessions(limit=2)
    assert page == expected
    assert (page.total, page.next) == (expected.total, expected.next)
    assert await client.sessions(cursor=page.next) == await pipeline.sessions(cursor=expected.next)
    for session_id in ("s1", "s3", "never-seen", "..", "a/b?c#d"):
        found = await client.session(session_id, "acme")
        assert found == await pipeline.session(session_id, "acme")
    assert await client.products(session_id="s1") == await pipeline.products(session_id="s1")
    assert [one async for one in client.actions()] == [one async for one in pipeline.actions()]
    assert await client.ledger() == pipeline.ledger
    assert await client.health() == pipeline.health
    live = await client.live_session(session_id="s3")
    assert live.events == pipeline.live.get(session_id="s3").events
    records = [one async for one in client.export(user_id="bob")]
    assert records == [one async for one in pipeline.export(user_id="bob")]


async def test_it_works_from_any_thread_and_loop(running, client):
    expected = await running.pipeline.search("export")
    assert await asyncio.to_thread(client.search_sync, "export") == expected
    assert await asyncio.to_thread(lambda: asyncio.run(client.search("export"))) == expected
    assert await client.search("export") == expected


async def test_a_wrong_key_is_an_access_error_without_the_key(running):
    async with ServeClient(running.server.url, "wrong-key-of-tests") as client:
        with pytest.raises(ServerAccessError) as caught:
            await client.search("export", user_id="ann")
    error = caught.value
    assert "wrong-key-of-tests" not in f"{error!r} {error.__context__!r} {client!r}"
    assert "ann" not in str(error)
