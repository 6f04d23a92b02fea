"""Chunks that are stored again, and the outbox of deletions, with a real journal and writer."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from autoplay_rag.content.chunks import Chunk
from autoplay_rag.content.keys import payload_key
from autoplay_rag.errors import FencedError, JournalError
from autoplay_rag.ingest import retries, upkeep
from autoplay_rag.ingest.chunk_writer import ChunkWriter, Upsert
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.ingest.planner import Planner
from autoplay_rag.ingest.upkeep import Upkeep
from autoplay_rag.journal.base import Acknowledgement, Plan, PlannedChunk
from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.stores.base import TextStore

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Make the waits shorter."""
    monkeypatch.setattr(retries, "_LONE_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(upkeep, "_JOURNAL_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(upkeep, "_FIRST_REPEAT_SECONDS", 0.02)
    monkeypatch.setattr(upkeep, "_LONGEST_REPEAT_SECONDS", 0.05)
    pause = retries.Pause
    monkeypatch.setattr(retries, "Pause", lambda: pause(0.02, 0.1))


class ScriptedStore(TextStore):
    """Keeps texts by id. Its hooks may raise."""

    capabilities = frozenset({"delete"})
    max_batch = 50

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.pages: list[int] = []
        self.attempts = 0
        self.refuses = lambda text: False
        self.on_delete = lambda ids: None

    async def add(self, chunks) -> None:
        if any(self.refuses(chunk.text) for chunk in chunks):
            raise ValueError("bad text")
        self.pages.append(len(chunks))
        self.texts |= {chunk.id: chunk.text for chunk in chunks}

    async def delete(self, ids) -> None:
        self.attempts += 1
        self.on_delete(ids)
        for one in ids:
            self.texts.pop(one, None)

    async def search(self, text, k, filter):
        return []


class GrowingStore(ScriptedStore):
    capabilities = frozenset()


def fail_with(error):
    def fail(_ids):
        raise error

    return fail


class Rig:
    """A running journal, writer and upkeep."""

    def __init__(self, path, store) -> None:
        self.store = store
        self.journal = SqliteJournal(
            path, durability="full", on_entry=lambda *_: None, on_returned=lambda _: None
        )
        self.writer = ChunkWriter(store, None, embed_concurrency=1, limits=None, max_attempts=2)
        self.upkeep = Upkeep(self.journal, self.writer, Planner(str, len, 20, include_email=False))
        self._intake = Intake(None, None)
        self.batch = self.seq = 0

    async def plan(self, payload, parts=1) -> Plan:
        """Accept a payload and record its plan of `parts` chunks."""
        self.seq += 1
        await self.journal.accept(self._intake.entry(payload, self.seq))
        return await self.plan_again(payload, self.seq, parts)

    async def plan_again(self, payload, seq, parts=1) -> Plan:
        self.batch += 1
        chunks = [
            Chunk(f"{payload_key(payload)}-{part}", f"{payload.actions[0].title} {part}", {})
            for part in range(parts)
        ]
        plan = Plan(self.batch, -seq, [PlannedChunk(chunk, (seq,), 1) for chunk in chunks])
        await self.journal.record_plans([plan], [])
        return plan

    async def store_plan(self, plan: Plan) -> None:
        """Write the plan's chunks and acknowledge it."""
        await self.write(plan)
        await self.acknowledge(plan)

    async def write(self, plan: Plan) -> None:
        ended = asyncio.Event()
        left = [chunk.chunk.id for chunk in plan.chunks]

        def one_ended(operation, error):
            assert error is None
            left.remove(operation.chunk.id)
            if not left:
                ended.set()

        self.writer.put([Upsert(chunk.chunk, 1) for chunk in plan.chunks], one_ended)
        await ended.wait()

    async def acknowledge(self, plan: Plan, error: str | None = None) -> list[str]:
        dead = {plan.chunks[0].seqs[0]: error} if error else {}
        found = await self.journal.acknowledge([Acknowledgement(plan, dead)])
        self.upkeep.delete(found.outbox)
        return found.outbox

    async def die(self, payload, parts=2) -> list[str]:
        """Let a payload die after all of its parts were stored."""
        plan = await self.plan(payload, parts)
        await self.write(plan)
        return await self.acknowledge(plan, "store: refused")

    async def outbox(self) -> list[str]:
        return await self.journal.deletions(-1)


@pytest.fixture
def rig(tmp_path):
    @asynccontextmanager
    async def run(store, path=tmp_path / "j.db"):
        made = Rig(path, store)
        await made.journal.open()
        tasks = []
        try:
            known = await made.journal.known()
            made.seq, made.batch = known.seq, known.batch
            await made.upkeep.resume()
            tasks = [asyncio.create_task(part.run()) for part in (made.writer, made.upkeep)]
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await made.journal.close()

    return run


# -- deletions --------------------------------------------------------------------------------


async def test_parts_of_a_dead_payload_are_deleted_and_leave_the_outbox(rig, make_actions):
    async with rig(ScriptedStore()) as made:
        await made.store_plan(await made.plan(make_actions("s", "kept")))
        assert len(await made.die(make_actions("s", "dead"), parts=3)) == 3
        assert not made.upkeep.idle
        await made.upkeep.wait()
        assert list(made.store.texts.values()) == ["kept 0"]
        assert await made.outbox() == []
        assert made.upkeep.problems == []


async def test_in_an_outage_of_the_store_deletions_wait(rig, make_actions, eventually):
    store = ScriptedStore()
    store.on_delete = fail_with(ConnectionError("down"))
    async with rig(store) as made:
        await made.die(make_actions("s", "dead"))
        await eventually(lambda: store.attempts > 3)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await made.upkeep.wait()
        assert len(await made.outbox()) == 2
        await made.store_plan(await made.plan(make_actions("s", "later")))  # nothing else waits
        store.on_delete = lambda ids: None
        await made.upkeep.wait()
        assert list(store.texts.values()) == ["later 0"]
        assert await made.outbox() == []


@pytest.mark.parametrize("error", [ValueError("no"), NotImplementedError("this store only grows")])
async def test_refused_deletions_hold_nobody_up_and_are_tried_again(
    rig, make_actions, eventually, caplog, error
):
    store = ScriptedStore()
    store.on_delete = fail_with(error)
    async with rig(store) as made:
        await made.die(make_actions("s", "dead"))
        await made.upkeep.wait()
        (problem,) = made.upkeep.problems
        assert problem.startswith("2 chunks cannot be deleted from the store: store: ")
        assert str(error) in problem
        attempts = store.attempts
        await eventually(lambda: store.attempts > attempts + 4)
        assert caplog.text.count("stay in the store") == 1
        assert len(await made.outbox()) == 2
        store.on_delete = lambda ids: None
        await eventually(lambda: not made.upkeep.problems)
        await made.upkeep.wait()
        assert (store.texts, await made.outbox()) == ({}, [])


async def test_a_store_without_the_capability_is_not_asked(rig, make_actions):
    store = GrowingStore()
    async with rig(store) as made:
        await made.die(make_actions("s", "dead"))
        await made.upkeep.wait()
        assert store.attempts == 0
        assert "GrowingStore" in made.upkeep.problems[0]


async def test_deletions_go_on_after_a_restart(rig, make_actions):
    store = ScriptedStore()
    store.on_delete = fail_with(ConnectionError("down"))
    async with rig(store) as made:
        await made.die(make_actions("s", "dead"))
    store.on_delete = lambda ids: None
    async with rig(store) as made:
        await made.upkeep.wait()
        assert (store.texts, await made.outbox()) == ({}, [])


async def test_a_note_of_a_deletion_that_fails_is_written_later(rig, make_actions, monkeypatch):
    store = ScriptedStore()
    failures = [JournalError("the disk is away")] * 3
    async with rig(store) as made:
        deleted = made.journal.deleted

        async def fail_first(ids):
            if failures:
                raise failures.pop()
            await deleted(ids)

        monkeypatch.setattr(made.journal, "deleted", fail_first)
        await made.die(make_actions("s", "dead"))
        await made.upkeep.wait()
        assert not failures
        assert (store.texts, await made.outbox()) == ({}, [])


async def test_a_fenced_note_of_a_deletion_is_left_to_the_owner(
    rig, make_actions, monkeypatch, eventually
):
    fenced = [1]
    async with rig(ScriptedStore()) as made:
        deleted = made.journal.deleted

        async def fence(ids):
            if fenced:
                raise FencedError("taken over")
            await deleted(ids)

        monkeypatch.setattr(made.journal, "deleted", fence)
        await made.die(make_actions("s", "dead"))
        await made.upkeep.wait()
        assert len(await made.outbox()) == 2
        assert made.upkeep.problems == []
        fenced.clear()  # ours once more
        async with asyncio.timeout(30):
            while await made.outbox():
                await made.upkeep.wait()


async def test_what_is_stored_anew_is_not_deleted(rig, make_actions, eventually, monkeypatch):
    """A refused deletion is repeated while the retried payload is being stored."""
    store = ScriptedStore()
    store.on_delete = fail_with(ValueError("upserts only"))
    payload = make_actions("s", "retried")
    async with rig(store) as made:
        ids = await made.die(payload)
        await made.upkeep.wait()
        ((_, seq),) = await made.journal.retry(None)
        plan = await made.plan_again(payload, seq, parts=2)
        looks = 0
        deletions = made.journal.deletions

        async def watched(*given, **named):
            nonlocal looks
            found = await deletions(*given, **named)
            looks += 1
            return found

        monkeypatch.setattr(made.journal, "deletions", watched)
        await eventually(lambda: looks)  # a repeat may have read the outbox before the plan
        await made.upkeep.wait()
        attempts = store.attempts
        await made.write(plan)
        store.on_delete = lambda ids: None
        # Time for many repeats. The plan in progress prevents them.
        await asyncio.sleep(0.2)
        assert store.attempts == attempts
        await eventually(lambda: not made.upkeep.problems)
        await made.acknowledge(plan)
        await asyncio.sleep(0.1)
        assert sorted(store.texts) == sorted(ids)
        assert await made.outbox() == []


async def test_what_dies_once_more_is_deleted_after_all(rig, make_actions, eventually):
    store = ScriptedStore()
    store.on_delete = fail_with(ValueError("upserts only"))
    payload = make_actions("s", "retried")
    async with rig(store) as made:
        await made.die(payload)
        await made.upkeep.wait()
        ((_, seq),) = await made.journal.retry(None)
        plan = await made.plan_again(payload, seq, parts=1)
        await asyncio.sleep(0.1)
        await made.acknowledge(plan, "store: refused")
        store.on_delete = lambda ids: None
        await eventually(lambda: not store.texts)


# -- stored again -----------------------------------------------------------------------------


async def queue_all(made, make_actions, count) -> None:
    """Store chunks, one per session, and queue all of them to be stored again after a restart."""
    for number in range(count):
        plan = await made.plan(make_actions(f"s{number}", f"n{number}"))
        await made.write(plan)
        await made.acknowledge(plan)
    await made.journal.queue_all()


async def test_queued_chunks_are_stored_again_page_by_page(rig, make_actions, monkeypatch):
    monkeypatch.setattr(upkeep, "_PAGE", 4)
    async with rig(ScriptedStore()) as made:
        await queue_all(made, make_actions, 10)
    store = ScriptedStore()  # emptied in the meantime
    async with rig(store) as made:
        assert made.upkeep.problems == ["10 stored chunks are still to be embedded again"]
        assert not made.upkeep.idle
        await made.upkeep.wait()
        assert len(store.texts) == 10
        assert max(store.pages) <= 4
        assert made.upkeep.problems == []
        assert await made.journal.count_queued() == 0


async def test_what_is_left_is_stored_again_after_a_restart(
    rig, make_actions, monkeypatch, eventually
):
    monkeypatch.setattr(upkeep, "_PAGE", 3)
    async with rig(ScriptedStore()) as made:
        await queue_all(made, make_actions, 9)
    store = ScriptedStore()
    async with rig(store):
        await eventually(lambda: store.texts)
    async with rig(store) as made:
        await made.upkeep.wait()
        assert len(store.texts) == 9
        assert await made.journal.count_queued() == 0


async def test_what_is_refused_when_it_is_stored_again_is_a_dead_letter(rig, make_actions):
    async with rig(ScriptedStore()) as made:
        await queue_all(made, make_actions, 5)
    store = ScriptedStore()
    store.refuses = lambda text: text == "n3 0"
    async with rig(store) as made:
        await made.upkeep.wait()
        assert len(store.texts) == 4
        (letter,) = await made.journal.dead_letters(10)
        assert (letter.session_id, letter.error) == ("s3", "store: ValueError: bad text")
        counts = made.journal.counts
        assert (counts["stored"], counts["dead"], counts["pending"]) == (4, 1, 0)
        assert await made.outbox() == []  # an older version of it was deleted


async def test_a_journal_that_fails_meanwhile_delays_it(rig, make_actions, monkeypatch):
    async with rig(ScriptedStore()) as made:
        await queue_all(made, make_actions, 3)
    store = ScriptedStore()
    failures = [JournalError("the disk is away")] * 2
    stored_again = SqliteJournal.stored_again

    async def fail_first(journal, numbers, refused):
        if failures:
            raise failures.pop()
        return await stored_again(journal, numbers, refused)

    monkeypatch.setattr(SqliteJournal, "stored_again", fail_first)
    async with rig(store) as made:
        await made.upkeep.wait()
        assert not failures
        assert len(store.texts) == 3
        assert made.upkeep.problems == []


async def test_what_the_next_owner_has_forgotten_does_not_stay(rig, make_actions, monkeypatch):
    async with rig(ScriptedStore()) as made:
        await queue_all(made, make_actions, 3)
    store = ScriptedStore()
    stored_again = SqliteJournal.stored_again
    gone = []

    async def fence_first(journal, stored, refused):
        if not gone:
            gone.append(min(stored))
            await journal._writer.run(journal._catalog.remove, gone)
            assert len(store.texts) == 3
            raise FencedError("taken over")
        return await stored_again(journal, stored, refused)

    monkeypatch.setattr(SqliteJournal, "stored_again", fence_first)
    async with rig(store) as made:
        await made.upkeep.wait()
        assert gone
        assert len(store.texts) == 2
        assert await made.outbox() == []
        assert made.upkeep.problems == []


@pytest.mark.parametrize("when", ["tokens are counted", "it is stored"])
async def test_a_deletion_meanwhile_does_not_bring_a_chunk_back(
    rig, make_actions, monkeypatch, when
):
    async with rig(ScriptedStore()) as made:
        await queue_all(made, make_actions, 3)
    store = ScriptedStore()
    async with rig(store) as made:
        loop = asyncio.get_running_loop()
        deleted: list[str] = []

        async def delete_one() -> None:
            journal = made.journal
            first = (await journal.queued(0, 1))[0]
            removed = journal._catalog.remove
            deleted.extend(await journal._writer.run(removed, [first.number], "forgotten"))
            made.upkeep.delete(deleted)

        def delete_now() -> None:
            if not deleted:
                asyncio.run_coroutine_threadsafe(delete_one(), loop).result()

        if when == "tokens are counted":
            count = Planner.count

            def slow_count(planner, chunks):
                delete_now()
                return count(planner, chunks)

            monkeypatch.setattr(Planner, "count", slow_count)
        else:
            add = store.add

            async def slow_add(chunks):
                if not deleted:
                    await delete_one()
                await add(chunks)

            store.add = slow_add
        await made.upkeep.wait()
        assert sorted(store.texts.values()) == ["n1 0", "n2 0"]
        assert deleted
        assert await made.outbox() == []
        assert await made.journal.count_queued() == 0


async def test_chunks_queued_while_it_runs_are_stored_again(rig, make_actions):
    store = ScriptedStore()
    async with rig(store) as made:
        await queue_all(made, make_actions, 5)
        for _ in range(2):
            store.texts.clear()
            count = await made.journal.queue_all()
            made.upkeep.store_again(count)
            assert not made.upkeep.idle
            await made.upkeep.wait()
            assert len(store.texts) == 5
        assert await made.journal.count_queued() == 0


async def test_an_outage_while_chunks_are_stored_again_costs_nothing(rig, make_actions, eventually):
    async with rig(ScriptedStore()) as made:
        await queue_all(made, make_actions, 3)
    store = ScriptedStore()
    failures = [ConnectionError("down")] * 3

    def refuses(_text):
        if failures:
            raise failures.pop()
        return False

    store.refuses = refuses
    async with rig(store) as made:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await made.upkeep.wait()
        await made.upkeep.wait()
        assert len(store.texts) == 3
        assert made.journal.counts["dead"] == 0
