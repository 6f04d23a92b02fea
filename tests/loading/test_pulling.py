"""What an agent's user did just now is pulled for the prompt; nothing is added when that fails."""

import asyncio
import time

import pytest
from served import KEYS, serving

from autoplay_rag import ActionsPayload, ServeClient, SlimAction
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.loading import (
    GivenSource,
    Limits,
    PayloadLoader,
    PromptPull,
    answer,
    answer_sync,
    shown_context,
    shown_context_sync,
)
from autoplay_rag.sources import LiveActivitySource
from autoplay_rag.stores import MemoryStore

LIMITS = {"seconds": 600.0, "max_actions": 20, "max_chars": 4000}


def clicked(what, ago=5.0, user="ann", session="ps_1"):
    at = time.time() - ago
    action = SlimAction(what, f"User clicked {what}", "https://a.test/p", 0, "click", at, at)
    return ActionsPayload("acme", session, user, actions=[action], forwarded_at=at)


@pytest.fixture
async def connector():
    async with LocalConnector([], product_id="acme", token="key") as running:
        await running.send(clicked("Home", ago=1000))
        await running.send(clicked("Export", ago=5))
        yield running


@pytest.fixture
async def source(connector):
    async with LiveActivitySource(connector.pull_url, "acme", "key", users=()) as made:
        yield made


async def test_the_latest_session_is_returned_with_its_ages(source):
    session = await PromptPull(source, 5.0).session({"user_id": "ann"})
    assert [event.text for event in session.events] == ["clicked Home", "clicked Export"]
    assert session.render().splitlines()[-1].startswith(("5 s ago", "6 s ago", "7 s ago"))
    same = await asyncio.to_thread(PromptPull(source, 5.0).session_sync, {"user_id": "ann"})
    assert [event.text for event in same.events] == [event.text for event in session.events]


@pytest.mark.parametrize(
    "ids", [{}, {"session_id": "s"}, {"user_id": "ann", "product_id": "other"}, {"user_id": "new"}]
)
async def test_nobody_is_pulled_without_their_id_or_for_another_product(source, ids):
    assert await PromptPull(source, 5.0).session(ids) is None
    assert await PromptPull(None, 5.0).session({"user_id": "ann"}) is None


async def test_a_failure_adds_nothing_and_is_logged(connector, caplog):
    async with LiveActivitySource(connector.pull_url, "acme", "wrong", users=()) as wrong:
        assert await PromptPull(wrong, 5.0).session({"user_id": "ann"}) is None
        assert (
            await asyncio.to_thread(PromptPull(wrong, 5.0).session_sync, {"user_id": "ann"}) is None
        )
    assert caplog.text.count("a model is not shown what was pulled") == 2
    assert "ann" not in caplog.text
    with pytest.raises(ConfigurationError):
        PromptPull(None, 0)


async def test_the_time_is_bounded(caplog):
    async def hang(reader, writer):
        while await reader.read(1024):
            pass  # until the other side gives up
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with LiveActivitySource(f"http://127.0.0.1:{port}", "acme", users=()) as hangs:
        started = time.monotonic()
        assert await PromptPull(hangs, 0.1).session({"user_id": "ann"}) is None
        assert (
            await asyncio.to_thread(PromptPull(hangs, 0.1).session_sync, {"user_id": "ann"}) is None
        )
        assert time.monotonic() - started < 10
    server.close()
    await server.wait_closed()
    assert caplog.text.count("TimeoutError") == 2


async def test_context_shows_what_was_pulled_though_nothing_was_watched(source, make_pipeline):
    async with make_pipeline() as pipeline:
        await pipeline.on_actions(clicked("Old export", ago=100_000))
        pulled = await PromptPull(source, 5.0).session({"user_id": "ann"})
        text = await shown_context(pipeline, "export", user_id="ann", pulled=pulled, **LIMITS)
        assert "clicked Export" in text
        assert "Old export" in text  # the past is there, too
        assert "clicked Home" not in text  # older than `seconds`
        sync = await asyncio.to_thread(
            lambda: shown_context_sync(pipeline, None, user_id="ann", pulled=pulled, **LIMITS)
        )
        assert "clicked Export" in sync


