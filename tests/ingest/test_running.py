"""One run of a pipeline: what it resumes, records, forgets and reports."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import threading
from contextlib import closing
from datetime import UTC, date, datetime, timedelta, timezone

import msgspec
import pytest
from pipelines import copy_journal

from autoplay_rag.errors import ConfigurationError, PipelineClosedError
from autoplay_rag.ingest.run import periodic
from autoplay_rag.journal import catalog, queue
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.live import LiveSessions
from autoplay_rag.payloads import ChatTurn, SummaryPayload
from autoplay_rag.stores import ChromaStore, MemoryStore

pytestmark = pytest.mark.timeout(40)


class SilentStore(MemoryStore):
    """Has no identity, so that lost chunks go unnoticed."""

    persistent = True
    capabilities = frozenset({"delete", "get"})

    def __init__(self, refused: str = "nothing") -> None:
        super().__init__()
        self.refused = refused

    async def get(self, ids):
        return await super().get(ids) or [None]  # it never appears empty

    async def upsert(self, chunks, vectors) -> None:
        if any(chunk.text == self.refused for chunk in chunks):
            raise ValueError("refused")
        await super().upsert(chunks, vectors)


async def texts_of(pipeline, **conditions) -> list[str]:
    return sorted(hit.text for hit in await pipeline.search("x", 100, **conditions))


async def count(pipeline, what: str, *parameters) -> int:
    journal = pipeline._run._journal
    return await journal._writer.run(journal._tables.file.scalar, f"SELECT {what}", *parameters)


def poison_is_refused(texts) -> None:
    if any("poison" in text for text in texts):
        raise ValueError("poison")


# -- the watermark ----------------------------------------------------------------------------


async def test_everything_up_to_the_watermark_is_settled(
    make_pipeline, embedder, make_actions, eventually
):
    gates = {"a": asyncio.Event(), "b": asyncio.Event()}

    async def wait(texts):
        for name, gate in gates.items():
            if any(name in text for text in texts):
                await gate.wait()

    embedder.script = wait
    embedder.max_inputs = 1
    async with make_pipeline(select=lambda payload: payload.session_id != "no") as pipeline:
        assert pipeline.watermark == 0
        await pipeline.on_actions(make_actions("s", "a"))  # 1
        await pipeline.on_actions(make_actions("no", "filtered"))  # 2
        await pipeline.on_actions(make_actions("s", "a"))  # 3, a duplicate
        await pipeline.on_actions(make_actions("t", "b"))  # 4
        assert pipeline.watermark == 0
        gates["b"].set()
        await eventually(lambda: pipeline.ledger.stored == 1)
        assert pipeline.watermark == 0
        gates["a"].set()
        await pipeline.drain()
        assert pipeline.watermark == 4
        await pipeline.on_actions(make_actions("no", "filtered"))
        assert pipeline.watermark == 5
    assert pipeline.watermark == 5


async def test_there_is_no_watermark_before_the_start(make_pipeline):
    with pytest.raises(PipelineClosedError, match="never started"):
        _ = make_pipeline().watermark


async def test_the_watermark_goes_on_after_a_restart_and_is_what_readers_see(
    make_pipeline, embedder, make_actions, tmp_path, eventually
):
    journal = tmp_path / "j.db"

    async def hang(texts):
        if any("hangs" in text for text in texts):
            await asyncio.Event().wait()

    embedder.script = hang
    embedder.max_inputs = 1
    async with make_pipeline(journal=journal, drain_timeout=0.1) as pipeline:
        for title in ("a", "hangs", "b"):
            await pipeline.on_actions(make_actions(title, title))
        await eventually(lambda: pipeline.watermark == 1)
    assert pipeline.watermark == 1
    assert JournalReader(journal).status().watermark == 1
    embedder.script = lambda texts: None
    async with make_pipeline(journal=journal, embedder=embedder) as pipeline:
        await pipeline.drain()
        assert pipeline.watermark == 3
        await pipeline.on_actions(make_actions("s", "c"))
        await pipeline.drain()
        assert pipeline.watermark == 4
        assert JournalReader(journal).status().watermark == 4


async def test_a_retried_letter_keeps_its_number_and_drain_waits_for_it(
    make_pipeline, embedder, make_actions, tmp_path
):
    journal = tmp_path / "j.db"
    embedder.script = poison_is_refused
    async with make_pipeline(journal=journal) as pipeline:
        for title in ("a", "poison", "b"):
            await pipeline.on_actions(make_actions(title, title))
        await pipeline.drain()
        (letter,) = await pipeline.dead_letters.list()
        assert (letter.id, pipeline.watermark) == (2, 3)
        gate = asyncio.Event()

        async def wait(_texts):
            await gate.wait()

        embedder.script = wait
        embedder.requested.clear()
        assert await pipeline.dead_letters.retry() == 1
        draining = asyncio.create_task(pipeline.drain())
        await embedder.requested.wait()
        assert pipeline.watermark == JournalReader(journal).status().watermark == 3
        assert not draining.done()
        killed = copy_journal(journal, tmp_path / "killed")
        gate.set()
        await draining
        assert (pipeline.ledger.stored, pipeline.ledger.dead) == (3, 0)
        assert pipeline.watermark == 3
    embedder.script = poison_is_refused
    async with make_pipeline(journal=killed) as pipeline:  # a restart does not end the wait
        assert pipeline.watermark == 3
        await pipeline.drain()
        (letter,) = await pipeline.dead_letters.list()
        assert (letter.id, pipeline.watermark) == (2, 3)


# -- what is kept -----------------------------------------------------------------------------


def bodies(journal) -> int:
    with closing(sqlite3.connect(journal)) as connection:
        (found,) = connection.execute(
            "SELECT count(*) FROM payload WHERE body IS NOT NULL"
        ).fetchone()
    return found


async def test_without_keep_payloads_a_body_is_dropped_once_it_is_stored(
    make_pipeline, embedder, make_actions, tmp_path
):
    journal = tmp_path / "j.db"
    embedder.script = poison_is_refused
    async with make_pipeline(journal=journal, keep_payloads=False) as pipeline:
        for title in ("a", "poison", "b"):
            await pipeline.on_actions(make_actions(title, title))
        await pipeline.drain()
        assert bodies(journal) == 1  # the dead letter
        embedder.script = lambda texts: None
        await pipeline.dead_letters.retry()
        await pipeline.drain()
        assert await texts_of(pipeline) == ["a", "b", "poison"]
    assert bodies(journal) == 0


async def test_bodies_are_kept_by_default_without_addresses(make_pipeline, make_actions, tmp_path):
    payload = msgspec.structs.replace(make_actions("s", "a", user="ann"), email="ann@acme.test")
    for name, options, expected in (
        ("without", {}, None),
        ("with", {"include_email": True}, "ann@acme.test"),
    ):
        journal = tmp_path / f"{name}.db"
        async with make_pipeline(journal=journal, **options) as pipeline:
            await pipeline.on_actions(payload)
            await pipeline.drain()
            ((_, _, kept),) = JournalReader(journal).payloads(0, 0.0)
            assert (kept.email, kept.user_id) == (expected, "ann")
            (hit,) = await pipeline.search("x")
            assert hit.metadata.get("email") == expected


async def test_in_memory_everything_that_is_kept_is_bounded(
    make_pipeline, embedder, make_actions, monkeypatch
):
    monkeypatch.setattr(queue, "_MEMORY_PAYLOADS", 10)
    monkeypatch.setattr(catalog, "_MEMORY_SESSIONS", 5)
    embedder.script = poison_is_refused
    async with make_pipeline() as pipeline:
        await pipeline.on_actions(make_actions("s", "poison"))
        for number in range(50):
            await pipeline.on_actions(make_actions(f"s{number}", str(number)))
        await pipeline.drain()
        await pipeline._run._journal.tidy()
        assert await count(pipeline, "count(*) FROM payload WHERE state = 1") == 10
        assert await count(pipeline, "count(*) FROM chunk") == 10
        assert await count(pipeline, "count(*) FROM chunk_payload") == 10
        assert await count(pipeline, "count(*) FROM visit WHERE payloads = 0") == 5
        assert await count(pipeline, "count(*) FROM visit") == 5 + 10 + 1
        assert await count(pipeline, "count(*) FROM passage") == 10 + 1
        assert await count(pipeline, "count(*) FROM plan") == 0
        assert await count(pipeline, "count(*) FROM payload WHERE body IS NOT NULL") == 1
        ledger = pipeline.ledger
        assert (ledger.received, ledger.stored, ledger.dead) == (51, 50, 1)
        assert pipeline.watermark == 51
        # Remembered payloads are duplicates; the others are no longer known.
        await pipeline.on_actions(make_actions("s49", "49"))
        await pipeline.on_actions(make_actions("s0", "0"))
        await pipeline.drain()
        assert (pipeline.ledger.duplicate, pipeline.ledger.stored) == (1, 51)
        assert len(await texts_of(pipeline)) == 50  # the same chunk again
        assert len(await pipeline.dead_letters.list()) == 1
        monkeypatch.setattr(queue, "_KEEP_KEYS_SECONDS", -1.0)
        await pipeline._run._journal.tidy()
        assert await count(pipeline, "count(*) FROM chunk") == 0
        assert await count(pipeline, "count(*) FROM visit") == 1
        assert await count(pipeline, "count(*) FROM payload") == 1  # the dead letter


async def test_what_waits_in_memory_is_not_forgotten(
    make_pipeline, embedder, make_actions, monkeypatch
):
    monkeypatch.setattr(queue, "_MEMORY_PAYLOADS", 2)
    monkeypatch.setattr(queue, "_KEEP_KEYS_SECONDS", -1.0)
    gate = asyncio.Event()

    async def wait(_texts):
        await gate.wait()

    embedder.script = wait
    async with make_pipeline() as pipeline:
        for number in range(10):
            await pipeline.on_actions(make_actions(f"s{number}", str(number)))
        await embedder.requested.wait()
        await pipeline._run._journal.tidy()
        gate.set()
        await pipeline.drain()
        assert len(await texts_of(pipeline)) == 10


# -- "full" durability ------------------------------------------------------------------------


async def crashed(make_pipeline, make_actions, tmp_path, *titles):
    """The journal of a pipeline killed after it stored one chunk for each title."""
    journal = tmp_path / "j.db"
    async with make_pipeline(SilentStore(), journal=journal, durability="full") as pipeline:
        for title in titles:
            await pipeline.on_actions(make_actions(title, title))
            await pipeline.drain()
        return copy_journal(journal, tmp_path / "killed")


async def test_a_replay_that_the_store_refuses_is_a_dead_letter(
    make_pipeline, make_actions, tmp_path
):
    killed = await crashed(make_pipeline, make_actions, tmp_path, *"abc")
    store = SilentStore(refused="b")
    async with make_pipeline(store, journal=killed, durability="full") as pipeline:
        await pipeline.drain()
        assert await texts_of(pipeline) == ["a", "c"]
        ledger = pipeline.ledger
        assert (ledger.received, ledger.stored, ledger.dead, ledger.pending) == (3, 2, 1, 0)
        (letter,) = await pipeline.dead_letters.list()
        assert letter.error == "store: ValueError: refused"
        assert letter.payload == make_actions("b", "b")
        store.refused = "nothing"
        assert await pipeline.dead_letters.retry() == 1
        await pipeline.drain()
        assert await texts_of(pipeline) == ["a", "b", "c"]
        assert (pipeline.ledger.stored, pipeline.ledger.dead) == (3, 0)


async def test_a_replay_does_not_bring_back_what_was_deleted_since(
    make_pipeline, make_actions, tmp_path
):
    journal = tmp_path / "j.db"
    store = SilentStore()
    async with make_pipeline(store, journal=journal, durability="full") as pipeline:
        for title in "abc":
            await pipeline.on_actions(make_actions(title, title))
        await pipeline.drain()
        run = pipeline._run
        tables = run._journal._catalog
        numbers = await run._journal._writer.run(tables.numbers_of, [2])
        ids = await run._journal._writer.run(tables.remove, numbers, "forgotten")
        at_once = copy_journal(journal, tmp_path / "at_once")
        run._upkeep.delete(ids)
        await pipeline.drain()
        assert await texts_of(pipeline) == ["a", "c"]
        later = copy_journal(journal, tmp_path / "later")
    for killed in (at_once, later):
        store = SilentStore()
        async with make_pipeline(store, journal=killed, durability="full") as pipeline:
            await pipeline.drain()
            assert await texts_of(pipeline) == ["a", "c"]
            assert pipeline.ledger.balanced


async def test_what_a_replay_gave_up_is_not_brought_back_by_the_next(
    make_pipeline, make_actions, tmp_path
):
    killed = await crashed(make_pipeline, make_actions, tmp_path, *"abc")
    store = SilentStore(refused="b")
    async with make_pipeline(store, journal=killed, durability="full") as pipeline:
        await pipeline.drain()
        again = copy_journal(killed, tmp_path / "again")
    async with make_pipeline(SilentStore(), journal=again, durability="full") as pipeline:
        await pipeline.drain()
        assert "b" not in await texts_of(pipeline)
        assert (pipeline.ledger.stored, pipeline.ledger.dead) == (2, 1)


# -- health -----------------------------------------------------------------------------------


async def test_health_is_readable_from_any_thread_while_requests_are_in_flight(
    make_pipeline, embedder, make_actions, tmp_path
):
    gate, ended = asyncio.Event(), threading.Event()
    failures = iter([ConnectionError("down")])

    async def wait(_texts):
        await gate.wait()
        if error := next(failures, None):
            raise error

    found: list[object] = []

    def look():
        while not ended.is_set():
            try:
                found.append(pipeline.health.state)
            except BaseException as error:  # noqa: BLE001 - that is what is tested
                found.append(error)
                return

    embedder.script = wait
    async with make_pipeline(journal=tmp_path / "j.db") as pipeline:
        await pipeline.on_actions(make_actions("s", "a"))
        await embedder.requested.wait()
        assert (await asyncio.to_thread(lambda: pipeline.health)).state == "ok"
        looking = asyncio.create_task(asyncio.to_thread(look))
        gate.set()
        for number in range(100):
            await pipeline.on_actions(make_actions(f"s{number}", str(number)))
        await pipeline.drain()
        while len(found) <= 10 and not looking.done():  # noqa: ASYNC110 - a thread
            await asyncio.sleep(0.001)
        ended.set()
        await looking
    assert set(found) <= {"ok", "degraded"}


async def test_a_store_that_cannot_note_where_the_journal_is_ends_nothing(  # noqa: PLR0917 - fixtures
    make_pipeline, make_actions, monkeypatch, tmp_path, eventually, caplog
):
    monkeypatch.setattr(periodic, "_NOTE_EVERY", 1)
    monkeypatch.setattr(periodic, "_REQUESTS_SECONDS", 0.01)

    class Forgetful(MemoryStore):
        failures = 0

        async def save_identity(self, identity):
            if identity.batch:
                self.failures += 1
                raise ValueError("not now")
            await super().save_identity(identity)

    store = Forgetful()
    async with make_pipeline(store, journal=tmp_path / "j.db") as pipeline:
        await pipeline.on_actions(make_actions("s", "a"))
        await eventually(lambda: store.failures > 2)
        await pipeline.on_actions(make_actions("s", "b"))
        await pipeline.drain()
        assert (pipeline.ledger.stored, pipeline.health.state) == (2, "ok")
    assert "the store could not save the journal's progress: ValueError: not now" in caplog.text


# -- live -------------------------------------------------------------------------------------


def shown(live, session) -> list[str]:
    found = live.get(session_id=session)
    return [event.text for event in found.events] if found else []


async def test_after_a_restart_live_shows_what_the_journal_holds(
    make_pipeline, embedder, make_actions, tmp_path
):
    journal = tmp_path / "j.db"
    embedder.script = poison_is_refused
    async with make_pipeline(journal=journal, batch_window=0.0) as pipeline:
        await pipeline.on_actions(make_actions("s", "a", user="ann"))
        await pipeline.on_actions(make_actions("t", "b", user="bob"))
        await pipeline.on_actions(make_actions("t", "poison", user="bob"))
        await pipeline.drain()
        await pipeline.on_summary(SummaryPayload("acme", "s", "Did a.", 1, 2000.0))
        await pipeline.on_chat(ChatTurn("acme", "t", question="How?", answer="So."))
        before = {name: pipeline.live.get(session_id=name) for name in "st"}
        killed = copy_journal(journal, tmp_path / "killed")
    async with make_pipeline(journal=killed) as pipeline:
        assert len(pipeline.live) == 2
        assert shown(pipeline.live, "s") == [event.text for event in before["s"].events]
        assert "poison" not in shown(pipeline.live, "t")  # a dead letter
        for name, user in (("s", "ann"), ("t", "bob")):
            found = pipeline.live.get(session_id=name)
            assert found.user_id == before[name].user_id == user
            first, was = found.events[0], before[name].events[0]
            assert first.text == was.text
            assert abs(first.at - was.at) < 1.0  # the time of receipt, not of reading
        assert pipeline.live.get(user_id="ann").session_id == "s"


async def test_times_of_a_journal_are_those_at_which_payloads_came(
    make_pipeline, make_actions, tmp_path
):
    journal = tmp_path / "j.db"
    async with make_pipeline(journal=journal) as pipeline:
        for title in ("too old", "old", "new"):
            await pipeline.on_actions(make_actions(title, title))
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("UPDATE payload SET at = at - 5000 WHERE seq = 1")
        connection.execute("UPDATE payload SET at = at - 600 WHERE seq = 2")
    async with make_pipeline(MemoryStore(), journal=journal) as pipeline:
        assert shown(pipeline.live, "too old") == []
        old, new = (pipeline.live.get(session_id=name) for name in ("old", "new"))
        assert 590 < new.events[0].at - old.events[0].at < 620


async def test_a_pipeline_that_is_started_again_shows_nothing_twice(
    make_pipeline, make_actions, tmp_path
):
    live = LiveSessions()
    pipeline = make_pipeline(journal=tmp_path / "j.db", live=live)
    for title in "abc":
        async with pipeline:
            await pipeline.on_actions(make_actions("s", title))
    assert pipeline.live is live
    assert shown(live, "s") == ["a", "b", "c"]


async def test_without_bodies_live_starts_with_what_waits(
    make_pipeline, embedder, make_actions, tmp_path
):
    async def hang(texts):
        if "waits" in texts:
            await asyncio.Event().wait()

    embedder.script = hang
    embedder.max_inputs = 1
    options = {"journal": tmp_path / "j.db", "keep_payloads": False, "drain_timeout": 0.1}
    async with make_pipeline(**options) as pipeline:
        await pipeline.on_actions(make_actions("s", "stored"))
        await pipeline.drain()
        await pipeline.on_actions(make_actions("t", "waits"))
    async with make_pipeline(**options) as pipeline:
        assert (shown(pipeline.live, "s"), shown(pipeline.live, "t")) == ([], ["waits"])


# -- times in a search, and files -------------------------------------------------------------

DAY = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture(params=["memory", "chroma"])
def any_store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else ChromaStore(tmp_path / "chroma")


async def test_a_search_takes_every_time_that_means_one_moment(
    make_pipeline, make_actions, any_store
):
    async with make_pipeline(any_store) as pipeline:
        for days, title in enumerate(("first", "second", "third")):
            at = (DAY + timedelta(days=days)).timestamp()
            await pipeline.on_actions(make_actions(title, title, at=at))
        await pipeline.drain()
        second = DAY + timedelta(days=1)
        tokyo = second.astimezone(timezone(timedelta(hours=9)))
        for since in (second, tokyo, second.timestamp(), int(second.timestamp()), date(2026, 3, 2)):
            assert await texts_of(pipeline, since=since) == ["second", "third"]
        for until in (second, tokyo, second.timestamp()):
            assert await texts_of(pipeline, until=until) == ["first", "second"]
        assert await texts_of(pipeline, since=date(2026, 3, 2), until=second) == ["second"]
        for name in ("since", "until"):
            with pytest.raises(ConfigurationError, match=f"{name}.*time zone"):
                await pipeline.search("x", **{name: datetime(2026, 3, 2)})  # noqa: DTZ001 - refused
            with pytest.raises(ConfigurationError, match=name):
                await pipeline.search("x", **{name: "yesterday"})


async def test_nobody_else_may_read_journal_and_store(make_pipeline, make_actions, tmp_path):
    journal, folder = tmp_path / "j.db", tmp_path / "chroma"
    async with make_pipeline(ChromaStore(folder), journal=journal) as pipeline:
        await pipeline.on_actions(make_actions("s", "a"))
        await pipeline.drain()
        found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        # The other files of an open journal contain the same payloads.
        assert {"j.db", "j.db-wal", "j.db.lock", "chroma"} <= found.keys()
        assert found.pop("chroma") == 0o700
        assert set(found.values()) == {0o600}


async def test_what_a_store_lacks_is_said_at_start(make_pipeline, caplog):
    class OnlyUpserts(MemoryStore):
        capabilities = frozenset()

    caplog.set_level("INFO")
    async with make_pipeline(OnlyUpserts()):
        pass
    said = [record.message for record in caplog.records if "has no" in record.message]
    lacking = ["delete", "identity", "scan", "update_metadata", "drop", "exchange"]
    assert [message.split("'")[1] for message in said] == lacking
    caplog.clear()
    async with make_pipeline(MemoryStore()):
        pass
    assert "has no" not in caplog.text
