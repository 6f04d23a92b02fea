"""Failures on the way to the store, and what they must not affect. Real HTTP where HTTP is used."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections import Counter
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from embedding_server import error, serving, vector_of
from starlette.responses import HTMLResponse, JSONResponse

from autoplay_rag import AsyncConnectorClient, IngestPipeline
from autoplay_rag.content.probe import PROBE
from autoplay_rag.embedders import OpenAIEmbedder
from autoplay_rag.errors import (
    DrainTimeoutError,
    JournalLockedError,
    PipelineError,
    StoreRejectedError,
)
from autoplay_rag.ingest import chunk_writer, embedding, planner, retries, upkeep, worker
from autoplay_rag.ingest import pipeline as pipelines
from autoplay_rag.ingest.run import running as running_pipelines
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.stores import ChromaStore, MemoryStore
from autoplay_rag.stores.base import Filter

pytestmark = pytest.mark.timeout(40)
_PAUSE = retries.Pause


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Make the waits shorter."""
    monkeypatch.setattr(retries, "_LONE_RETRY_SECONDS", 0.01)
    pause = retries.Pause
    monkeypatch.setattr(retries, "Pause", lambda: pause(0.02, 0.1))


@pytest.fixture
def running(titles, embedding_server):
    """Run pipelines that embed over HTTP, with one chunk per session and titles as text."""

    @asynccontextmanager
    async def run(store=None, **options):
        url = options.pop("url", embedding_server.url)
        embedder = options.pop("embedder", None) or OpenAIEmbedder(
            base_url=url, api_key="sk-test", timeout=options.pop("timeout", 10.0)
        )
        given = {"render": titles, "batch_window": 0.0, "drain_timeout": 0.1, **options}
        store = store or MemoryStore()
        async with IngestPipeline(store, embedder, **given) as pipeline:
            yield pipeline

    return run


def failing(times, answer):
    """Return `answer()` for the first `times` requests, then let the server answer as usual."""
    left = [times]

    def give(_body):
        left[0] -= 1
        return answer() if left[0] >= 0 else None

    return give


def if_asked_for(word, answer):
    return lambda body: answer(body) if any(word in text for text in body["input"]) else None


def vectors(body, change=lambda i, text, vector: vector, numbers=None):
    texts = body["input"]
    data = [
        {"index": i, "embedding": change(i, text, vector_of(text))} for i, text in enumerate(texts)
    ]
    return JSONResponse({"data": data[:numbers] if numbers is not None else data})


async def stored(pipeline) -> Counter:
    hits = await pipeline.search("?", 1000)
    return Counter(line for hit in hits for line in hit.text.split("\n"))


async def send(pipeline, make_actions, *names, session="s"):
    await asyncio.gather(*(pipeline.on_actions(make_actions(session, name)) for name in names))


# -- outages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        *(lambda status=status: error(status, "no", None) for status in (401, 403, 404, 408, 429)),
        *(lambda status=status: error(status, "no", None) for status in (500, 502, 503)),
        lambda: HTMLResponse("<h1>Sign in to the hotel's network</h1>"),
        lambda: JSONResponse({"object": "list"}),
    ],
    ids=["401", "403", "404", "408", "429", "500", "502", "503", "html", "no-data"],
)
async def test_an_answer_that_is_an_outage_costs_nothing(
    running, embedding_server, make_actions, answer, caplog
):
    async with running(max_attempts=1) as pipeline:
        await send(pipeline, make_actions, "before")
        await pipeline.drain()
        embedding_server.answer = failing(5, answer)
        await send(pipeline, make_actions, "a", "b", "c")
        await pipeline.drain()
        assert await stored(pipeline) == Counter(["before", "a", "b", "c"])
        ledger = pipeline.ledger
        assert (ledger.stored, ledger.dead) == (4, 0)
        assert ledger.retries >= 5
        assert pipeline.health.state == "ok"
    warnings = [r.message for r in caplog.records if r.name.startswith("autoplay_rag")]
    assert sum("is not available" in message for message in warnings) == 1
    assert sum("embedder is back" in message for message in warnings) == 1
    assert "sk-test" not in caplog.text


NEVER = {
    "key": (lambda: error(401, "no", "invalid_api_key"), "401 (invalid_api_key)", "the API key"),
    "rights": (lambda: error(403, "no", None), "403", "what the API key may do"),
    "model": (lambda: error(404, "no", "model_not_found"), "(model_not_found)", "the model's name"),
    "model-400": (lambda: error(400, "no", "invalid_model"), "(invalid_model)", "the model's name"),
    "address": (lambda: HTMLResponse("<h1>It works</h1>"), "answered 200", "base_url"),
    "path": (lambda: error(405, "no", None), "405", "base_url"),
    "balance": (lambda: error(429, "no", "insufficient_quota"), "429", "the quota"),
}