async def test_what_an_attached_source_pulled_is_found_and_not_shown_twice(source, make_pipeline):
    async with make_pipeline(render=None) as pipeline:
        pipeline.attach(source)
        pulled = await PromptPull(source, 5.0).session({"user_id": "ann"})
        text = await shown_context(pipeline, "Export", user_id="ann", pulled=pulled, **LIMITS)
        assert text.count("Export") == 1
        assert pipeline.live.get(user_id="ann") is not None


async def test_without_anything_recent_live_is_shown(source, make_pipeline):
    async with make_pipeline() as pipeline:
        await pipeline.on_actions(clicked("In live", ago=1))
        text = await shown_context(pipeline, None, user_id="ann", pulled=None, **LIMITS)
        assert "In live" in text


@pytest.mark.parametrize("sync", [False, True])
async def test_a_served_pipeline_adds_the_past(source, tmp_path, sync, scripted_embedder):
    with serving(MemoryStore, scripted_embedder, tmp_path / "journal.db") as served:
        for payload in (clicked("Older in live", ago=60), clicked("Long past", ago=90_000)):
            await asyncio.to_thread(served.run, served.pipeline.on_actions(payload))
        async with ServeClient(served.url, KEYS.admin) as client:
            pulled = await PromptPull(source, 5.0).session({"user_id": "ann"})

            async def shown(query, limits):
                options = {"user_id": "ann", "pulled": pulled, **limits}
                if sync:
                    return await asyncio.to_thread(
                        lambda: shown_context_sync(client, query, **options)
                    )
                return await shown_context(client, query, **options)

            text = await shown("past", LIMITS)
            assert text.index("clicked Export") < text.index("Long past")
            short = await shown("past", {**LIMITS, "max_chars": 380})
            assert "clicked Export" in short
            assert len(short) <= 380
        nobody = ServeClient(served.url, "wrong-key-of-tests")
        async with nobody:
            pulled_alone = await shown_context(
                nobody, "past", user_id="ann", pulled=pulled, **LIMITS
            )
        assert "clicked Export" in pulled_alone
        assert "Long past" not in pulled_alone


async def test_the_tool_recent_activity_pulls(source, make_pipeline):
    async with make_pipeline() as pipeline:
        pull = PromptPull(source, 5.0)
        ids = {"user_id": "ann"}
        assert "clicked Export" in await answer(pipeline, "recent_activity", ids, {}, pull)
        assert "Nothing was recorded" in await answer(pipeline, "recent_activity", ids, {})
        sync = await asyncio.to_thread(
            answer_sync, pipeline, "recent_activity", ids, {"minutes": 30}, pull
        )
        assert "clicked Home" in sync
        none = await answer(pipeline, "recent_activity", {"user_id": "new"}, {}, pull)
        assert "Nothing was recorded" in none
        requests = source.counts.requests
        await answer(pipeline, "user_history", ids, {}, pull)
        assert source.counts.requests == requests


async def test_a_loader_takes_any_source(connector, source):
    given = LiveActivitySource(connector.pull_url, "acme", "key", users={"ann"}, interval=0.05)
    loader = PayloadLoader(GivenSource(given), limits=Limits(max_documents=1))
    (text,) = await loader.aload()
    assert text.metadata["user_id"] == "ann"
    assert text.metadata["action_count"] == 2
    assert (await asyncio.to_thread(
        PayloadLoader(
            GivenSource(
                LiveActivitySource(connector.pull_url, "acme", "key", users={"ann"})
            ),
            limits=Limits(max_documents=1),
        ).load
    ))[0].text == text.text  # fmt: skip
    with pytest.warns(UserWarning, match="got no actions or summary payload"):
        assert await loader.aload(Limits(max_seconds=0.1)) == []  # nothing is new
    wrong = LiveActivitySource("http://127.0.0.1:9", "acme", users={"ann"})
    with pytest.warns(UserWarning, match="could not be reached"):
        await PayloadLoader(GivenSource(wrong)).aload(Limits(max_seconds=0.5))
    with pytest.raises(ConfigurationError, match="no stream"):
        GivenSource(object())
    with pytest.raises(ConfigurationError, match="never ends"):
        PayloadLoader(GivenSource(given)).load()
