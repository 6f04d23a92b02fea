"""The asynchronous interface for reading the catalog. Each call runs where it may block."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from autoplay_rag._serial import SerialThread
from autoplay_rag.content.chunks import Chunk
from autoplay_rag.content.filters import Condition
from autoplay_rag.errors import JournalError
from autoplay_rag.journal.base import Findable, Found, FoundPassage, Part, Scope, Visit
from autoplay_rag.journal.finding import LANE_PAYLOADS, Finder
from autoplay_rag.journal.lag import Lag
from autoplay_rag.journal.rows import lossy_text
from autoplay_rag.journal.timeline import KeptPayload, ListedSession, Place, Span, Timeline, Wanted
from autoplay_rag.payloads import Payload

__all__ = ["AsyncFinder", "AsyncTimeline", "ReadThread"]

T = TypeVar("T")


class Run(Protocol):
    """Runs a blocking function somewhere and awaits it."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Await `work()`."""


class AsyncFinder(Findable):
    """The asynchronous interface of a `Finder`.

    Args:
        finder: Returns the finder. Called inside `run`, for each call.
        run: Runs a blocking function.
        run_first: Runs those with which something begins, `scope` and `visits`, when all that was
            accepted before is indexed. By default `run`.
    """

    def __init__(
        self, finder: Callable[[], Finder], run: Run, run_first: Run | None = None
    ) -> None:
        self._finder = finder
        self._run = run
        self._run_first = run_first or run

    async def scope(self, conditions: Sequence[Condition]) -> Scope:
        """As in `Findable`."""
        return await self._run_first(lambda: self._finder().scope(conditions))

    async def find(
        self,
        lookups: Mapping[str, Sequence[str]],
        phrases: Sequence[str],
        conditions: Sequence[Condition],
        limit: int,
    ) -> Found:
        """As in `Findable`."""
        return await self._run(lambda: self._finder().find(lookups, phrases, conditions, limit))

    async def lanes_of(self, chunk_ids: Sequence[str]) -> dict[str, int]:
        """As in `Findable`."""
        return await self._run(lambda: self._finder().lanes_of(chunk_ids))

    async def being_deleted(self, chunk_ids: Sequence[str]) -> set[str]:
        """As in `Findable`."""
        return await self._run(lambda: self._finder().being_deleted(chunk_ids))

    async def recent_lanes(self, conditions: Sequence[Condition], limit: int) -> list[int]:
        """As in `Findable`."""
        return await self._run(lambda: self._finder().recent_lanes(conditions, limit))

    async def chunk_ids(self, lanes: Sequence[int]) -> list[str]:
        """As in `Findable`."""
        return await self._run(lambda: self._finder().chunk_ids(lanes))

    async def passages(
        self,
        lanes: Sequence[int],
        matched: Sequence[int] = (),
        *,
        chunks: Sequence[str] = (),
        latest: int | None = None,
    ) -> list[FoundPassage]:
        """As in `Findable`."""
        most = LANE_PAYLOADS if latest is None else latest
        return await self._run(
            lambda: self._finder().passages(lanes, matched, chunks=chunks, latest=most)
        )

    async def parts(self, lanes: Sequence[int]) -> list[Part]:
        """As in `Findable`."""
        return await self._run(lambda: self._finder().parts(lanes))

    async def chunks(self, ids: Sequence[str]) -> list[Chunk]:
        """As in `Findable`."""
        return await self._run(lambda: self._finder().chunks(ids))

    async def waiting(self, seqs: Sequence[int]) -> dict[int, Chunk]:
        """As in `Findable`."""
        return await self._run(lambda: self._finder().waiting(seqs))

    async def visits(self, lanes: Sequence[int]) -> dict[int, Visit]:
        """As in `Findable`."""
        return await self._run_first(lambda: self._finder().visits(lanes))