async def first_error(caplog, seconds) -> str:
    """Wait for a record of level ERROR; return its message. There must be only one."""
    async with asyncio.timeout(seconds):
        while not any(record.levelname == "ERROR" for record in caplog.records):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    (message,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    return message


@pytest.fixture
def _soon_lasting(monkeypatch):
    monkeypatch.setattr(retries, "_LASTING_SECONDS", 0.3)


@pytest.mark.usefixtures("_soon_lasting")
@pytest.mark.parametrize("name", NEVER)
async def test_a_service_that_cannot_work_is_said_loudly_with_its_answer(
    running, embedding_server, make_actions, caplog, name
):
    answer, answered, check = NEVER[name]
    embedding_server.answer = lambda _: answer()
    async with running() as pipeline:
        await send(pipeline, make_actions, "a", "b")
        said = await first_error(caplog, 20)
        (reason,) = pipeline.health.reasons
        for message in (said, reason):
            assert answered in message
            assert f"check {check}" in message
        assert "the embedder has failed for" in said
        assert "has not worked since the start" in said
        assert pipeline.health.state == "degraded"
        embedding_server.answer = lambda _: None
        await pipeline.drain()
        assert await stored(pipeline) == Counter("ab")
        assert pipeline.health.state == "ok"
    assert "sk-test" not in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["refused", "unknown", "silent"])
async def test_a_wrong_address_is_an_error_within_a_minute_of_real_time(
    monkeypatch, running, make_actions, caplog, kind
):
    monkeypatch.setattr(retries, "Pause", _PAUSE)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        port = listening.getsockname()[1]
        if kind == "refused":
            listening.close()
        waiting = [socket.socket() for _ in range(4 if kind == "silent" else 0)]
        for client in waiting:  # the queue is full: no more connections are accepted
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        host = "no-such-host.invalid" if kind == "unknown" else "127.0.0.1"
        # Only the read timeout is long; the connect timeout is shorter.
        async with running(url=f"http://{host}:{port}/v1", timeout=60.0) as pipeline:
            await send(pipeline, make_actions, "a")
            assert "check base_url and the network" in await first_error(caplog, 60)
            assert pipeline.health.state == "degraded"
        for client in waiting:
            client.close()


async def test_a_rate_limit_is_waited_out_once_by_all(
    running, embedding_server, make_actions, eventually
):
    asked = []

    def answer(body):
        asked.append(asyncio.get_running_loop().time())
        if len(asked) == 1:
            return error(429, "slow down", "rate_limit_exceeded", {"Retry-After": "1"})
        return None

    embedding_server.answer = answer
    async with running(embed_concurrency=4) as pipeline:
        await send(pipeline, make_actions, "first", session="first")
        await eventually(lambda: pipeline.health.reasons)
        assert "429" in str(pipeline.health)
        for i in range(4):  # they arrive during the wait
            await send(pipeline, make_actions, f"{i}", session=f"s{i}")
        await pipeline.drain()
        assert pipeline.ledger.stored == 5
    assert asked[1] - asked[0] >= 1.0
    assert len(asked) == 2  # then they were sent in one request


async def test_a_service_that_does_not_answer_is_an_outage(running, embedding_server, make_actions):
    embedding_server.hang = asyncio.Event()
    async with running(timeout=0.1) as pipeline:
        await send(pipeline, make_actions, "a", "b")
        while len(embedding_server.requests) < 2:
            await embedding_server.asked.wait()
            embedding_server.asked.clear()
        assert "did not answer within 0.1 s" in str(pipeline.health)
        embedding_server.hang.set()
        await pipeline.drain()
        assert await stored(pipeline) == Counter("ab")


async def test_a_service_that_is_not_there_yet_is_an_outage(running, make_actions, eventually):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        async with running(url=url) as pipeline:
            await send(pipeline, make_actions, "a", "b")
            await eventually(lambda: pipeline.ledger.retries >= 3)
            assert "could not be reached" in str(pipeline.health)
            bound.listen()
            async with serving(bound):
                await pipeline.drain()
                assert await stored(pipeline) == Counter("ab")


async def test_nothing_dies_in_an_outage_however_long_it_lasts(
    running, embedding_server, make_actions, eventually
):
    async with running(max_attempts=1) as pipeline:
        embedding_server.answer = lambda body: error(503, "no", None)
        await send(pipeline, make_actions, *"abcdef")
        await eventually(lambda: pipeline.ledger.retries > 30)
        assert (pipeline.ledger.pending, pipeline.ledger.dead) == (6, 0)
        await send(pipeline, make_actions, "g", session="t")  # intake continues
        embedding_server.answer = lambda body: None
        await pipeline.drain()
        assert await stored(pipeline) == Counter("abcdefg")


