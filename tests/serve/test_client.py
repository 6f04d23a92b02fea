"""`ServeClient` gives the answers of the pipeline, from any thread and event loop."""

import asyncio
import gc
import inspect
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pipelines import make_actions
from serve_server import KEYS, fill

from autoplay_rag import Actions, Filter, IngestPipeline, ServeClient
from autoplay_rag.errors import AutoplayError, ConfigurationError, JournalError
from autoplay_rag.ingest.questions import Questions


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


# -- equal for all arguments ----------------------------------------------------------------------

ids = st.none() | st.sampled_from(["ann", "bob", "s1", "s3", "thread", "nobody", "\ud800", "a\0b"])
words = st.sampled_from(["export", "ann paid", "bobsecret", "  ", "invoice", "nothing of this"])
times = st.none() | st.sampled_from(
    [0, 1500.5, "1970-01-01T00:33:20+00:00", "1970-01-02", datetime(1970, 1, 1, 1, tzinfo=UTC)]
)
counts = st.integers(0, 7)


def options(**strategies):
    return st.fixed_dictionaries({}, optional=strategies)


CALLS = {
    **{
        method: st.fixed_dictionaries(
            {"query": words},
            optional={
                "k": counts,
                "mode": st.sampled_from(["hybrid", "dense", "text", "other"]),
                "product_id": st.just("acme"),
                "user_id": ids,
                "session_id": ids,
                "kind": st.sampled_from(["actions", "summary", "chat"]),
                "since": times,
                "until": times,
                "filter": st.sampled_from([None, Filter(kind="chat"), Filter(since=1600)]),
                **more,
            },
        )
        for method, more in (("search", {"collapse": st.booleans()}), ("search_sessions", {}))
    },
    "sessions": options(
        user_id=ids,
        product_id=st.just("acme"),
        session_id=ids,
        since=times,
        until=times,
        matching=words,
        without=words,
        page=st.sampled_from(["app.test", "/P", " "]),
        shared=st.booleans(),
        count=st.booleans(),
        limit=counts,
        cursor=st.sampled_from(["", "?", "wAE"]),
    ),
    "actions": options(
        since=times,
        until=times,
        user_id=ids,
        session_id=ids,
        product_id=st.just("acme"),
        matching=words,
        without=words,
        page=st.sampled_from(["app.test", " "]),
    ),
    "session": st.fixed_dictionaries(
        {"session_id": ids.filter(bool), "product_id": st.just("acme")}, optional={"user_id": ids}
    ),
    "products": options(user_id=ids, session_id=ids, conversation_id=ids),
}


async def outcome(method, **asked):
    try:
        found = method(**asked)
        if isinstance(found, Actions):
            return [one async for one in found]
        found = await found
    except AutoplayError as error:
        return type(error)
    about = [
        getattr(found, name, None)
        for name in ("watermark", "unembedded", "scope_known", "problem", "total", "next")
    ]
    return type(found), found, about


async def test_all_arguments_give_equal_results(running, client):
    """Ids that occur in two products are refused without `product_id`, so it is given."""
    pipeline = running.pipeline
    loop = asyncio.get_running_loop()
    seen = set()

    async def compare(method, asked):
        found = await outcome(getattr(client, method), **asked)
        expected = await outcome(getattr(pipeline, method), **asked)
        if "product_id" not in asked and {"ann", "s1"} & set(map(str, asked.values())):
            return  # an id of two products
        assert found == expected
        seen.add(method)

    @settings(max_examples=2 * settings.default.max_examples)
    @given(st.sampled_from(sorted(CALLS)).flatmap(lambda m: st.tuples(st.just(m), CALLS[m])))
    @example(("search", {"query": "export", "user_id": "\ud800"}))
    def check(call):
        asyncio.run_coroutine_threadsafe(compare(*call), loop).result()

    await asyncio.to_thread(check)
    assert seen == set(CALLS)


@pytest.mark.parametrize(
    "asked",
    [
        {"user_id": "ann", "product_id": "acme", "query": "export"},
        {"session_id": "s3", "max_chars": 300},
        {"conversation_id": "thread", "since_turn": True, "max_actions": 1},
        {"query": "paid", "seconds": 0.001, "session_id": "s1", "product_id": "acme"},
    ],
)
async def test_the_context_is_equal(running, client, asked):
    def without_time(text):
        return [line for line in text.split("\n") if not line.startswith("Now it is")]

    found, expected = await client.context(**asked), await running.pipeline.context(**asked)
    assert without_time(found) == without_time(expected)


@pytest.mark.parametrize("method", ["search", "search_sessions"])
async def test_rerank_gives_equal_results(running, client, method):
    given = []

    async def reverse(question, hits):
        given.append((question, hits))
        return hits[::-1]

    async def other(_question, hits):
        return [*hits, hits[0].of("other", "x", 1.0, {})]

    found = await getattr(client, method)(" export ", k=2, rerank=reverse)
    assert found == await getattr(running.pipeline, method)(" export ", k=2, rerank=reverse)
    assert given[0] == given[1]
    with pytest.raises(ConfigurationError, match="rerank must return"):
        await getattr(client, method)("export", rerank=other)


