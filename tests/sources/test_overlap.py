"""The sample sessions through a stream, pushes and pulls: the same sessions, and nothing twice."""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from autoplay_rag import ActionsPayload, AsyncConnectorClient, IngestPipeline
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.content.identity import people_of
from autoplay_rag.devserver import LocalConnector, questions, samples
from autoplay_rag.sources import LiveActivitySource
from autoplay_rag.sources.sessions import IDLE_GAP, is_cut_name
from autoplay_rag.stores import MemoryStore

PAYLOADS = list(read_recording(samples()))
BATCHES = [payload for payload in PAYLOADS if isinstance(payload, ActionsPayload)]
NAMED = [batch for batch in BATCHES if people_of(batch).user_id]
USERS = sorted({people_of(batch).user_id for batch in NAMED})
PRODUCT = BATCHES[0].product_id


def key_of(user, action):
    return (user, action.timestamp_start, action.type, action.title, action.canonical_url)


def sessions_by_time():
    """The sample actions of each known user, cut where they were idle for half an hour."""
    found = []
    for user in USERS:
        own = [a for batch in NAMED if people_of(batch).user_id == user for a in batch.actions]
        own.sort(key=lambda action: action.timestamp_start)
        for before, action in zip([None, *own], own, strict=False):
            if before is None or action.timestamp_start - before.timestamp_start > IDLE_GAP:
                found.append((user, []))
            found[-1][1].append(key_of(user, action))
    return {(user, tuple(keys)) for user, keys in found}


def sessions_by_name():
    found = {}
    for batch in NAMED:
        own = found.setdefault((people_of(batch).user_id, batch.session_id), [])
        own += [key_of(people_of(batch).user_id, action) for action in batch.actions]
    return {
        (user, tuple(sorted(keys, key=lambda key: key[1]))) for (user, _), keys in found.items()
    }


async def stored(pipeline):
    """What the pipeline has: the actions of each session of a known user, in order."""
    found = {}
    async for one in pipeline.actions():
        if one.user_id is not None:
            action = (one.user_id, one.started_at, one.type, one.title, one.page)
            found.setdefault((one.user_id, one.session_id), []).append(action)
    return found


def as_sets(found):
    return {(user, by_time(keys)) for (user, _), keys in found.items()}


def by_time(keys):
    return tuple(sorted(keys, key=lambda key: key[1]))


@pytest.fixture
def opened(tmp_path, scripted_embedder):
    def make(name):
        return IngestPipeline(
            MemoryStore(), scripted_embedder(), journal=tmp_path / f"{name}.db", batch_window=0.0
        )

    return make


async def played(connector, chance):
    """Send the samples as a connector does, with repeated and delayed batches."""
    for batch in shuffled(NAMED, chance):
        await connector.send(batch)


def shuffled(batches, chance):
    """Deliveries: some twice, and neighbours out of order."""
    numbered = [(n + chance.uniform(0, 6), batch) for n, batch in enumerate(batches)]
    again = [(n + 8, batch) for n, batch in numbered if chance.random() < 0.3]
    return [batch for _, batch in sorted([*numbered, *again], key=lambda pair: pair[0])]


async def finished(pipeline, actions):
    async def count():
        return sum(len(keys) for keys in (await stored(pipeline)).values())

    async with asyncio.timeout(60):
        while await count() < actions:  # noqa: ASYNC110 - counted in the catalog
            await asyncio.sleep(0.05)


TOTAL = sum(len(batch.actions) for batch in NAMED)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_each_source_alone_gives_the_same_sessions_and_finds_the_same(opened):
    chance = random.Random(16)
    found, pipelines = {}, {}
    async with AsyncExitStack() as stack:
        for way in ("stream", "push", "pull"):
            pipeline = pipelines[way] = await stack.enter_async_context(opened(way))
            connector = await stack.enter_async_context(LocalConnector([], product_id=PRODUCT))
            if way == "stream":
                client = pipeline.attach(
                    AsyncConnectorClient(connector.url, initial_backoff_s=0.05)
                )
                client.run_in_background()
                await connector.wait_subscribers()
                await played(connector, chance)
            elif way == "push":
                for batch in shuffled(NAMED, chance):
                    await pipeline.accept(batch)
            else:
                source = LiveActivitySource(
                    connector.pull_url, PRODUCT, users=set(USERS), interval=0.2
                )
                pipeline.attach(source).run_in_background()
                await played(connector, chance)
            await finished(pipeline, TOTAL)
            await pipeline.drain()
            found[way] = await stored(pipeline)
            assert pipeline.ledger.balanced
        assert as_sets(found["stream"]) == as_sets(found["push"]) == sessions_by_name()
        # A pull names no sessions: two visits within half an hour are one.
        assert as_sets(found["pull"]) == sessions_by_time()
        assert len(sessions_by_name()) - len(sessions_by_time()) == 2
        assert all(is_cut_name(session) for _, session in found["pull"])
        for way in found:
            assert (
                Counter(k for keys in found[way].values() for k in keys).most_common(1)[0][1] == 1
            )
        await searches_agree(pipelines)


async def searches_agree(pipelines):
    """The questions about the samples find sessions with the same first action, by full text."""
    asked = same = 0
    for question in questions():
        first = {}
        for way, pipeline in pipelines.items():
            hits = await pipeline.search_sessions(question.question, 3, mode="text")
            first[way] = {user for hit in hits for user in [hit.hits[0].metadata.get("user_id")]}
        asked += 1
        same += bool(first["stream"] & first["pull"]) or first["stream"] == first["pull"]
        assert first["stream"] == first["push"]
    assert same >= 0.9 * asked


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_doubled_when_all_three_overlap_and_the_stream_is_cut(
    opened, eventually, seed
):
    chance = random.Random(seed)
    async with opened("all") as pipeline, LocalConnector([], product_id=PRODUCT) as connector:
        source = LiveActivitySource(
            connector.pull_url, PRODUCT, users=set(USERS), interval=0.3, concurrency=4
        )
        pipeline.attach(source).run_in_background()

        async def streaming():
            # Connected for some of the time: what is sent meanwhile is lost to the stream.
            while True:
                client = pipeline.attach(AsyncConnectorClient(connector.url))
                client.run_in_background()
                await asyncio.sleep(chance.uniform(0.05, 0.3))
                client.stop()
                await asyncio.sleep(chance.uniform(0.05, 0.2))

        stream = asyncio.create_task(streaming())
        try:
            for batch in shuffled(NAMED, chance):
                await connector.send(batch)
                if chance.random() < 0.5:
                    await pipeline.accept(batch)
                if chance.random() < 0.1:
                    await asyncio.sleep(0.01)
            await finished(pipeline, TOTAL)
        finally:
            stream.cancel()
            await asyncio.wait([stream])
        requests = source.counts.requests
        await eventually(lambda: source.counts.requests > requests + 2 * len(USERS))
        found = await stored(pipeline)
        counted = Counter(key for keys in found.values() for key in keys)
        assert counted == Counter(k for _, keys in sessions_by_name() for k in keys)
        assert pipeline.ledger.balanced