# -- invalid vectors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: vectors(body, numbers=len(body["input"]) - 1),
        lambda body: vectors(body, lambda i, text, vector: [*vector, 0.0]),
        lambda body: vectors(body, lambda i, text, vector: vector[:-1]),
        lambda body: vectors(body, lambda i, text, vector: []),
        lambda body: error(400, "no", None),
        lambda body: error(413, "no", None),
        lambda body: error(422, "no", None),
    ],
    ids=["too-few", "too-long", "too-short", "empty", "400", "413", "422"],
)
async def test_a_service_that_answers_wrongly_to_everything_kills_nothing(
    running, embedding_server, make_actions, eventually, spoil
):
    async with running(max_attempts=1 + 1) as pipeline:
        await send(pipeline, make_actions, "before")
        await pipeline.drain()
        embedding_server.answer = spoil
        await send(pipeline, make_actions, "a", "b", "c")
        await eventually(lambda: pipeline.health.reasons)  # even the probe failed
        retries = pipeline.ledger.retries
        await eventually(lambda: pipeline.ledger.retries > retries + 5)
        assert (pipeline.ledger.pending, pipeline.ledger.dead) == (3, 0)
        embedding_server.answer = lambda body: None
        await pipeline.drain()
        assert await stored(pipeline) == Counter(["before", "a", "b", "c"])


def raw_nan(body):
    """NaN is not valid JSON, but services send it in base64."""
    import base64
    from array import array

    nan = base64.b64encode(array("f", [float("nan"), 1.0, 1.0]).tobytes()).decode()
    return vectors(body, lambda i, text, vector: nan if "poison" in text else vector)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda body: error(400, "no", "context_length"), "answered 400"),
        (raw_nan, "NaN"),
        (
            lambda body: vectors(body, lambda i, t, v: [1.0] if "poison" in t else v),
            "1 dimensions",
        ),
    ],
    ids=["400", "nan", "dimension"],
)
async def test_a_poisoned_payload_dies_alone_and_its_neighbours_are_stored(
    running, embedding_server, make_actions, spoil, said
):
    async with running(batch_window=60.0, max_attempts=3) as pipeline:
        await send(pipeline, make_actions, "good")
        await pipeline.drain()
        embedding_server.answer = if_asked_for("poison", spoil)
        await send(pipeline, make_actions, "a", "b", "poison", "c", "d")  # one chunk
        await send(pipeline, make_actions, "other", session="t")
        await pipeline.drain()
        assert await stored(pipeline) == Counter(["good", "a", "b", "c", "d", "other"])
        ledger = pipeline.ledger
        assert (ledger.received, ledger.stored, ledger.dead) == (7, 6, 1)
        (letter,) = await pipeline.dead_letters.list()
        assert letter.payload.actions[0].title == "poison"
        assert said in letter.error
        alone = [i for i, r in enumerate(embedding_server.requests) if r["input"] == ["poison"]]
        assert len(alone) == 3
        for one, other in pairwise(alone):
            assert other > one + 1  # something else succeeded in between


async def test_dead_letters_can_be_retried_after_a_fix_or_discarded(
    running, embedding_server, make_actions
):
    embedding_server.answer = if_asked_for("poison", lambda body: error(400, "no", None))
    async with running() as pipeline:
        await send(pipeline, make_actions, "poison 1", "ok", "poison 2", "poison 3")
        await pipeline.drain()
        first, second, third = [letter.id for letter in await pipeline.dead_letters.list()]
        assert await pipeline.dead_letters.retry([first]) == 1
        await pipeline.drain()
        assert pipeline.ledger.dead == 3  # dead again, under a new number
        embedding_server.answer = lambda body: None
        assert await pipeline.dead_letters.discard([second]) == 1
        assert await pipeline.dead_letters.discard([]) == 0  # an empty list does not mean all
        assert await pipeline.dead_letters.retry([third, 999]) == 1
        await pipeline.drain()
        assert await stored(pipeline) == Counter(["ok", "poison 3"])
        assert await pipeline.dead_letters.retry() == 1
        await pipeline.drain()
        assert await stored(pipeline) == Counter(["ok", "poison 1", "poison 3"])
        ledger = pipeline.ledger
        assert (ledger.received, ledger.stored, ledger.dead, ledger.discarded) == (4, 3, 0, 1)


async def test_a_retry_whose_caller_gave_up_is_carried_out(running, embedding_server, make_actions):
    embedding_server.answer = if_asked_for("poison", lambda body: error(400, "no", None))
    async with running() as pipeline:
        await send(pipeline, make_actions, "poison")
        await pipeline.drain()
        embedding_server.answer = lambda body: None
        retrying = asyncio.create_task(pipeline.dead_letters.retry())
        await asyncio.sleep(0)
        retrying.cancel()
        await asyncio.wait([retrying])
        assert await pipeline.dead_letters.list() == []
        await pipeline.drain()
        assert pipeline.ledger.stored == 1


