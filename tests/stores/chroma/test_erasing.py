"""After `erase`, no file of a Chroma folder has the text or the vector of a deleted chunk."""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from autoplay_rag.errors import StoreUnavailableError
from autoplay_rag.stores import ChromaStore, Chunk, Filter
from autoplay_rag.stores.chroma.index import PLACES, IndexHeader

SIZE = 24
WRITTEN = 1000
"""Chroma writes the index once per so many changes."""


def vector(number: int) -> list[float]:
    generator = random.Random(number)
    return [generator.gauss(0, 1) for _ in range(SIZE)]


def has_vector(content: bytes, wanted: np.ndarray) -> bool:
    """Whether float32 values next to each other are these, at any byte, but for their last bits.

    The first four suffice. Chroma's index has vectors of length 1; their last bits depend on how
    the length was computed.
    """
    for start in range(4):
        values = np.frombuffer(content[start : start + (len(content) - start) // 4 * 4], np.float32)
        last = max(len(values) - 3, 0)
        with np.errstate(all="ignore"):
            near = [abs(values[i : last + i] - wanted[i]) < 1e-6 for i in range(4)]
        if np.logical_and.reduce(near).any():
            return True
    return False


def files_with(folder: Path, number: int) -> set[str]:
    given = np.array(vector(number), np.float32)
    unit = given / np.linalg.norm(given)
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file()
        for content in [path.read_bytes()]
        if f"private {number}.".encode() in content
        or has_vector(content, given)
        or has_vector(content, unit)
    }


async def upsert(store: ChromaStore, numbers: range, name: str = "c", shift: int = 0) -> None:
    for start in range(numbers.start, numbers.stop, 500):
        batch = range(start, min(start + 500, numbers.stop))
        chunks = [Chunk(f"{name}{n}", f"private {n + shift}.", {}) for n in batch]
        await store.upsert(chunks, [vector(n + shift) for n in batch])


async def assert_kept(store: ChromaStore, numbers: range) -> None:
    for number in random.Random(1).sample(numbers, 20):
        (hit,) = await store.query(vector(number), 1, Filter())
        assert (hit.text, hit.score) == (f"private {number}.", pytest.approx(1, abs=1e-5))


@pytest.fixture
async def store(tmp_path):
    store = ChromaStore(tmp_path, sync_threshold=WRITTEN)
    await store.start("model-a")
    yield store
    await store.aclose()


def test_the_search_for_bytes_finds_them(tmp_path):
    unit = np.array(vector(3), np.float32)
    unit /= np.linalg.norm(unit)
    (tmp_path / "index").write_bytes(b"abc" + unit.tobytes())
    (tmp_path / "log").write_bytes(b"ab" + array("f", vector(3)).tobytes())
    (tmp_path / "text").write_bytes(b"\0private 3.\0")
    assert files_with(tmp_path, 3) == {"index", "log", "text"}
    assert files_with(tmp_path, 4) == set()


@pytest.mark.parametrize("later", [0, 30, WRITTEN], ids=lambda later: f"{later} changes later")
async def test_no_file_has_a_deleted_vector(store, tmp_path, later):
    await upsert(store, range(2 * WRITTEN))
    await upsert(store, range(2 * WRITTEN, 2 * WRITTEN + 20))  # in the log only
    gone = [5, 700, 1999, 2005]
    for number in (5, 700, 1999):
        assert len(files_with(tmp_path, number)) >= 2, "database and index"
    await store.delete([f"c{n}" for n in gone])
    await upsert(store, range(3000, 3000 + later))
    assert files_with(tmp_path, 5)
    assert await store.erase()
    for number in gone:
        assert files_with(tmp_path, number) == set()
    await upsert(store, range(5000, 5000 + WRITTEN))  # Chroma writes the index again
    await store.aclose()
    for number in gone:
        assert files_with(tmp_path, number) == set()
    await assert_kept(store, range(710, 1990))
    await assert_kept(store, range(5000, 5000 + WRITTEN))
    assert await store.count() == 3 * WRITTEN + 20 + later - len(gone)


async def test_no_file_has_the_vector_before_a_replacement(store, tmp_path):
    await upsert(store, range(2 * WRITTEN))
    await store.delete(["c7"])
    await upsert(store, range(7, 8), shift=9000)  # what is left of it, stored again
    await upsert(store, range(1990, 1991), shift=9000)  # in place
    assert files_with(tmp_path, 7)
    assert await store.erase()
    assert files_with(tmp_path, 7) == set()
    assert files_with(tmp_path, 1990) == set()
    for number in (9007, 10_990):
        assert (await store.query(vector(number), 1, Filter()))[0].text == f"private {number}."
    await store.aclose()
    await assert_kept(store, range(8, 1990))
    for number in (9007, 10_990):
        assert (await store.query(vector(number), 1, Filter()))[0].text == f"private {number}."
    assert files_with(tmp_path, 7) == set()


async def test_each_collection_keeps_its_own(store, tmp_path):
    other = store.sibling("other")
    await other.start("model-b")
    for each in (store, other):
        await upsert(each, range(WRITTEN))
    await upsert(other, range(WRITTEN, WRITTEN + 5))
    await store.delete(["c5"])
    await other.delete(["c6"])
    assert await store.erase()
    assert files_with(tmp_path, 5), "the other has it"
    await assert_kept(other, range(7, WRITTEN + 5))
    await other.delete(["c5"])
    await store.delete(["c6"])
    assert await store.erase()
    assert files_with(tmp_path, 5) == files_with(tmp_path, 6) == set()
    await assert_kept(store, range(7, WRITTEN))
    await other.aclose()


async def test_an_index_of_unknown_form_is_not_touched(store, tmp_path):
    await upsert(store, range(WRITTEN))
    await store.delete(["c5"])
    (header,) = tmp_path.glob("*/header.bin")
    content = header.read_bytes()
    header.write_bytes(b"\x02" + content[1:])  # another version
    before = (header.parent / "data_level0.bin").read_bytes()
    assert not await store.erase()
    assert (header.parent / "data_level0.bin").read_bytes() == before
    header.write_bytes(content)


async def test_an_index_that_is_put_back_has_no_deleted_vector_either(store, tmp_path):
    await upsert(store, range(WRITTEN + 5))
    await store.delete(["c5"])
    assert await store.erase()
    await store.aclose()
    (header,) = tmp_path.glob("*/header.bin")
    (header.parent / "index_metadata.pickle").write_bytes(b"half")  # as a kill leaves it
    await assert_kept(store, range(6, WRITTEN + 5))
    assert files_with(tmp_path, 5) == set()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_killed_while_it_erases_it_keeps_the_others_and_can_be_repeated(store, tmp_path):
    await upsert(store, range(2 * WRITTEN))
    began = time.perf_counter()
    assert await store.erase()
    took = time.perf_counter() - began
    for number in range(10):
        await store.delete([f"c{number}"])
        erasing = asyncio.create_task(store.erase())
        await asyncio.sleep(random.Random(number).uniform(0.0, took))
        worker = store._worker._process._popen
        worker.kill()
        worker.wait()
        with suppress(StoreUnavailableError):
            await erasing
        assert await store.count() == 2 * WRITTEN - number - 1
        await assert_kept(store, range(10, 2 * WRITTEN))
        assert await store.erase()
        assert files_with(tmp_path, number) == set()


def unused(file: Path) -> bytes:
    """The part of a file of an index that belongs to no chunk."""
    header = IndexHeader.read(file.parent)
    assert header is not None
    return file.read_bytes()[header.places * {PLACES: header.width, "length.bin": 4}[file.name] :]


@pytest.mark.parametrize("name", [PLACES, "length.bin"])
@pytest.mark.parametrize("when", ["it erases", "it starts"])
async def test_memory_that_chroma_did_not_initialise_is_cleared(store, tmp_path, when, name):
    """Chroma writes it behind the last chunk of a new index. Here it holds a text for sure."""
    await upsert(store, range(20))
    (file,) = (path for path in tmp_path.glob(f"*/{name}"))
    if when == "it starts":
        await store.aclose()
    size = file.stat().st_size
    behind = size - len(unused(file))
    with file.open("r+b") as opened:
        opened.seek(behind)
        opened.write(b"private 3." * ((size - behind) // 10))
    assert b"private 3." in unused(file)
    if when == "it erases":
        assert await store.erase()
    else:
        await store.start("model-a")
    await assert_kept(store, range(20))  # makes Chroma open the index
    assert file.stat().st_size == size
    assert not any(unused(file))


async def test_an_index_that_chroma_writes_holds_nothing_else(store, tmp_path):
    await upsert(store, range(WRITTEN + 30))  # written once, with room for later chunks
    for name in (PLACES, "length.bin"):
        (file,) = (path for path in tmp_path.glob(f"*/{name}"))
        assert not any(unused(file))
    await store.aclose()
    await store.start("model-a")
    await assert_kept(store, range(WRITTEN + 30))
