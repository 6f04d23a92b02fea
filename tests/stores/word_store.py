"""Text stores for the tests of `ProcessStore`. The worker imports this module."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict

from autoplay_rag.errors import StoreMismatchError, StoreRejectedError
from autoplay_rag.stores import Chunk, Match, MemoryStore, StoreIdentity, TextStore

TABLES = """
CREATE TABLE IF NOT EXISTS chunks (id PRIMARY KEY, text, metadata);
CREATE TABLE IF NOT EXISTS notes (key PRIMARY KEY, value);
"""


class WordStore(TextStore):
    """Compares words. It keeps chunks in a SQLite file, and blocks while it works."""

    def __init__(self, path: str) -> None:
        self.path = path

    @contextmanager
    def db(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path)) as db, db:
            db.executescript(TABLES)
            yield db

    def note(self, db: sqlite3.Connection, key: str) -> str | None:
        return next(
            (value for (value,) in db.execute("SELECT value FROM notes WHERE key = ?", [key])), None
        )

    async def start(self, model):
        with self.db() as db:
            held = self.note(db, "model")
            if held not in (None, model) and db.execute("SELECT 1 FROM chunks").fetchone():
                raise StoreMismatchError(f"{self.path} is of {held!r}, not {model!r}: rebuild it")
            db.execute("INSERT OR REPLACE INTO notes VALUES ('model', ?)", [model])

    async def add(self, chunks):
        with self.db() as db:
            db.executemany(
                "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)",
                [(chunk.id, chunk.text, json.dumps(chunk.metadata)) for chunk in chunks],
            )

    def rows(self, ids=None) -> list[Chunk]:
        with self.db() as db:
            found = [
                Chunk(i, text, json.loads(m)) for i, text, m in db.execute("SELECT * FROM chunks")
            ]
        return [chunk for chunk in found if ids is None or chunk.id in ids]

    async def search(self, text, k, filter):
        if k < 1:
            raise StoreRejectedError(f"k is {k}; it must be at least 1")
        hits = [
            Match(chunk.id, chunk.text, likeness(text, chunk.text), chunk.metadata)
            for chunk in self.rows()
            if filter.matches(chunk.metadata)
        ]
        return sorted(hits, key=lambda hit: -hit.score)[:k]

    async def count(self):
        return len(self.rows())

    async def delete(self, ids):
        with self.db() as db:
            db.executemany("DELETE FROM chunks WHERE id = ?", [[i] for i in ids])

    async def get(self, ids):
        return self.rows(set(ids))

    async def scan(self, page=500):
        chunks = self.rows()
        for start in range(0, len(chunks), page):
            yield chunks[start : start + page]

    async def update_metadata(self, changes):
        for chunk in self.rows(changes):
            merged = {**chunk.metadata, **changes[chunk.id]}
            kept = {key: value for key, value in merged.items() if value is not None}
            await self.add([Chunk(chunk.id, chunk.text, kept)])

    async def drop(self):
        with self.db() as db:
            db.executescript("DELETE FROM chunks; DELETE FROM notes;")

    async def identity(self):
        with self.db() as db:
            kept = self.note(db, "identity")
        return StoreIdentity(**json.loads(kept)) if kept else None

    async def save_identity(self, identity):
        with self.db() as db:
            kept = json.dumps(asdict(identity))
            db.execute("INSERT OR REPLACE INTO notes VALUES ('identity', ?)", [kept])

    async def is_own(self):
        return True


def likeness(one: str, other: str) -> float:
    a, b = (Counter(re.findall(r"\w+", text.lower())) for text in (one, other))
    size = math.hypot(*a.values()) * math.hypot(*b.values())
    return sum(a[word] * b[word] for word in a) / size if size else 0.0


class Bare(TextStore):
    """Has no optional capability."""

    async def add(self, chunks): ...

    async def search(self, text, k, filter):
        return []


class Misbehaving(WordStore):
    """Does what the text of a question asks for."""

    async def search(self, text, k, filter):
        match text.split():
            case ["die"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["hang"]:
                time.sleep(600)  # blocks the loop too  # noqa: ASYNC251
            case ["print"]:
                os.write(1, b"\x05\x00\x00\x00noise")
                print("noise")  # noqa: T201
            case ["raise", name]:
                raise ERRORS[name]
            case ["pid"]:
                return [Match(str(os.getpid()), "", 1.0)]
        return await super().search(text, k, filter)


class LimitedError(Exception):
    status_code = 429
    retry_after = 7.0


class RefusedError(Exception):
    status_code = 422


ERRORS = {
    "connection": ConnectionError("no route"),
    "limited": LimitedError("slow down"),
    "forbidden": PermissionError("upserts only"),
    "refused": RefusedError("bad text"),
    "value": ValueError("bad value"),
    "key": KeyError("missing"),
}


def in_memory() -> TextStore:
    class Memory(WordStore):
        persistent = False

    return Memory("unused")


def not_a_text_store() -> MemoryStore:
    return MemoryStore()


def out_of_order() -> TextStore:
    raise ConnectionError("the database does not answer")


def wrong_password() -> TextStore:
    raise ValueError("the password is empty")
