"""Operations on chunks reach the store in order, whatever embedder and store do."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplay_rag.content.chunks import Chunk
from autoplay_rag.content.probe import PROBE, PROBE_ID
from autoplay_rag.errors import ConfigurationError, MissingCapabilityError, StoreRejectedError
from autoplay_rag.ingest import chunk_writer as writers
from autoplay_rag.ingest import retries
from autoplay_rag.ingest.chunk_writer import ChunkWriter, Delete, UpdateMetadata, Upsert
from autoplay_rag.ingest.embedding import Embedding, TokenBudget
from autoplay_rag.ingest.retries import Pause, RequestLimits
from autoplay_rag.stores.base import TextStore, VectorStore

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Make the waits a hundred times shorter."""
    quicken(monkeypatch)


def quicken(monkeypatch):
    monkeypatch.setattr(retries, "_LONE_RETRY_SECONDS", 0.002)
    monkeypatch.setattr(retries, "_LONGEST_LONE_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(retries, "Pause", lambda: Pause(0.005, 0.05))


class PanicError(BaseException):
    """Not an `Exception`, like a panic of an extension written in Rust."""


class RateLimitError(Exception):
    status_code = 429
    retry_after = 0.15


class ForbiddenError(Exception):
    """What a client without the right to delete gets."""

    status_code = 403


class _Scripted:
    """Keeps what it receives. `fail` is called before each call, with its kind and its ids."""

    def __init__(self, max_batch=100):
        self.max_batch = max_batch
        self.rows = {}
        self.calls = []
        self.fail = lambda kind, ids: None
        self.fail_after = lambda kind, ids: None
        self.at_once = 0

    async def call(self, kind, ids, do=lambda: None):
        assert self.at_once == 0, "the store got two calls at a time"
        self.calls.append((kind, list(ids)))
        assert len(ids) <= self.max_batch
        self.at_once += 1
        try:
            await asyncio.sleep(0)
            await _raise(self.fail(kind, ids))
            do()
            await _raise(self.fail_after(kind, ids))
        finally:
            self.at_once -= 1

    def made(self, kind):
        return [ids for made, ids in self.calls if made == kind]

    async def delete(self, ids):
        await self.call("delete", ids, lambda: [self.rows.pop(key, None) for key in ids])

    async def update_metadata(self, changes):
        await self.call("update", list(changes), lambda: self._change(changes))

    def _change(self, changes):
        for key, new in changes.items():
            if key in self.rows:
                text, metadata = self.rows[key]
                merged = {**metadata, **new}
                self.rows[key] = (text, {k: v for k, v in merged.items() if v is not None})


class FakeVectors(_Scripted, VectorStore):
    def __init__(self, max_batch=100):
        super().__init__(max_batch)
        self.vectors = {}

    async def upsert(self, chunks, vectors):
        def do():
            self.rows.update({chunk.id: (chunk.text, dict(chunk.metadata)) for chunk in chunks})
            self.vectors.update(zip((chunk.id for chunk in chunks), vectors, strict=True))

        await self.call("upsert", [chunk.id for chunk in chunks], do)

    async def query(self, vector, k, filter):
        raise NotImplementedError


class FakeTexts(_Scripted, TextStore):
    async def add(self, chunks):
        rows = {chunk.id: (chunk.text, dict(chunk.metadata)) for chunk in chunks}
        await self.call("add", list(rows), lambda: self.rows.update(rows))

    async def search(self, text, k, filter):
        await self.call("search", [text])
        return []


class UpsertOnly(FakeVectors):
    """Declares no capabilities; their methods must not be called."""

    capabilities = frozenset()


async def _raise(failure):
    if asyncio.iscoroutine(failure):
        failure = await failure
    if failure:
        raise failure


class Owner:
    """A writer, and the result of each operation put into it."""

    def __init__(self, embedder, store=None, **options):
        self.store = store if store is not None else FakeVectors()
        self.embedder = embedder
        given = {
            "embed_concurrency": 2,
            "limits": RequestLimits(8, 10_000),
            "max_attempts": 3,
            **options,
        }
        embedding = Embedding(embedder, TokenBudget(None, 0, _save), 0)
        if isinstance(self.store, TextStore):
            embedding = given["limits"] = None
        self.writer = ChunkWriter(self.store, embedding, **given)
        self.ended = []
        self.changed = asyncio.Event()

    def put(self, *operations):
        self.writer.put(operations, self.note)

    def note(self, operation, error):
        self.ended.append((operation, error))
        self.changed.set()

    @property
    def errors(self):
        return {id_of(operation): error for operation, error in self.ended}

    async def until(self, count):
        async with asyncio.timeout(20):
            while len(self.ended) < count:
                self.changed.clear()
                await self.changed.wait()

    @asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.writer.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()


async def _save(day, tokens):
    pass


async def wait_for(event):
    await event.wait()


def id_of(operation):
    return operation.chunk.id if isinstance(operation, Upsert) else operation.id


def upsert(id, text=None, divide=None, **metadata):
    return Upsert(Chunk(id, text or f"text of {id}", metadata), 10, divide)


@pytest.fixture
def make_owner(embedder):
    return lambda store=None, **options: Owner(embedder, store, **options)


def refusing(*names, kind=None, error=ValueError):
    """Refuse calls with one of these ids."""
    return lambda called, ids: (
        error("poison") if set(names) & set(ids) and kind in (None, called) else None
    )


# -- order and requests -----------------------------------------------------------------------


async def test_chunks_are_embedded_and_stored(make_owner, embedder):
    owner = make_owner()
    owner.put(upsert("a", user_id="u1"), upsert("b"))
    assert (owner.writer.operations, owner.writer.characters) == (2, 18)
    async with owner.running():
        await owner.until(2)
    assert owner.errors == {"a": None, "b": None}
    assert owner.store.rows == {"a": ("text of a", {"user_id": "u1"}), "b": ("text of b", {})}
    assert owner.store.vectors["a"] == embedder.vector("text of a")
    assert embedder.requests == [["text of a", "text of b"]]
    assert owner.store.calls == [("upsert", ["a", "b"])]
    writer = owner.writer
    assert (writer.operations, writer.characters, writer.chunks, writer.retries) == (0, 0, 2, 0)
    assert writer.problems == []


async def test_a_text_store_gets_texts(make_owner, embedder):
    owner = make_owner(FakeTexts())
    owner.put(upsert("a"), UpdateMetadata("a", {"kind": "chat"}), upsert("b"), Delete("b"))
    async with owner.running():
        await owner.until(4)
    assert owner.store.rows == {"a": ("text of a", {"kind": "chat"})}
    assert embedder.requests == []
    assert owner.writer.chunks == 2


async def test_operations_of_one_id_keep_their_order_and_others_do_not_wait(make_owner):
    owner = make_owner()
    owner.put(
        upsert("a", "one", n=1),
        UpdateMetadata("a", {"n": 2, "m": 3}),
        Delete("a"),
        UpdateMetadata("a", {"n": 4}),
        upsert("a", "two", n=5),
        UpdateMetadata("a", {"n": None}),
        upsert("b"),
    )
    async with owner.running():
        await owner.until(7)
    assert [kind for kind, ids in owner.store.calls if "a" in ids] == [
        "upsert",
        "update",
        "delete",
        "update",
        "upsert",
        "update",
    ]
    assert owner.store.rows == {"a": ("two", {}), "b": ("text of b", {})}
    assert ("upsert", ["a", "b"]) in owner.store.calls


async def test_a_chunk_that_is_not_embedded_yet_holds_up_only_its_own_id(make_owner, embedder):
    release = asyncio.Event()
    embedder.script = lambda texts: wait_for(release) if "slow" in texts else None
    owner = make_owner(limits=RequestLimits(1, 100))
    owner.put(upsert("a", "slow"), Delete("a"), upsert("b"), Delete("c"))
    async with owner.running():
        await owner.until(2)
        assert owner.errors == {"b": None, "c": None}
        release.set()
        await owner.until(4)
    assert list(owner.store.rows) == ["b"]
    assert [id_of(operation) for operation, _ in owner.ended[2:]] == ["a", "a"]


async def test_requests_hold_as_much_as_they_may(make_owner, embedder):
    owner = make_owner(FakeVectors(max_batch=5), limits=RequestLimits(4, 35), embed_concurrency=1)
    owner.put(*[upsert(f"u{n}") for n in range(7)], *[Delete(f"d{n}") for n in range(7)])
    async with owner.running():
        await owner.until(14)
    assert [len(texts) for texts in embedder.requests] == [3, 3, 1]  # 10 tokens each
    assert [len(ids) for ids in owner.store.made("delete")] == [5, 2]


async def test_the_embedder_is_asked_by_several_at_once(make_owner, embedder):
    all_there = asyncio.Event()

    async def meet():
        if len(embedder.requests) == 3:
            all_there.set()
        await all_there.wait()

    embedder.script = lambda texts: meet()
    owner = make_owner(embed_concurrency=3, limits=RequestLimits(1, 100))
    owner.put(*[upsert(f"u{n}") for n in range(3)])
    async with owner.running():
        await owner.until(3)


async def test_all_kinds_of_operations_get_their_turn(make_owner):
    owner = make_owner(FakeTexts(max_batch=1))
    owner.put(*[upsert(f"u{n}") for n in range(9)])
    owner.put(Delete("d1"), Delete("d2"), UpdateMetadata("m1", {}), UpdateMetadata("m2", {}))
    async with owner.running():
        await owner.until(13)
    kinds = [kind for kind, _ in owner.store.calls]
    assert sorted(kinds[:6]) == ["add", "add", "delete", "delete", "update", "update"]


async def test_operations_may_be_put_by_what_is_called_when_one_ends(make_owner):
    owner = make_owner()
    rest = [UpdateMetadata("a", {"n": 1}), Delete("b"), upsert("a", "again")]

    def ended(operation, error):
        owner.note(operation, error)
        if rest:
            owner.writer.put([rest.pop(0)], ended)

    owner.writer.put([upsert("a"), upsert("b")], ended)
    async with owner.running():
        await owner.until(5)
    assert owner.store.rows == {"a": ("again", {})}
    assert owner.writer.operations == 0


# -- refusals ---------------------------------------------------------------------------------


async def test_a_chunk_that_the_store_refuses_is_given_up_alone(make_owner):
    owner = make_owner()
    owner.store.fail = refusing("c")
    owner.put(*map(upsert, "abcd"))
    async with owner.running():
        await owner.until(4)
    assert owner.errors == {"a": None, "b": None, "c": "store: ValueError: poison", "d": None}
    assert owner.store.made("upsert").count(["c"]) == 3
    assert sorted(owner.store.rows) == ["a", "b", "d"]  # the probe was deleted
    assert [PROBE_ID] in owner.store.made("delete")
    assert owner.writer.chunks == 3
    assert owner.writer.retries == 5  # with its neighbours, with one of them, and alone
    assert len(owner.store.made("upsert")) == 5 + 2 + 1  # two successes and one probe
    assert owner.writer.problems == []


async def test_a_chunk_that_the_embedder_refuses_is_given_up_alone(make_owner, embedder):
    owner = make_owner()

    def script(texts):
        if "text of c" in texts:
            raise ValueError("too odd")

    embedder.script = script
    owner.put(*map(upsert, "abcd"), Delete("c"))
    async with owner.running():
        await owner.until(5)
    assert ("c", "embedder: ValueError: too odd") in [(id_of(op), e) for op, e in owner.ended]
    assert owner.ended[-1][0].id == "c"  # the delete ran after it
    assert owner.ended[-1][1] is None
    assert [PROBE] in embedder.requests
    assert owner.store.made("upsert").count(["c"]) == 0


async def test_while_a_text_store_refuses_texts_a_search_is_the_probe(make_owner):
    owner = make_owner(FakeTexts())
    owner.store.fail = refusing("a")
    owner.put(upsert("a"))
    async with owner.running():
        await owner.until(1)
    assert owner.errors == {"a": "store: ValueError: poison"}
    assert owner.store.made("search") == [[PROBE]] * 2
    assert owner.store.rows == {}


async def test_a_store_that_refuses_everything_costs_no_chunk(make_owner, eventually):
    owner = make_owner()
    broken = False
    owner.store.fail = lambda kind, ids: ValueError("bad schema") if broken else None
    owner.put(upsert("a"))
    async with owner.running():
        await owner.until(1)
        broken = True
        owner.put(upsert("b"), upsert("c"))
        await eventually(lambda: owner.store.made("upsert").count([PROBE_ID]) >= 5)
        assert len(owner.ended) == 1
        assert owner.writer.problems == ["store: ValueError: bad schema"]
        broken = False
        await owner.until(3)
    assert set(owner.errors.values()) == {None}


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        NotImplementedError("no"),
        StoreRejectedError("no"),
        MissingCapabilityError("Store", "delete"),
        ForbiddenError("upsert only"),
        PanicError("unwrap on None"),
    ],
    ids=repr,
)
async def test_a_store_that_does_not_delete_does_not_fail_the_probe(make_owner, error):
    owner = make_owner()
    refused = refusing("c", kind="upsert")
    owner.store.fail = lambda kind, ids: error if kind == "delete" else refused(kind, ids)
    owner.put(*map(upsert, "abc"))
    async with owner.running():
        await owner.until(3)
        assert owner.errors == {"a": None, "b": None, "c": "store: ValueError: poison"}
        owner.put(upsert("d"))
        await owner.until(4)
        assert owner.writer.operations == 0  # the probe does not count