# -- the store --------------------------------------------------------------------------------


class FlakyStore(MemoryStore):
    """Fails as `failure` says; counts the calls."""

    def __init__(self):
        super().__init__()
        self.failure = lambda chunks: None
        self.upserts = 0

    async def upsert(self, chunks, vectors):
        self.upserts += 1
        if failure := self.failure(chunks):
            raise failure
        await super().upsert(chunks, vectors)


async def test_a_store_that_dies_and_comes_back_loses_nothing(running, make_actions, eventually):
    store = FlakyStore()
    async with running(store, max_attempts=1) as pipeline:
        await send(pipeline, make_actions, "a")
        await pipeline.drain()
        store.failure = lambda chunks: ConnectionResetError("gone")
        await send(pipeline, make_actions, "b", "c")
        await eventually(lambda: store.upserts > 10)
        assert pipeline.health.reasons == ("store: ConnectionResetError: gone",)
        assert pipeline.ledger.dead == 0
        store.failure = lambda chunks: None
        await pipeline.drain()
        assert await stored(pipeline) == Counter("abc")
        assert pipeline.health.state == "ok"


async def test_what_a_store_refuses_dies_alone(running, make_actions):
    store = FlakyStore()
    store.failure = lambda chunks: (
        ValueError("bad metadata") if any("poison" in c.text for c in chunks) else None
    )
    async with running(store, batch_window=60.0, max_attempts=2) as pipeline:
        await send(pipeline, make_actions, "a", "poison", "b")
        await pipeline.drain(10.0)
        assert await stored(pipeline) == Counter(["a", "b"])
        (letter,) = await pipeline.dead_letters.list()
        assert letter.error == "store: ValueError: bad metadata"


async def test_the_last_payload_is_given_up_too_if_the_store_refuses_it(running, make_actions):
    store = FlakyStore()
    async with running(store) as pipeline:
        await send(pipeline, make_actions, "a")
        await pipeline.drain(10.0)
        store.failure = lambda chunks: (
            ValueError("bad metadata") if any("poison" in c.text for c in chunks) else None
        )
        await send(pipeline, make_actions, "poison", session="t")
        await pipeline.drain(10.0)
        assert (pipeline.ledger.stored, pipeline.ledger.dead) == (1, 1)
        assert await stored(pipeline) == Counter(["a"])
        assert pipeline.health.state == "ok"


async def test_a_probe_of_the_store_leaves_nothing_in_it(running, make_actions):
    """In particular, the probe does not bring back a deleted chunk."""
    store = FlakyStore()
    async with running(store) as pipeline:
        await send(pipeline, make_actions, "a")
        await pipeline.drain(10.0)
        (hit,) = await pipeline.search("?", 5)
        await store.delete([hit.id])
        store.failure = lambda chunks: (
            ValueError("bad metadata") if any("poison" in c.text for c in chunks) else None
        )
        await send(pipeline, make_actions, "poison", session="t")
        await pipeline.drain(10.0)
        assert pipeline.ledger.dead == 1
        assert await store.count() == 0


async def test_no_chunk_of_a_dead_payload_stays(running, make_actions, monkeypatch):
    monkeypatch.setattr(worker, "_JOURNAL_RETRY_SECONDS", 0.01)
    store = FlakyStore()
    store.failure = lambda chunks: (
        ValueError("bad metadata") if any("poison" in c.text for c in chunks) else None
    )
    down = iter([ConnectionError("down"), ConnectionError("down")])

    async def delete(ids):
        if failure := next(down, None):
            raise failure
        await MemoryStore.delete(store, ids)

    store.delete = delete
    async with running(store, max_batch_actions=2) as pipeline:
        await send(pipeline, make_actions, "before")
        await pipeline.drain(10.0)
        await pipeline.on_actions(make_actions("t", "a", "b", "poison", "d", "e", "f"))
        await pipeline.on_actions(make_actions("t", "after", at=2000.0))
        await pipeline.drain(10.0)
        assert (pipeline.ledger.stored, pipeline.ledger.dead) == (2, 1)
        assert await stored(pipeline) == Counter(["before", "after"])
        assert pipeline.health.state == "ok"


async def test_a_store_that_cannot_delete_holds_nobody_up(running, make_actions, caplog):
    store = FlakyStore()
    store.failure = lambda chunks: (
        ValueError("bad metadata") if any("poison" in c.text for c in chunks) else None
    )

    async def delete(ids):
        raise NotImplementedError("this store only grows")

    store.delete = delete
    async with running(store, max_batch_actions=2) as pipeline:
        await pipeline.on_actions(make_actions("t", "a", "b", "poison", "d"))
        await pipeline.drain(10.0)
        assert pipeline.ledger.dead == 1
        assert all(hit.text != PROBE for hit in await pipeline.search("?", 10))
        assert "stay in the store" in caplog.text


