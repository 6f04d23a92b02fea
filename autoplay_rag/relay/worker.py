"""The relay's own thread: it owns the outbox and the producer, and nothing on an event loop waits for it."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future as ThreadFuture
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar

from autoplay_rag.errors import JournalError, PipelineClosedError
from autoplay_rag.relay.outbox import Outbox, OutboxCounts, Outgoing
from autoplay_rag.relay.sender import Sender

__all__ = ["Arrival", "RelayOutcome", "RelayWorker"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_BUSY_SECONDS: Final = 0.005
"""How long a report of the broker may wait while payloads are on their way."""
_IDLE_SECONDS: Final = 0.5
_MOST_ARRIVALS: Final = 1_000
"""Payloads that are taken in with one commit."""

RelayOutcome: TypeAlias = Literal["accepted", "dead", "overflow", "waiting"]
"""What became of a payload: the topic has it; the topic refuses it, and it is set aside; LOST, because the
outbox or the disk is full; it is in the outbox, and not delivered yet."""


@dataclass(slots=True, eq=False)
class Arrival:
    """A payload that came in.

    Attributes:
        message: What is to be sent.
        saved: Gets whether the outbox has it; False means that there was no room.
        settled: Gets what became of it. None if nobody waits for that.
    """

    message: Outgoing
    saved: asyncio.Future[bool]
    settled: asyncio.Future[RelayOutcome] | None = None


_Item: TypeAlias = Arrival | Callable[[], None]


class RelayWorker:
    """Runs outbox and sender in a thread, until it is closed.

    Args:
        outbox: Opened, and closed with this.
        make_sender: Makes the sender from the function that it calls for what is settled.

    Attributes:
        error: What ended the thread, which is a bug; None if nothing has.
        problem: Why the outbox cannot be used now; "" if nothing is wrong.
    """

    def __init__(
        self, outbox: Outbox, make_sender: Callable[[Callable[[int, bool], None]], Sender]
    ) -> None:
        self.error: BaseException | None = None
        self.problem = ""
        self._outbox = outbox
        self._sender = make_sender(self._on_settled)
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._arrivals: list[Arrival] = []
        self._asked: set[ThreadFuture[Any]] = set()
        self._awaited: dict[int, asyncio.Future[RelayOutcome]] = {}
        self._results: list[tuple[asyncio.Future[Any], Any]] = []
        self._drains: list[asyncio.Future[bool]] = []
        self._lock = threading.Lock()
        self._closed = False
        self._lost = 0
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="autoplay-relay", daemon=True)

    # -- from other threads -------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and not self._closed

    @property
    def counts(self) -> OutboxCounts:
        """What became of the payloads, as of the last commit."""
        return self._outbox.counts

    @property
    def is_full(self) -> bool:
        """Whether the last payload that came in was lost."""
        return bool(self._lost)

    @property
    def reports(self) -> int:
        """How many payloads were delivered since the start."""
        return self._sender.reports

    @property
    def sending_problem(self) -> str:
        """Why nothing is delivered now; "" if nothing is wrong."""
        return self._sender.problem

    def take(self, arrival: Arrival) -> None:
        """Take a payload in. Calls of one thread keep their order."""
        self._put(arrival)

    def topic_seen(self, topic_id: str, as_of: int) -> None:
        """See `Sender.topic_seen`."""
        self._put(lambda: self._sender.topic_seen(topic_id, as_of))

    async def topic_gone(self) -> None:
        """See `Sender.topic_gone`. It is done when this returns."""
        await self.ask(lambda _: self._sender.topic_gone())

    def readers_at(self, places: Iterable[tuple[str, int, int]]) -> None:
        """Forget what the readers have.

        Args:
            places: The id of the topic, partition and next offset of each.
        """

        def forget() -> None:
            for place in places:
                self._outbox.forget_read(*place)

        self._put(forget)

    async def ask(self, work: Callable[[Outbox], T]) -> T:
        """Await `work(outbox)`, which runs in the thread.

        Raises:
            PipelineClosedError: If the relay is not running.
        """
        answer: ThreadFuture[T] = ThreadFuture()

        def run() -> None:
            self._asked.discard(answer)
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(work(self._outbox))
            except Exception as error:  # noqa: BLE001 - it belongs to the caller
                answer.set_exception(error)

        self._asked.add(answer)
        self._put(run)
        return await asyncio.wrap_future(answer)

    async def drained(self) -> None:
        """Wait until the topic has everything."""
        drained: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._put(lambda: self._drains.append(drained))
        await drained

    def close(self) -> None:
        """End the thread and close the outbox. What was not delivered stays there. Blocks shortly."""
        with suppress(PipelineClosedError):
            self._put(self._end)
        self._thread.join()

    def _put(self, item: _Item) -> None:
        with self._lock:
            if self._closed:
                raise PipelineClosedError("the relay is not running: it takes nothing any more")
            self._inbox.put(item)

    # -- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._ending:
                self._turn()
        except BaseException as error:  # noqa: BLE001 - said by `health`, as nobody joins the thread
            self.error = error
            _log.exception(
                "the relay has failed; what it received is in %s", self._outbox.file.path
            )
        finally:
            self._sender.close()
            self._outbox.close()
            self._give_up()

    def _turn(self) -> None:
        for item in self._taken():
            if isinstance(item, Arrival):
                self._arrivals.append(item)
            else:
                self._guarded(item)
        if self._arrivals:
            self._save(self._arrivals)
            self._arrivals = []
        self._guarded(self._sender.work)
        if self._drains and not self._sender.undelivered and self._inbox.empty():
            self._results += [(drained, True) for drained in self._drains]
            self._drains.clear()
        self._announce()

    def _taken(self) -> list[_Item]:
        items: list[_Item] = []
        with suppress(queue.Empty):
            items.append(
                self._inbox.get(timeout=_BUSY_SECONDS if self._sender.in_flight else _IDLE_SECONDS)
            )
            while len(items) < _MOST_ARRIVALS:
                items.append(self._inbox.get_nowait())
        if not items and not self._sender.in_flight and not self._outbox.counts.bytes:
            self._guarded(self._outbox.file.shrink)
        return items

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do something with the outbox. A failure is said once; what failed comes again by itself."""
        try:
            work()
        except JournalError as error:
            self._note_problem(error)
        else:
            self.problem = ""

    def _note_problem(self, error: JournalError) -> None:
        problem = str(error)
        if problem != self.problem:
            _log.error("%s; trying again", problem)
        self.problem = problem

    def _save(self, arrivals: list[Arrival]) -> None:
        try:
            seqs = self._outbox.put([one.message for one in arrivals])
        except JournalError as error:
            self._note_problem(error)
            seqs = [None] * len(arrivals)
        for arrival, seq in zip(arrivals, seqs, strict=True):
            self._results.append((arrival.saved, seq is not None))
            if seq is not None and arrival.settled is not None:
                self._awaited[seq] = arrival.settled
        self._note_lost(seqs)
        self._announce()

    def _note_lost(self, seqs: list[int | None]) -> None:
        lost = seqs.count(None)
        if lost and not self._lost:
            _log.error(
                "the outbox %s is full (%d of %d bytes): payloads are LOST until the broker takes some",
                self._outbox.file.path,
                self._outbox.counts.bytes,
                self._outbox.max_bytes,
            )
        self._lost += lost
        if self._lost and seqs[-1] is not None:
            _log.warning("the outbox has room again: %d payloads were lost", self._lost)
            self._lost = 0

    def _on_settled(self, seq: int, delivered: bool) -> None:
        if (future := self._awaited.pop(seq, None)) is not None:
            self._results.append((future, "accepted" if delivered else "dead"))

    def _announce(self) -> None:
        """Set the results of futures, one call for each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        for future, result in self._results:
            by_loop.setdefault(future.get_loop(), []).append((future, result))
        self._results.clear()
        for loop, results in by_loop.items():
            with suppress(RuntimeError):  # the loop was closed: nobody waits there any more
                loop.call_soon_threadsafe(_set_results, results)

    def _end(self) -> None:
        self._ending = True

    def _give_up(self) -> None:
        """Let nobody wait for what does not come any more."""
        with self._lock:
            self._closed = True
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                break
            if isinstance(item, Arrival):
                self._arrivals.append(item)
        self._results += [(arrival.saved, False) for arrival in self._arrivals]
        self._results += [(future, "waiting") for future in self._awaited.values()]
        self._results += [(drained, False) for drained in self._drains]
        self._announce()
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(PipelineClosedError("the relay was closed during the call"))


def _set_results(results: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in results:
        if not future.done():
            future.set_result(result)
