"""Hybrid search in a running pipeline."""

from __future__ import annotations

import asyncio

import pytest

from autoplay_rag import Filter, IngestPipeline, SummaryPayload
from autoplay_rag.errors import ConfigurationError, EmbedderUnavailableError
from autoplay_rag.payloads import ChatTurn
from autoplay_rag.search.hits import Hit
from autoplay_rag.stores import MemoryStore

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["file", "memory"])
def journal(request, tmp_path):
    return tmp_path / "journal.db" if request.param == "file" else None


async def test_a_payload_is_found_before_it_is_embedded_and_once_after(
    make_pipeline, embedder, make_actions, journal
):
    gate = asyncio.Event()

    embedder.script = lambda texts: None if texts == ["exporting"] else gate_of(texts)

    async def gate_of(texts):
        await gate.wait()
        return [embedder.vector(text) for text in texts]

    async with make_pipeline(journal=journal, batch_window=0.0) as pipeline:
        await pipeline.on_actions(make_actions("s1", "export the report", user="ann"))
        (hit,) = await pipeline.search("exports", mode="text")
        assert (hit.session_id, hit.embedded, hit.user_id) == ("s1", False, "ann")
        assert [hit.matched.text[a:b] for a, b in hit.matched.places] == ["export"]
        (hit,) = await pipeline.search("exports", mode="text", user_id="ann")
        (session,) = await pipeline.search_sessions("exports", mode="text", session_id="s1")
        assert (session.session_id, session.hits[0].id) == ("s1", hit.id)
        found = await pipeline.search("exporting", mode="text")
        assert (found.unembedded, found.scope_known) == (1, True)
        gate.set()
        await pipeline.drain()
        for mode in ("text", "hybrid", "dense"):
            found = await pipeline.search("exporting", mode=mode)
            assert [(one.session_id, one.embedded) for one in found] == [("s1", True)], mode
            assert (found.unembedded, found.watermark) == (0, 1)


async def test_an_unknown_id_is_reported(make_pipeline, make_actions, journal):
    async with make_pipeline(journal=journal) as pipeline:
        await pipeline.on_actions(make_actions("s1", "export", user="ann"))
        await pipeline.drain()
        known = [
            (await search("export", **{name: value})).scope_known
            for search in (pipeline.search, pipeline.search_sessions)
            for name, value in (
                ("user_id", "ann"),
                ("user_id", "bob"),
                ("session_id", "s1"),
                ("session_id", "s2"),
                ("kind", "chat"),
            )
        ]
        assert known == [True, False, True, False, True] * 2


async def test_all_sessions_of_one_user_are_found(make_pipeline, make_actions, journal):
    async with make_pipeline(journal=journal, batch_window=0.0) as pipeline:
        for number in range(60):
            user = "ann" if number % 2 else "bob"
            await pipeline.on_actions(make_actions(f"s{number}", f"event {number}", user=user))
        await pipeline.drain()
        found = await pipeline.search_sessions("zebra", 100, user_id="ann")
        assert sorted(s.session_id for s in found) == sorted(f"s{n}" for n in range(1, 60, 2))
        assert {one.user_id for one in found} == {"ann"}
        assert len(await pipeline.search("zebra", 100, user_id="ann")) == 30
        assert len(await pipeline.search("event", 7, user_id="ann", mode="text")) == 7
        assert await pipeline.search("event", filter=Filter(user_id="nobody")) == []


async def test_a_filtered_search_hides_other_people_of_a_shared_session(
    make_pipeline, make_actions, journal
):
    async with make_pipeline(journal=journal, batch_window=0.0) as pipeline:
        for number, user in enumerate(["ann", "ann", "bob", "bob"]):
            one = make_actions("s1", f"secret of {user}", at=1000.0 * number, user=user)
            await pipeline.on_actions(one)
            if number in (1, 2):
                await pipeline.drain()  # the last one is not embedded
            for asked in ("ann", "bob"):
                hits = await pipeline.search("secret", 50, user_id=asked)
                assert {hit.user_id for hit in hits} <= {asked}
                for session in await pipeline.search_sessions("secret", user_id=asked):
                    others = {"ann": "bob", "bob": "ann"}[asked]
                    assert others not in session.text
                    assert session.user_id == asked
        (session,) = await pipeline.search_sessions("secret")
        assert session.user_id is None
        assert "ann" in session.text and "bob" in session.text  # noqa: PT018 - one claim