async def test_a_refused_delete_of_the_probe_is_not_repeated(make_owner):
    owner = make_owner()
    owner.store.fail = lambda kind, ids: (
        ValueError("no") if kind == "delete" else refusing("c")(kind, ids)
    )
    owner.put(*map(upsert, "abc"))
    async with owner.running():
        await owner.until(3)
        owner.put(upsert("d"), UpdateMetadata("a", {}))  # every kind of operation runs
        await owner.until(5)
    probes = owner.store.made("upsert").count([PROBE_ID])
    assert probes >= 1
    assert owner.store.made("delete") == [[PROBE_ID]] * probes


async def test_a_store_without_deletes_is_not_asked_to_delete_the_probe(make_owner):
    owner = make_owner(UpsertOnly())
    owner.store.fail = refusing("c")
    owner.put(*map(upsert, "abc"))
    async with owner.running():
        await owner.until(3)
    assert owner.errors["c"] == "store: ValueError: poison"
    assert {kind for kind, _ in owner.store.calls} == {"upsert"}


async def test_the_probe_is_deleted_once_an_outage_of_deletes_is_over(make_owner, eventually):
    owner = make_owner()
    out = True
    refused = refusing("c", kind="upsert")
    owner.store.fail = lambda kind, ids: (
        ConnectionError() if kind == "delete" and out else refused(kind, ids)
    )
    owner.put(*map(upsert, "abc"))
    async with owner.running():
        await owner.until(3)
        assert PROBE_ID in owner.store.rows
        out = False
        await eventually(lambda: PROBE_ID not in owner.store.rows)
        assert sorted(owner.store.rows) == ["a", "b"]
        await eventually(lambda: owner.writer.problems == [])


