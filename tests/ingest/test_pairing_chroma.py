"""A journal and a real Chroma folder: deleted, exchanged, copied, killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pairs import copy_journal, held_by, ingest, lines_of, pipeline_of

from autoplay_rag.errors import StoreMismatchError
from autoplay_rag.journal.schema import ChunkState
from autoplay_rag.stores import ChromaStore

pytestmark = pytest.mark.slow

REBUILD = """
import asyncio, os, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from pairs import ingest
from autoplay_rag.stores import ChromaStore

class Talking(ChromaStore):
    async def upsert(self, chunks, vectors):
        await super().upsert(chunks, vectors)
        os.write(1, b"stored\\n")

folder = Path(sys.argv[1])
asyncio.run(ingest(Talking(folder / "chroma"), folder / "journal.db", rebuild=True,
                   model="model-b", dimension=12))
"""


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal.db"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "chroma"


async def test_a_deleted_folder(journal, folder):
    await ingest(ChromaStore(folder), journal, *range(40))
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    shutil.rmtree(folder)

    with pytest.raises(StoreMismatchError, match="none of the 40 chunks") as error:
        await ingest(ChromaStore(folder), journal)
    for part in ("rebuild=True", "--rebuild", str(journal), str(folder), "'autoplay'"):
        assert part in str(error.value)
    await ingest(ChromaStore(kept), journal)  # nothing was changed

    async with pipeline_of(ChromaStore(folder), journal, rebuild=True) as pipeline:
        await pipeline.drain()
        assert pipeline.health.state == "ok"
        for number in (0, 17, 39):
            (hit,) = await pipeline.search(f"click {number}\nsave {number}", k=1)
            assert hit.session_id == f"s{number}"
    assert await held_by(ChromaStore(folder)) == lines_of(*range(40))
    ledger = await ingest(ChromaStore(folder), journal, *range(41))
    assert ledger.duplicate == 40
    assert await held_by(ChromaStore(folder)) == lines_of(*range(41))


async def test_another_collection_and_another_model(journal, folder):
    await ingest(ChromaStore(folder), journal, *range(10))
    with pytest.raises(StoreMismatchError, match="none of the 10 chunks"):
        await ingest(ChromaStore(folder, "other"), journal)
    other = {"model": "model-b", "dimension": 12}
    with pytest.raises(StoreMismatchError, match=r"model-a.*model-b.*rebuild=True.*--rebuild"):
        await ingest(ChromaStore(folder), journal, **other)
    await ingest(ChromaStore(folder), journal, 10)

    await ingest(ChromaStore(folder), journal, rebuild=True, **other)
    assert await held_by(ChromaStore(folder), "model-b") == lines_of(*range(11))
    with pytest.raises(StoreMismatchError, match="model-b"):
        await held_by(ChromaStore(folder))


async def test_copies_put_back(journal, folder):
    await ingest(ChromaStore(folder), journal, *range(10))
    older_folder = folder.with_name("older-chroma")
    shutil.copytree(folder, older_folder)
    older_journal = copy_journal(journal, journal.with_name("older.db"))
    await ingest(ChromaStore(folder), journal, *range(10, 20))

    with pytest.raises(StoreMismatchError, match="an older copy: it lacks batches"):
        await ingest(ChromaStore(older_folder), journal)
    with pytest.raises(StoreMismatchError, match=r"the journal .* is an older copy"):
        await ingest(ChromaStore(folder), older_journal)
    await ingest(ChromaStore(older_folder), older_journal)  # both from the same time: a backup

    await ingest(ChromaStore(older_folder), journal, rebuild=True)
    assert await held_by(ChromaStore(older_folder)) == lines_of(*range(20))
    older_journal = copy_journal(journal, journal.with_name("older-2.db"))
    await ingest(ChromaStore(older_folder), journal, *range(20, 30))
    ledger = await ingest(ChromaStore(older_folder), older_journal, *range(31), adopt=True)
    assert ledger.duplicate == 30
    assert await held_by(ChromaStore(older_folder)) == lines_of(*range(31))


async def test_a_mistyped_journal(journal, folder):
    await ingest(ChromaStore(folder), journal, *range(10))
    mistyped = journal.with_name("jornal.db")
    for options in ({}, {"rebuild": True}):
        with pytest.raises(StoreMismatchError, match=r"another journal.*adopt=True.*--adopt"):
            await ingest(ChromaStore(folder), mistyped, 10, **options)
    await ingest(ChromaStore(folder), journal)
    ledger = await ingest(ChromaStore(folder), mistyped, *range(11), adopt=True)
    assert (ledger.duplicate, ledger.stored) == (10, 1)
    assert await held_by(ChromaStore(folder)) == lines_of(*range(11))
    with pytest.raises(StoreMismatchError, match="another journal"):
        await ingest(ChromaStore(folder), journal)
    await ingest(ChromaStore(folder), None, 11)  # without a journal there is no check


async def test_a_killed_rebuild_for_another_model_goes_on(journal, folder):
    await ingest(ChromaStore(folder), journal, *range(700))
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        REBUILD.format(paths=paths),
        str(journal.parent),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        async with asyncio.timeout(40):
            assert await process.stdout.readline() == b"stored\n"
    finally:
        process.kill()
        await process.wait()
    with closing(sqlite3.connect(journal)) as connection:
        (queued,) = connection.execute(
            "SELECT count(*) FROM chunk WHERE state = ?", (ChunkState.QUEUED,)
        ).fetchone()
    assert 0 < queued <= 700

    other = {"model": "model-b", "dimension": 12}
    ledger = await ingest(ChromaStore(folder), journal, *range(701), **other)
    assert ledger.duplicate == 700
    assert await held_by(ChromaStore(folder), "model-b") == lines_of(*range(701))
