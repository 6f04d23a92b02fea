"""The pipeline as its users see it: life cycle, intake, search."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time

import pytest
from pipelines import copy_journal

from autoplay_rag import ChatTurn, IngestPipeline, SummaryPayload
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.embedders import LocalEmbedder
from autoplay_rag.errors import (
    AuthenticationError,
    ConfigurationError,
    DrainTimeoutError,
    PipelineClosedError,
    PipelineError,
)
from autoplay_rag.journal.base import Health
from autoplay_rag.stores import MemoryStore

pytestmark = pytest.mark.timeout(30)


async def texts_of(pipeline, **conditions) -> list[str]:
    return sorted(hit.text for hit in await pipeline.search("x", 100, **conditions))


# -- life cycle -------------------------------------------------------------------------------


async def test_start_and_aclose_do_what_async_with_does(make_pipeline, make_actions, tmp_path):
    pipeline = make_pipeline(journal=tmp_path / "j.db")
    for title in "ab":
        await pipeline.start()
        with pytest.raises(PipelineError, match="running already"):
            await pipeline.start()
        await pipeline.on_actions(make_actions("s", title))
        await pipeline.aclose()
        await pipeline.aclose()
    assert pipeline.ledger.stored == 2


async def test_after_its_end_everything_is_refused_at_once(make_pipeline, make_actions):
    async with make_pipeline() as pipeline:
        letters = pipeline.dead_letters
    for call in (
        lambda: pipeline.on_actions(make_actions("s", "a")),
        lambda: pipeline.on_summary(SummaryPayload("p", "s", "x")),
        lambda: pipeline.on_chat(ChatTurn("p", "s", question="x")),
        pipeline.drain,
        lambda: pipeline.search("x"),
        letters.list,
        letters.retry,
        lambda: asyncio.to_thread(pipeline.search_sync, "x"),
    ):
        with pytest.raises(PipelineClosedError):
            await call()
    assert pipeline.ledger.received == 0


async def test_before_its_start_it_refuses(make_pipeline, make_actions):
    pipeline = make_pipeline()
    with pytest.raises(PipelineClosedError, match="call start"):
        await pipeline.on_actions(make_actions("s", "a"))
    await pipeline.aclose()


async def test_a_summary_is_found_by_the_person_whose_session_it_is(
    make_pipeline, make_actions, tmp_path
):
    def summary(text):
        return SummaryPayload("acme", "s", text, 1, 1.0)

    async def found(pipeline, user):
        hits = await pipeline.search("?", 50, user_id=user, kind="summary")
        return {hit.text for hit in hits}

    store, journal = MemoryStore(), tmp_path / "j.db"
    async with make_pipeline(store, journal=journal) as pipeline:
        await pipeline.on_summary(summary("before anybody was known"))
        await pipeline.on_actions(make_actions("s", "a", user="ann"))
        await pipeline.on_summary(summary("by ann"))
        await pipeline.drain(10.0)
    async with make_pipeline(store, journal=journal) as pipeline:
        await pipeline.on_summary(summary("by ann, after a restart"))
        await pipeline.drain(10.0)
        await pipeline.on_actions(make_actions("s", "b", user="bob"))
        await pipeline.on_summary(summary("by bob"))
        await pipeline.on_actions(make_actions("t", "c", user="cid"))
        await pipeline.drain(10.0)
        ann = await found(pipeline, "ann")
        assert {text.split("Summary: ")[-1] for text in ann} == {
            "by ann",
            "by ann, after a restart",
        }
        assert len(await found(pipeline, "bob")) == 1
        assert len(await found(pipeline, "cid")) == 0


async def test_closing_drains_what_windows_still_hold(make_pipeline, make_actions):
    store = MemoryStore()
    async with make_pipeline(store, batch_window=3600.0) as pipeline:
        for i in range(10):
            await pipeline.on_actions(make_actions(f"s{i % 2}", str(i)))
        assert pipeline.ledger.pending == 10
        assert 0 < pipeline.lag < 60
    assert pipeline.ledger.stored == 10
    assert await store.count() == 2


async def test_closing_with_a_journal_leaves_what_cannot_be_stored_for_the_next_start(  # noqa: PLR0917 - fixtures
    make_pipeline, embedder, make_actions, tmp_path, caplog, eventually
):
    def fail(_texts):
        raise ConnectionError("down")

    embedder.script = fail
    async with make_pipeline(journal=tmp_path / "j.db", drain_timeout=0.05) as pipeline:
        await pipeline.on_actions(make_actions("s", "a"))
        await eventually(lambda: pipeline.health.reasons)
        with pytest.raises(DrainTimeoutError, match=r"1 payloads are not stored.*down"):
            await pipeline.drain(0.05)
    assert "unfinished work stays in" in caplog.text
    assert pipeline.ledger.pending == 1
    embedder.script = lambda texts: None
    async with make_pipeline(journal=tmp_path / "j.db") as pipeline:
        await pipeline.drain()
        assert await texts_of(pipeline) == ["a"]


async def test_closing_without_a_journal_says_what_is_lost(
    make_pipeline, embedder, make_actions, caplog
):
    embedder.script = lambda texts: asyncio.Event().wait()
    async with make_pipeline(drain_timeout=0.05) as pipeline:
        await pipeline.on_actions(make_actions("s", "a"))
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "1 payloads are not stored" in record.message
    assert "lost" in record.message


async def test_a_start_that_fails_can_be_repeated(make_pipeline, make_actions, tmp_path):
    class Shy(MemoryStore):
        failures = 1

        async def start(self, model):
            if self.failures:
                self.failures -= 1
                raise ConnectionRefusedError("not yet")
            await super().start(model)

    pipeline = make_pipeline(Shy(), journal=tmp_path / "j.db")
    with pytest.raises(ConnectionRefusedError):
        await pipeline.start()
    async with pipeline:
        await pipeline.on_actions(make_actions("s", "a"))
    assert pipeline.ledger.stored == 1


async def test_a_cancelled_drain_leaves_the_pipeline_at_work(make_pipeline, embedder, make_actions):
    gate = asyncio.Event()
    embedder.script = lambda texts: open_at(gate)
    async with make_pipeline() as pipeline:
        await pipeline.on_actions(make_actions("s", "a"))
        draining = asyncio.create_task(pipeline.drain())
        await embedder.requested.wait()
        draining.cancel()
        await asyncio.wait([draining])
        gate.set()
        await pipeline.drain()
        assert pipeline.ledger.stored == 1


async def open_at(event):
    await event.wait()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_window": -1}, "batch_window must be at least 0"),
        ({"batch_window": float("nan")}, "batch_window must be at least 0"),
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
        ({"embed_concurrency": 2.0}, "embed_concurrency must be a whole number"),
        ({"durability": "paranoid"}, "'normal' or 'full'"),
        ({"store": object()}, "object is not a store"),
    ],
)
def test_settings_that_cannot_work_are_refused_where_they_are_given(options, said, embedder):
    with pytest.raises(ConfigurationError, match=said):
        IngestPipeline(**{"store": MemoryStore(), "embedder": embedder, **options})


# -- intake -----------------------------------------------------------------------------------


async def test_concurrent_callbacks_keep_a_sessions_order(make_pipeline, make_actions):
    async with make_pipeline(batch_window=60.0) as pipeline:
        calls = [
            asyncio.create_task(pipeline.on_actions(make_actions("s", str(i)))) for i in range(15)
        ]
        await asyncio.gather(*reversed(calls))
        await pipeline.drain()
        assert await texts_of(pipeline) == ["\n".join(map(str, range(15)))]


async def test_a_cancelled_callback_loses_nothing(make_pipeline, make_actions):
    async with make_pipeline() as pipeline:
        tasks = [
            asyncio.create_task(pipeline.on_actions(make_actions("s", str(i)))) for i in range(40)
        ]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks)
        await pipeline.drain()
        assert pipeline.ledger.stored == 40


@dataclasses.dataclass
class TheirAction:
    title: str
    timestamp_start: float
    index: int = 0


@dataclasses.dataclass
class TheirPayload:
    product_id: str
    session_id: str
    actions: list[TheirAction]
    forwarded_at: float = 5.0


async def test_another_clients_classes_are_the_same_payloads(make_pipeline, make_actions):
    theirs = TheirPayload("acme", "s", [TheirAction("Export", 1.0)])
    as_dict = {"product_id": "acme", "session_id": "s", "actions": [{"title": "Other"}]}
    async with make_pipeline() as pipeline:
        await pipeline.on_actions(theirs)
        await pipeline.on_actions(dataclasses.replace(theirs, forwarded_at=9.0))
        await pipeline.on_actions(as_dict)
        with pytest.raises(TypeError, match="not int"):
            await pipeline.on_actions(5)
        with pytest.raises(TypeError, match="not SummaryPayload"):
            await pipeline.on_actions(SummaryPayload("acme", "s", "Exported."))
        await pipeline.drain()
        assert "Export" in "\n".join(await texts_of(pipeline, session_id="s"))
        ledger = pipeline.ledger
        assert (ledger.received, ledger.stored, ledger.duplicate) == (3, 2, 1)


async def test_what_select_refuses_and_what_is_empty_is_filtered(make_pipeline, make_actions):
    async with make_pipeline(select=lambda p: p.session_id != "no") as pipeline:
        for payload in (make_actions("no", "a"), make_actions("yes"), make_actions("yes", "b")):
            await pipeline.on_actions(payload)
        await pipeline.on_summary(SummaryPayload("p", "yes", "  "))
        await pipeline.drain()
        assert (pipeline.ledger.filtered, pipeline.ledger.stored) == (3, 1)


async def test_every_kind_of_payload_is_a_chunk(make_pipeline, make_actions):
    async with make_pipeline() as pipeline:
        await pipeline.on_actions(make_actions("s", "a"))
        await pipeline.on_summary(SummaryPayload("acme", "s", "Did a.", 1, 2000.0))
        await pipeline.on_chat(ChatTurn("acme", "s", question="How?", answer="So."))
        await pipeline.drain()
        for kind, text in (("actions", "a"), ("summary", "Did a."), ("chat", "User asked: How?")):
            (hit,) = await pipeline.search("x", kind=kind)
            assert hit.text.startswith(text)


async def test_progress_is_told_and_a_callback_that_fails_stops_nothing(
    make_pipeline, make_actions, caplog
):
    seen = []

    def progress(ledger):
        seen.append(ledger.stored)
        raise RuntimeError("a bug")

    async with make_pipeline(on_progress=progress) as pipeline:
        await pipeline.on_actions(make_actions("s", "a"))
        await pipeline.drain()
        await pipeline.on_actions(make_actions("t", "b"))
    assert seen == [1, 2]
    assert "on_progress failed" in caplog.text


async def test_equal_texts_are_embedded_once(make_pipeline, embedder, make_actions):
    async with make_pipeline() as pipeline:
        for i in range(20):
            await pipeline.on_actions(make_actions(f"s{i}", "the same"))
        await pipeline.drain()
        assert pipeline.ledger.chunks == 20
        assert pipeline.ledger.embed_texts == 1
        assert pipeline.ledger.embed_reused == 19
    assert sum(map(len, embedder.requests)) == 1


async def test_overflow_is_loud_once_and_ends_when_there_is_room(
    make_pipeline, embedder, make_actions, caplog
):
    gate = asyncio.Event()
    embedder.script = lambda texts: open_at(gate)
    async with make_pipeline(journal_max_bytes=1200) as pipeline:
        for i in range(10):
            await pipeline.on_actions(make_actions("s", str(i)))
            await pipeline.on_actions(make_actions("s", "0"))  # a duplicate needs no room
        lost = pipeline.ledger.overflow
        assert 0 < lost < 10
        assert sum("being LOST" in record.message for record in caplog.records) == 1
        gate.set()
        await pipeline.drain()
        await pipeline.on_actions(make_actions("s", "9"))
        await pipeline.drain()
        assert pipeline.ledger.stored == 11 - lost
        assert pipeline.ledger.overflow == lost


# -- durability -------------------------------------------------------------------------------


class SilentStore(MemoryStore):
    """Has no identity, so that lost chunks go unnoticed."""

    persistent = True
    capabilities = frozenset({"delete"})


class CountingStore(SilentStore):
    def __init__(self):
        super().__init__()
        self._changed = asyncio.Condition()

    async def upsert(self, chunks, vectors):
        await super().upsert(chunks, vectors)
        async with self._changed:
            self._changed.notify_all()

    async def holds(self, count):
        async with self._changed:
            while await self.count() < count:
                await self._changed.wait()


async def test_full_durability_stores_again_what_the_store_may_have_lost(
    make_pipeline, make_actions, tmp_path
):
    journal = tmp_path / "j.db"
    async with make_pipeline(SilentStore(), journal=journal, durability="full") as pipeline:
        for title in "abc":
            await pipeline.on_actions(make_actions("s", title))
            await pipeline.drain()
        killed = copy_journal(journal, tmp_path / "killed")
    store = CountingStore()  # it lost everything
    async with make_pipeline(store, journal=killed, durability="full") as pipeline:
        before = pipeline.ledger
        await store.holds(3)
        await pipeline.drain()
        assert await texts_of(pipeline) == ["a", "b", "c"]
        after = pipeline.ledger
        assert (after.received, after.stored, after.pending) == (3, 3, 0)
        assert (before.received, before.stored, before.pending) == (3, 3, 0)
    store = SilentStore()
    async with make_pipeline(store, journal=journal, durability="full") as pipeline:
        await pipeline.drain()  # after a clean close nothing is stored again
        assert await store.count() == 0


async def test_numbers_given_anew_are_not_taken_for_those_of_an_earlier_run(
    make_pipeline, embedder, make_actions, tmp_path
):
    journal = tmp_path / "j.db"
    async with make_pipeline(journal=journal, durability="full") as pipeline:
        for title in "abc":
            await pipeline.on_actions(make_actions("s", title))
    async with make_pipeline(journal=journal, durability="full", batch_window=60) as pipeline:
        for title in "xyz":  # numbers 1 to 3 again
            await pipeline.on_actions(make_actions("t", title))
        killed = copy_journal(journal, tmp_path / "killed")
    async with make_pipeline(journal=killed, durability="full", batch_window=60) as pipeline:
        await pipeline.drain()
        assert pipeline.ledger.stored == 6
        assert "x\ny\nz" in await texts_of(pipeline)


# -- clients ----------------------------------------------------------------------------------


async def test_ingest_runs_a_client_until_it_is_idle(make_pipeline, make_payload, local_connector):
    connector = local_connector([make_payload("Clicked Export", session_id="a") for _ in range(50)])
    async with make_pipeline() as pipeline:
        client = AsyncConnectorClient(connector.url)
        ledger = await pipeline.ingest(client, idle_seconds=2.0)
        assert (ledger.received, ledger.stored) == (50, 50)
        assert client.state == "stopped"
        ledger = await pipeline.ingest(client, idle_seconds=2.0)  # the same stream again
        assert (ledger.received, ledger.duplicate) == (100, 50)
        started = time.monotonic()
        await pipeline.ingest(client, max_seconds=0.3)
        assert time.monotonic() - started >= 0.3


async def test_ingest_raises_what_ended_the_client_after_storing_what_it_had(
    make_pipeline, local_connector
):
    connector = local_connector([], token="right")
    async with make_pipeline() as pipeline:
        with pytest.raises(AuthenticationError):
            await pipeline.ingest(AsyncConnectorClient(connector.url, token="wrong"))
        assert pipeline.ledger.balanced


async def test_closing_lets_a_client_hand_over_what_it_has_received(
    make_pipeline, make_payload, local_connector, eventually
):
    gate = asyncio.Event()

    async def slow(_payload):
        await gate.wait()

    connector = local_connector([make_payload("Clicked", session_id="s") for _ in range(200)])
    pipeline = make_pipeline()
    await pipeline.start()
    client = pipeline.attach(AsyncConnectorClient(connector.url).on_actions(slow))
    assert pipeline.attach(client) is client
    client.run_in_background()
    await eventually(lambda: client.counts.received == 200)
    closing = asyncio.create_task(pipeline.aclose())
    await eventually(lambda: client.state == "stopping")
    await eventually(lambda: pipeline.ledger.stored == 4)  # the limit per session
    gate.set()
    await closing
    assert client.state == "stopped"
    assert (client.counts.delivered, client.counts.failed, client.counts.dropped) == (200, 0, 0)
    assert pipeline.ledger.received == pipeline.ledger.stored == 200


# -- the loop ---------------------------------------------------------------------------------


async def test_the_users_own_rendering_holds_up_no_loop(make_pipeline, make_actions, titles):
    rendering, go = threading.Event(), threading.Event()

    def render(payloads):
        rendering.set()
        assert go.wait(10)  # blocks forever if it runs on the loop
        return titles(payloads)

    async with make_pipeline(render=render) as pipeline:
        await pipeline.on_actions(make_actions("s", "a"))
        await asyncio.to_thread(rendering.wait, 10)
        await asyncio.sleep(0)
        go.set()
        await pipeline.drain()
        assert pipeline.ledger.stored == 1


@pytest.mark.parametrize("seconds", [-1, float("nan")])
@pytest.mark.parametrize("name", ["idle_seconds", "max_seconds"])
async def test_limits_that_mean_nothing_are_refused_before_anything_starts(
    make_pipeline, name, seconds
):
    async with make_pipeline() as pipeline:
        client = AsyncConnectorClient("http://127.0.0.1:1/stream/acme")
        with pytest.raises(ConfigurationError, match=name):
            await pipeline.ingest(client, **{name: seconds})
        assert client.state == "idle"


def test_the_class_of_a_store_is_not_a_store(embedder):
    with pytest.raises(ConfigurationError, match="pass an instance of it"):
        IngestPipeline(MemoryStore, embedder)


# Notebooks


async def test_a_notebook_shows_state_ledger_and_health():
    pipeline = IngestPipeline(MemoryStore(), LocalEmbedder())
    assert "not started" in pipeline._repr_html_()
    assert repr(pipeline).startswith("<IngestPipeline: not started into ")
    async with pipeline:
        await pipeline.on_summary(SummaryPayload("acme", "s1", "The user paid."))
        await pipeline.drain()
        html = pipeline._repr_html_()
        assert [
            word
            for word in ("running", "ok", "lag", "stored", "embed_requests")
            if word not in html
        ] == []
        assert html.count("<table>") == html.count("</table>") == 4
    assert ">closed<" in pipeline._repr_html_()
    assert ">1<" in pipeline._repr_html_(), "the counts stay"


async def test_a_notebook_shows_why_nothing_is_stored(monkeypatch):
    health = Health("degraded", ("store: <refused>",))
    monkeypatch.setattr(IngestPipeline, "health", health)
    html = IngestPipeline(MemoryStore(), LocalEmbedder())._repr_html_()
    assert "degraded" in html
    assert "store: &lt;refused&gt;" in html