async def test_a_probe_brings_nothing_back(make_owner, embedder):
    owner = make_owner()
    owner.put(upsert("a"))
    async with owner.running():
        await owner.until(1)
        owner.put(Delete("a"))
        await owner.until(2)
        owner.store.vectors.clear()
        owner.store.fail = refusing("c", kind="upsert")
        owner.put(upsert("c"))
        await owner.until(3)
    assert owner.store.rows == {}
    assert list(owner.store.vectors) == [PROBE_ID]
    assert len(owner.store.vectors[PROBE_ID]) == embedder.dimension
    assert owner.store.vectors[PROBE_ID] != embedder.vector("text of a")


def update(chunk_id):
    return UpdateMetadata(chunk_id, {"n": 1})


@pytest.mark.parametrize(("kind", "make"), [("delete", Delete), ("update", update)])
async def test_a_refused_delete_or_update_is_ended_once_it_stood_alone(make_owner, kind, make):
    owner = make_owner()
    owner.store.fail = refusing("b", kind=kind)
    owner.put(*map(make, "abcd"), upsert("b"), upsert("e"))
    async with owner.running():
        await owner.until(6)
    assert [(id_of(op), error) for op, error in owner.ended if error] == [
        ("b", "store: ValueError: poison")
    ]
    assert owner.store.made(kind).count(["b"]) == 1
    assert sorted(owner.store.rows) == ["b", "e"]
    assert owner.store.made("upsert") == [["e"], ["b"]]  # b waited for the operation before it
    assert owner.writer.problems == []


