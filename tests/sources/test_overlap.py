"""The sample sessions through a stream, pushes and pulls: the same sessions, and nothing twice."""

import asyncio
import hmac
import random
from collections import Counter
from contextlib import AsyncExitStack

import httpx
import msgspec
import pytest
from outages import Outages

from autoplay_rag import ActionsPayload, AsyncConnectorClient, IngestPipeline
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.content.identity import people_of
from autoplay_rag.content.render import render_actions
from autoplay_rag.devserver import LocalConnector, questions, samples
from autoplay_rag.devserver.serving import ConnectorServer
from autoplay_rag.serve import Keys, create_app
from autoplay_rag.sources import LiveActivitySource, cooldown
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
    def make(name, **options):
        options = {"batch_window": 0.0, **options}
        return IngestPipeline(
            MemoryStore(), scripted_embedder(), journal=tmp_path / f"{name}.db", **options
        )

    return make


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """After a failure, everything is tried again at once."""
    monkeypatch.setattr(cooldown, "_SHORTEST", 0.01)
    monkeypatch.setattr(cooldown, "_LONGEST", 0.05)


class FlakyConnector(LocalConnector):
    """A connector whose pull endpoint has outages, and whose streams can be cut."""

    def _app(self):
        self.outages = Outages(super()._app(), seed=5, path="/users/")
        return self.outages

    def cut(self):
        for subscriber in list(self._subscribers):
            subscriber.end()


def shuffled(batches, chance):
    """Deliveries: some twice, and neighbours out of order."""
    numbered = [(n + chance.uniform(0, 6), batch) for n, batch in enumerate(batches)]
    again = [(n + 8, batch) for n, batch in numbered if chance.random() < 0.3]
    return [batch for _, batch in sorted([*numbered, *again], key=lambda pair: pair[0])]


def repeated(batches, chance):
    """Deliveries in order, some twice."""
    return [one for batch in batches for one in [batch] * (1 + (chance.random() < 0.3))]


def actions_of(batches):
    return {key_of(people_of(one).user_id, action) for one in batches for action in one.actions}


async def finished(pipeline, actions):
    async def count():
        return sum(len(keys) for keys in (await stored(pipeline)).values())

    async with asyncio.timeout(100):
        while await count() < actions:  # noqa: ASYNC110 - counted in the catalog
            await asyncio.sleep(0.05)


TOTAL = sum(len(batch.actions) for batch in NAMED)
SECRET = "a-webhook-secret"


async def by_stream(pipeline, batches):
    """Stream them. The connection ends a few times, when what was sent has arrived: a stream
    repeats nothing."""
    connected = asyncio.Queue()
    async with FlakyConnector([], product_id=PRODUCT) as connector:
        client = pipeline.attach(
            AsyncConnectorClient(
                connector.url,
                initial_backoff_s=0.05,
                on_connect=lambda *_: connected.put_nowait(None),
            )
        )
        running = client.run_in_background()
        await connected.get()
        for n, batch in enumerate(batches):
            if n % 100 == 99:
                await finished(pipeline, len(actions_of(batches[:n])))
                connector.cut()
                await connected.get()
                await connector.wait_subscribers()
            await connector.send(batch)
        await finished(pipeline, TOTAL)
        client.stop()
        await running
    assert connected.empty()


async def by_push(pipeline, batches):
    """Post them as the connector does: what fails, or is not answered in time, is posted again."""
    app = Outages(create_app(pipeline, keys=Keys(ingest="k" * 16), webhook_secret=SECRET), seed=4)
    server = ConnectorServer(app)
    url = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}/v1/webhooks/{PRODUCT}"
    try:
        async with httpx.AsyncClient(timeout=0.5, trust_env=False) as http:
            for batch in batches:
                body = msgspec.json.encode({"type": "actions", **batch.to_dict()})
                signature = hmac.digest(SECRET.encode(), body, "sha256").hex()
                headers = {"x-connector-signature": f"sha256={signature}"}
                for _ in range(100):
                    if await is_acknowledged(http.post(url, content=body, headers=headers)):
                        break
    finally:
        await server.aclose()
    assert app.counts.keys() >= FATES


async def is_acknowledged(posting):
    try:
        answer = await posting
    except httpx.HTTPError:
        return False
    assert answer.is_success or answer.status_code in (429, 500, 503), answer.text
    return answer.is_success


