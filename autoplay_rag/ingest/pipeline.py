"""The one room that knows the whole way: from a payload handed over to a chunk in the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from autoplay_rag._checks import check_at_least
from autoplay_rag._html import table_html
from autoplay_rag.content.render import Render
from autoplay_rag.content.render import render as default_render
from autoplay_rag.embedders.base import Embedder, as_embedder
from autoplay_rag.errors import (
    ConfigurationError,
    DrainTimeoutError,
    PipelineClosedError,
    PipelineError,
)
from autoplay_rag.ingest.clients import BackgroundConnector, Clients, Connector
from autoplay_rag.ingest.dead_letters import DeadLetters
from autoplay_rag.ingest.intake import own
from autoplay_rag.ingest.questions import Questions
from autoplay_rag.ingest.running import RunningPipeline
from autoplay_rag.ingest.settings import Settings
from autoplay_rag.journal.base import Durability, Health, Outcome
from autoplay_rag.journal.ledger import Ledger
from autoplay_rag.live import LiveSessions
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SummaryPayload
from autoplay_rag.stores.base import TextStore, VectorStore

__all__ = ["BackgroundConnector", "Connector", "IngestPipeline"]

_log = logging.getLogger(__name__)
_LEAST_DRAIN_SECONDS = 1.0
"""`ingest` decides whether anything progresses by spans of this length or longer."""


C = TypeVar("C", bound=Connector)


class IngestPipeline(Questions):
    """Batches payloads per session, embeds them and keeps them in a vector store; loses nothing.

    Once `on_actions` or `on_summary` has returned, a payload is stored, waiting in the journal,
    known as a duplicate, filtered by your own rule, or in the dead letters with its reason;
    `ledger` says how many of each. The one exception is a full queue or a full disk, which is
    counted as `overflow` and logged.

    Args:
        store: Where chunks go: a `VectorStore` or a `TextStore`. Closed with the pipeline.
        embedder: An `Embedder` or any LangChain `Embeddings`; the bundled model if None. Not used
            by stores that embed for themselves. Closed with the pipeline.
        journal: A file that remembers what was received over restarts and crashes. None keeps
            that in memory: what waits is lost when the process ends, and what was stored is
            remembered for a day at most.
        durability: What survives once `on_actions` has returned. "normal": any end of the
            process, `kill -9` included. "full": also a power loss or a crash of the operating
            system, at about half the speed for a caller that awaits each payload; what was
            acknowledged in the last ten minutes is then stored once more, since the store may
            have lost it.
        journal_max_bytes: The most bytes of payloads that wait or are dead.
        keep_payloads: Whether the journal file keeps payloads once they are stored, compressed
            and, unless `include_email`, without addresses: for rendering them anew, exports, and
            for other processes that `follow_journal`. False drops each as soon as it is stored.
        batch_window: Seconds from a session's first payload until what it gathered goes to the
            store together. A connector forwards a session every 10 s or so while it is active:
            15 s puts neighbouring batches together, which finds more and costs less. 0 waits
            for nothing.
        max_batch_actions: The most actions in one chunk.
        embed_concurrency: The most embedding requests in flight.
        max_attempts: How often a payload is refused, alone and with another success in between,
            until it is a dead letter.
        select: Says whether a payload is wanted; those refused are counted as filtered. Called on
            the event loop: keep it quick.
        redact: Gives a payload as it may be kept; a changed copy, since other callbacks may
            hold the same object. Sees everything before it is journalled. Called on the loop, too.
        render: Makes a chunk's text from payloads of one session; the package's own if None.
            Runs in a thread of its own, as the embedder's `count_tokens` does; payloads are taken
            in meanwhile.
        include_email: Whether addresses go into journal and store.
        max_embed_tokens_per_day: Pauses embedding, not journalling, for the rest of the day (UTC).
        remembered_vectors: How many texts' vectors are kept so that equal ones are not embedded
            again.
        drain_timeout: Seconds that leaving the pipeline waits for what is pending.
        on_progress: Called with the ledger whenever payloads were stored.
        live: Keeps what each session did just now, of what was selected, redacted and not a
            duplicate; one with its defaults if None. At start, one that is empty is filled with
            what the journal holds of the last hour.
        rebuild: Embed everything in the journal again and store it: after the store was emptied
            or replaced, or for another model. Give it for one start.
        adopt: Take a store over that belongs to another journal: its chunks are read into this
            journal where the store can be scanned. Give it for one start.

    Attributes:
        live: What each session did just now.

    Example:
        >>> from autoplay_rag import ActionsPayload, SlimAction
        >>> from autoplay_rag.embedders import LocalEmbedder
        >>> from autoplay_rag.stores import MemoryStore
        >>> async def main():
        ...     async with IngestPipeline(store=MemoryStore(), embedder=LocalEmbedder()) as pipeline:
        ...         click = SlimAction("Export", "User clicked Export", "https://app.test/reports")
        ...         await pipeline.on_actions(ActionsPayload("acme", "s1", actions=[click]))
        ...         await pipeline.drain()
        ...         return await pipeline.search("how do I export a report?")
        >>> asyncio.run(main())[0].session_id
        's1'
    """

    def __init__(
        self,
        store: VectorStore | TextStore,
        embedder: Embedder | Any | None = None,
        *,
        journal: str | Path | None = None,
        durability: Durability = "normal",
        journal_max_bytes: int = 2**30,
        keep_payloads: bool = True,
        batch_window: float = 15.0,
        max_batch_actions: int = 20,
        embed_concurrency: int = 2,
        max_attempts: int = 3,
        select: Callable[[Payload], bool] | None = None,
        redact: Callable[[Any], Payload] | None = None,
        render: Render | None = None,
        include_email: bool = False,
        max_embed_tokens_per_day: int | None = None,
        remembered_vectors: int = 2048,
        drain_timeout: float = 30.0,
        on_progress: Callable[[Ledger], None] | None = None,
        live: LiveSessions | None = None,
        rebuild: bool = False,
        adopt: bool = False,
    ) -> None:
        super().__init__()
        self._settings = Settings(
            # Resolved, so that a link to a journal is known to be the same one.
            journal=Path(journal).resolve() if journal is not None else None,
            durability=durability,
            journal_max_bytes=journal_max_bytes,
            keep_payloads=keep_payloads,
            rebuild=rebuild,
            adopt=adopt,
            batch_window=batch_window,
            max_batch_actions=max_batch_actions,
            embed_concurrency=embed_concurrency,
            max_attempts=max_attempts,
            select=select,
            redact=redact,
            render=render or default_render,
            include_email=include_email,
            max_embed_tokens_per_day=max_embed_tokens_per_day,
            remembered_vectors=remembered_vectors,
            drain_timeout=drain_timeout,
            on_progress=on_progress,
        )
        if isinstance(store, type):
            raise ConfigurationError(f"store is the class {store.__name__}: give an object of it")
        if not isinstance(store, VectorStore | TextStore):
            raise ConfigurationError(
                f"{type(store).__name__} is not a store: see autoplay_rag.stores.VectorStore for what it needs"
            )
        self.live = LiveSessions() if live is None else live
        self._store = store
        self._given_embedder = embedder
        self._embedder: Embedder | None = None
        self._clients = Clients()
        self._run: RunningPipeline | None = None
        self._running = False
        self._closing: asyncio.Task[None] | None = None
        self._stuck = False

    def __repr__(self) -> str:
        return f"<IngestPipeline: {self._state} into {self._store!r}>"

    def _repr_html_(self) -> str:
        health = self.health
        rows = [("state", self._state), ("store", repr(self._store)), ("health", health.state)]
        rows += [("reason", reason) for reason in health.reasons]
        if self._run is not None:
            rows.append(("lag", f"{self.lag:.1f} s"))
        html = table_html(("pipeline", ""), rows)
        return html if self._run is None else html + self.ledger._repr_html_()

    @property
    def _state(self) -> str:
        if self._running and self._run is not None:
            return "running" if self._closing is None else "closing"
        return "not started" if self._run is None else "closed"

    # -- life ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Open store and journal and take up what an earlier run left.

        Raises:
            PipelineError: If it is running already.
            JournalError: One of its kinds, if the journal cannot be used.
            StoreMismatchError: If the store holds another model's vectors, or journal and store do
                not belong together; the message says what to do.
            StoreError: Another of its kinds, if the store cannot be used.
            MissingExtraError: If an optional package is not installed.
        """
        if self._closing is not None:
            await asyncio.shield(self._closing)
        if self._running:
            raise PipelineError("the pipeline is running already")
        self._running = True
        try:
            if isinstance(self._store, VectorStore):
                self._embedder = as_embedder(self._given_embedder or _bundled_embedder())
            run = RunningPipeline(
                self._settings, self._store, self._embedder, self.live, self._clients
            )
            await run.start()
        except BaseException:
            self._running = False
            raise
        self._run = run

    async def aclose(self) -> None:
        """Finish what is under way, drain up to `drain_timeout`, and close everything.

        Clients that were attached are stopped first. What could not be stored in time stays in
        the journal for the next start; without a journal file it is lost, which is logged.

        Cancelled, it stops draining; a second call waits until everything is closed.
        """
        if self._closing is None:
            if not self._running or self._run is None:
                return
            run, journal = self._run, self._settings.journal
            try:
                await self._clients.leave(self._settings.drain_timeout)
                # What did not progress just now is not waited for again.
                stuck = self._stuck and journal and self.health.state != "ok"
                await run.drain(0.0 if stuck else self._settings.drain_timeout)
            except PipelineError as error:
                if journal:
                    _log.warning("%s; it stays in %s for the next start", error, journal)
                else:
                    _log.error("%s; it is lost, since there is no journal file", error)
            except Exception:  # noqa: BLE001 - other people's code
                _log.exception("draining failed; the pipeline is closed all the same")
            finally:
                self._running = False
                if self._closing is None:
                    self._closing = asyncio.create_task(self._close(run), name="autoplay-close")
        # A cancelled caller leaves no lock and no connection behind.
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self, run: RunningPipeline) -> None:
        try:
            await run.close()
        finally:
            await self._close_questions()
            self._closing = None

    # -- in -----------------------------------------------------------------------------------

    def attach(self, client: C) -> C:
        """Have a client hand everything it receives to this pipeline.

        Args:
            client: An `AsyncConnectorClient`, a `ConnectorClient`, or anything with their
                `on_actions` and `on_summary`. It is stopped when the pipeline closes.

        Returns:
            The client.
        """
        return self._clients.attach(client, self.on_actions, self.on_summary)

    async def ingest(
        self,
        client: BackgroundConnector,
        *,
        idle_seconds: float | None = None,
        max_seconds: float | None = None,
    ) -> Ledger:
        """Attach a client, run it until one of the limits is reached or it ends, and drain.

        In an outage it does not wait forever: once nothing was stored for `drain_timeout`, it
        returns, with a warning, and the pipeline goes on with what is left for as long as it runs.

        Args:
            client: The client to run.
            idle_seconds: Stop once nothing was received for so long, connected or not.
            max_seconds: Stop after so long in all.

        Returns:
            The ledger after draining; `pending` is what an outage has left.

        Raises:
            ConfigurationError: If a limit is no number of seconds.
            ConnectorError: What ended the client, if it failed; what it had received is stored.
        """
        check_at_least("idle_seconds", idle_seconds, 0, optional=True)
        check_at_least("max_seconds", max_seconds, 0, optional=True)
        run = self._open_run()
        self._clients.release_ended()
        self.attach(client)
        started = run.last_received = run.loop.time()
        task = client.run_in_background()
        self._clients.ended_with(client, task)
        try:
            while not task.done():
                ends = [started + max_seconds] if max_seconds is not None else []
                ends += [run.last_received + idle_seconds] if idle_seconds is not None else []
                left = min(ends) - run.loop.time() if ends else None
                if left is not None and left <= 0:
                    break
                await asyncio.wait([task], timeout=left)
        finally:
            client.stop()
            await asyncio.wait([task])
        await self._drain_while_it_progresses()
        task.result()
        return self.ledger

    async def _drain_while_it_progresses(self) -> None:
        self._stuck = False
        while not self._stuck:
            before = self.ledger
            try:
                return await self.drain(max(self._settings.drain_timeout, _LEAST_DRAIN_SECONDS))
            except DrainTimeoutError as error:
                moved = (self.ledger.stored, self.ledger.dead) != (before.stored, before.dead)
                self._stuck = self.health.state != "ok" and not moved
                if self._stuck:
                    _log.warning("%s; not waited for", error)
        return None

    async def on_actions(self, payload: ActionsPayload) -> None:
        """Take in a batch of actions; returns once it is in the journal.

        Works on any event loop: another one than the pipeline's own waits for it.

        Args:
            payload: This package's class, or another client's with the same fields.

        Raises:
            PipelineClosedError: If the pipeline is not running.
            JournalError: If the journal cannot be written for another reason than a full disk.
        """
        await self._take_in(own(payload, ActionsPayload))

    async def on_summary(self, payload: SummaryPayload) -> None:
        """Take in a summary; otherwise as `on_actions`."""
        await self._take_in(own(payload, SummaryPayload))

    async def on_chat(self, turn: ChatTurn) -> None:
        """Take in an exchange with an assistant as part of its session; otherwise as `on_actions`."""
        await self._take_in(own(turn, ChatTurn))

    def accept(self, payload: Payload) -> asyncio.Future[Outcome]:
        """Hand over a payload of any kind; the future ends once it is in the journal.

        Payloads keep the order in which this is called, however long each future takes.

        Returns:
            What became of it: "accepted", "duplicate", "filtered", "dead" or "overflow".

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """
        return self._open_run().accept(payload)

    async def _take_in(self, payload: Payload) -> None:
        run = self._open_run()
        if asyncio.get_running_loop() is run.loop:
            await run.accept(payload)
        else:
            handed_over = asyncio.run_coroutine_threadsafe(_accepted(run, payload), run.loop)
            await asyncio.wrap_future(handed_over)

    # -- out ----------------------------------------------------------------------------------

    async def drain(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the error tells what is left
        """Close all open windows and wait until all accepted so far is stored or dead.

        Args:
            timeout: Seconds to wait; None waits for as long as an outage lasts.

        Raises:
            DrainTimeoutError: If time ran out; the message says what is left and why.
            PipelineClosedError: If the pipeline is not running.
        """
        await self._open_run().drain(timeout)

    @property
    def dead_letters(self) -> DeadLetters:
        """Payloads that could not be stored.

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """
        return self._open_run().dead_letters

    @property
    def ledger(self) -> Ledger:
        """The counts as of the last commit, also after the end.

        Raises:
            PipelineClosedError: If the pipeline was never started.
        """
        if self._run is None:
            raise PipelineClosedError("the pipeline was not started: there is nothing to count")
        return self._run.ledger

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop it runs on, for code in other threads.

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """
        return self._open_run().loop

    @property
    def health(self) -> Health:
        """Whether payloads reach the store; readable from any thread.

        "ok"; "degraded" while something fails that is retried or needs attention, a client that
        has ended included; "failed" once the pipeline stores nothing more. Before the start and
        after the end it is "ok".
        """
        return self._run.health if self._running and self._run else Health()

    @property
    def watermark(self) -> int:
        """Everything received up to this sequence number is settled.

        Settled is what is stored, dead, discarded, filtered, refused, lost to overflow, or known
        as a duplicate.

        Raises:
            PipelineClosedError: If the pipeline was never started.
        """
        if self._run is None:
            raise PipelineClosedError("the pipeline was not started: nothing was received")
        return self._run.watermark.value

    @property
    def lag(self) -> float:
        """About how many seconds the payload that is kept longest has waited."""
        return self._run.lag if self._running and self._run else 0.0

    def _open_run(self) -> RunningPipeline:
        if not self._running or self._run is None:
            raise PipelineClosedError(
                "the pipeline is not running: call start() or use `async with`"
            )
        return self._run


def _bundled_embedder() -> Embedder:
    from autoplay_rag.embedders.local import LocalEmbedder

    return LocalEmbedder()


async def _accepted(run: RunningPipeline, payload: Payload) -> Outcome:
    return await run.accept(payload)
