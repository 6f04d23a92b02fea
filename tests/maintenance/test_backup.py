"""Backups beside a live ingest, and what `restore` refuses and puts back."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import stat
import sys
from contextlib import closing
from pathlib import Path

import pytest

from autoplay_rag.errors import (
    BackupError,
    ConfigurationError,
    StoreMismatchError,
    StoreRejectedError,
)
from autoplay_rag.maintenance import backup as module
from autoplay_rag.maintenance import measuring
from autoplay_rag.maintenance.alone import backup_alone, verify_alone
from autoplay_rag.maintenance.restoring import check_backup, restore
from autoplay_rag.stores import ChromaStore, MemoryStore

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def place(tmp_path):
    """Paths of journal, store and backup."""

    class Place:
        journal = tmp_path / "live" / "journal.db"
        folder = tmp_path / "live" / "chroma"
        backup = tmp_path / "backups" / "first"
        new_journal = tmp_path / "restored" / "journal.db"
        new_folder = tmp_path / "restored" / "chroma"

    return Place


@pytest.fixture
def open_pipeline(make_pipeline):
    def open_(journal, folder, **options):
        return make_pipeline(ChromaStore(folder), journal=journal, **options)

    return open_


async def fill(pipeline, make_actions, count, *, start=0):
    for n in range(start, start + count):
        await pipeline.on_actions(make_actions(f"s{n}", f"click {n}"))
    await pipeline.drain()


async def titles_in(store) -> list[str]:
    return sorted(
        [line async for page in store.scan() for c in page for line in c.text.split("\n")]
    )


def modes(folder: Path) -> set[str]:
    return {
        f"{'d' if path.is_dir() else 'f'}{stat.S_IMODE(path.stat().st_mode):o}"
        for path in [folder, *folder.rglob("*")]
    }


async def test_a_backup_beside_a_live_ingest_is_consistent(
    open_pipeline, make_actions, place, tmp_path
):
    count = 300
    async with open_pipeline(place.journal, place.folder) as pipeline:
        started = asyncio.Event()

        async def ingest():
            for n in range(count):
                await pipeline.on_actions(make_actions(f"s{n % 40}", f"click {n}", at=1000.0 + n))
                if n == 20:
                    started.set()
            await pipeline.drain()

        running = asyncio.create_task(ingest())
        await started.wait()
        reports = []
        while not running.done():
            reports.append(await pipeline.backup(tmp_path / "backups" / str(len(reports))))
        await running
        reports.append(await pipeline.backup(tmp_path / "backups" / "last"))
    assert len(reports) > 1
    received = []
    for number, report in enumerate(reports):
        assert report.has_store
        assert modes(Path(report.folder)) == {"d700", "f600"}
        manifest = check_backup(Path(report.folder))
        assert (len(manifest.files), manifest.size) == (report.files, report.size)
        journal, folder = tmp_path / f"r{number}" / "journal.db", tmp_path / f"r{number}" / "chroma"
        await asyncio.to_thread(restore, report.folder, journal=journal, store=folder)
        assert modes(journal.parent) <= {"d700", "f600", "d755"}
        store = ChromaStore(folder)
        found = await verify_alone(journal, store)
        assert found.clean, found
        async with open_pipeline(journal, folder) as pipeline:
            await pipeline.drain()
            ledger = pipeline.ledger
            assert ledger.balanced
            assert (ledger.stored, ledger.pending) == (ledger.received, 0)
            found = await pipeline.verify()
            assert found.clean, found
            store = pipeline._store
            assert await titles_in(store) == sorted(f"click {n}" for n in range(ledger.received))
            received.append(ledger.received)
    assert received == sorted(received)
    assert received[-1] == count


async def test_a_pipeline_goes_on_after_a_restore(open_pipeline, make_actions, place):
    async with open_pipeline(place.journal, place.folder) as pipeline:
        await fill(pipeline, make_actions, 5)
        await pipeline.backup(place.backup)
        await fill(pipeline, make_actions, 5, start=5)
    await asyncio.to_thread(
        restore, place.backup, journal=place.new_journal, store=place.new_folder
    )
    async with open_pipeline(place.new_journal, place.new_folder) as pipeline:
        await fill(pipeline, make_actions, 5, start=3)
        assert pipeline.ledger.duplicate == 2
        assert (await pipeline.verify()).clean
        assert await titles_in(pipeline._store) == sorted(f"click {n}" for n in range(8))
    with pytest.raises(StoreMismatchError):  # the copy went on without the original
        await open_pipeline(place.journal, place.new_folder).start()


async def test_without_a_pipeline(open_pipeline, make_actions, place):
    async with open_pipeline(place.journal, place.folder) as pipeline:
        await fill(pipeline, make_actions, 5)
    report = await backup_alone(place.backup, place.journal, ChromaStore(place.folder))
    assert report.has_store
    shutil.rmtree(place.folder)
    await asyncio.to_thread(
        restore, place.backup, journal=place.journal, store=place.folder, force=True
    )
    async with open_pipeline(place.journal, place.folder) as pipeline:
        assert (await pipeline.verify()).clean


async def test_of_other_stores_only_the_journal(make_pipeline, make_actions, place):
    async with make_pipeline(MemoryStore(), journal=place.journal) as pipeline:
        await fill(pipeline, make_actions, 5)
        report = await pipeline.backup(place.backup)
    assert not report.has_store
    assert sorted(path.name for path in place.backup.iterdir()) == ["journal.db", "manifest.json"]
    restore(place.backup, journal=place.new_journal)
    store = MemoryStore()
    async with make_pipeline(store, journal=place.new_journal) as pipeline:
        await pipeline.drain()
        assert (await pipeline.verify()).clean
        assert len(await titles_in(store)) == 5


async def test_the_progress_of_a_backup_is_in_bytes(
    open_pipeline, make_actions, place, monkeypatch, caplog
):
    monkeypatch.setattr(measuring, "_EVERY_SECONDS", 0.0)
    told = []

    def tell(progress):
        told.append(progress)
        raise ValueError("of the caller")

    async with open_pipeline(place.journal, place.folder) as pipeline:
        await fill(pipeline, make_actions, 50)
        report = await pipeline.backup(place.backup, on_progress=tell)
    assert len(told) > 1
    done = [one.done for one in told]
    assert done == sorted(done)
    assert done[0] < done[-1]
    assert all(one.unit == "bytes" and one.done <= one.total for one in told)
    # SQLite's own temporary files may have counted, too.
    assert done[-1] == told[-1].total >= 2 * report.size > 0
    assert caplog.text.count("on_progress failed") == len(told)


async def test_no_file_no_backup(make_pipeline, place):
    async with make_pipeline() as pipeline:
        with pytest.raises(ConfigurationError, match="journal"):
            await pipeline.backup(place.backup)


async def test_a_folder_that_is_not_empty_is_refused(make_pipeline, place):
    async with make_pipeline(journal=place.journal) as pipeline:
        place.backup.mkdir(parents=True)
        (place.backup / "mine").touch()
        with pytest.raises(BackupError, match="not empty"):
            await pipeline.backup(place.backup)
        (place.backup / "mine").unlink()
        partial = place.backup.with_name("first.partial")
        partial.mkdir()
        with pytest.raises(BackupError, match="in the way"):
            await pipeline.backup(place.backup)
        (partial / module._UNFINISHED).touch()
        await pipeline.backup(place.backup)
        assert not partial.exists()
        assert (place.backup / "manifest.json").exists()


async def test_a_backup_that_fails_leaves_nothing(make_pipeline, make_actions, place, monkeypatch):
    async with make_pipeline(journal=place.journal) as pipeline:

        def fail(*_args):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(module, "_complete", fail)
            with pytest.raises(BackupError, match="No space left"):
                await pipeline.backup(place.backup)
        assert list(place.backup.parent.iterdir()) == []
        await fill(pipeline, make_actions, 2)  # the store is not paused any more
        assert (await pipeline.backup(place.backup)).files == 1


async def test_a_backup_inside_of_the_store_is_refused(open_pipeline, make_actions, place):
    async with open_pipeline(place.journal, place.folder) as pipeline:
        await fill(pipeline, make_actions, 1)
        with pytest.raises(StoreRejectedError, match="inside"):
            await pipeline.backup(place.folder / "copy")
        assert not list(place.folder.glob("copy*"))


# -- restore ----------------------------------------------------------------------------------


@pytest.fixture
async def backed_up(open_pipeline, make_actions, place):
    async with open_pipeline(place.journal, place.folder) as pipeline:
        await fill(pipeline, make_actions, 3)
        await pipeline.backup(place.backup)
    return place


def target(place, **more):
    return {"journal": place.new_journal, "store": place.new_folder, **more}


def test_what_is_not_whole_is_refused(backed_up):
    manifest = backed_up.backup / "manifest.json"
    kept = manifest.read_bytes()

    def refused(match):
        with pytest.raises(BackupError, match=match):
            restore(backed_up.backup, **target(backed_up))
        assert not backed_up.new_journal.parent.exists()

    manifest.unlink()
    refused("not a complete backup")
    manifest.write_bytes(kept[:-20])
    refused("damaged")
    manifest.write_bytes(kept)
    journal = backed_up.backup / "journal.db"
    content = journal.read_bytes()
    journal.write_bytes(content[:-2048])
    refused("differs from the manifest")
    flipped = bytes([content[5000] ^ 1])
    journal.write_bytes(content[:5000] + flipped + content[5001:])
    refused("differs from the manifest")
    journal.unlink()
    refused("cannot be read")
    journal.write_bytes(content)
    changed = json.loads(kept)
    manifest.write_text(json.dumps({**changed, "format": 99}))
    refused("format 99")
    manifest.write_text(json.dumps({**changed, "journal_id": "other"}))
    refused("not the one that its manifest names")
    outside = {**changed["files"], "../outside": {"size": 0, "hash": ""}}
    manifest.write_text(json.dumps({**changed, "files": outside}))
    refused("outside")
    manifest.write_bytes(kept)
    restore(backed_up.backup, **target(backed_up))


@pytest.mark.parametrize("what", ["journal of another", "newer journal", "damaged journal"])
def test_what_does_not_fit_is_refused(backed_up, what):
    journal = backed_up.backup / "journal.db"
    if what == "damaged journal":
        size = journal.stat().st_size
        with journal.open("r+b") as file:
            for at in range(8192, size, 4096):
                file.seek(at)
                file.write(b"\xff" * 64)
        match = "damaged"
    else:
        statement, match = {
            "journal of another": (
                "UPDATE meta SET value = 'x' WHERE name = 'store_id'", "does not belong"
            ),
            "newer journal": ("PRAGMA user_version = 99", "format 99"),
        }[what]  # fmt: skip
        with closing(sqlite3.connect(journal)) as connection, connection:
            connection.execute(statement)
    manifest = backed_up.backup / "manifest.json"
    changed = json.loads(manifest.read_bytes())
    found = module.hashed(journal)
    changed["files"]["journal.db"] = {"size": found.size, "hash": found.hash}
    manifest.write_text(json.dumps(changed))
    with pytest.raises(BackupError, match=match):
        restore(backed_up.backup, **target(backed_up))


async def test_nothing_is_overwritten_unless_forced(backed_up, open_pipeline, make_actions):
    with pytest.raises(BackupError, match="say where"):
        restore(backed_up.backup, journal=backed_up.new_journal)
    with pytest.raises(BackupError, match=r"journal\.db exists"):
        restore(backed_up.backup, journal=backed_up.journal, store=backed_up.new_folder)
    with pytest.raises(BackupError, match="not empty"):
        restore(backed_up.backup, journal=backed_up.new_journal, store=backed_up.folder)
    async with open_pipeline(backed_up.journal, backed_up.folder) as pipeline:
        await fill(pipeline, make_actions, 3, start=3)
        with pytest.raises(BackupError, match="in use by process"):
            restore(backed_up.backup, **target(backed_up, journal=backed_up.journal), force=True)
        with pytest.raises(BackupError, match="in use by process"):
            restore(backed_up.backup, **target(backed_up, store=backed_up.folder), force=True)
    restore(backed_up.backup, journal=backed_up.journal, store=backed_up.folder, force=True)
    left = [path.name for path in backed_up.journal.parent.iterdir()]
    assert sorted(left) == ["chroma", "journal.db", "journal.db.lock"]
    assert not [p for p in backed_up.folder.iterdir() if "re" in p.name.removesuffix("rest")]
    async with open_pipeline(backed_up.journal, backed_up.folder) as pipeline:
        assert (await pipeline.verify()).clean
        assert await titles_in(pipeline._store) == ["click 0", "click 1", "click 2"]


async def test_an_interrupted_restore_can_be_repeated(backed_up, monkeypatch):
    place = backed_up
    left = None
    wanted = {
        path.relative_to(place.backup / "store"): path.read_bytes()
        for path in (place.backup / "store").rglob("*")
        if path.is_file()
    }
    rename, replace = Path.rename, Path.replace

    def interrupted(move):
        def moved(path, target):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left = None if left is None else left - 1
            return move(path, target)

        return moved

    monkeypatch.setattr(Path, "rename", interrupted(rename))
    monkeypatch.setattr(Path, "replace", interrupted(replace))
    restore(place.backup, **target(place))
    for stop in range(99):
        (place.new_folder / "autoplay-rag.mirror").mkdir()
        left = stop
        try:
            restore(place.backup, **target(place), force=True)
            done = True
        except KeyboardInterrupt:
            done = False
        left = None
        if not done:
            restore(place.backup, **target(place), force=True)
        found = {
            path.relative_to(place.new_folder): path.read_bytes()
            for path in place.new_folder.rglob("*")
            if path.is_file() and path.name != "autoplay-rag.lock"
        }
        assert found == wanted
        assert sorted(path.name for path in place.new_journal.parent.iterdir()) == [
            "chroma",
            "journal.db",
        ]
        assert place.new_journal.read_bytes() == (place.backup / "journal.db").read_bytes()
        if done:
            break
    assert stop > 4
    assert (await verify_alone(place.new_journal, ChromaStore(place.new_folder))).clean


async def test_a_folder_of_something_else_is_not_replaced(backed_up):
    backed_up.new_folder.mkdir(parents=True)
    (backed_up.new_folder / "thesis.txt").touch()
    with pytest.raises(BackupError, match="other files"):
        restore(backed_up.backup, **target(backed_up), force=True)
    assert [path.name for path in backed_up.new_folder.iterdir()] == ["thesis.txt"]


# -- kills ------------------------------------------------------------------------------------

CHILD = """
import asyncio, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from pipelines import ScriptedEmbedder, make_actions, titles
from autoplay_rag import IngestPipeline
from autoplay_rag.stores import ChromaStore