async def by_pull(pipeline, batches):
    """Pull while the connector sends them. The endpoint fails, and is asked again."""
    async with FlakyConnector([], product_id=PRODUCT) as connector:
        source = pipeline.attach(
            LiveActivitySource(
                connector.pull_url, PRODUCT, users=set(USERS), interval=0.2, request_timeout=0.5
            )
        )
        running = source.run_in_background()
        for n, batch in enumerate(batches):
            await connector.send(batch)
            if n % 50 == 0:
                await finished(pipeline, len(actions_of(batches[:n])))
        await finished(pipeline, TOTAL)
        async with asyncio.timeout(100):
            while not connector.outages.counts.keys() >= FATES:  # noqa: ASYNC110 - of the server
                await asyncio.sleep(0.05)
        source.stop()
        await running
        assert source.counts.failures > 0


FATES = {"passed", "refused", "cut", "lost", "silent"}
WAYS = {"stream": by_stream, "push": by_push, "pull": by_pull}


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_each_source_alone_gives_the_same_sessions_and_finds_the_same(opened):
    """With duplicates, in another order, and with outages."""
    chance = random.Random(16)
    found, pipelines = {}, {}
    async with AsyncExitStack() as stack:
        for way, deliver in WAYS.items():
            pipeline = pipelines[way] = await stack.enter_async_context(opened(way))
            await deliver(pipeline, shuffled(NAMED, chance))
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


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_texts_are_equal_but_for_what_a_source_does_not_carry(opened):
    """With duplicates and outages. In the order of their times: a text has the order of receipt."""
    chance = random.Random(17)
    texts = {}
    for way, deliver in WAYS.items():
        # One chunk for each session, so that texts can be compared.
        async with opened(way, batch_window=600.0, max_batch_actions=1000) as pipeline:
            if way != "pull":
                for payload in NOT_PULLED:
                    await pipeline.accept(payload)
            await deliver(pipeline, repeated(NAMED, chance))
            await pipeline.drain()
            texts[way] = [chunk async for page in pipeline.store.scan() for chunk in page]
    assert as_texts(texts["stream"]) == as_texts(texts["push"])
    of_stream = [chunk for chunk in texts["stream"] if is_pulled(chunk)]
    assert len(texts["stream"]) - len(of_stream) > len(SUMMARIES)
    alone = joined = 0
    for chunk in texts["pull"]:
        parts = [one for one in of_stream if is_part(one, chunk)]
        if len(parts) == 1:
            alone += 1
            assert chunk.text == parts[0].text
        else:
            # Two visits within half an hour are one session, with one text.
            joined += 1
            assert chunk.text == render_actions(actions_within(chunk.metadata))
        # What is filtered by is the same, but for the name of the session.
        for name in ("product_id", "user_id", "kind"):
            assert {one.metadata[name] for one in parts} == {chunk.metadata[name]}
        assert sum(one.metadata["action_count"] for one in parts) == chunk.metadata["action_count"]
        urls = {url for one in parts for url in one.metadata["urls"].split()}
        assert urls == set(chunk.metadata["urls"].split())
    assert (joined, alone + 2 * joined) == (2, len(of_stream))


# What a pull does not carry: the names of sessions, summaries, visitors who are not known, email
# addresses and chat threads.
SUMMARIES = [payload for payload in PAYLOADS if not isinstance(payload, ActionsPayload)]
NOT_PULLED = SUMMARIES + [payload for payload in BATCHES if payload not in NAMED]


def is_pulled(chunk):
    """Whether a pull carries what a chunk of the stream has."""
    return chunk.metadata["kind"] == "actions" and "user_id" in chunk.metadata


def is_part(chunk, whole):
    """Whether a chunk has a part of what another one has."""
    one, other = chunk.metadata, whole.metadata
    return (
        one["user_id"] == other["user_id"]
        and other["started_at"] <= one["started_at"]
        and one["ended_at"] <= other["ended_at"]
    )


def actions_within(metadata):
    """The sample actions of a person and a time, in order."""
    own = [
        a
        for batch in NAMED
        if people_of(batch).user_id == metadata["user_id"]
        for a in batch.actions
    ]
    within = [a for a in own if metadata["started_at"] <= a.timestamp_start <= metadata["ended_at"]]
    return sorted(within, key=lambda action: action.timestamp_start)


def as_texts(chunks):
    return Counter((chunk.metadata.get("session_id"), chunk.text) for chunk in chunks)


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
    async with opened("all") as pipeline, FlakyConnector([], product_id=PRODUCT) as connector:
        source = LiveActivitySource(
            connector.pull_url,
            PRODUCT,
            users=set(USERS),
            interval=0.3,
            concurrency=4,
            request_timeout=0.5,
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
        assert connector.outages.counts.keys() >= FATES
        assert pipeline.ledger.balanced
