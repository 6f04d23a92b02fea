"""A half-written index after a kill is restored, and no stored chunk is missing.

Chroma writes an index once per few thousand chunks. Real kills test the files that an interrupted
write leaves; the other tests put such files together themselves.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from autoplay_rag.errors import ConfigurationError, StoreUnavailableError
from autoplay_rag.stores import ChromaStore, Chunk, Filter

SIZE = 16
BATCH = 250
"""Chroma writes the index at the fourth batch."""
WRITTEN = 4 * BATCH


def vector(number: int) -> list[float]:
    return random.Random(number).choices((-1.0, -0.5, 0.0, 0.5, 1.0), k=SIZE)


def opened(folder: Path) -> ChromaStore:
    return ChromaStore(folder, sync_threshold=WRITTEN)


async def upsert(store: ChromaStore, numbers: range) -> None:
    for start in range(numbers.start, numbers.stop, BATCH):
        batch = range(start, min(start + BATCH, numbers.stop))
        chunks = [Chunk(f"c{n}", f"text {n}", {"session_id": f"s{n}"}) for n in batch]
        await store.upsert(chunks, [vector(n) for n in batch])


async def assert_whole(store: ChromaStore, count: int) -> None:
    assert await store.count() == count
    for number in random.Random(1).sample(range(count), 40):
        (hit,) = await store.query(vector(number), 1, Filter())
        assert hit.text == f"text {number}"
        assert hit.score == pytest.approx(1, abs=1e-5)


def index_of(folder: Path) -> Path:
    (header,) = folder.glob("*/header.bin")
    return header.parent


def mirror_of(folder: Path) -> Path:
    return folder / "autoplay-rag.mirror" / index_of(folder).name


@pytest.fixture
async def store(tmp_path):
    store = opened(tmp_path)
    await store.start("model-a")
    yield store
    await store.aclose()


@pytest.fixture(scope="module")
def half_written(tmp_path_factory):
    """A folder, and the files of its index as Chroma writes them next.

    Between the two, chunks were added, deleted, and given other vectors.
    """
    before = tmp_path_factory.mktemp("before")
    after = tmp_path_factory.mktemp("after")

    async def prepare() -> None:
        store = opened(before)
        await store.start("model-a")
        await upsert(store, range(WRITTEN + BATCH))
        await store.delete([f"c{n}" for n in range(0, 200, 2)])
        moved = range(1, 200, 2)
        chunks = [Chunk(f"c{n}", f"moved {n}", {"session_id": f"s{n}"}) for n in moved]
        await store.upsert(chunks, [vector(-n) for n in moved])
        await store.aclose()
        shutil.copytree(before, after, dirs_exist_ok=True)
        store = opened(after)
        await store.start("model-a")
        await upsert(store, range(WRITTEN + BATCH, 2 * WRITTEN + BATCH))
        await store.aclose()

    asyncio.run(prepare())
    assert index_of(after).joinpath("header.bin").stat().st_mtime_ns > (
        index_of(before).joinpath("header.bin").stat().st_mtime_ns
    )
    return before, index_of(after)


@pytest.mark.parametrize(
    ("part", "pickle"),
    [
        (0.5, "old"),
        *(pytest.param(part, "old", marks=pytest.mark.slow) for part in (0.0, 0.1, 0.9, 1.0)),
        pytest.param(1.0, "half", marks=pytest.mark.slow),
        (1.0, "new"),
    ],
)
async def test_an_index_that_was_not_finished_is_restored(half_written, tmp_path, part, pickle):
    before, after = half_written
    shutil.copytree(before, tmp_path, dirs_exist_ok=True)
    index = index_of(tmp_path)
    for name in ("header.bin", "length.bin", "link_lists.bin", "data_level0.bin"):
        new = (after / name).read_bytes()
        with (index / name).open("r+b") as file:  # Chroma writes in place, from the beginning
            file.write(new[: int(len(new) * (part if name == "data_level0.bin" else 1))])
    if pickle != "old":
        new = (after / "index_metadata.pickle").read_bytes()
        (index / "index_metadata.pickle").write_bytes(new[: len(new) // (1 + (pickle == "half"))])
    store = opened(tmp_path)
    await store.start("model-a")
    try:
        assert await store.count() == WRITTEN + BATCH - 100
        for number in [*range(1, 200, 20), *range(200, WRITTEN + BATCH, 300)]:
            is_moved = number < 200
            (hit,) = await store.query(vector(-number if is_moved else number), 1, Filter())
            assert hit.text == f"{'moved' if is_moved else 'text'} {number}"
            assert hit.score == pytest.approx(1, abs=1e-5)
        for number in range(0, 200, 20):
            (hit,) = await store.query(vector(number), 1, Filter())
            assert hit.id != f"c{number}"
        await upsert(store, range(WRITTEN + BATCH, 2 * WRITTEN + BATCH))
        for number in range(200, 2 * WRITTEN, 500):
            (hit,) = await store.query(vector(number), 1, Filter())
            assert hit.id == f"c{number}"
    finally:
        await store.aclose()


async def test_an_index_that_is_begun_anew_is_restored(store, tmp_path):
    half = range(WRITTEN // 2)
    await upsert(store, half)
    await store.delete([f"c{n}" for n in half])
    await upsert(store, range(60))
    await store.aclose()
    assert mirror_of(tmp_path).joinpath("state.json").exists()
    for path in index_of(tmp_path).iterdir():  # Chroma empties its files, and then writes them
        path.write_bytes(b"")
    await assert_whole(store, 60)


async def test_without_the_copy_chroma_cannot_go_on(half_written, tmp_path):
    before, after = half_written
    shutil.copytree(before, tmp_path, dirs_exist_ok=True)
    shutil.copy(after / "header.bin", index_of(tmp_path))
    (index_of(tmp_path) / "index_metadata.pickle").write_bytes(b"half")
    (mirror_of(tmp_path) / "state.json").unlink()  # like an interrupted copy
    store = opened(tmp_path)
    with pytest.raises(StoreUnavailableError):
        await store.query(vector(1), 1, Filter())
    await store.aclose()


async def test_the_threshold_is_that_of_the_last_start(store, tmp_path):
    await upsert(store, range(10))
    await store.aclose()
    state = mirror_of(tmp_path) / "state.json"
    longer = ChromaStore(tmp_path, sync_threshold=3 * BATCH // 2 + WRITTEN)
    await longer.start("model-a")
    await upsert(longer, range(10, WRITTEN + BATCH))
    assert not state.exists()
    await longer.aclose()
    await store.start("model-a")
    await upsert(store, range(WRITTEN + BATCH, WRITTEN + BATCH + 10))
    assert state.exists()


@pytest.mark.slow
async def test_a_large_index_is_written_less_often(tmp_path):
    store = ChromaStore(tmp_path, sync_threshold=20_000)
    await store.start("model-a")
    for start in range(0, 70_000, 5_000):
        batch = range(start, start + 5_000)
        chunks = [Chunk(f"c{n}", "text", {}) for n in batch]
        await store.upsert(chunks, [[float(n % 100), 1.0] for n in batch])
    await store.aclose()
    assert threshold_in(tmp_path) == 20_000
    store = ChromaStore(tmp_path)
    await store.start("model-a")
    await store.aclose()
    assert threshold_in(tmp_path) == 4 * math.isqrt(70_000)


GROWS = """
import random, sys
from array import array
from pathlib import Path
from autoplay_rag.stores import Filter
from autoplay_rag.stores.chroma import folder as module
from autoplay_rag.stores.chroma.frames import Found, Open, Query, Upsert