class AsyncTimeline:
    """The asynchronous interface of a `Timeline`.

    Args:
        timeline: Returns the timeline. Called inside `run`, for each call.
        run: Runs a blocking function when all that was accepted before is indexed.
        run_now: Runs one that does not read the index. By default `run`.
    """

    def __init__(
        self, timeline: Callable[[], Timeline], run: Run, run_now: Run | None = None
    ) -> None:
        self._timeline = timeline
        self._run = run
        self._run_now = run_now or run

    async def sessions(
        self, wanted: Wanted, limit: int, after: Place | None, *, count: bool = True
    ) -> tuple[int, list[ListedSession]]:
        """As in `Timeline`."""
        return await self._run(lambda: self._timeline().sessions(wanted, limit, after, count=count))

    async def spans(self, wanted: Wanted, limit: int) -> list[Span]:
        """As in `Timeline`."""
        return await self._run(lambda: self._timeline().spans(wanted, limit))

    async def people_since(self, product_id: str, since: float, limit: int) -> list[str]:
        """As in `Timeline`."""
        return await self._run(lambda: self._timeline().people_since(product_id, since, limit))

    async def last_arrival(self) -> float | None:
        """As in `Timeline`."""
        return await self._run_now(lambda: self._timeline().last_arrival())

    async def beginning(self, prefix: str, since: float, limit: int) -> list[Payload]:
        """As in `Timeline`."""
        return await self._run(lambda: self._timeline().beginning(prefix, since, limit))

    async def lanes(self, session_id: str, product_id: str | None) -> dict[str, int]:
        """As in `Timeline`."""
        return await self._run(lambda: self._timeline().lanes(session_id, product_id))

    async def products(
        self, user_id: str | None, session_id: str | None, conversation_id: str | None
    ) -> list[str]:
        """As in `Timeline`."""
        return await self._run(
            lambda: self._timeline().products(user_id, session_id, conversation_id)
        )

    async def whole(
        self, lane: int, after: int | None = None, limit: int | None = None
    ) -> tuple[ListedSession | None, list[KeptPayload]]:
        """As in `Timeline`."""
        return await self._run(lambda: self._timeline().whole(lane, after, limit))

    async def last_seq(self) -> int:
        """As in `Timeline`."""
        return await self._run(lambda: self._timeline().last_seq())

    async def lag(self, watermark: int) -> Lag:
        """As in `Timeline`."""
        return await self._run_now(lambda: self._timeline().lag(watermark))

    async def pending(self, lanes: Sequence[int], last: int) -> int:
        """As in `Timeline`."""
        return await self._run_now(lambda: self._timeline().pending(lanes, last))

    async def payloads(
        self, wanted: Wanted, kind: str, after: int | None, last: int
    ) -> list[KeptPayload]:
        """As in `Timeline`."""
        return await self._run(lambda: self._timeline().payloads(wanted, kind, after, last))


class ReadThread:
    """A read-only connection to a journal's file, with its own thread.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = SerialThread("autoplay-journal-reader")
        self._connection: sqlite3.Connection | None = None
        self._finder: Finder | None = None
        self._timeline: Timeline | None = None

    def opened(self) -> Finder:
        """Return the finder. Must be called in the thread."""
        if self._finder is None:
            self._finder = Finder(self.connected())
        return self._finder

    def timeline(self) -> Timeline:
        """Return the timeline. Must be called in the thread."""
        if self._timeline is None:
            self._timeline = Timeline(self.connected())
        return self._timeline

    def connected(self) -> sqlite3.Connection:
        """The connection; runs in the thread."""
        if self._connection is None:
            uri = f"{self._path.resolve().as_uri()}?mode=ro"
            self._connection = sqlite3.connect(uri, uri=True, timeout=30.0, isolation_level=None)
            self._connection.text_factory = lossy_text
        return self._connection

    async def run(self, work: Callable[[], T], /) -> T:
        """Await `work()` in the thread.

        Raises:
            JournalError: If the journal cannot be read.
        """
        try:
            return await self._thread.run(work)
        except sqlite3.Error as error:
            raise JournalError(f"the journal {self._path} cannot be read: {error}") from error

    async def close(self) -> None:
        """Close the connection. A later call would open it again."""
        await self._thread.finish(self._close)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._finder = self._timeline = None
