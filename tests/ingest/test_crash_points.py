"""After a crash at any moment, accepted payloads are stored exactly once, in their session's order.

The test restarts from the disk as it was after every single journal commit, with the store as it was
then and after each of its later operations. In PostgreSQL, it restarts from all rows as they were
after a commit of the journal or of the store. The store refuses some payloads: none of their chunks
may remain in it.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schema_copies import SchemaCopies, WatchedPgStore

from autoplay_rag import IngestPipeline
from autoplay_rag.content.keys import payload_key
from autoplay_rag.journal.file import JournalFile
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload
from autoplay_rag.stores import MemoryStore
from autoplay_rag.stores.base import Filter

SETTINGS = st.fixed_dictionaries(
    {
        "batch_window": st.sampled_from([0.0, 0.01, 60.0]),
        "max_batch_actions": st.integers(1, 7),
        "embed_concurrency": st.integers(1, 3),
        "durability": st.sampled_from(["normal", "full"]),
        "max_attempts": st.just(1),
        "keep_payloads": st.booleans(),
    }
)


@st.composite
def streams(draw):
    """Payloads with unique action titles. Some are delivered twice; sessions interleave or are null."""
    payloads = []
    for number in range(draw(st.integers(1, 10))):
        session = draw(st.sampled_from(["a", "b", None]))
        at = draw(st.sampled_from([0.0, 100.0, 100.0 + number]))
        if draw(st.integers(0, 5)) == 0:
            payloads.append(SummaryPayload("p", session, f"{number:03}.summary", 2, 100.0 + number))
            continue
        count = draw(st.integers(1, 5))
        same = draw(st.booleans())  # equal actions within one payload remain
        poison = ".poison" if draw(st.integers(0, 6)) == 0 else ""
        names = [f"{number:03}.{0 if same else i}{poison}" for i in range(count)]
        actions = [SlimAction(name, name, timestamp_start=at, timestamp_end=at) for name in names]
        payloads.append(ActionsPayload("p", session, None, None, actions, count, 100.0 + number))
    again = draw(st.lists(st.sampled_from(payloads), max_size=4))
    return payloads + again


class Refusing:
    """Refuses every request that contains a poisoned chunk."""

    async def upsert(self, chunks, vectors) -> None:
        if any("poison" in chunk.text for chunk in chunks):
            raise ValueError("poison")
        await super().upsert(chunks, vectors)


class RefusingStore(Refusing, MemoryStore):
    persistent = True  # as it was at the crash; it is not filled again


class WatchedStore(RefusingStore):
    def __init__(self, crashes: FileCrashes) -> None:
        super().__init__()
        self.crashes = crashes

    async def upsert(self, chunks, vectors) -> None:
        await super().upsert(chunks, vectors)
        self.crashes.stored("upsert", list(chunks), list(vectors))

    async def delete(self, ids) -> None:
        await super().delete(ids)
        self.crashes.stored("delete", list(ids))

    async def save_identity(self, identity) -> None:
        await super().save_identity(identity)
        self.crashes.stored("save_identity", identity)


class RefusingPgStore(Refusing, WatchedPgStore):
    pass


class FileCrashes:
    """Disk and store at every moment at which a crash would leave a different state.

    Attributes:
        returned: The keys of payloads that have been accepted.
        moments: What there was at each moment, as `restored` needs it, and the keys until then.
    """

    def __init__(self, folder: Path) -> None:
        self.returned: set = set()
        self.moments: list = []
        self.journal = folder / "first" / "journal.db"
        self.store = WatchedStore(self)
        self._folder = folder
        self._operations: list = []
        self._files: dict = {}
        self._numbers = count()

    def committed(self) -> None:
        names = (self.journal, self.journal.with_name(self.journal.name + "-wal"))
        self._files = {path.name: path.read_bytes() for path in names if path.exists()}
        self.note()

    def note(self) -> None:
        moment = (self._files, len(self._operations))
        if self.moments and self.moments[-1][0] == moment:  # the transaction wrote nothing
            self.moments.pop()
        self.moments.append((moment, set(self.returned)))

    def stored(self, name, *args) -> None:
        self._operations.append((name, args))
        self.note()

    @contextmanager
    def watching(self):
        original = JournalFile.transaction

        @contextmanager
        def transaction(db):
            with original(db):
                yield
            if db.path == self.journal:
                self.committed()

        JournalFile.transaction = transaction
        try:
            yield
        finally:
            JournalFile.transaction = original

    async def restored(self, moment, model):
        """Return store and journal as they were."""
        files, operations = moment
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        store = RefusingStore()
        await store.start(model)
        for name, args in self._operations[:operations]:
            await getattr(store, name)(*args)
        return store, folder / "journal.db"


class PostgresCrashes:
    """As `FileCrashes`, for a journal and a store in one schema.

    Attributes:
        most: The most moments; more are chosen at random.
    """

    most = 8

    def __init__(self, dsn: str, copies: SchemaCopies, schema: str) -> None:
        self.returned: set = set()
        self.journal = dsn
        self.store = RefusingPgStore(dsn, schema=schema, index="none")
        self._copies = copies
        self._schema = schema
        self._moments: list = []

    @property
    def moments(self) -> list:
        few = min(self.most, len(self._moments))
        chosen = random.Random(len(self._moments)).sample(self._moments, few)
        return [*chosen, self._moments[-1]]

    def note(self) -> None:
        returned = set(self.returned)  # before the copy, which has what was accepted until then
        copy = self._copies.take()
        if self._moments and self._moments[-1][0] == copy:  # the transaction wrote nothing
            self._moments.pop()
        self._moments.append((copy, returned))

    def watching(self):
        return self._copies.watching(self.store, self.note)

    async def restored(self, moment, model):
        """Return store and journal as they were."""
        self._copies.restore(moment)
        return RefusingPgStore(self.journal, schema=self._schema, index="none"), self.journal


def lines_of(payload) -> list[str]:
    return [a.title for a in payload.actions] if payload.kind == "actions" else [payload.summary]


def render(payloads) -> str:
    return "\n".join(line for payload in payloads for line in lines_of(payload))


def expected(payloads) -> Counter:
    distinct = {payload_key(payload): payload for payload in payloads}
    return Counter(
        line for payload in distinct.values() for line in lines_of(payload) if "poison" not in line
    )


def poisoned(payloads) -> int:
    return len({payload_key(p) for p in payloads if "poison" in lines_of(p)[0]})


def lines_in(texts) -> Counter:
    return Counter(line for text in texts for line in text.split("\n"))


async def contents(store, embedder) -> list[str]:
    count = await store.count()
    hits = await store.query(embedder.vector("x"), count, Filter()) if count else []
    return [hit.text for hit in hits]


def check_order(texts: list[str], payloads) -> None:
    """Chunks keep the order received, and no two chunks of a session interleave."""
    first_at: dict[str, int] = {}
    session_of: dict[str, object] = {}
    for position, payload in enumerate(payloads):
        for line in lines_of(payload):
            first_at.setdefault(line, position)
            session_of[line] = payload.session_id
    spans: dict[object, list] = {}
    for text in texts:
        lines = text.split("\n")
        positions = [first_at[line] for line in lines]
        assert positions == sorted(positions)
        assert len({session_of[line] for line in lines}) == 1
        spans.setdefault(session_of[lines[0]], []).append((positions[0], positions[-1]))
    for session, found in spans.items():
        if session is not None:
            found.sort()
            assert all(one[1] <= other[0] for one, other in pairwise(found))


@pytest.mark.timeout(300)
@settings(
    max_examples=settings.default.max_examples // 5,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(payloads=streams(), before=SETTINGS, after=SETTINGS)
def test_every_crash_point(payloads, before, after, scripted_embedder):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(
            run_and_crash_everywhere(
                payloads, before, after, FileCrashes(Path(folder)), scripted_embedder
            )
        )


@pytest.mark.timeout(300)
@settings(
    max_examples=max(2, settings.default.max_examples // 50),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(payloads=streams(), before=SETTINGS, after=SETTINGS)
def test_crash_points_in_postgres(payloads, before, after, scripted_embedder, postgres):
    schema = f"t_{uuid4().hex[:12]}"
    with SchemaCopies(postgres.dsn, schema) as copies:
        crashes = PostgresCrashes(postgres.dsn, copies, schema)
        asyncio.run(run_and_crash_everywhere(payloads, before, after, crashes, scripted_embedder))
    postgres.run(f"DROP SCHEMA {schema} CASCADE")


async def run_and_crash_everywhere(payloads, before, after, crashes, make_embedder):
    async with asyncio.timeout(60):  # a hang must be a failure that Hypothesis can shrink
        await crash_everywhere(payloads, before, after, crashes, make_embedder)


async def crash_everywhere(payloads, before, after, crashes, make_embedder):
    embedder = make_embedder()

    async def deliver(pipeline, payload):
        await pipeline.accept(payload)
        crashes.returned.add(payload_key(payload))

    with crashes.watching():
        store = crashes.store
        pipeline = IngestPipeline(store, embedder, journal=crashes.journal, render=render, **before)
        async with pipeline:
            await asyncio.gather(*(deliver(pipeline, payload) for payload in payloads))
            await pipeline.drain()
            assert pipeline.ledger.balanced
            assert pipeline.ledger.dead == poisoned(payloads)
            assert lines_in(await contents(store, embedder)) == expected(payloads)
            check_order(await contents(store, embedder), payloads)

    for moment, returned in crashes.moments:
        embedder = make_embedder()
        store, journal = await crashes.restored(moment, embedder.model)
        await start_again(store, journal, returned, payloads, after, embedder)


async def start_again(store, journal, returned, payloads, options, embedder):  # noqa: PLR0917
    pipeline = IngestPipeline(store, embedder, journal=journal, render=render, **options)
    async with pipeline:
        await pipeline.drain()
        assert pipeline.ledger.balanced
        found = lines_in(await contents(store, embedder))
        promised = expected([p for p in payloads if payload_key(p) in returned])
        assert all(found[line] == count for line, count in promised.items())
        # The connector delivers everything again.
        await asyncio.gather(*(pipeline.accept(payload) for payload in payloads))
        await pipeline.drain()
        assert pipeline.ledger.balanced
        assert pipeline.ledger.pending == 0
        assert pipeline.ledger.dead == poisoned(payloads)
        assert lines_in(await contents(store, embedder)) == expected(payloads)
