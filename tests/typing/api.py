"""The public API as a user's type checker sees it. Checked by `make lint`, never run."""

import asyncio
from collections.abc import Sequence
from typing import assert_type

from autoplay_rag import (
    ActionsPayload,
    AsyncConnectorClient,
    ChatTurn,
    ConnectorClient,
    DeadLetter,
    DeadLetters,
    Filter,
    Health,
    Hit,
    Hits,
    IngestPipeline,
    Ledger,
    LiveSessions,
    Payload,
    PiiRedactor,
    ServeClient,
    SessionEvent,
    SessionHit,
    Sessions,
    SlimAction,
    SummaryPayload,
    WebhookReceiver,
    WholeSession,
    follow_journal,
    webhook_app,
)
from autoplay_rag.decoding import decode
from autoplay_rag.embedders import Embedder, LocalEmbedder, OpenAIEmbedder
from autoplay_rag.live import LiveSession
from autoplay_rag.maintenance import Receipt
from autoplay_rag.sources import LiveActivitySource, Source
from autoplay_rag.stores import ChromaStore, MemoryStore, VectorStore

assert_type(decode(b"{}"), ActionsPayload | SummaryPayload | ChatTurn)
assert_type(ActionsPayload.from_dict({}), ActionsPayload)
assert_type(ActionsPayload.merge([]).actions, list[SlimAction])


async def on_actions(payload: ActionsPayload) -> None: ...


def on_summary(payload: SummaryPayload) -> None: ...


class Mine(Embedder):
    model = "mine"

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[1.0] for _ in texts]


async def watched() -> list[str]:
    return ["u1"]


async def sources(pipeline: IngestPipeline) -> None:
    pull = LiveActivitySource("https://mcp.example", "p", "t", users=watched)
    stream = AsyncConnectorClient("https://a.test/stream/p")
    either: list[Source] = [pull, stream]
    assert_type(pipeline.attach(pull), LiveActivitySource)
    assert_type(await pipeline.ingest(stream, pull, *either, idle_seconds=1), Ledger)
    assert_type(await pull.get("u1"), list[ActionsPayload])
    assert_type(pull.get_sync("u1", timeout=1.0), list[ActionsPayload])
    async for payload in pull.stream(limit=1):
        assert_type(payload, Payload)


async def client() -> None:
    found = AsyncConnectorClient("https://a.test/stream/p", token="t", max_retries=None)
    assert_type(found.on_actions(on_actions).on_summary(on_summary), AsyncConnectorClient)
    assert_type(found.run_in_background(), asyncio.Task[None])
    async for payload in found.stream(limit=1, seconds=1.0, idle=1.0):
        assert_type(payload, Payload)


async def pipeline() -> None:
    async with IngestPipeline(ChromaStore("./chroma"), LocalEmbedder(), journal="j.db") as found:
        assert_type(found.attach(AsyncConnectorClient("u")), AsyncConnectorClient)
        assert_type(await found.ingest(AsyncConnectorClient("u"), idle_seconds=1.0), Ledger)
        assert_type(await found.search("q", k=3, user_id="u1", mode="text"), Hits[Hit])
        assert_type(found.search_sync("q", filter=Filter(session_id="s1")), Hits[Hit])
        sessions = await found.search_sessions("q", since="7d")
        assert_type(sessions, Hits[SessionHit])
        assert_type(sessions[0].best.matched.places, list[tuple[int, int]])
        assert_type(await found.sessions(user_id="u1", matching="export"), Sessions)
        assert_type(await found.session("s1"), WholeSession | None)
        assert_type(await found.context(user_id="u1"), str)
        async for event in found.actions(since="1h"):
            assert_type(event, SessionEvent)
        assert_type(found.dead_letters, DeadLetters)
        assert_type(await found.dead_letters.list(), list[DeadLetter])
        assert_type(found.health, Health)
        assert_type(found.watermark, int)
        assert_type(found.live, LiveSessions)
        assert_type(found.live.get(user_id="u1"), LiveSession | None)
        assert_type(found.ledger.balanced, bool)
        webhook_app(found, "secret")
    IngestPipeline(MemoryStore(), Mine())
    IngestPipeline(MemoryStore(), OpenAIEmbedder(api_key="k"), select=lambda p: p.kind == "summary")
    IngestPipeline(MemoryStore(), redact="pii")
    IngestPipeline(MemoryStore(), redact=PiiRedactor(pseudonyms=b"k" * 32, region="US"))
    IngestPipeline(MemoryStore(), redact=["pii", lambda payload: payload])
    async with follow_journal("j.db") as live:
        assert_type(live, LiveSessions)


async def served() -> None:
    async with ServeClient("http://a.test", "key", timeout=1.0) as found:
        assert_type(found, ServeClient)
        assert_type(found.with_timeout(2.0), ServeClient)
        assert_type(await found.search("q", k=3, kind="chat", since="1h"), Hits[Hit])
        assert_type(await found.search_sessions("q", filter=Filter(user_id="u")), Hits[SessionHit])
        assert_type(found.search_sync("q"), Hits[Hit])
        assert_type(await found.sessions("u1", limit=3), Sessions)
        assert_type(await found.session("s1"), WholeSession | None)
        assert_type(await found.products(user_id="u1"), list[str])
        assert_type(await found.context(user_id="u1"), str)
        async for event in found.actions(since="1h"):
            assert_type(event, SessionEvent)
        assert_type(await found.live_session(user_id="u1"), LiveSession | None)
        assert_type(await found.ledger(), Ledger)
        assert_type(await found.health(), Health)
        assert_type(await found.forget(user_id="u1"), Receipt)
    with ServeClient() as for_threads:
        assert_type(for_threads.sessions_sync("u1"), Sessions)


def wrong(store: VectorStore) -> None:
    IngestPipeline(store, redact="names")  # type: ignore[arg-type]
    IngestPipeline(store, durability="most")  # type: ignore[arg-type]
    AsyncConnectorClient("u", overflow="drop")  # type: ignore[arg-type]
    WebhookReceiver("s").verify("text", None)  # type: ignore[arg-type]
    ConnectorClient("u").on_actions(3)  # type: ignore[arg-type]
