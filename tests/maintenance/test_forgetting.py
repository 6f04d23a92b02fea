"""Forgetting: nothing of a person is found afterwards, and no file holds it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from autoplay_rag.errors import ConfigurationError, JournalError, StoreUnavailableError
from autoplay_rag.journal.bodies import unpack
from autoplay_rag.maintenance import restore
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload
from autoplay_rag.stores import ChromaStore, MemoryStore


def actions(session, *titles, user=None, at=None, product="acme", conversation=None):
    at = round(time.time() - 60 if at is None else at, 3)
    made = [
        SlimAction(title, f"User clicked {title}", "https://app.test/p", i, "click", at + i, at + i)
        for i, title in enumerate(titles)
    ]
    payload = ActionsPayload(product, session, user, None, made, len(made), at + 10)
    return payload if conversation is None else _linked(payload, conversation)


def _linked(payload, conversation):
    import msgspec

    return msgspec.structs.replace(payload, conversation_id=conversation)


async def find(pipeline, word):
    """Everything that search and listings show about a word."""
    found = []
    for options in ({}, {"k": 50}):
        found += [hit.text for hit in await pipeline.search(word, **options)]
    found += [f"{one}" for one in await pipeline.sessions(matching=word)]
    found += [one.render() for one in pipeline.live.sessions()]
    found += [str(one.payload) for one in await pipeline.dead_letters.list()]
    return [one for one in found if word in one]


def bytes_of(folder: Path) -> bytes:
    """All bytes of all files, with compressed bodies of live rows unpacked."""
    found = b""
    for path in folder.rglob("*"):
        if path.is_file():
            found += path.read_bytes()
            if path.suffix == ".db":
                with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
                    for (body,) in connection.execute("SELECT body FROM payload"):
                        found += unpack(body) or b""
    return found


async def erased(pipeline, receipt):
    async with asyncio.timeout(60):
        while not (receipt := await pipeline.receipt(receipt.number)).erased:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.05)
    return receipt


async def test_a_person_is_forgotten(make_pipeline, tmp_path):
    async with make_pipeline(journal=tmp_path / "j.db") as pipeline:
        await pipeline.on_actions(actions("s1", "annprivate one", user="ann"))
        await pipeline.on_actions(actions("s1", "annprivate two"))
        await pipeline.on_actions(actions("s2", "bobpublic", user="bob"))
        await pipeline.drain()
        await pipeline.on_actions(actions("s3", "annprivate three", user="ann"))
        before = await pipeline.search("bobpublic")
        dry = await pipeline.forget(user_id="ann", dry_run=True)
        assert (dry.payloads, dry.sessions, dry.deleted) == (3, 2, False)
        receipt = await pipeline.forget(user_id="ann")
        assert (receipt.payloads, receipt.sessions, receipt.deleted) == (3, 2, True)
        assert await find(pipeline, "annprivate") == []
        assert await find(pipeline, "bobpublic")
        assert [hit.text for hit in await pipeline.search("bobpublic")] == [
            hit.text for hit in before if "bob" in hit.text
        ]
        receipt = await erased(pipeline, receipt)
        assert "ann" not in repr(receipt).replace("annot", "")
        await pipeline.drain(20)
    assert b"annprivate" not in bytes_of(tmp_path)
    assert b"bobpublic" in bytes_of(tmp_path)


async def test_only_the_part_of_one_person_leaves_a_shared_session(make_pipeline, tmp_path):
    async with make_pipeline(journal=tmp_path / "j.db") as pipeline:
        await pipeline.on_actions(actions("s", "nobody"))
        await pipeline.on_actions(actions("s", "annprivate", user="ann"))
        await pipeline.on_actions(actions("s", "annprivate again"))
        await pipeline.on_actions(actions("s", "bobpublic", user="bob"))
        await pipeline.on_summary(SummaryPayload("acme", "s", "bobpublic summary", 1, time.time()))
        await pipeline.drain()
        receipt = await pipeline.forget(user_id="ann")
        assert (receipt.payloads, receipt.sessions, receipt.chunks) == (2, 1, 1)
        assert await find(pipeline, "annprivate") == []
        assert len(await pipeline.sessions(user_id="ann")) == 0
        assert "annprivate" not in str(await pipeline.session("s"))
        assert len(await pipeline.sessions(user_id="bob")) == 1
        assert await find(pipeline, "bobpublic")
        await pipeline.forget(user_id="bob")
        assert await find(pipeline, "bobpublic") == []
        assert await find(pipeline, "nobody")


async def test_others_in_a_mixed_chunk_are_stored_again(make_pipeline, tmp_path):
    old, new = time.time() - 5000, time.time() - 50
    options = {"journal": tmp_path / "j.db", "batch_window": 60.0}
    async with make_pipeline(**options) as pipeline:
        await pipeline.on_actions(actions("s", "annold", user="ann", at=old))
        await pipeline.on_actions(actions("s", "annnew", user="ann", at=new))
        await pipeline.drain()
        assert [hit.text for hit in await pipeline.search("annnew")] == ["annold\nannnew"]
        receipt = await pipeline.forget(user_id="ann", until=time.time() - 1000)
        assert (receipt.payloads, receipt.chunks, receipt.deleted) == (1, 1, True)
        assert await find(pipeline, "annold") == []
        await pipeline.drain()
        assert [hit.text for hit in await pipeline.search("annnew")] == ["annnew"]
        assert len(await pipeline.sessions(user_id="ann")) == 1
        assert pipeline.ledger.stored == 2
        assert (await pipeline.verify()).clean
        await erased(pipeline, receipt)
    assert b"annold" not in bytes_of(tmp_path)


async def test_others_that_were_not_kept_stay_in_full_text(make_pipeline, tmp_path):
    old, new = time.time() - 5000, time.time() - 50
    options = {"journal": tmp_path / "j.db", "batch_window": 60.0, "keep_payloads": False}
    async with make_pipeline(**options) as pipeline:
        await pipeline.on_actions(actions("s", "annold", user="ann", at=old))
        await pipeline.on_actions(actions("s", "annnew", user="ann", at=new))
        await pipeline.drain()
        receipt = await pipeline.forget(user_id="ann", until=time.time() - 1000)
        assert receipt.text_only == 1
        assert await find(pipeline, "annold") == []
        assert await find(pipeline, "annnew")


async def test_a_batch_under_way_does_not_bring_it_back(
    make_pipeline, embedder, tmp_path, monkeypatch
):
    go = asyncio.Event()

    async def slow(texts):
        await go.wait()

    embedder.script = slow
    store = MemoryStore()
    async with make_pipeline(store, journal=tmp_path / "j.db", batch_window=0.0) as pipeline:
        await pipeline.on_actions(actions("s", "annprivate", user="ann"))
        await pipeline.on_actions(actions("t", "bobpublic", user="bob"))
        async with asyncio.timeout(20):
            await embedder.requested.wait()
        erasures = pipeline._run._journal.erasures
        delete = erasures.delete_all

        async def release(on_page):
            await delete(on_page)
            go.set()

        monkeypatch.setattr(erasures, "delete_all", release)
        receipt = await pipeline.forget(user_id="ann")
        assert receipt.deleted
        await pipeline.drain(20)
        assert await find(pipeline, "annprivate") == []
        assert await store.count() == 1
        assert (pipeline.ledger.discarded, pipeline.ledger.stored) == (1, 1)


async def test_what_is_forgotten_while_it_is_planned_is_never_stored(
    make_pipeline, embedder, tmp_path, monkeypatch
):
    """The request comes between the read of a batch and the record of its plan."""
    planned, deleted = asyncio.Event(), asyncio.Event()
    # All in one chunk: the rest of the session is stored without the forgotten part.
    options = {"journal": tmp_path / "j.db", "batch_window": 0.02}
    async with make_pipeline(MemoryStore(), **options) as pipeline:
        journal = pipeline._run._journal
        record, delete = journal.record_plans, journal.erasures.delete_all

        async def hold(plans, sessions):
            planned.set()
            await deleted.wait()
            return await record(plans, sessions)

        async def release(on_page):
            await delete(on_page)
            deleted.set()

        monkeypatch.setattr(journal, "record_plans", hold)
        monkeypatch.setattr(journal.erasures, "delete_all", release)
        early = actions("s", "annprivate", at=1000.0)
        late = actions("s", "annlater", at=2000.0)
        await asyncio.gather(pipeline.accept(early), pipeline.accept(late))
        async with asyncio.timeout(20):
            await planned.wait()
        receipt = await pipeline.forget(session_id="s", until=1500.0)
        assert receipt.deleted
        assert receipt.payloads == 1
        await pipeline.drain(20)
        assert await find(pipeline, "annprivate") == []
        assert await find(pipeline, "annlater")
        assert (pipeline.ledger.discarded, pipeline.ledger.stored) == (1, 1)
        assert (await pipeline.verify()).clean
    assert embedder.requests[0] == ["annlater"]


async def test_late_and_repeated_events_are_refused(make_pipeline, tmp_path):
    async with make_pipeline(journal=tmp_path / "j.db") as pipeline:
        first = actions("s", "annprivate", user="ann")
        await pipeline.on_actions(first)
        await pipeline.drain()
        await pipeline.forget(user_id="ann")
    async with make_pipeline(journal=tmp_path / "j.db") as pipeline:
        accept = pipeline.accept
        now = time.time()
        assert await accept(first) == "refused"
        assert await accept(_linked(first, "c")) == "refused"
        assert await accept(actions("new", "late", user="ann", at=now - 90)) == "refused"
        assert await accept(actions("s", "late, and names nobody", at=now - 90)) == "refused"
        assert await accept(actions("s", "of another", user="bob", at=now - 90)) == "accepted"
        assert await accept(actions("new", "future", user="ann", at=now + 9999)) == "refused"
        unknown = ActionsPayload("acme", "new", "ann", actions=[SlimAction("x", "y")])
        assert await accept(unknown) == "refused"
        assert await accept(actions("new", "later", user="ann", at=now + 1)) == "accepted"
        await pipeline.drain()
        assert pipeline.ledger.refused == 6
        await pipeline.forget(user_id="ann", block=True)
        assert await accept(actions("new", "latest", user="ann", at=now + 50)) == "refused"


async def test_dead_letters_are_forgotten(make_pipeline, tmp_path):
    def render(payloads):
        raise ValueError("annprivate is in the message")

    async with make_pipeline(journal=tmp_path / "j.db", render=render) as pipeline:
        await pipeline.on_actions(actions("s", "annprivate", user="ann"))
        await pipeline.drain()
        assert len(await pipeline.dead_letters.list()) == 1
        receipt = await pipeline.forget(session_id="s")
        assert (receipt.dead_letters, receipt.deleted) == (1, True)
        assert await pipeline.dead_letters.list() == []
        assert (pipeline.ledger.dead, pipeline.ledger.discarded) == (0, 1)
        await erased(pipeline, receipt)
    assert b"annprivate" not in bytes_of(tmp_path)


async def test_wrong_requests(make_pipeline):
    async with make_pipeline() as pipeline:
        await pipeline.on_actions(actions("s", "one", user="ann"))
        await pipeline.on_actions(actions("s", "two", user="ann", product="other"))
        with pytest.raises(ConfigurationError, match="needs"):
            await pipeline.forget()
        with pytest.raises(ConfigurationError, match="2 products"):
            await pipeline.forget(user_id="ann")
        with pytest.raises(ConfigurationError, match="number 7"):
            await pipeline.receipt(7)
        receipt = await pipeline.forget(user_id="ann", product_id="acme")
        assert (receipt.payloads, receipt.deleted) == (1, True)
        assert (await pipeline.forget(user_id="nobody")).payloads == 0
        assert (await erased(pipeline, receipt)).erased


async def test_a_journal_in_memory_scans_the_store(make_pipeline, tmp_path):
    store = MemoryStore()
    async with make_pipeline(store) as pipeline:
        await pipeline.on_actions(actions("s", "annprivate", user="ann"))
        await pipeline.on_actions(actions("t", "bobpublic", user="bob"))
        await pipeline.drain()
    async with make_pipeline(store) as pipeline:
        receipt = await pipeline.forget(user_id="ann")
        assert receipt.deleted
        assert await store.count() == 1


async def test_an_interrupted_deletion_goes_on_at_the_next_start(make_pipeline, tmp_path):
    store = MemoryStore()
    async with make_pipeline(store, journal=tmp_path / "j.db", drain_timeout=1.0) as pipeline:
        for number in range(30):
            await pipeline.on_actions(actions(f"s{number}", f"annprivate {number}", user="ann"))
        await pipeline.drain()
        erasures = pipeline._run._journal.erasures
        selected, _ = await erasures.select(_asked(user_id="ann"))
        await erasures.begin(_asked(user_id="ann"), selected, block=False)
        await erasures._writer.run(erasures._tables().delete_page, 7)
        pipeline._run._eraser.hold(1)
    async with make_pipeline(store, journal=tmp_path / "j.db") as pipeline:
        receipt = await erased(pipeline, await pipeline.receipt(1))
        assert receipt.deleted
        assert await store.count() == 0
        assert await find(pipeline, "annprivate") == []
    assert b"annprivate" not in bytes_of(tmp_path)


def _asked(**ids):
    from autoplay_rag.journal.selecting import Asked

    return Asked(**ids)


async def test_chroma_keeps_nothing(make_pipeline, tmp_path):
    store = ChromaStore(tmp_path / "store")
    async with make_pipeline(store, journal=tmp_path / "j.db") as pipeline:
        for number in range(20):
            await pipeline.on_actions(actions(f"s{number}", f"annprivate {number}", user="annid"))
            await pipeline.on_actions(actions(f"t{number}", f"bobpublic {number}", user="bobid"))
        await pipeline.drain()
        before = await pipeline.search("bobpublic", user_id="bobid", k=30)
        receipt = await pipeline.forget(user_id="annid")
        assert receipt.deleted
        assert await find(pipeline, "annprivate") == []
        receipt = await erased(pipeline, receipt)
        assert await pipeline.search("bobpublic", user_id="bobid", k=30) == before
    found = bytes_of(tmp_path)
    assert b"annprivate" not in found
    assert b"annid" not in found
    assert b"bobpublic" in found


async def test_a_restored_backup_brings_nobody_back(make_pipeline, tmp_path):
    def make():
        return make_pipeline(ChromaStore(tmp_path / "store"), journal=tmp_path / "j.db")

    late = actions("new", "annprivate late", user="annid", at=time.time() - 90)
    async with make() as pipeline:
        await pipeline.on_actions(actions("s", "annprivate", user="annid"))
        await pipeline.on_actions(actions("t", "bobpublic", user="bobid"))
        await pipeline.on_actions(actions("t", "catpublic", user="catid"))
        await pipeline.drain()
        await pipeline.backup(tmp_path / "copy")
        await pipeline.forget(user_id="annid")
        await pipeline.forget(user_id="catid", session_id="t")
        await pipeline.forget(user_id="unknown")
    restore(tmp_path / "copy", journal=tmp_path / "j.db", store=tmp_path / "store", force=True)
    assert b"annprivate" not in (tmp_path / "j.db").read_bytes()
    register = (tmp_path / "j.db.erasures").read_bytes()
    assert register.count(b"\n") == 4
    async with make() as pipeline:
        await erased(pipeline, await pipeline.receipt(1))
        await erased(pipeline, await pipeline.receipt(2))
        assert await find(pipeline, "annprivate") == []
        assert await find(pipeline, "catpublic") == []
        assert await find(pipeline, "bobpublic")
        assert await pipeline.accept(late) == "refused"
        assert await pipeline.accept(actions("u", "x", user="unknown", at=1e9)) == "refused"
        assert (await pipeline.verify()).clean
    for folder in (tmp_path / "store", tmp_path / "j.db", tmp_path / "j.db.erasures"):
        paths = folder.rglob("*") if folder.is_dir() else [folder]
        found = b"".join(path.read_bytes() for path in paths if path.is_file())
        assert b"annprivate" not in found
        assert b"annid" not in found


async def test_a_register_of_another_journal_is_refused(make_pipeline, tmp_path):
    for name in ("a", "b"):
        async with make_pipeline(journal=tmp_path / f"{name}.db") as pipeline:
            await pipeline.forget(user_id="ann")
    options = {"journal": tmp_path / "a.db", "erasure_register": tmp_path / "b.db.erasures"}
    with pytest.raises(JournalError, match="belongs to another journal"):
        await make_pipeline(**options).start()


async def test_an_outage_of_the_store(make_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("autoplay_rag.maintenance.forgetting._CONFIRM_SECONDS", 0.3)
    store, down = MemoryStore(), True
    delete = store.delete

    async def deleting(ids):
        if down:
            raise ConnectionError("down")
        await delete(ids)

    monkeypatch.setattr(store, "delete", deleting)
    async with make_pipeline(store, journal=tmp_path / "j.db") as pipeline:
        await pipeline.on_actions(actions("s", "annprivate", user="ann"))
        await pipeline.drain()
        receipt = await pipeline.forget(user_id="ann")
        assert not receipt.deleted
        assert "MemoryStore has not confirmed 1 deletions yet" in receipt.remaining[0]
        down = False
        receipt = await erased(pipeline, receipt)
        assert receipt.deleted
        assert await store.count() == 0
        assert len(receipt.remaining) == 1


async def test_a_reader_delays_erasing(make_pipeline, tmp_path):
    async with make_pipeline(journal=tmp_path / "j.db", drain_timeout=1.0) as pipeline:
        await pipeline.on_actions(actions("s", "annprivate", user="ann"))
        await pipeline.drain()
        with closing(sqlite3.connect(tmp_path / "j.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM payload").fetchone()
            receipt = await pipeline.forget(user_id="ann")
            assert receipt.deleted
            async with asyncio.timeout(30):
                while not any("reader" in one for one in receipt.remaining):
                    await asyncio.sleep(0.1)
                    receipt = await pipeline.receipt(receipt.number)
            assert not receipt.erased
            reader.execute("ROLLBACK")
        await erased(pipeline, receipt)
    assert b"annprivate" not in bytes_of(tmp_path)


async def test_actions_that_a_summary_replaced_are_forgotten(make_pipeline, tmp_path):
    old, new = time.time() - 5000, time.time() - 500
    store = MemoryStore()
    options = {"journal": tmp_path / "j.db", "batch_window": 60.0, "summaries": "replace"}
    async with make_pipeline(store, **options) as pipeline:
        await pipeline.on_actions(actions("s", "annold", user="ann", at=old))
        await pipeline.on_actions(actions("s", "annnew", user="ann", at=new))
        await pipeline.drain()
        said = SummaryPayload("acme", "s", "Said what happened.", 2, round(time.time(), 3))
        await pipeline.on_summary(said)
        await pipeline.drain()
        assert await store.count() == 1
        receipt = await pipeline.forget(user_id="ann", until=time.time() - 1000)
        assert (receipt.payloads, receipt.text_only) == (1, 0)
        await pipeline.drain()
        assert await find(pipeline, "annold") == []
        assert await find(pipeline, "annnew")
        assert await store.count() == 1
        assert (await pipeline.verify()).clean
        receipt = await pipeline.forget(user_id="ann")
        assert await store.count() == 0
        assert await find(pipeline, "annnew") == []
        await erased(pipeline, receipt)
    assert b"annnew" not in bytes_of(tmp_path)


async def test_no_search_finds_it_while_the_store_cannot_delete(
    make_pipeline, make_actions, tmp_path
):
    class Stuck(MemoryStore):
        persistent = True
        stuck = True

        async def delete(self, ids):
            if self.stuck:
                raise StoreUnavailableError("out of service")
            await super().delete(ids)

    store, path = Stuck(), tmp_path / "j.db"
    async with make_pipeline(store, journal=path, drain_timeout=0.0) as pipeline:
        await pipeline.on_actions(make_actions("s1", "secret report", user="ann"))
        await pipeline.on_actions(make_actions("s2", "other report", user="bob"))
        await pipeline.drain()
        forgetting = asyncio.create_task(pipeline.forget(user_id="ann"))
        async with asyncio.timeout(30):
            while pipeline.health.state == "ok":  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        assert await store.count() == 2
        for mode in ("dense", "hybrid", "text"):
            found = await pipeline.search("secret report", mode=mode)
            assert [hit.text for hit in found] in (["other report"], [])
        store.stuck = False
        assert (await forgetting).deleted
        assert await store.count() == 1


@pytest.fixture(params=["memory", "chroma", "postgres"])
def any_store(request, tmp_path):
    if request.param == "postgres":
        return request.getfixturevalue("make_pg_store")()
    return MemoryStore() if request.param == "memory" else ChromaStore(tmp_path / "chroma")


async def test_the_last_person_leaves_the_results_of_others_as_they_were(
    make_pipeline, make_actions, tmp_path, any_store
):
    store = any_store
    users = [f"user{n}" for n in range(8)]
    questions = ["report 3 of user3", "export", "user5"]
    async with make_pipeline(store, journal=tmp_path / "j.db") as pipeline:
        for user in users:
            for n in range(4):
                title = f"{user} exports report {n}"
                await pipeline.on_actions(make_actions(f"{user}-{n}", title, user=user))
        await pipeline.drain()

        async def results():
            return {
                (user, question, mode): [
                    hit.id for hit in await pipeline.search(question, k=20, user_id=user, mode=mode)
                ]
                for user in users[:-1]
                for question in questions
                for mode in ("hybrid", "dense", "text")
            }

        before = await results()
        assert all(before.values())
        receipt = await pipeline.forget(user_id=users[-1])
        assert (receipt.payloads, receipt.deleted) == (4, True)
        assert await results() == before
        assert await store.count() == 4 * (len(users) - 1)