@pytest.mark.parametrize("store", [UpsertOnly, FakeTexts])
async def test_what_the_store_cannot_do_ends_at_once(make_owner, store, monkeypatch):
    monkeypatch.setattr(store, "capabilities", frozenset(), raising=False)
    owner = make_owner(store())
    owner.put(Delete("a"), Delete("b"), UpdateMetadata("c", {"n": 1}), upsert("a"))
    async with owner.running():
        await owner.until(4)
    name = store.__name__
    assert sorted((id_of(op), error) for op, error in owner.ended if error) == [
        ("a", f"store: MissingCapabilityError: {name} has no 'delete'"),
        ("b", f"store: MissingCapabilityError: {name} has no 'delete'"),
        ("c", f"store: MissingCapabilityError: {name} has no 'update_metadata'"),
    ]
    assert [ids for _, ids in owner.store.calls] == [["a"]]
    assert owner.writer.problems == []


async def test_a_chunk_that_its_owner_takes_back_gives_up_its_place(make_owner):
    owner = make_owner()
    refused = refusing("whole")
    owner.store.fail = lambda kind, ids: refused(kind, ids) if kind == "upsert" and whole else None
    whole = True

    def divide():
        nonlocal whole
        whole = False
        owner.put(upsert("whole", "first part"), upsert("part 2"))
        return True

    owner.put(upsert("whole", divide=divide), UpdateMetadata("whole", {"n": 1}), upsert("other"))
    async with owner.running():
        await owner.until(4)
    # The update ran before the parts and found nothing.
    assert owner.store.rows == {
        "whole": ("first part", {}),
        "part 2": ("text of part 2", {}),
        "other": ("text of other", {}),
    }
    assert [op for op, _ in owner.ended if isinstance(op, Upsert) and op.divide] == []
    assert (owner.writer.operations, owner.writer.characters) == (0, 0)


