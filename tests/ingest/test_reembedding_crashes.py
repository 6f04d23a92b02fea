"""A crash at any moment of a re-embedding leaves one model in use, with every chunk once.

The test restarts from the disk as it was after every journal commit, with the store as it was then
and after each of its later operations.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager

import pytest
from watched import WatchedStore

from autoplay_rag.errors import EmbedderUnavailableError, StoreMismatchError
from autoplay_rag.ingest import copier
from autoplay_rag.journal.file import JournalFile


class History:
    """The journal's files, and the number of operations on the store, at every moment."""

    def __init__(self, path, store) -> None:
        self.path = path
        self.operations = store.operations
        store.on_operation = self.note
        self.moments: list[tuple[dict[str, bytes], int]] = []
        self.files: dict[str, bytes] = {}

    def note(self) -> None:
        self.moments.append((self.files, len(self.operations)))

    @contextmanager
    def watching(self):
        original = JournalFile.transaction

        @contextmanager
        def transaction(db):
            with original(db):
                yield
            names = (self.path, self.path.with_name(self.path.name + "-wal"))
            files = {path.name: path.read_bytes() for path in names if path.exists()}
            if files != self.files:
                self.files = files
                self.note()

        JournalFile.transaction = transaction
        try:
            yield
        finally:
            JournalFile.transaction = original


async def texts(store) -> list[str]:
    return sorted([chunk.text async for page in store.scan() for chunk in page])


WANTED = [f"click {n}" for n in (0, 1, 3, 4, 5, 6)]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["at once", "rendered", "after one was given up"])
async def test_every_moment(  # noqa: PLR0917 - fixtures
    make_pipeline, make_actions, scripted_embedder, tmp_path, monkeypatch, how
):
    render = how == "rendered"
    monkeypatch.setattr(copier, "_PAGE", 2)

    class Other(scripted_embedder):
        model = "other"

    store = WatchedStore()
    history = History(tmp_path / "journal.db", store)
    with history.watching():
        async with make_pipeline(store, journal=history.path) as pipeline:
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
    for number, (files, count) in enumerate(history.moments[first:]):
        journal = tmp_path / str(number) / "journal.db"
        journal.parent.mkdir()
        for name, data in files.items():
            (journal.parent / name).write_bytes(data)
        again = await WatchedStore().replay(history.operations[:count])
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
            async with asyncio.timeout(20):
                await check(pipeline, again, other, make_actions)
        finally:
            await pipeline.aclose()
    assert started_with["old"] > 10
    assert started_with["new"] > 3


async def begin_and_give_up(pipeline, store, other):
    """Copy some chunks, stop, and go back to the embedder in use."""
    other.max_inputs = 1

    def stop(texts):
        if texts[0] not in [first for (first,) in other.requests[:3]]:
            raise EmbedderUnavailableError("out of service")

    other.script = stop
    moving = asyncio.create_task(pipeline.reembed(other))
    async with asyncio.timeout(30):
        while len(await texts(store.sibling("next"))) < 3:  # noqa: ASYNC110 - it has no event
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
    assert await texts(store.sibling("next")) == []
    # What had not been done before the crash is done again.
    await pipeline.forget(session_id="s2")
    await pipeline.on_actions(make_actions("s1", "click 6", user="ann"))
    await pipeline.drain()
    assert await texts(store) == WANTED
    assert pipeline.ledger.balanced