given, count = int(sys.argv[2]) or None, int(sys.argv[3])
module._LEAST_THRESHOLD = 100
opened, original = [], module.Folder._open
module.Folder._open = lambda self: (opened.append(self), original(self))[1]
folder = module.Folder(Path(sys.argv[1]))
to = {"collection": "test", "model": "m", "timeout": 60.0}
vectors = [array("f", random.Random(n).choices([-1.0, -0.5, 0.5, 1.0], k=8)).tobytes() for n in range(count)]
folder.answer(Open(**to, sync_threshold=given))
for start in range(0, count, 50):
    ids = [f"c{n}" for n in range(start, start + 50)]
    folder.answer(Upsert(**to, ids=ids, texts=ids, metadatas=[{} for _ in ids],
        vectors=b"".join(vectors[start : start + 50]), dimension=8, sync_threshold=given))
print(len(opened))
found = set()
for vector in vectors:
    reply = folder.answer(Query(**to, vector=vector, k=10, conditions=[], where=None))
    assert isinstance(reply, Found), reply
    found |= {hit[0] for hit in reply.hits}
print(len(found))
"""


@pytest.mark.parametrize(("given", "opened", "threshold"), [(0, 2, 4 * 38), (100, 1, 100)])
def test_an_index_that_grows_is_written_less_often(tmp_path, given, opened, threshold):
    command = [sys.executable, "-W", "ignore", "-c", GROWS, str(tmp_path), str(given), "1600"]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    assert [int(line) for line in printed.stdout.split()] == [opened, 1600]
    assert threshold_in(tmp_path) == threshold


def threshold_in(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "chroma.sqlite3")) as database:
        (schema,) = database.execute("SELECT schema_str FROM collections").fetchone()
    (found,) = set(re.findall(r'"sync_threshold":(\d+)', schema))
    return int(found)


def test_a_threshold_that_chroma_refuses_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigurationError, match="sync_threshold"):
        ChromaStore(tmp_path, sync_threshold=99)


async def test_killed_as_it_writes_the_index_it_goes_on_with_all_it_had(store, tmp_path):
    stored = 0
    for _ in range(3):
        await upsert(store, range(stored, stored + WRITTEN - BATCH))
        stored += WRITTEN - BATCH
        worker = store._worker._process._popen
        before = (index_of(tmp_path) / "header.bin").stat().st_mtime_ns
        writing = asyncio.create_task(upsert(store, range(stored, stored + 2 * BATCH)))
        while not writing.done():
            await asyncio.sleep(0)
            if (index_of(tmp_path) / "header.bin").stat().st_mtime_ns != before:
                worker.kill()
                break
        with suppress(StoreUnavailableError):  # the kill may have come after the last reply
            await writing
        await upsert(store, range(stored, stored + 2 * BATCH))
        stored += 2 * BATCH
        await assert_whole(store, stored)


async def test_a_small_collection_is_whole_after_any_number_of_restarts(tmp_path, capfd):
    store = opened(tmp_path)
    for start in range(0, 300, 100):
        await upsert(store, range(start, start + 100))
        await store.aclose()
    (index_of(tmp_path) / "data_level0.bin").write_bytes(b"half")
    await assert_whole(store, 300)
    await store.aclose()
    assert "killed" not in capfd.readouterr().err


async def test_an_older_copy_is_never_put_back(store, tmp_path):
    await upsert(store, range(WRITTEN))
    await store.aclose()
    before = {path.name: path.read_bytes() for path in mirror_of(tmp_path).iterdir()}
    await upsert(store, range(WRITTEN, 2 * WRITTEN))
    await store.aclose()
    for name, content in before.items():  # as if killed before the new copy
        (mirror_of(tmp_path) / name).write_bytes(content)
    await assert_whole(store, 2 * WRITTEN)
    state = json.loads((mirror_of(tmp_path) / "state.json").read_bytes())
    assert state["written_to"] >= 2 * WRITTEN - BATCH


async def test_a_copy_that_fails_does_not_keep_chunks_from_being_stored(tmp_path, capfd):
    (tmp_path / "autoplay-rag.mirror").write_text("a file where a folder belongs")
    store = opened(tmp_path)
    await upsert(store, range(WRITTEN))
    await assert_whole(store, WRITTEN)
    await store.aclose()
    assert "could not be copied for recovery" in capfd.readouterr().err


async def test_copies_of_a_collection_that_is_gone_are_dropped(tmp_path):
    store = opened(tmp_path)
    await store.start("model-a")
    await upsert(store, range(WRITTEN))
    first = mirror_of(tmp_path)
    assert (first / "state.json").exists()
    await store.delete([f"c{n}" for n in range(WRITTEN)])
    await store.start("model-b")  # the collection is empty, so it is created again
    await store.upsert([Chunk("c1", "text", {})], [vector(1)])
    await store.aclose()
    assert not first.exists()


def test_nothing_is_written_on_a_disk_that_is_nearly_full(tmp_path):
    """Chroma does not notice a failed write of its index, and drops the log of its contents."""
    script = """
import shutil, sys
from pathlib import Path
from types import SimpleNamespace
from autoplay_rag.stores.chroma.folder import Folder
from autoplay_rag.stores.chroma.frames import Count, Upsert

to = {"collection": "sessions", "model": "m", "timeout": 60.0}
upsert = Upsert(**to, ids=["a"], texts=["t"], metadatas=[{}], vectors=bytes(16), dimension=4)
folder = Folder(Path(sys.argv[1]))
disk_usage, shutil.disk_usage = shutil.disk_usage, lambda path: SimpleNamespace(free=10 << 20)
print(folder.answer(upsert).message)
print(folder.answer(Count(**to)).count)
shutil.disk_usage = disk_usage
print(folder.answer(upsert))
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    refused, count, stored = printed.stdout.splitlines()
    assert "10 MB are free" in refused
    assert "64 MB are needed" in refused
    assert count == "0"
    assert stored.startswith("Done")