async def test_a_chunk_that_its_owner_does_not_take_back_is_given_up(make_owner, embedder):
    asked = []

    def script(texts):
        if "text of a" in texts:
            raise ValueError("no")

    embedder.script = script
    owner = make_owner()
    owner.put(upsert("a", divide=lambda: bool(asked.append("a"))), upsert("b"))
    async with owner.running():
        await owner.until(2)
    assert owner.errors == {"a": "embedder: ValueError: no", "b": None}
    assert asked == ["a"] * 3


# -- outages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["upsert", "update", "delete"])
async def test_an_outage_of_one_kind_lasts_and_stops_no_other(make_owner, eventually, kind):
    owner = make_owner(max_attempts=1)
    out = True
    owner.store.fail = lambda called, ids: (
        ConnectionError("not now") if called == kind and out else None
    )
    operations = {
        "upsert": upsert("a"),
        "update": UpdateMetadata("b", {}),
        "delete": Delete("c"),
    }
    owner.put(*operations.values())
    async with owner.running():
        await owner.until(2)
        await eventually(lambda: len(owner.store.made(kind)) >= 5)
        assert operations[kind] not in [operation for operation, _ in owner.ended]
        label = {"upsert": "", "update": "updates of metadata: ", "delete": "deletes: "}[kind]
        assert owner.writer.problems == [f"store: {label}ConnectionError: not now"]
        out = False
        await owner.until(3)
        assert owner.writer.problems == []
    assert owner.ended[-1] == (operations[kind], None)
    assert owner.writer.retries == len(owner.store.made(kind)) - 1


async def test_an_outage_of_the_embedder_stops_no_delete(make_owner, embedder, eventually):
    out = True

    def script(texts):
        if out:
            raise ConnectionError("down")

    embedder.script = script
    owner = make_owner()
    owner.put(upsert("a"), upsert("b"), Delete("c"))
    async with owner.running():
        await owner.until(1)
        await eventually(lambda: len(embedder.requests) >= 5)
        assert owner.writer.problems == ["embedder: ConnectionError: down"]
        out = False
        await owner.until(3)
        assert owner.writer.problems == []
    assert set(owner.errors.values()) == {None}


async def test_a_rate_limit_pauses_all_kinds_of_requests_to_the_store(make_owner):
    owner = make_owner(FakeTexts())
    limits = iter([RateLimitError()])
    times = []

    def fail(kind, ids):
        times.append(time.monotonic())
        return next(limits, None)

    owner.store.fail = fail
    owner.put(upsert("a"), Delete("b"), UpdateMetadata("c", {}))
    async with owner.running():
        await owner.until(3)
    assert len(times) == 4
    assert times[1] - times[0] >= 0.14


@pytest.mark.parametrize(
    "error", [PanicError("unwrap on None"), asyncio.CancelledError("of something inside")]
)
async def test_errors_that_are_no_exceptions_are_outages(make_owner, embedder, error):
    embed_failures, store_failures = iter([error]), iter([error, error, error])

    def script(texts):
        if failure := next(embed_failures, None):
            raise failure

    embedder.script = script
    owner = make_owner()
    owner.store.fail = lambda kind, ids: next(store_failures, None)
    owner.put(upsert("a"), UpdateMetadata("b", {}), Delete("c"))
    async with owner.running():
        await owner.until(3)
    assert set(owner.errors.values()) == {None}
    assert owner.writer.retries == 4


