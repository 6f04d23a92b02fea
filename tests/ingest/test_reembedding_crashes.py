"""A crash at any moment of a re-embedding leaves one model in use, with every chunk once.

The test restarts from the disk as it was after every journal commit, with the store as it was then
and after each of its later operations. In PostgreSQL, it restarts from all rows as they were after a
commit of the journal or of the store.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import contextmanager
from typing import ClassVar
from uuid import uuid4

import pytest
from schema_copies import SchemaCopies, WatchedPgStore
from watched import WatchedStore

from autoplay_rag.errors import EmbedderUnavailableError, StoreMismatchError
from autoplay_rag.ingest import copier
from autoplay_rag.journal.file import JournalFile


class FileHistory:
    """The journal's files, and the number of operations on the store, at every moment."""

    least: ClassVar = {"old": 10, "new": 3}

    def __init__(self, folder) -> None:
        self.journal = folder / "journal.db"
        self.store = WatchedStore()
        self.store.on_operation = self.note
        self.moments: list[tuple[dict[str, bytes], int]] = []
        self._folder = folder
        self._operations = self.store.operations
        self._files: dict[str, bytes] = {}

    def note(self) -> None:
        self.moments.append((self._files, len(self._operations)))

    @contextmanager
    def watching(self):
        original = JournalFile.transaction

        @contextmanager
        def transaction(db):
            with original(db):
                yield
            names = (self.journal, self.journal.with_name(self.journal.name + "-wal"))
            files = {path.name: path.read_bytes() for path in names if path.exists()}
            if files != self._files:
                self._files = files
                self.note()

        JournalFile.transaction = transaction
        try:
            yield
        finally:
            JournalFile.transaction = original

    def chosen(self, first):
        return self.moments[first:]

    async def restored(self, moment):
        """Return store and journal as they were."""
        files, operations = moment
        folder = self._folder / uuid4().hex
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        store = await WatchedStore().replay(self._operations[:operations])
        return store, folder / "journal.db"


class PostgresHistory:
    """As `FileHistory`, for a journal and a store in one schema."""

    most = 12
    least: ClassVar = {"old": 3, "new": 0}

    def __init__(self, dsn, schema, copies) -> None:
        self.journal = dsn
        self.moments: list = []
        self._schema = schema
        self._copies = copies
        self.store = self._make_store()

    def _make_store(self):
        return WatchedPgStore(self.journal, schema=self._schema, index="none")

    def note(self) -> None:
        copy = self._copies.take()
        if not self.moments or self.moments[-1] != copy:
            self.moments.append(copy)

    def watching(self):
        return self._copies.watching(self.store, self.note)

    def chosen(self, first):
        """Some moments at random: each restart takes longer than with a file."""
        some = self.moments[first:]
        return random.Random(1).sample(some, min(self.most, len(some)))

    async def restored(self, moment):
        """Return store and journal as they were."""
        self._copies.restore(moment)
        return self._make_store(), self.journal


@pytest.fixture(params=["file", "postgres"])
def history(request, tmp_path):
    if request.param == "file":
        yield FileHistory(tmp_path)
        return
    postgres, schema = request.getfixturevalue("postgres"), f"t_{uuid4().hex[:12]}"
    with SchemaCopies(postgres.dsn, schema) as copies:
        yield PostgresHistory(postgres.dsn, schema, copies)


async def texts(store) -> list[str]:
    return sorted([chunk.text async for page in store.scan() for chunk in page])


async def copied(store) -> list[str]:
    """The texts that are in the second collection."""
    sibling = store.sibling("next")
    try:
        return await texts(sibling)
    finally:
        await sibling.aclose()


WANTED = [f"click {n}" for n in (0, 1, 3, 4, 5, 6)]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["at once", "rendered", "after one was given up"])
async def test_every_moment(  # noqa: PLR0917 - fixtures
    make_pipeline, make_actions, scripted_embedder, history, monkeypatch, how
):
    render = how == "rendered"
    monkeypatch.setattr(copier, "_PAGE", 2)

    class Other(scripted_embedder):
        model = "other"

    store = history.store
    with history.watching():
        async with make_pipeline(store, journal=history.journal) as pipeline:
            await asyncio.gather(
                *(pipeline.on_actions(make_actions(f"s{n}", f"click {n}")) for n in range(6))
            )
            await pipeline.drain()
            first = len(history.moments)
            other = Other(12)
            other.max_inputs = 2
            if how == "after one was given up":
                await begin_and_give_up(pipeline, store, Other(12))
            moving = asyncio.create_task(pipeline.reembed(other, render=render))
            await other.requested.wait()
            await pipeline.on_actions(make_actions("s1", "click 6", user="ann"))
            await pipeline.forget(session_id="s2")
            await moving
            await pipeline.drain()
            assert await texts(store) == WANTED
    started_with = {"old": 0, "new": 0}
    for moment in history.chosen(first):
        again, journal = await history.restored(moment)
        other = Other(12)
        pipeline = make_pipeline(again, journal=journal)
        try:
            await pipeline.start()
        except StoreMismatchError:
            started_with["new"] += 1
            pipeline = make_pipeline(again, journal=journal, embedder=other)
            await pipeline.start()
        else:
            started_with["old"] += 1
            await pipeline.reembed(other, render=render)
        try:
            async with asyncio.timeout(30):
                await check(pipeline, again, other, make_actions)
        finally:
            await pipeline.aclose()
    assert started_with["old"] > history.least["old"]
    assert started_with["new"] > history.least["new"]


async def begin_and_give_up(pipeline, store, other):
    """Copy some chunks, stop, and go back to the embedder in use."""
    other.max_inputs = 1

    def stop(texts):
        if texts[0] not in [first for (first,) in other.requests[:3]]:
            raise EmbedderUnavailableError("out of service")

    other.script = stop
    moving = asyncio.create_task(pipeline.reembed(other))
    async with asyncio.timeout(30):
        while len(await copied(store)) < 3:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    moving.cancel()
    await asyncio.wait([moving])
    await pipeline.reembed(pipeline._embedder)


async def check(pipeline, store, other, make_actions):
    await pipeline.drain()
    found = await texts(store)
    assert set(found) - {"click 2", "click 6"} == set(WANTED) - {"click 6"}
    assert len(found) == len(set(found))
    assert (await pipeline.verify()).clean
    ids = [chunk.id async for page in store.scan() for chunk in page]
    assert len(await store.score(other.vector("click 1"), ids)) == len(ids)
    assert await copied(store) == []
    # What had not been done before the crash is done again.
    await pipeline.forget(session_id="s2")
    await pipeline.on_actions(make_actions("s1", "click 6", user="ann"))
    await pipeline.drain()
    assert await texts(store) == WANTED
    assert pipeline.ledger.balanced
