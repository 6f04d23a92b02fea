"""Accepts payloads, passes on what is committed, and follows each payload until it is settled."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from autoplay_rag._timings import Timings
from autoplay_rag.content.identity import parts_by_person
from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.ingest.inflowing import Entries
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.ingest.partitions import Partitions
from autoplay_rag.ingest.run.replica import Replica
from autoplay_rag.ingest.run.showing import show
from autoplay_rag.ingest.shared_live import SharedLive
from autoplay_rag.ingest.watermark import Watermark
from autoplay_rag.ingest.worker import Worker
from autoplay_rag.journal.base import Entry, Journal, Outcome
from autoplay_rag.journal.ownership import Ownership
from autoplay_rag.live import Feed, LiveSessions
from autoplay_rag.payloads import Payload

__all__ = ["Accepting"]

_log = logging.getLogger(__name__)

_WORST_FIRST: Final[tuple[Outcome, ...]] = (
    "overflow", "dead", "accepted", "refused", "filtered", "duplicate",
)  # fmt: skip
_MEASURED: Final = 100_000
"""The most waiting payloads whose lag is measured."""


class Accepting:
    """Takes payloads in, and hands them to the journal, the worker, and the live sessions.

    The journal and the worker call it, and it calls both. So it is created first, and `begin`
    connects it with them.

    Args:
        intake: Applies the user's rules.
        batcher: Gathers the payloads that are committed.
        live: The live sessions.
        feed: The subscribers.
        timings: Measures how long payloads wait.

    Attributes:
        last_received: The loop's time when the last payload arrived.
    """

    _journal: Journal
    _watermark: Watermark
    _entries: Entries
    _worker: Worker
    _ownership: Ownership | None
    _partitions: Partitions | None
    _shared_live: SharedLive | None

    def __init__(
        self,
        intake: Intake,
        batcher: Batcher,
        live: LiveSessions,
        feed: Feed,
        timings: Timings,
    ) -> None:
        self.last_received = 0.0
        self._intake = intake
        self._batcher = batcher
        self._live = live
        self._feed = feed
        self._timings = timings
        self._loop = asyncio.get_running_loop()
        self._overflowing = False
        self._arrived: dict[int, float] = {}
        self._accepted_at: dict[int, float] = {}

    def begin(
        self,
        journal: Journal,
        watermark: Watermark,
        entries: Entries,
        worker: Worker,
        replica: Replica | None,
    ) -> None:
        """Connect it. Call this before the first payload.

        Args:
            journal: Takes the payloads in.
            watermark: Gives them their numbers.
            entries: Makes entries for the journal.
            worker: Stores what the batcher has.
            replica: Follows the other processes of the journal; None if this is the only one.
        """
        self._journal = journal
        self._watermark = watermark
        self._entries = entries
        self._worker = worker
        self._ownership = replica.ownership if replica else None
        self._partitions = replica.partitions if replica else None
        self._shared_live = replica.shared_live if replica else None

    @property
    def problems(self) -> list[str]:
        """Current failures, one line each. Readable from any thread."""
        if self._overflowing:
            return ["overflow: the journal cannot accept payloads, and they are lost"]
        return []

    # -- to the journal -----------------------------------------------------------------------

    def accept(self, payload: Payload) -> asyncio.Future[Outcome]:
        """Assign a sequence number to a payload and pass it to the journal.

        A payload of several people becomes one of each, so that no chunk mixes two people.
        """
        accepted = [self._accept(part) for part in parts_by_person(payload)]
        return accepted[0] if len(accepted) == 1 else self._joined(accepted)

    def accept_late(self, payload: Payload, *, at: float) -> asyncio.Future[Outcome]:
        """Accept a payload of one person that belongs to an earlier time, in Unix seconds."""

        def entry(seq: int) -> Entry:
            self._arrived[seq] = at
            return self._intake.entry(payload, seq)

        return self._enter(entry)

    def note_received(self) -> None:
        """Note that a payload arrived."""
        self.last_received = self._loop.time()

    def _joined(self, parts: Sequence[asyncio.Future[Outcome]]) -> asyncio.Future[Outcome]:
        """Return a future with the worst outcome of the parts of one payload."""
        whole: asyncio.Future[Outcome] = self._loop.create_future()

        def finish(ended: asyncio.Future[list[Outcome]]) -> None:
            if whole.done():
                return
            if ended.cancelled():
                whole.cancel()
            elif (error := ended.exception()) is not None:
                whole.set_exception(error)
            else:
                whole.set_result(min(ended.result(), key=_WORST_FIRST.index))

        asyncio.gather(*parts).add_done_callback(finish)
        return whole

    def _accept(self, payload: Payload) -> asyncio.Future[Outcome]:
        return self._enter(lambda seq: self._entries.of(payload, seq))

    def _enter(self, entry: Callable[[int], Entry]) -> asyncio.Future[Outcome]:
        seq = self._watermark.take()
        self.note_received()
        try:
            return self._journal.accept(entry(seq))
        except BaseException:
            self._watermark.settle((seq,))
            raise

    # -- out of the journal -------------------------------------------------------------------

    def committed(self, entry: Entry, outcome: Outcome | None) -> None:
        """Pass on an entry whose outcome is committed. The journal calls this."""
        self._watch_overflow(outcome)
        arrived = self._arrived.pop(entry.ticket or entry.seq, None)
        if outcome != "accepted":
            self._watermark.settle((entry.ticket or entry.seq,))
            return
        now = self._loop.time()
        if self._partitions is None:
            self._batcher.add(entry.lane, entry.seq, now)
        else:
            self._partitions.wake()
        # What another process stores is not measured: nothing would remove it here.
        owned = self._ownership is None or self._ownership.owns(entry.lane)
        if owned and len(self._accepted_at) < _MEASURED:
            self._accepted_at[entry.seq] = now
        self._worker.wake()
        shared = self._shared_live
        # What another process accepted before comes first: then this is shown with the next look.
        if entry.payload is not None and (shared is None or shared.is_next(entry.seq)):
            show(self._live, entry.payload, at=arrived)
            self._feed.publish(entry.seq, time.time(), entry.lane, entry.payload, entry.size)

    def returned(self, back: Sequence[tuple[int, int]]) -> None:
        """Pass on payloads, as (lane, sequence number), that wait again. The journal calls this."""
        if self._partitions is not None:
            self._partitions.look_for_retried()
            return
        now = self._loop.time()
        self._watermark.reopen(seq for _, seq in back)
        for lane, seq in back:
            self._batcher.add(lane, seq, now)
        self._worker.wake()

    def _watch_overflow(self, outcome: Outcome | None) -> None:
        if outcome in ("duplicate", "filtered", "refused"):
            return  # these take no space in the journal
        overflow = outcome in (None, "overflow")
        if overflow and not self._overflowing:
            _log.error(
                "the journal cannot accept payloads: it or its disk is full, or it cannot be "
                "written. Payloads are being LOST and counted as overflow: raise "
                "journal_max_bytes, free disk space, or check why the store does not keep up"
            )
        self._overflowing = overflow

    # -- the end ------------------------------------------------------------------------------

    def settled(self, seqs: Sequence[int]) -> None:
        """Note that payloads are stored or dead."""
        self._watermark.settle(seqs)
        if self._partitions is not None:
            self._partitions.settled(seqs)
        now = self._loop.time()
        for seq in seqs:
            if (accepted := self._accepted_at.pop(seq, None)) is not None:
                self._timings.add("lag", "", now - accepted)

    def deleted(self, seqs: Iterable[int]) -> None:
        """Note that payloads are forgotten before they were stored."""
        self._watermark.settle(seqs)
        for seq in seqs:
            self._accepted_at.pop(seq, None)