class Clock:
    """Replaces the module `time`; it stands still until a test advances it."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(writers, "time", clock)
    return clock


async def test_a_request_without_an_answer_is_a_problem_seen_from_any_thread(
    make_owner, clock, eventually
):
    release = asyncio.Event()
    owner = make_owner()
    owner.store.fail = lambda kind, ids: wait_for(release)
    owner.put(upsert("a"), Delete("b"), Delete("c"))
    async with owner.running():
        await eventually(lambda: owner.store.at_once and not owner.writer.chunks)
        clock.now += 60.0
        assert await asyncio.to_thread(lambda: owner.writer.problems) == []
        clock.now += 1.0
        assert await asyncio.to_thread(lambda: owner.writer.problems) == [
            "store: a request has had no answer for 61 s"
        ]
        release.set()
        await owner.until(3)
        assert owner.writer.problems == []


async def test_an_embedder_without_an_answer_is_a_problem(make_owner, embedder, clock):
    release = asyncio.Event()
    embedder.script = lambda texts: wait_for(release)
    owner = make_owner(limits=RequestLimits(1, 10))
    owner.put(upsert("a"))
    async with owner.running():
        await embedder.requested.wait()
        clock.now += 70.0
        assert owner.writer.problems == ["embedder: a request has had no answer for 70 s"]
        release.set()
        await owner.until(1)
        assert owner.writer.problems == []


async def test_waiting_for_a_turn_is_not_waiting_for_an_answer(make_owner, clock, eventually):
    release = {"add": asyncio.Event(), "delete": asyncio.Event()}
    owner = make_owner(FakeTexts())
    owner.store.fail = lambda kind, ids: wait_for(release[kind])
    owner.put(upsert("a"), Delete("b"))
    async with owner.running():
        await eventually(lambda: owner.store.made("add"))
        clock.now += 90.0
        release["add"].set()
        await owner.until(1)
        await eventually(lambda: owner.store.made("delete"))
        assert owner.writer.problems == []  # the delete spent 90 s waiting for the add
        clock.now += 30.0
        assert owner.writer.problems == []
        release["delete"].set()
        await owner.until(2)


class Together:
    """Requests that end only when `count` of them are in flight."""

    def __init__(self, count):
        self.count = count
        self.all_there = asyncio.Event()

    async def meet(self):
        self.count -= 1
        if not self.count:
            self.all_there.set()
        await self.all_there.wait()


async def test_after_an_outage_all_workers_go_on(make_owner, embedder):
    together = Together(3)

    def script(texts):
        if len(embedder.requests) == 1:
            raise ConnectionError("down")
        return together.meet() if len(embedder.requests) > 2 else None

    embedder.script = script
    owner = make_owner(embed_concurrency=3, limits=RequestLimits(1, 100))
    async with owner.running():
        owner.put(upsert("a"))
        await embedder.requested.wait()
        owner.put(*map(upsert, "bcd"))
        await owner.until(4)


async def test_the_halves_of_a_request_go_to_several_workers(make_owner, embedder):
    together = Together(2)

    def script(texts):
        if len(texts) == 2:
            raise ValueError("too long")
        return together.meet()

    embedder.script = script
    owner = make_owner()
    async with owner.running():
        owner.put(*map(upsert, "ab"))
        await owner.until(2)


async def test_after_a_probe_all_workers_go_on(make_owner, embedder):
    probes = iter([ConnectionError("down")])
    together = Together(2)

    def script(texts):
        if texts == [PROBE]:
            if error := next(probes, None):
                raise error
            return None
        if len(embedder.requests) <= 2:
            raise ValueError("no")
        return together.meet()

    embedder.script = script
    owner = make_owner(limits=RequestLimits(1, 100))
    owner.put(*map(upsert, "ab"))
    async with owner.running():
        await owner.until(2)
    assert owner.errors == {"a": None, "b": None}
    assert embedder.requests.count([PROBE]) == 2


# -- the end ----------------------------------------------------------------------------------


async def test_cancelling_ends_it_at_any_point_and_drops_everything(make_owner, embedder):
    def out():
        raise ConnectionError

    for script, fail in (
        (lambda texts: wait_for(asyncio.Event()), lambda kind, ids: None),
        (lambda texts: out(), lambda kind, ids: None),
        (lambda texts: None, lambda kind, ids: wait_for(asyncio.Event())),
        (lambda texts: None, lambda kind, ids: ConnectionError()),
        (lambda texts: None, lambda kind, ids: ValueError()),
    ):
        embedder.script = script
        owner = make_owner()
        owner.store.fail = fail
        owner.put(upsert("a"), upsert("a"), upsert("b"), Delete("b"))
        async with owner.running():
            for _ in range(20):
                await asyncio.sleep(0)
        writer = owner.writer
        assert (writer.operations, writer.characters, writer.problems) == (0, 0, [])
        assert owner.ended == []


async def test_after_a_cancelled_run_no_operation_is_kept(make_owner, embedder):
    class Callback:
        def __call__(self, operation, error):
            raise AssertionError("dropped operations do not end")

    callback = Callback()
    kept = weakref.ref(callback)
    embedder.script = lambda texts: wait_for(asyncio.Event())
    owner = make_owner(limits=RequestLimits(1, 10))
    owner.writer.put([upsert("a"), upsert("a"), upsert("b"), upsert("c"), Delete("b")], callback)
    del callback
    async with owner.running():
        await embedder.requested.wait()
    await asyncio.sleep(0)
    gc.collect()
    assert kept() is None


async def test_it_can_run_again(make_owner, embedder):
    owner = make_owner()
    owner.put(upsert("a"))
    async with owner.running():
        await owner.until(1)
    owner.put(upsert("b"))
    async with owner.running():
        await owner.until(2)
    assert sorted(owner.store.rows) == ["a", "b"]


def test_it_can_run_again_in_another_loop(scripted_embedder):
    owner = Owner(scripted_embedder())

    async def run(chunk_id):
        owner.changed = asyncio.Event()
        async with owner.running():
            await asyncio.sleep(0)  # let it wait
            owner.put(upsert(chunk_id))
            await owner.until(len(owner.ended) + 1)

    asyncio.run(run("a"))
    asyncio.run(run("b"))
    assert sorted(owner.store.rows) == ["a", "b"]


async def test_its_own_cancellation_is_not_an_outage(make_owner, embedder, caplog):
    embedder.script = lambda texts: wait_for(asyncio.Event())
    owner = make_owner()
    owner.put(upsert("a"))
    async with owner.running():
        await embedder.requested.wait()
    assert owner.writer.retries == 0
    assert caplog.messages == []


async def test_a_request_that_swallows_its_cancellation_does_not_go_on(make_owner, embedder):
    async def swallow():
        with suppress(asyncio.CancelledError):
            await wait_for(asyncio.Event())

    embedder.script = lambda texts: swallow()
    owner = make_owner(embed_concurrency=1, limits=RequestLimits(1, 100))
    owner.put(upsert("a"), upsert("b"))
    async with owner.running():
        await embedder.requested.wait()
        await asyncio.sleep(0)
    assert embedder.requests == [["text of a"]]


async def test_what_a_callback_raises_ends_the_run(make_owner):
    def ended(operation, error):
        raise RuntimeError("the owner's mistake")

    owner = make_owner()
    owner.writer.put([upsert("a")], ended)
    with pytest.raises(ExceptionGroup) as caught:
        await owner.writer.run()
    assert caught.group_contains(RuntimeError, match="the owner's mistake")
    assert owner.writer.operations == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_concurrency": 0}, "embed_concurrency must be at least 1, not 0"),
        ({"max_attempts": 1.5}, "max_attempts must be a whole number"),
        ({"limits": None}, "a VectorStore needs embedding and limits"),
    ],
)
def test_settings_that_cannot_work_are_refused(scripted_embedder, options, message):
    given = {
        "embed_concurrency": 1,
        "limits": RequestLimits(1, 1),
        "max_attempts": 1,
        **options,
    }
    embedding = Embedding(scripted_embedder.__new__(scripted_embedder), None, 0)
    with pytest.raises(ConfigurationError, match=message):
        ChunkWriter(FakeVectors(), embedding, **given)


@pytest.mark.parametrize("store", [FakeVectors, FakeTexts])
def test_embedding_goes_with_stores_that_take_vectors(store):
    embedding, limits = (None, None) if store is FakeVectors else (object(), RequestLimits(1, 1))
    with pytest.raises(ConfigurationError, match="a TextStore takes neither"):
        ChunkWriter(store(), embedding, embed_concurrency=1, limits=limits, max_attempts=1)


# -- any order --------------------------------------------------------------------------------

OPERATIONS = st.one_of(
    st.tuples(st.just("upsert"), st.sampled_from("abc"), st.integers(0, 9)),
    st.tuples(st.just("update"), st.sampled_from("abc"), st.integers(0, 9) | st.none()),
    st.tuples(st.just("delete"), st.sampled_from("abc"), st.none()),
)
FAILURES = st.dictionaries(
    st.integers(0, 25), st.sampled_from(["outage", "late outage", "refusal", "panic"]), max_size=12
)
ERRORS = {"outage": ConnectionError, "refusal": ValueError, "panic": PanicError}


@settings(max_examples=3 * settings.default.max_examples)
@given(
    slices=st.lists(st.lists(OPERATIONS, max_size=6), max_size=5),
    store_failures=FAILURES,
    embed_failures=FAILURES,
    max_batch=st.integers(1, 3),
    concurrency=st.integers(1, 3),
    embeds=st.booleans(),
)
def test_the_store_holds_what_the_operations_say_in_their_order(  # noqa: PLR0917 - drawn
    scripted_embedder, slices, store_failures, embed_failures, max_batch, concurrency, embeds
):
    async def run():
        embedder = scripted_embedder()
        store = (FakeVectors if embeds else FakeTexts)(max_batch)
        limits = RequestLimits(max_batch, 1000)
        owner = Owner(embedder, store, embed_concurrency=concurrency, limits=limits, max_attempts=2)
        put, unanswered = [], set()

        def note_unanswered(chunk_id):
            """Note the operation that the store has just performed without an answer."""
            number = sum(id_of(operation) == chunk_id for operation, _ in owner.ended)
            unanswered.add([op for op in put if id_of(op) == chunk_id][number])

        fail_by_number(store, store_failures, embedder, embed_failures, note_unanswered)
        async with owner.running():
            for part in slices:
                made = [make_operation(len(put) + n, *drawn) for n, drawn in enumerate(part)]
                put += made
                owner.put(*made)
                for _ in part:
                    await asyncio.sleep(0)
            await owner.until(len(put))
            assert owner.writer.operations == owner.writer.characters == 0
            assert len(owner.ended) == len(put)
        return put, owner, unanswered

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(retries, "_LONE_RETRY_SECONDS", 0.0005)
        patched.setattr(retries, "Pause", lambda: Pause(0.0005, 0.001))
        put, owner, unanswered = asyncio.run(run())

    for chunk_id in "abc":
        ended = [operation for operation, _ in owner.ended if id_of(operation) == chunk_id]
        assert ended == [operation for operation in put if id_of(operation) == chunk_id]
    # An operation performed without an answer may be refused on retry; its effect remains.
    done = unanswered | {operation for operation, error in owner.ended if error is None}
    owner.store.rows.pop(PROBE_ID, None)  # an outage may have prevented its deletion
    assert owner.store.rows == carried_out([operation for operation in put if operation in done])


def make_operation(number, kind, chunk_id, n):
    if kind == "upsert":
        return upsert(chunk_id, f"text {number} of {chunk_id}", n=n)
    return Delete(chunk_id) if kind == "delete" else UpdateMetadata(chunk_id, {"n": n, "m": number})


def fail_by_number(store, store_failures, embedder, embed_failures, note_unanswered):
    """Make the requests with these numbers fail."""

    def fail(kind, ids):
        error = ERRORS.get(store_failures.get(len(store.calls) - 1))
        return error and error("store")

    def fail_after(kind, ids):
        if store_failures.get(len(store.calls) - 1) != "late outage":
            return None
        if kind != "search":
            for chunk_id in set(ids) - {PROBE_ID}:
                note_unanswered(chunk_id)
        return TimeoutError()

    def script(texts):
        if error := ERRORS.get(embed_failures.get(len(embedder.requests) - 1)):
            raise error("embedder")

    store.fail, store.fail_after, embedder.script = fail, fail_after, script


def carried_out(operations):
    """The contents of a store after these operations, in order."""
    model = _Scripted()
    for operation in operations:
        if isinstance(operation, Upsert):
            chunk = operation.chunk
            model.rows[chunk.id] = (chunk.text, dict(chunk.metadata))
        elif isinstance(operation, Delete):
            model.rows.pop(operation.id, None)
        else:
            model._change({operation.id: operation.changes})
    return model.rows