async def test_actions_with_conditions_and_without_bodies(serve, make_pipeline):
    async with serve(pipeline=make_pipeline(keep_payloads=False)) as running:
        await fill(running.pipeline)
        async with ServeClient(running.server.url, KEYS.read) as client:
            for reader in (client, running.pipeline):
                actions = reader.actions()
                with pytest.raises(JournalError, match="no actions to read: 8 payloads fit"):
                    await anext(actions)
                assert actions.missing == 8
            assert [one async for one in client.actions(user_id="nobody")] == []


async def test_many_actions_arrive_while_they_are_read(running, client):
    for n in range(8):
        await running.pipeline.accept(
            make_actions(f"many{n}", *(f"action {n} {m}" for m in range(300)), user="eve")
        )
    asked = {"user_id": "eve", "matching": "action"}
    expected = [one async for one in running.pipeline.actions(**asked)]
    assert len(expected) == 2400
    assert [one async for one in client.actions(**asked)] == expected
    started = client.actions(**asked)
    assert await anext(started) == expected[0]
    await started.aclose()
    assert [one async for one in client.actions(**asked)] == expected


async def test_forgetting_and_its_receipt(running, client):
    counted = await client.forget(user_id="bob", dry_run=True)
    assert (counted.dry_run, counted.number) == (True, 0)
    receipt = await client.forget(user_id="bob")
    assert receipt.payloads == counted.payloads > 0
    assert receipt.deleted
    assert await client.receipt(receipt.number) == await running.pipeline.receipt(receipt.number)
    assert await client.search("bob", user_id="bob") == []
    assert await asyncio.to_thread(client.receipt_sync, receipt.number)


async def test_every_method_for_any_thread(running, client):
    pipeline = running.pipeline
    calls = {
        "search_sync": ("export",),
        "search_sessions_sync": ("export",),
        "sessions_sync": (),
        "context_sync": ("export",),
    }
    for name, args in calls.items():
        found = await asyncio.to_thread(getattr(client, name), *args)
        assert found == await asyncio.to_thread(getattr(pipeline, name), *args), name
    found = await asyncio.to_thread(client.session_sync, "s1", product_id="acme")
    assert found == await pipeline.session("s1", "acme")
    assert await asyncio.to_thread(client.products_sync) == ["acme", "umbrella"]
    assert await asyncio.to_thread(client.ledger_sync) == pipeline.ledger
    assert await asyncio.to_thread(client.health_sync) == pipeline.health
    assert (await asyncio.to_thread(client.live_session_sync, session_id="s3")).session_id == "s3"
    receipt = await asyncio.to_thread(lambda: client.forget_sync(user_id="x", dry_run=True))
    assert receipt.dry_run


async def test_failed_health(serve):
    async with serve() as running, ServeClient(running.server.url, KEYS.read) as client:
        await running.pipeline.aclose()
        health = await client.health()
        assert health.state == "failed"


# -- like a pipeline ------------------------------------------------------------------------------


def public(of):
    return {
        name: inspect.signature(found)
        for name, found in vars(of).items()
        if inspect.isfunction(found) and not name.startswith("_")
    }


def test_the_arguments_are_those_of_the_pipeline():
    ours = public(ServeClient)
    theirs = public(Questions) | {
        name: inspect.signature(getattr(IngestPipeline, name))
        for name in ("forget", "receipt", "export")
    }
    for name, signature in theirs.items():
        assert ours[name] == signature, name


async def test_with_timeout_shares_the_connections(running, client):
    other = client.with_timeout(1.5)
    assert (client.timeout, other.timeout) == (30.0, 1.5)
    assert await other.search("export") == await client.search("export")
    threads = [one for one in threading.enumerate() if one.name == "autoplay-client"]
    assert len(threads) == 1
    with pytest.raises(ConfigurationError, match="timeout"):
        client.with_timeout(0)


async def test_a_client_that_nobody_closed_ends_with_its_last_reference(running):
    client = ServeClient(running.server.url, KEYS.read)
    await client.search("export")
    thread = client._connections._opened.thread._thread
    assert thread.is_alive()
    del client
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()


FORKED = """
import os, sys, warnings
warnings.simplefilter("ignore")  # newer versions warn of a fork beside threads
from autoplay_rag import ServeClient
client = ServeClient(timeout=20)
assert client.search_sync("export")
child = os.fork()
if child == 0:
    os._exit(0 if client.search_sync("export") else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not client.search_sync("export"))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
async def test_after_a_fork(running):
    env = {
        **os.environ,
        "AUTOPLAY_RAG_URL": running.server.url,
        "AUTOPLAY_RAG_KEY": KEYS.read,
    }
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", FORKED], env=env, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