async def test_a_store_that_refuses_everything_is_reported(
    running, make_actions, eventually, caplog, tmp_path
):
    store = FlakyStore()
    store.failure = lambda chunks: AttributeError("no such method")
    async with running(store, journal=tmp_path / "j.db") as pipeline:
        await send(pipeline, make_actions, "a", "b")
        await eventually(lambda: pipeline.health.reasons)
        assert pipeline.health.reasons == ("store: AttributeError: no such method",)
        assert "the store rejects a payload and has accepted nothing since" in caplog.text
        assert pipeline.ledger.dead == 0
        status = JournalReader(tmp_path / "j.db").status
        await eventually(lambda: status().health == pipeline.health)
        store.failure = lambda chunks: None
        await pipeline.drain(10.0)
        assert pipeline.health.state == "ok"
        assert pipeline.ledger.stored == 2


async def test_a_backlog_of_large_payloads_is_stored_a_few_at_a_time(
    running, make_actions, monkeypatch, caplog
):
    monkeypatch.setattr(worker, "_PLAN_BYTES", 300_000)
    monkeypatch.setattr(worker, "_MOST_CHARACTERS", 300_000)
    most = 0
    names = [f"{n} " + "x" * 100_000 for n in range(12)]
    async with running(MemoryStore(), batch_window=60.0) as pipeline:
        await send(pipeline, make_actions, *names[:6])
        await asyncio.gather(*(send(pipeline, make_actions, n, session=n[:2]) for n in names[6:]))

        def watched(self, chunks, vectors, upsert=MemoryStore.upsert):
            nonlocal most
            most = max(most, pipeline._run._writer.characters)
            return upsert(self, chunks, vectors)

        monkeypatch.setattr(MemoryStore, "upsert", watched)
        await pipeline.drain(20.0)
        assert await stored(pipeline) == Counter(names)
        assert pipeline._run._writer.characters == 0
    assert 0 < most < 700_000
    assert not caplog.records


async def test_a_payload_that_cannot_be_planned_stays_pending_and_is_reported(
    running, make_actions, monkeypatch, eventually
):
    """For example, memory runs out: other payloads are planned, and planning is retried."""
    monkeypatch.setattr(worker, "_JOURNAL_RETRY_SECONDS", 0.01)
    decoded, short = planner.decoded, True

    def decode(body):
        if short and b"large" in body:
            raise MemoryError
        return decoded(body)

    monkeypatch.setattr(planner, "decoded", decode)
    async with running(MemoryStore()) as pipeline:
        await send(pipeline, make_actions, "large", session="s")
        await eventually(lambda: pipeline.health.reasons)
        assert "MemoryError" in str(pipeline.health)
        await send(pipeline, make_actions, "a", session="t")
        await eventually(lambda: pipeline.ledger.stored == 1)
        assert pipeline.ledger.pending == 1
        short = False
        await pipeline.drain(10.0)
        assert await stored(pipeline) == Counter(["large", "a"])
        assert pipeline.health.state == "ok"


async def test_a_pipeline_that_failed_says_so(running, make_actions, monkeypatch, tmp_path, caplog):
    """A bug in this package: payloads stay in the journal, and `status` shows the failure."""
    async with running(MemoryStore(), journal=tmp_path / "j.db") as pipeline:

        def broken(*_args):
            raise RuntimeError("a bug")

        monkeypatch.setattr(pipeline._run._worker, "_begin", broken)
        await send(pipeline, make_actions, "a")
        with pytest.raises(PipelineError, match="RuntimeError: a bug"):
            await pipeline.drain(10.0)
        assert pipeline.health.reasons == ("the pipeline failed: RuntimeError: a bug",)
        assert JournalReader(tmp_path / "j.db").status().health == pipeline.health
        assert pipeline.ledger.pending == 1
    assert "stores nothing more" in caplog.text
    async with running(MemoryStore(), journal=tmp_path / "j.db") as pipeline:
        await pipeline.drain(10.0)
        assert await stored(pipeline) == Counter(["a"])


async def test_a_chroma_worker_killed_in_the_middle_costs_nothing(
    running, embedder, make_actions, tmp_path, eventually
):
    store = ChromaStore(tmp_path / "chroma")
    async with running(store, embedder=embedder, drain_timeout=20.0) as pipeline:
        killed = []
        names = [f"n{i}" for i in range(400)]
        for name in names:
            await send(pipeline, make_actions, name, session=name)
            if pipeline.ledger.stored > 100 * (len(killed) + 1) and len(killed) < 2:
                killed.append(store._worker._process._popen.pid)
                os.kill(killed[-1], signal.SIGKILL)
            await asyncio.sleep(0.002)
        if not killed:
            killed.append(store._worker._process._popen.pid)
            os.kill(killed[-1], signal.SIGKILL)
        await pipeline.drain()
        assert pipeline.ledger.stored == 400
        assert await store.count() == 400
        assert store._worker._process._popen.pid not in killed
    again = ChromaStore(tmp_path / "chroma")
    await again.start(embedder.model)
    hits = await again.query(embedder.vector("x"), 400, Filter())
    await again.aclose()
    assert Counter(hit.text for hit in hits) == Counter(names)


