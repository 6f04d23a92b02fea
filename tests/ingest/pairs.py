"""Shared by tests of journal and store together: a store with its own disk, and kills."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import ScriptedEmbedder, make_actions, titles

from autoplay_rag import IngestPipeline
from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.stores import MemoryStore
from autoplay_rag.stores.memory import _Table


class DiskStore(MemoryStore):
    """Keeps its chunks in `disk`, where another object finds them, as after a restart."""

    persistent = True

    def __init__(self, disk, name="autoplay"):
        super().__init__()
        self._table = disk.setdefault(name, _Table())
        self._name = name

    def __repr__(self):
        return f"<DiskStore {self._name}>"


def embedder_of(model="model-a", dimension=8):
    embedder = ScriptedEmbedder(dimension)
    embedder.model = model
    return embedder


def pipeline_of(store, journal, model="model-a", dimension=8, **options):
    """A pipeline with chunks that contain the titles of their actions, one per line.

    `journal` is the argument of this name, or several by their names.
    """
    where = journal if isinstance(journal, dict) else {"journal": journal}
    return IngestPipeline(
        store,
        embedder_of(model, dimension),
        **where,
        render=titles,
        batch_window=0.0,
        **options,
    )


def visits(*numbers):
    """Payloads with two actions each, and one session each."""
    return [make_actions(f"s{n}", f"click {n}", f"save {n}", at=1000.0 + n) for n in numbers]


def lines_of(*numbers):
    """The lines in the store once `visits` are stored."""
    return Counter(line for n in numbers for line in (f"click {n}", f"save {n}"))


async def ingest(store, journal, *numbers, **options):
    """Start, pass the payloads, drain and close; return the ledger."""
    async with pipeline_of(store, journal, **options) as pipeline:
        for payload in visits(*numbers):
            await pipeline.on_actions(payload)
        await pipeline.drain()
    return pipeline.ledger


async def held_by(store, model="model-a"):
    """Return every line of every chunk of a store; check that `count` gives the number of chunks."""
    await store.start(model)
    try:
        chunks = [chunk async for page in store.scan() for chunk in page]
        assert await store.count() == len(chunks)
    finally:
        await store.aclose()
    return Counter(line for chunk in chunks for line in chunk.text.split("\n"))


def copy_journal(journal, to, *, power_loss=False):
    """Copy a journal as it is on disk now. A power loss drops what was not synced."""
    to.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", "-wal"):
        part = journal.with_name(journal.name + suffix)
        there = to.with_name(to.name + suffix)
        there.unlink(missing_ok=True)
        if part.exists() and not (power_loss and suffix):
            shutil.copy(part, there)
    return to


@dataclass
class Moments:
    """The contents of the disk at each step of a run: before and after each call that changes it."""

    journal: Path
    disk: dict
    folder: Path
    taken: list[tuple[str, Path, Path, dict]] = field(default_factory=list)

    def take(self, name):
        number = len(self.taken)
        killed = copy_journal(self.journal, self.folder / f"{number}" / "killed.db")
        off = copy_journal(self.journal, self.folder / f"{number}" / "off.db", power_loss=True)
        self.taken.append((name, killed, off, copy.deepcopy(self.disk)))

    def watch(self, monkeypatch):
        changes = [
            (SqliteJournal, "note_store", "queue_all", "adopt", "acknowledged_for_good", "fill"),
            (SqliteJournal, "record_plans", "acknowledge", "stored_again"),
            (DiskStore, "save_identity", "drop", "start", "upsert"),
        ]
        for cls, *names in changes:
            for name in names:
                monkeypatch.setattr(cls, name, self._watched(name, getattr(cls, name)))

    def _watched(self, name, method):
        async def watched(*args):
            self.take(f"before {name}")
            result = await method(*args)
            self.take(f"after {name}")
            return result

        return watched