async def main(live, backup):
    store = ChromaStore(live / "chroma")
    async with IngestPipeline(
        store, ScriptedEmbedder(), journal=live / "journal.db", render=titles, batch_window=0.0
    ) as pipeline:
        for n in range(200):
            await pipeline.on_actions(make_actions(f"s{{n % 20}}", f"click {{n}}"))
        print("begins", flush=True)
        n = 200
        while True:
            await pipeline.backup(backup / str(n))
            await pipeline.on_actions(make_actions(f"s{{n % 20}}", f"click {{n}}"))
            n += 1

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.mark.slow
async def test_after_a_kill_a_backup_is_whole_or_refused(open_pipeline, tmp_path):
    chance = random.Random(3)
    refused = whole = 0
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(paths=[str(Path(__file__).parents[1]), *sys.path]))
    live = tmp_path / "live"
    for run in range(5):
        backups = tmp_path / f"backups{run}"
        process = await asyncio.create_subprocess_exec(
            sys.executable, script, live, backups, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(60):
            await process.stdout.readline()
        await asyncio.sleep(chance.uniform(0.05, 1.0))
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        for folder in backups.iterdir() if backups.exists() else ():
            number = f"{run}-{folder.name}"
            journal = tmp_path / number / "journal.db"
            chroma = tmp_path / number / "chroma"
            if folder.name.endswith(".partial") and not (folder / "manifest.json").exists():
                with pytest.raises(BackupError, match="not a complete backup"):
                    restore(folder, journal=journal, store=chroma)
                refused += 1
            elif whole < 4:
                restore(folder, journal=journal, store=chroma)
                async with open_pipeline(journal, chroma) as pipeline:
                    await pipeline.drain()
                    assert (await pipeline.verify()).clean
                whole += 1
    assert refused
    assert whole
    async with open_pipeline(live / "journal.db", live / "chroma") as pipeline:
        await pipeline.drain()
        assert (await pipeline.verify()).clean