# -- not an Exception ------------------------------------------------------------------------


class Panic(BaseException):
    """What an extension written in Rust raises."""


async def test_an_embedder_that_panics_is_an_outage(running, make_actions, embedder):
    panics = iter([Panic("lock poisoned")] * 3)

    def script(_texts):
        if panic := next(panics, None):
            raise panic

    embedder.script = script
    async with running(embedder=embedder) as pipeline:
        await send(pipeline, make_actions, "a")
        await pipeline.drain(10.0)
        assert await stored(pipeline) == Counter(["a"])


async def test_a_render_that_panics_costs_its_payload_alone(running, make_actions, titles):
    def render(payloads):
        if any("poison" in action.title for p in payloads for action in p.actions):
            raise Panic("bad text")
        return titles(payloads)

    async with running(render=render, batch_window=60.0) as pipeline:
        await send(pipeline, make_actions, "a", "poison", "b")
        await pipeline.drain(10.0)
        assert await stored(pipeline) == Counter(["a", "b"])
        (letter,) = await pipeline.dead_letters.list()
        assert letter.error == "render failed: Panic: bad text"


# -- the end ---------------------------------------------------------------------------------


async def test_a_cancelled_end_leaves_no_lock_behind(running, make_actions, embedder, tmp_path):
    """The embedder delays its cancellation, and the waiting caller is cancelled twice."""
    cleaning, cleaned = asyncio.Event(), asyncio.Event()

    async def embed(_texts):
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await cleaned.wait()

    embedder.script = embed
    options = {"embedder": embedder, "journal": tmp_path / "j.db"}
    pipeline = IngestPipeline(MemoryStore(), **options, batch_window=0.0, drain_timeout=30.0)
    await pipeline.start()
    await send(pipeline, make_actions, "a")
    await pipeline.on_actions(make_actions("s", "b"))
    await embedder.requested.wait()
    closing = asyncio.create_task(pipeline.aclose())
    await asyncio.sleep(0)
    closing.cancel()  # during the drain
    await cleaning.wait()
    closing.cancel()  # during the close
    with pytest.raises(asyncio.CancelledError):
        await closing
    cleaned.set()
    await pipeline.aclose()
    embedder.script = lambda texts: None
    async with running(**options) as again:
        await again.drain(10.0)
        assert again.ledger.stored == 2


async def test_an_embedder_that_cannot_be_cancelled_is_not_waited_for(
    running, make_actions, embedder, monkeypatch, caplog
):
    monkeypatch.setattr(running_pipelines, "_GRACE_SECONDS", 0.05)
    let_go = asyncio.Event()

    async def embed(_texts):
        while not let_go.is_set():
            with suppress(asyncio.CancelledError):
                await let_go.wait()

    embedder.script = embed
    async with running(embedder=embedder, drain_timeout=0.05) as pipeline:
        await send(pipeline, make_actions, "a")
        await embedder.requested.wait()
        task = pipeline._run._main.task
    assert "a request to the embedder or the store did not end within" in caplog.text
    let_go.set()
    await asyncio.wait([task])