async def test_full_text_answers_during_an_embedder_outage(
    make_pipeline, embedder, make_actions, journal, caplog
):
    async with make_pipeline(journal=journal) as pipeline:
        await pipeline.on_actions(make_actions("s1", "export"))
        await pipeline.drain()

        def out(_texts):
            raise EmbedderUnavailableError("refused")

        embedder.script = out
        found = await pipeline.search("exports")
        assert [hit.session_id for hit in found] == ["s1"]
        assert "refused" in found.problem
        assert "answered by words alone" in caplog.text
        with pytest.raises(EmbedderUnavailableError):
            await pipeline.search("exports", mode="dense")
        embedder.script = lambda _texts: None
        assert (await pipeline.search("exports")).problem is None


async def test_collapse_merges_equal_texts_of_different_people(
    make_pipeline, make_actions, journal
):
    async with make_pipeline(journal=journal, batch_window=0.0) as pipeline:
        for number in range(5):
            one = make_actions(f"s{number}", "read the post", at=1000.0 * (number + 1))
            await pipeline.on_actions(one)
        await pipeline.on_actions(make_actions("other", "read the news"))
        await pipeline.drain()
        assert len(await pipeline.search("post", 3)) == 3
        first, *others = await pipeline.search("read post", 3, collapse=True)
        assert (first.session_id, first.sessions) == ("s4", 5)
        assert [hit.sessions for hit in others] == [1]


async def test_rerank_orders_the_hits(make_pipeline, make_actions):
    async def backwards(question, hits):
        assert question == "event"
        return sorted(hits, key=lambda hit: hit.text)[::-1]

    async def invents(_question, _hits):
        return [Hit.of("x", "x", 1.0, {})]

    async with make_pipeline(batch_window=0.0) as pipeline:
        for name in "abc":
            await pipeline.on_actions(make_actions(name, f"event {name}"))
        await pipeline.drain()
        hits = await pipeline.search("event", 2, rerank=backwards)
        assert [hit.text for hit in hits] == ["event c", "event b"]
        sessions = await pipeline.search_sessions("event", 2, rerank=backwards)
        assert [one.session_id for one in sessions] == ["c", "b"]
        with pytest.raises(ConfigurationError, match="rerank must return"):
            await pipeline.search("event", rerank=invents)


async def test_invalid_searches_are_refused(make_pipeline):
    async with make_pipeline() as pipeline:
        for search in (pipeline.search, pipeline.search_sessions):
            for bad in (
                {"query": " \0 "}, {"query": "x", "k": 0}, {"query": "x", "mode": "fast"},
                {"query": "x", "since": "soon"}, {"query": "\ud800", "k": -1},
            ):  # fmt: skip
                with pytest.raises(ConfigurationError):
                    await search(**bad)
        assert await pipeline.search("\ud800") == []
        assert await pipeline.search_sessions('"*AND', mode="text") == []


async def test_a_session_result_has_its_text_and_ordered_hits(make_pipeline, make_actions, titles):
    pipeline = IngestPipeline(MemoryStore(), batch_window=0.0)
    async with pipeline:
        for number, what in enumerate(["opened billing", "chose annual", "paid"], 1):
            await pipeline.on_actions(make_actions("s1", what, at=1000.0 * number, user="ann"))
            await pipeline.drain()
        await pipeline.on_summary(SummaryPayload("acme", "s1", "Bought a plan.", 0, 5000.0))
        await pipeline.on_chat(ChatTurn("acme", "s1", "how do I pay?", "Open billing."))
        await pipeline.on_actions(make_actions(None, "paid elsewhere"))
        await pipeline.drain()
        first, *others = await pipeline.search_sessions("who paid for the annual plan", 5)
        assert (first.session_id, first.product_id, first.user_id) == ("s1", "acme", "ann")
        assert (first.started_at, first.ended_at) == (1000.0, 5000.0)
        starts = [hit.metadata.get("started_at", 0) for hit in first.hits]
        assert starts == sorted(starts)
        for text in ("opened billing", "chose annual", "paid", "Bought a plan."):
            assert text in first.text
        assert first.text.count("app.test") <= 1
        assert [one.session_id for one in others] == [None]
        assert first.best.score == first.score


async def test_a_store_older_than_the_journal_is_searched(make_pipeline, embedder, make_actions):
    store = MemoryStore()
    async with make_pipeline(store, batch_window=0.0) as pipeline:
        await pipeline.on_actions(make_actions("s1", "export the report", user="ann"))
        await pipeline.drain()
    async with make_pipeline(store, batch_window=0.0) as pipeline:  # a new journal in memory
        await pipeline.on_actions(make_actions("s2", "pay the invoice", user="ann"))
        await pipeline.drain()
        found = await pipeline.search_sessions("export report", 2)
        assert [one.session_id for one in found] == ["s1", "s2"]
        assert "export the report" in found[0].text
        assert len(await pipeline.search("export", 5, user_id="ann")) == 2
