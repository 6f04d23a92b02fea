"""Random events, deliveries, restarts and clocks, with retention, checked against a simple model."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schema_copies import SchemaCopies

sys.path.insert(0, str(Path(__file__).parent))

from aging import Clock, at_time, contents, sweep

from autoplay_rag import IngestPipeline
from autoplay_rag.journal.bodies import unpack
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction, SummaryPayload
from autoplay_rag.stores import MemoryStore, PgVectorStore

HOUR = 3600.0
TOLERATED = 300.0
"""How far the clock of a page may be ahead."""
RETENTION = st.sampled_from(
    [1.0, 0.25, {"actions": 1.0}, {"actions": 0.5, "summary": 2.0}, {"chat": 0.25, "actions": 3.0}]
)
KINDS = st.sampled_from(["actions", "actions", "actions", "summary", "chat"])
HAPPENED = st.sampled_from(["now", "now", "unknown", "future", "soon", "late", "very late"])
EVENT = st.tuples(
    st.just("event"), KINDS, HAPPENED, st.sampled_from(["a", "a", "b", None]), st.integers(1, 3)
)
OPERATIONS = st.lists(
    st.one_of(
        EVENT,
        EVENT,
        EVENT,
        st.tuples(st.just("poison"), HAPPENED),
        st.tuples(st.just("again"), st.integers(0, 1000)),
        st.tuples(st.just("later"), st.sampled_from([0.1, 1.0, 5.0, 13.0, 30.0, 100.0])),
        st.tuples(st.just("back"), st.sampled_from([0.5, 20.0])),
        st.tuples(st.just("drain")),
        st.tuples(st.just("sweep")),
        st.tuples(st.just("restart")),
    ),
    min_size=1,
    max_size=25,
)


@dataclass
class Sent:
    """An event, and what has to be true of it."""

    payload: object
    kind: str
    words: list[str]
    happened: float
    received: float
    poison: bool = False
    gone: bool = False
    key_known: bool = True
    deliveries: int = 1

    def is_old(self, now: float, days: object) -> bool:
        known = self.happened and self.happened <= self.received + TOLERATED
        since = self.happened if known else self.received
        limit = days.get(self.kind) if isinstance(days, dict) else days
        return limit is not None and since < now - limit * 24 * HOUR


@dataclass
class Model:
    days: object
    key_days: float
    clock: Clock
    sent: list[Sent] = field(default_factory=list)
    discarded: int = 0
    stepped_back: bool = False

    def make(self, kind, happened, session, count, *, poison=False) -> Sent:
        number, now = len(self.sent), self.clock.now
        at = {
            "now": now,
            "unknown": 0.0,
            "future": now + 1000 * HOUR,
            "soon": now + 100.0,
            "late": now - 11 * HOUR,
            "very late": now - 500 * HOUR,
        }[happened]
        if kind == "actions":
            words = [f"{'poison' if poison else 'word'}{number}n{i}z" for i in range(count)]
            clicks = [
                SlimAction(word, f"clicked {word}", "https://a.test", i, "click", at, at)
                for i, word in enumerate(words)
            ]
            payload = ActionsPayload("acme", session, f"user{session}", None, clicks, count, at)
        elif kind == "summary":
            words = [f"word{number}n0z"]
            payload = SummaryPayload("acme", session, words[0], 0, at)
        else:
            words = [f"word{number}n0z"]
            payload = ChatTurn("acme", session, None, None, words[0], "yes", forwarded_at=at)
        self.sent.append(Sent(payload, kind, words, at, now, poison=poison))
        return self.sent[-1]

    def sweep(self, chunks: list[set[str]]) -> None:
        """Delete what is old. A chunk goes when all its events are old; the model has the chunks."""
        now = self.clock.now
        for one in self.sent:
            mates = [
                other
                for other in self.sent
                if other is one
                or any(chunk & set(one.words) and chunk & set(other.words) for chunk in chunks)
            ]
            one_goes = all(other.gone or other.is_old(now, self.days) for other in mates)
            if not one.gone and one_goes:
                one.deliveries = -one.deliveries  # marked; mates are judged before
        for one in self.sent:
            if one.deliveries < 0:
                one.gone, one.deliveries = True, -one.deliveries
                self.discarded += one.poison
            if one.gone and one.received < now - self.key_days * 24 * HOUR:
                one.key_known = False


def texts_with(words, texts) -> int:
    return sum(any(word in text.split() for word in words) for text in texts)


def render(payloads) -> str:
    return "\n".join(
        " ".join(action.title for action in payload.actions)
        if isinstance(payload, ActionsPayload)
        else payload.summary
        if isinstance(payload, SummaryPayload)
        else payload.question
        for payload in payloads
    )


async def stored(store) -> list[str]:
    return [chunk.text async for page in store.scan() for chunk in page]


@pytest.mark.timeout(600)
@settings(
    max_examples=settings.default.max_examples,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    operations=OPERATIONS,
    days=RETENTION,
    key_days=st.sampled_from([0.0, 0.5, 4.0]),
    most=st.sampled_from([1, 3, 20]),
    window=st.sampled_from([60.0, 60.0, 0.0]),
    keep=st.booleans(),
)
def test_what_must_go_goes_and_the_rest_stays(  # noqa: PLR0917 - drawn at random
    operations, days, key_days, most, window, keep, scripted_embedder
):
    with tempfile.TemporaryDirectory() as folder:
        store = MemoryStore()
        store.persistent = True
        journal = InFile(Path(folder) / "j.db")
        options = _options(days, key_days, most, window, keep)
        model = Model(days, key_days, Clock())
        asyncio.run(_run(operations, model, journal, store, options, scripted_embedder()))


@pytest.mark.timeout(600)
@settings(
    max_examples=settings.default.max_examples // 25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    operations=OPERATIONS,
    days=RETENTION,
    key_days=st.sampled_from([0.0, 0.5, 4.0]),
    most=st.sampled_from([1, 3, 20]),
    window=st.sampled_from([60.0, 60.0, 0.0]),
    keep=st.booleans(),
)
def test_what_must_go_goes_in_postgres(  # noqa: PLR0917 - drawn at random
    operations, days, key_days, most, window, keep, scripted_embedder, postgres
):
    schema = f"t_{uuid4().hex[:12]}"
    store = PgVectorStore(postgres.dsn, schema=schema, index="none")
    options = _options(days, key_days, most, window, keep)
    model = Model(days, key_days, Clock())
    with SchemaCopies(postgres.dsn, schema) as copies:
        journal = InPostgres(postgres, schema, copies)
        asyncio.run(_run(operations, model, journal, store, options, scripted_embedder()))


def _options(days, key_days, most, window, keep):
    return {
        "retention_days": days,
        "remember_keys_days": key_days,
        "max_batch_actions": most,
        "batch_window": window,
        "max_attempts": 1,
        "keep_payloads": keep,
        "render": render,
    }


class InFile:
    """A journal in a file."""

    def __init__(self, path: Path) -> None:
        self.address = path

    def texts(self) -> str:
        return contents(self.address)

    def rows(self, statement: str) -> list:
        with closing(sqlite3.connect(f"file:{self.address}?mode=ro", uri=True)) as connection:
            return connection.execute(statement).fetchall()


class InPostgres:
    """A journal in PostgreSQL."""

    def __init__(self, server, schema: str, copies: SchemaCopies) -> None:
        self.address = server.dsn
        self._server = server
        self._schema = schema
        self._copies = copies

    def texts(self) -> str:
        bodies = (unpack(body) or b"" for (body,) in self.rows("SELECT body FROM payload"))
        return b"\n".join([*self._copies.take().values(), *bodies]).decode("latin-1")

    def rows(self, statement: str) -> list:
        return self._server.run(statement.replace("FROM ", f"FROM {self._schema}."))


async def _run(operations, model, journal, store, options, embedder):  # noqa: PLR0917
    def refuse(texts):
        if any("poison" in text for text in texts):
            raise ValueError("poison")

    embedder.script = refuse
    pipelines = []

    async def start():
        pipeline = IngestPipeline(store, embedder, journal=journal.address, **options)
        pipelines.append(at_time(pipeline, model.clock))
        await pipelines[-1].start()

    async def checked_sweep():
        await pipelines[-1].drain(30)
        chunks = [set(text.split()) for text in await stored(store)]
        await sweep(pipelines[-1], complete=model.stepped_back)
        model.sweep(chunks)
        await check(pipelines[-1], store, model, journal)

    async with asyncio.timeout(60):
        await start()
        try:
            for operation in [*operations, ("sweep",)]:
                await _step(operation, model, pipelines, start, checked_sweep)
        finally:
            await pipelines[-1].aclose()


async def _step(operation, model, pipelines, start, checked_sweep):
    name, *arguments = operation
    pipeline = pipelines[-1]
    if name == "event":
        assert await pipeline.accept(model.make(*arguments).payload) == "accepted"
    elif name == "poison":
        made = model.make("actions", *arguments, "p", 1, poison=True)
        assert await pipeline.accept(made.payload) == "accepted"
    elif name == "again" and model.sent:
        one = model.sent[arguments[0] % len(model.sent)]
        outcome = await pipeline.accept(one.payload)
        assert outcome == ("duplicate" if one.key_known else "accepted")
        if not one.key_known:
            one.received, one.gone, one.key_known = model.clock.now, False, True
            one.deliveries += 1
    elif name == "later":
        model.clock.now += arguments[0] * HOUR
    elif name == "back":
        model.clock.now -= arguments[0] * HOUR
        model.stepped_back = True
    elif name == "drain":
        await pipeline.drain(30)
    elif name == "sweep":
        await checked_sweep()
    elif name == "restart":
        await checked_sweep()  # the next start runs at the same time
        await pipeline.aclose()
        await start()
        await checked_sweep()


async def check(pipeline, store, model, journal):
    texts = await stored(store)
    letters = [str(one.payload) for one in await pipeline.dead_letters.list()]
    everywhere = journal.texts().split("\n")
    sessions = set()
    for one in model.sent:
        if one.gone:
            assert texts_with(one.words, texts) == 0, one
            assert not any(word in line for word in one.words for line in everywhere), one
        elif one.poison:
            assert texts_with(one.words, texts) == 0, one
            assert sum(one.words[0] in letter for letter in letters) == 1, one
        else:
            for word in one.words:
                assert texts_with([word], texts) == 1, (word, one)
        if not one.gone:
            sessions.add(one.payload.session_id)
    kept = {session for (session,) in journal.rows("SELECT session FROM visit")}
    people = {value for (value,) in journal.rows("SELECT value FROM belongs")}
    ((keys,),) = journal.rows("SELECT count(*) FROM payload")
    ((left,),) = journal.rows("SELECT count(*) FROM outdated")
    assert kept == sessions
    assert people <= {f"user{session}" for session in sessions}
    assert keys == sum(one.key_known for one in model.sent)
    assert left == 0
    ledger = pipeline.ledger
    assert ledger.balanced
    assert ledger.discarded == model.discarded
    assert ledger.dead == sum(one.poison and not one.gone for one in model.sent)
    assert ledger.stored == sum(one.deliveries for one in model.sent if not one.poison)
    assert (await pipeline.verify()).clean