async def test_ingest_gives_up_on_an_outage_that_lasts(  # noqa: PLR0917 - fixtures
    running, embedding_server, local_connector, make_payload, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(pipelines, "_LEAST_DRAIN_SECONDS", 0.1)
    embedding_server.answer = lambda body: error(503, "down", None)
    connector = local_connector([make_payload("Clicked", session_id=f"s{n}") for n in range(5)])
    async with running(journal=tmp_path / "j.db", drain_timeout=0.1) as pipeline:
        client = AsyncConnectorClient(connector.url)
        async with asyncio.timeout(20):
            ledger = await pipeline.ingest(client, idle_seconds=2.0)
        assert (ledger.received, ledger.pending) == (5, 5)
        assert "5 payloads are not stored" in caplog.text
        embedding_server.answer = lambda body: None
        await pipeline.drain(10.0)
        assert pipeline.ledger.stored == 5


async def test_a_request_without_an_answer_is_said(
    running, make_actions, embedder, monkeypatch, eventually
):
    monkeypatch.setattr(chunk_writer, "_SLOW_SECONDS", 0.05)
    gate = asyncio.Event()

    async def wait(_texts):
        await gate.wait()

    embedder.script = wait
    async with running(embedder=embedder) as pipeline:
        await send(pipeline, make_actions, "a")
        await eventually(lambda: pipeline.health.reasons)
        assert pipeline.health.reasons == ("embedder: a request has had no answer for 0 s",)
        embedder.script = lambda texts: None
        gate.set()
        await pipeline.drain(10.0)
        assert pipeline.health.state == "ok"


async def test_a_link_to_a_journal_is_that_journal(running, tmp_path):
    (tmp_path / "link.db").symlink_to(tmp_path / "j.db")
    async with running(journal=tmp_path / "j.db"):
        with pytest.raises(JournalLockedError):
            async with running(journal=tmp_path / "link.db"):
                pass


# -- the day's budget -------------------------------------------------------------------------


async def test_the_days_budget_pauses_embedding_and_nothing_else(  # noqa: PLR0917 - fixtures
    running, make_actions, tmp_path, monkeypatch, caplog, embedder, eventually
):
    embedder.count_tokens = len
    store = MemoryStore()
    options = {
        "embedder": embedder,
        "journal": tmp_path / "j.db",
        "max_embed_tokens_per_day": 100,
    }
    async with running(store, **options) as pipeline:
        await send(pipeline, make_actions, "a" * 80)
        await pipeline.drain()
        await send(pipeline, make_actions, "b" * 50)
        await eventually(lambda: pipeline.health.reasons)
        assert "max_embed_tokens_per_day=100 is used up" in str(pipeline.health)
        assert "max_embed_tokens_per_day" in caplog.text
        await send(pipeline, make_actions, "c" * 50)
        assert (pipeline.ledger.stored, pipeline.ledger.pending) == (1, 2)
    async with running(store, **options) as pipeline:  # a restart does not renew the budget
        await eventually(lambda: pipeline.health.reasons)
        assert pipeline.ledger.embed_requests == 0
        status = JournalReader(tmp_path / "j.db").status()
        assert status.ledger.pending == 2
    monkeypatch.setattr(embedding, "today", lambda: "2999-01-01")
    monkeypatch.setattr(embedding, "datetime", _Later)
    async with running(store, **options) as pipeline:
        await pipeline.drain(5.0)
        assert pipeline.ledger.stored == 3


class _Later(datetime):
    @classmethod
    def now(cls, tz=UTC):
        return datetime(2999, 1, 1, tzinfo=tz)


async def test_requests_at_once_do_not_spend_the_budget_several_times(
    running, make_actions, embedder, eventually
):
    embedder.count_tokens = len
    embedder.max_inputs = 1
    gate = asyncio.Event()

    async def wait(_texts):
        await gate.wait()

    embedder.script = wait
    options = {"max_embed_tokens_per_day": 100, "embed_concurrency": 4}
    async with running(embedder=embedder, **options) as pipeline:
        for i in range(8):
            await send(pipeline, make_actions, f"{i:050}", session=f"s{i}")
        await eventually(lambda: len(embedder.requests) == 2 and pipeline.health.reasons)
        embedder.script = lambda texts: None
        gate.set()
        await eventually(lambda: pipeline.ledger.stored == 2)
        assert pipeline.ledger.embed_tokens == 100
        assert len(embedder.requests) == 2


async def test_a_service_that_counts_no_tokens_is_taken_at_the_estimate(
    running, make_actions, embedder, eventually
):
    embedder.count_tokens = len
    embedder.tokens_used = 0
    async with running(embedder=embedder, max_embed_tokens_per_day=100) as pipeline:
        await send(pipeline, make_actions, "a" * 80)
        await pipeline.drain(10.0)
        await send(pipeline, make_actions, "b" * 50)
        await eventually(lambda: pipeline.health.reasons)
        assert pipeline.ledger.embed_tokens == 80


async def test_no_request_is_larger_than_the_days_budget(running, make_actions, embedder):
    embedder.count_tokens = len
    async with running(embedder=embedder, max_embed_tokens_per_day=100) as pipeline:
        async with asyncio.TaskGroup() as group:
            for i in range(20):
                group.create_task(send(pipeline, make_actions, f"{i:030}", session=f"s{i}"))
        await embedder.requested.wait()
        assert max(sum(map(len, request)) for request in embedder.requests) <= 100


# -- the journal's disk -----------------------------------------------------------------------


async def test_a_full_disk_loses_only_what_came_meanwhile_and_says_so(
    running, make_actions, tmp_path, caplog, eventually
):
    async with running(journal=tmp_path / "j.db", drain_timeout=5.0) as pipeline:

        async def limit(pages=None):
            journal = pipeline._run._journal

            def change():
                file = journal._tables.file
                most = pages or file.scalar("PRAGMA page_count")
                file.connection.execute(f"PRAGMA max_page_count = {most}")

            await journal._writer.run(change)

        await send(pipeline, make_actions, "before")
        await limit()
        lost = [random.Random(i).randbytes(50_000).hex() for i in range(5)]
        await send(pipeline, make_actions, *lost)
        assert pipeline.ledger.overflow == 5
        assert pipeline.ledger.balanced
        assert caplog.text.count("being LOST") == 1
        assert await pipeline.dead_letters.list() == []  # the journal can still be read
        await limit(1_000_000)
        await send(pipeline, make_actions, *lost[:2])
        await pipeline.drain()
        assert (pipeline.ledger.stored, pipeline.ledger.overflow) == (3, 5)
    assert JournalReader(tmp_path / "j.db").status().ledger.overflow == 5


# -- deletes ----------------------------------------------------------------------------------


class ForbiddenError(Exception):
    """What clients of vector databases raise."""

    status_code = 403


def upserts_only(error):
    """Make a store that refuses poison and every deletion."""
    store = FlakyStore()
    store.failure = lambda chunks: (
        ValueError("bad metadata") if any("poison" in c.text for c in chunks) else None
    )

    async def delete(ids):
        raise error

    store.delete = delete
    return store


@pytest.mark.parametrize(
    "error",
    [
        StoreRejectedError("upserts only"),
        NotImplementedError("upserts only"),
        ValueError("upserts only"),
        PermissionError("upserts only"),
        ForbiddenError("upserts only"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_store_that_refuses_deletes_stops_no_acknowledgement(
    running, make_actions, tmp_path, error
):
    store, journal = upserts_only(error), tmp_path / "j.db"
    names = [f"n{n}" for n in range(20)]
    async with running(store, journal=journal, max_batch_actions=2) as pipeline:
        await send(pipeline, make_actions, "before")
        await pipeline.drain(10.0)
        await pipeline.on_actions(make_actions("t", "a", "b", "poison", "d", "e", "f"))
        for name in names:
            await send(pipeline, make_actions, name, session=name)
        await pipeline.drain(10.0)  # also: the probe does not block it
        ledger = pipeline.ledger
        assert (ledger.stored, ledger.dead, ledger.pending) == (21, 1, 0)
        assert (await stored(pipeline)).keys() >= {"before", *names}
        assert "cannot be deleted from the store" in str(pipeline.health)
        assert "upserts only" in str(pipeline.health)
        await send(pipeline, make_actions, "after")
        await pipeline.drain(10.0)
        assert pipeline.ledger.stored == 22
    del store.delete
    async with running(store, journal=journal) as pipeline:  # the outbox persists
        await pipeline.drain(10.0)
        assert await stored(pipeline) == Counter(["before", *names, "after"])
        assert pipeline.health.state == "ok"


async def test_deletes_in_an_outage_that_lasts_stop_nothing_else(
    running, make_actions, tmp_path, monkeypatch, eventually
):
    """Their number does not matter: they do not count as chunks in progress."""
    monkeypatch.setattr(worker, "_MOST_CHUNKS", 4)
    store, journal = upserts_only(ConnectionError("down")), tmp_path / "j.db"
    names = [f"n{n}" for n in range(20)]
    async with running(store, journal=journal, max_batch_actions=1) as pipeline:
        await send(pipeline, make_actions, "before")
        await pipeline.drain(10.0)
        await pipeline.on_actions(make_actions("t", *"abcdef", "poison", *"ghijkl"))
        await eventually(lambda: pipeline.ledger.dead)
        for name in names:
            await send(pipeline, make_actions, name, session=name)
        await eventually(lambda: pipeline.ledger.stored == 21)
        assert "store: deletes: ConnectionError: down" in pipeline.health.reasons
        with pytest.raises(DrainTimeoutError, match=r"^deletions.*are not done.*down"):
            await pipeline.drain(0.05)
    del store.delete
    async with running(store, journal=journal) as pipeline:
        await pipeline.drain(10.0)
        assert await stored(pipeline) == Counter(["before", *names])


async def test_a_retried_payload_stays_though_its_deletion_was_refused_before(
    running, make_actions, monkeypatch
):
    monkeypatch.setattr(upkeep, "_FIRST_REPEAT_SECONDS", 0.01)
    monkeypatch.setattr(upkeep, "_LONGEST_REPEAT_SECONDS", 0.02)
    store = upserts_only(ValueError("upserts only"))
    async with running(store, max_batch_actions=2) as pipeline:
        await send(pipeline, make_actions, "before")
        await pipeline.on_actions(make_actions("t", "a", "b", "poison", "d"))
        await pipeline.drain(10.0)
        assert pipeline.ledger.dead == 1
        store.failure = lambda chunks: None
        del store.delete
        assert await pipeline.dead_letters.retry() == 1
        await pipeline.drain(10.0)
        await asyncio.sleep(0.1)  # enough time for a repeated deletion
        assert await stored(pipeline) == Counter(["before", "a", "b", "poison", "d"])
        assert pipeline.health.state == "ok"
