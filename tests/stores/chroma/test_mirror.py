"""A half-written index after a kill is restored, and no stored chunk is missing.

Chroma writes an index once per thousand chunks. Real kills test the files that an interrupted write
leaves; the other tests damage the files themselves.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoplay_rag.errors import StoreUnavailableError
from autoplay_rag.stores import ChromaStore, Chunk, Filter
from autoplay_rag.stores.chroma import mirror

SIZE = 16
BATCH = 250
"""Chroma writes the index at the fourth batch."""
WRITTEN = 4 * BATCH


def vector(number: int) -> list[float]:
    return random.Random(number).choices((-1.0, -0.5, 0.0, 0.5, 1.0), k=SIZE)


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
    store = ChromaStore(tmp_path)
    await store.start("model-a")
    yield store
    await store.aclose()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda index: (index / "data_level0.bin").write_bytes(b"half"),
        lambda index: (index / "index_metadata.pickle").unlink(),
        lambda index: [path.unlink() for path in index.iterdir()],
    ],
    ids=["cut short", "a file missing", "broken off while put back"],
)
async def test_an_index_that_was_not_finished_is_put_back(store, tmp_path, spoil):
    await upsert(store, range(WRITTEN + 30))
    await store.aclose()
    spoil(index_of(tmp_path))
    await assert_whole(store, WRITTEN + 30)


async def test_without_the_copy_chroma_cannot_go_on(store, tmp_path):
    await upsert(store, range(WRITTEN + 30))
    await store.aclose()
    (index_of(tmp_path) / "data_level0.bin").write_bytes(b"half")
    (mirror_of(tmp_path) / "state.json").unlink()  # like an interrupted copy
    with pytest.raises(StoreUnavailableError, match="embedding"):
        await store.query(vector(1), 1, Filter())


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
    store = ChromaStore(tmp_path)
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
    store = ChromaStore(tmp_path)
    await upsert(store, range(WRITTEN))
    await assert_whole(store, WRITTEN)
    await store.aclose()
    assert "could not be copied for recovery" in capfd.readouterr().err


async def test_copies_of_a_collection_that_is_gone_are_dropped(tmp_path):
    store = ChromaStore(tmp_path)
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


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(st.sampled_from([b"a", b"b"]), max_size=8),
    after=st.lists(st.sampled_from([b"a", b"b"]), max_size=8),
    rest=st.integers(0, 5),
)
def test_a_copy_is_equal_whatever_was_there_before(tmp_path, monkeypatch, before, after, rest):
    monkeypatch.setattr(mirror, "_SLAB", 12)
    monkeypatch.setattr(mirror, "_PAGE", 4)
    source, copy = tmp_path / "source", tmp_path / "copy"
    copy.write_bytes(b"".join(part * 4 for part in before))
    source.write_bytes(b"".join(part * 4 for part in after) + b"c" * rest)
    mirror._copy_changed(source, copy)
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_mtime_ns == source.stat().st_mtime_ns
