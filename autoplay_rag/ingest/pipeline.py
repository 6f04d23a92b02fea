"""The one room that knows the whole way: from a payload handed over to a chunk in the store."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from autoplay_rag.embedders.base import Embedder, as_embedder
from autoplay_rag.errors import (
    ConfigurationError,
    DrainTimeoutError,
    JournalError,
    PipelineClosedError,
    PipelineError,
)
from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.ingest.chunks import Render
from autoplay_rag.ingest.dead_letters import DeadLetters
from autoplay_rag.ingest.delivery import Delivery
from autoplay_rag.ingest.drain import Drains
from autoplay_rag.ingest.embedding import Embedding, TokenBudget, today
from autoplay_rag.ingest.intake import Intake, own
from autoplay_rag.ingest.journal import Journal
from autoplay_rag.ingest.journal_db import Action, Durability, Entry, Outcome
from autoplay_rag.ingest.ledger import Ledger
from autoplay_rag.ingest.plan import Planner
from autoplay_rag.ingest.render import render as default_render
from autoplay_rag.ingest.search import LoopThread, search_store
from autoplay_rag.ingest.stage import Limits
from autoplay_rag.live import LiveSessions
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SummaryPayload
from autoplay_rag.stores.base import Filter, Hit, TextStore, VectorStore

__all__ = ["Connector", "IngestPipeline"]

_log = logging.getLogger(__name__)
_REQUESTS_SECONDS = 1.0
"""How often the journal is looked at for what other processes ask."""
_RESUME_PAGE = 50_000


class Connector(Protocol):
    """What `attach` takes: this package's clients, and others with these methods."""

    def on_actions(self, fn: Any, /) -> Any:
        """Register a callback for batches of actions."""

    def on_summary(self, fn: Any, /) -> Any:
        """Register a callback for summaries."""


class BackgroundConnector(Connector, Protocol):
    """What `ingest` takes: a client that it can start and stop."""

    def run_in_background(self) -> asyncio.Task[None]:
        """Start reading."""

    def stop(self) -> None:
        """End reading."""


C = TypeVar("C", bound=Connector)


class IngestPipeline:
    """Batches payloads per session, embeds them and keeps them in a vector store; loses nothing.

    From the moment `on_actions` or `on_summary` has returned, a payload is stored, waiting in the
    journal, known as a duplicate, filtered by your own rule, or in the dead letters with its
    reason; `ledger` says how many of each. The one exception is a full queue or a full disk,
    which is counted as `overflow` and logged.

    Args:
        store: Where chunks go: a `VectorStore` or a `TextStore`. Closed when the pipeline is.
        embedder: An `Embedder` or any LangChain `Embeddings`; the bundled model if None. Not used
            by stores that embed for themselves. Closed when the pipeline is.
        journal: A file that remembers what was received over restarts and crashes. None keeps
            that in memory: what waits is lost when the process ends.
        durability: What survives once `on_actions` has returned. "normal": any end of the
            process, `kill -9` included. "full": also a power loss or a crash of the operating
            system, at about half the speed for a caller that awaits each payload; what was
            acknowledged in the last ten minutes is then stored once more, since the store may
            have lost it.
        journal_max_bytes: The most bytes of payloads that wait or are dead.
        batch_window: Seconds from a session's first payload until what it gathered goes to the
            store together. A connector forwards a session every 10 s or so while it is active:
            15 s puts neighbouring batches together, which finds more and costs less. 0 waits
            for nothing.
        max_batch_actions: The most actions in one chunk.
        embed_concurrency: Embedding requests in flight at most.
        max_attempts: How often a payload is refused, alone and with another success in between,
            until it is a dead letter.
        select: Says whether a payload is wanted; those refused are counted as filtered.
        redact: Gives a payload as it may be kept; a changed copy, since other callbacks may
            hold the same object. Sees everything before it is journalled.
        render: Makes a chunk's text from payloads of one session; the package's own if None.
        include_email: Whether addresses go into the store's metadata.
        max_embed_tokens_per_day: Pauses embedding, not journalling, for the rest of the day (UTC).
        remembered_vectors: How many texts' vectors are kept so that equal ones are not embedded
            again.
        drain_timeout: Seconds that leaving the pipeline waits for what is pending.
        on_progress: Called with the ledger whenever payloads were stored.
        live: Keeps what each session did just now, of what was selected, redacted and no
            duplicate; one with its defaults if None.

    Attributes:
        live: See there.

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
    ) -> None:
        for name, value, least in (
            ("journal_max_bytes", journal_max_bytes, 1),
            ("batch_window", batch_window, 0),
            ("max_batch_actions", max_batch_actions, 1),
            ("embed_concurrency", embed_concurrency, 1),
            ("max_attempts", max_attempts, 1),
            ("remembered_vectors", remembered_vectors, 0),
        ):
            if not value >= least:
                raise ConfigurationError(f"{name} must be at least {least}, not {value!r}")
        if durability not in ("normal", "full"):
            raise ConfigurationError(f"durability is 'normal' or 'full', not {durability!r}")
        self._store = store
        self._takes_vectors = isinstance(store, VectorStore)
        if not self._takes_vectors and not isinstance(store, TextStore):
            raise ConfigurationError(
                f"{type(store).__name__} is no store: see autoplay_rag.stores.VectorStore for what it needs"
            )
        self._given_embedder = embedder
        self._embedder: Embedder | None = None
        self._batch_window = batch_window
        self._max_batch_actions = max_batch_actions
        self._embed_concurrency = embed_concurrency
        self._max_attempts = max_attempts
        self._render = render or default_render
        self._include_email = include_email
        self._tokens_per_day = max_embed_tokens_per_day
        self._remembered_vectors = remembered_vectors
        self._drain_timeout = drain_timeout
        self._on_progress = on_progress
        self.live = LiveSessions() if live is None else live
        self._intake = Intake(select, redact)
        self._journal_args: dict[str, Any] = {
            "durability": durability,
            "max_bytes": journal_max_bytes,
            "on_accepted": self._accepted,
        }
        self._journal_path = Path(journal) if journal is not None else None
        self._attached: list[Any] = []
        self._running = False
        self._overflowing = False
        self._last_received = 0.0
        self._searcher: LoopThread | None = None
        self._journal: Journal
        self._batcher: Batcher
        self._embedding: Embedding | None
        self._delivery: Delivery
        self._task: asyncio.Task[None]
        self._seqs: itertools.count[int]

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
            StoreError: One of its kinds, if the store cannot be used.
            MissingExtraError: If an optional package is not installed.
        """
        if self._running:
            raise PipelineError("the pipeline is running already")
        loop = asyncio.get_running_loop()
        if self._takes_vectors:
            self._embedder = as_embedder(self._given_embedder or _bundled_embedder())
        model = self._embedder.model if self._embedder else ""
        self._batcher = Batcher(self._batch_window)
        self._journal = Journal(self._journal_path, **self._journal_args)
        await self._journal.open()
        try:
            await self._store.start(model)
            await self._build(model)
            await self._resume(loop.time())
        except BaseException:
            await self._store.aclose()
            await self._journal.close()
            raise
        self._running = True
        self._task = loop.create_task(self._run(), name="autoplay-ingest")
        self._task.add_done_callback(_report)

    async def _build(self, model: str) -> None:
        day = today()
        last_seq, last_batch = await self._journal.do(lambda db: db.last_numbers())
        spent = await self._journal.do(lambda db: db.tokens(day))
        self._seqs = itertools.count(last_seq + 1)
        self._last_seq = last_seq
        embedder = self._embedder
        self._embedding = None
        if embedder:
            budget = TokenBudget(self._tokens_per_day, spent, self._save_tokens)
            self._embedding = Embedding(embedder, budget, self._remembered_vectors)
        self._delivery = Delivery(
            self._journal,
            self._batcher,
            Planner(
                render=self._render,
                count_tokens=embedder.count_tokens if embedder else lambda _: 0,
                max_actions=self._max_batch_actions,
                include_email=self._include_email,
                model=model,
            ),
            self._embedding,
            self._store,
            embed_concurrency=self._embed_concurrency,
            limits=Limits(embedder.max_inputs, embedder.max_request_tokens)
            if embedder
            else Limits(1, 1),
            max_attempts=self._max_attempts,
            batch_numbers=itertools.count(last_batch + 1),
            on_ended=self._ended,
        )
        self._drains = Drains()
        self.dead_letters = DeadLetters(self._journal, self._carry_out)

    async def _resume(self, now: float) -> None:
        batches = await self._journal.do(lambda db: db.unfinished())
        # Those acknowledged before hold numbers that may have been given anew since.
        planned = {
            seq
            for batch in batches
            if not batch.replayed
            for seq in [s for chunk in batch.chunks for s, _ in chunk.sources]
            + [s for s, _ in batch.unplanned]
        }
        self._delivery.resume(batches)
        page = await self._waiting_after(0)
        while page:
            for seq, lane in page:
                if seq not in planned:
                    self._batcher.add(lane, seq, now)
            page = await self._waiting_after(page[-1][0])
        self._batcher.close_windows(now)

    async def _waiting_after(self, seq: int) -> list[tuple[int, int]]:
        return await self._journal.do(lambda db: db.waiting(seq, _RESUME_PAGE))

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._delivery.run())
            if self._journal_path:
                group.create_task(self._serve_requests())

    async def aclose(self) -> None:
        """Finish what is under way, drain up to `drain_timeout`, and close everything.

        Clients that were attached are stopped first. What could not be stored in time stays in
        the journal for the next start; without a journal file it is lost, which is logged.
        """
        if not self._running:
            return
        try:
            for client in self._attached:
                if callable(stop := getattr(client, "stop", None)):
                    stop()
            await self.drain(self._drain_timeout)
        except (DrainTimeoutError, PipelineError) as error:
            if self._journal_path:
                _log.warning("%s; it stays in %s for the next start", error, self._journal_path)
            else:
                _log.error("%s; it is lost, since there is no journal file", error)
        finally:
            self._running = False
            await self._close()

    async def _close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        try:
            await self._store.aclose()
            if self._embedder:
                await self._embedder.aclose()
        finally:
            await self._journal.close()
            if self._searcher:
                await asyncio.to_thread(self._searcher.close)
                self._searcher = None

    # -- in -----------------------------------------------------------------------------------

    def attach(self, client: C) -> C:
        """Have a client hand everything it receives to this pipeline.

        Args:
            client: An `AsyncConnectorClient` or anything with its `on_actions` and `on_summary`.
                It is stopped when the pipeline closes.

        Returns:
            The client.
        """
        if client not in self._attached:
            client.on_actions(self.on_actions)
            client.on_summary(self.on_summary)
            self._attached.append(client)
        return client

    async def ingest(
        self,
        client: BackgroundConnector,
        *,
        idle_seconds: float | None = None,
        max_seconds: float | None = None,
    ) -> Ledger:
        """Attach a client, run it until one of the limits is reached or it ends, and drain.

        Args:
            client: The client to run.
            idle_seconds: Stop once nothing was received for so long.
            max_seconds: Stop after so long in all.

        Returns:
            The ledger after draining.

        Raises:
            ConnectorError: What ended the client, if it failed; what it had received is stored.
        """
        loop = asyncio.get_running_loop()
        self.attach(client)
        started = self._last_received = loop.time()
        task = client.run_in_background()
        try:
            while not task.done():
                ends = [started + max_seconds] if max_seconds is not None else []
                ends += [self._last_received + idle_seconds] if idle_seconds is not None else []
                if ends and min(ends) <= loop.time():
                    break
                timeout = min(ends) - loop.time() if ends else None
                await asyncio.wait([task], timeout=timeout)
        finally:
            client.stop()
            await asyncio.wait([task])
        await self.drain()
        task.result()
        return self.ledger

    async def on_actions(self, payload: ActionsPayload) -> None:
        """Take in a batch of actions; returns once it is in the journal.

        Args:
            payload: This package's class, or another client's with the same fields.

        Raises:
            PipelineClosedError: If the pipeline is not running.
            JournalError: If the journal cannot be written for another reason than a full disk.
        """
        await self.accept(own(payload, ActionsPayload))

    async def on_summary(self, payload: SummaryPayload) -> None:
        """Take in a summary; otherwise as `on_actions`."""
        await self.accept(own(payload, SummaryPayload))

    async def on_chat(self, turn: ChatTurn) -> None:
        """Take in an exchange with an assistant as part of its session; otherwise as `on_actions`."""
        await self.accept(own(turn, ChatTurn))

    def accept(self, payload: Payload) -> asyncio.Future[Outcome]:
        """Hand over a payload of any kind; the future ends once it is in the journal.

        Payloads keep the order in which this is called, however long each future takes.

        Returns:
            What became of it: "accepted", "duplicate", "filtered", "dead" or "overflow".

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """
        if not self._running:
            raise PipelineClosedError(
                "the pipeline is not running: call start() or use `async with`"
            )
        self._last_seq = seq = next(self._seqs)
        self._last_received = asyncio.get_running_loop().time()
        future = self._journal.accept(self._intake.entry(payload, seq))
        future.add_done_callback(self._watch_overflow)
        return future

    def _accepted(self, entry: Entry) -> None:
        self._batcher.add(entry.lane, entry.seq, asyncio.get_running_loop().time())
        self._delivery.wake()
        if entry.payload is not None:
            try:
                self.live.add(entry.payload)
            except Exception as error:  # noqa: BLE001 - a redacted payload may hold anything
                _log.error("a payload is stored, but not shown live: %s", type(error).__name__)

    def _watch_overflow(self, future: asyncio.Future[Outcome]) -> None:
        if future.cancelled() or future.exception() or future.result() in ("duplicate", "filtered"):
            return  # says nothing about room
        overflow = future.result() == "overflow"
        if overflow and not self._overflowing:
            _log.error(
                "the journal or its disk is full: payloads are being LOST and counted as overflow; "
                "raise journal_max_bytes, make room, or see why the store does not keep up"
            )
        self._overflowing = overflow

    # -- out ----------------------------------------------------------------------------------

    async def drain(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the error tells what is left
        """Close all open windows and wait until all accepted so far is stored or dead.

        Args:
            timeout: Seconds to wait; None waits for as long as an outage lasts.

        Raises:
            DrainTimeoutError: If time ran out; the message says what is left and why.
            PipelineClosedError: If the pipeline is not running.
        """
        if not self._running:
            raise PipelineClosedError("the pipeline is not running: there is nothing to drain")
        mark = self._last_seq
        left = await self._journal.do(lambda db: db.count_waiting(mark))
        with self._drains.begin(mark, left) as drain:
            self._batcher.close_windows(asyncio.get_running_loop().time())
            self._delivery.wake()
            drained = asyncio.create_task(drain.done.wait())
            try:
                await asyncio.wait(
                    [drained, self._task], timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                drained.cancel()
        if drain.done.is_set():
            return
        if self._task.done():
            raise PipelineError("the pipeline failed and stores nothing more; see the log")
        trouble = self._delivery.trouble
        raise DrainTimeoutError(
            f"{self.ledger.pending:,} payloads are not stored after {timeout:g} s"
            + (f" ({trouble})" if trouble else "")
        )

    async def search(
        self, text: str, k: int = 5, *, filter: Filter | None = None, **conditions: Any
    ) -> list[Hit]:
        """The stored chunks nearest in meaning to a question.

        Args:
            text: The question.
            k: How many hits at most.
            filter: Which chunks may be found.
            **conditions: A `Filter`'s fields, as a short form: `user_id="u1"`.

        Returns:
            Hits, best first.

        Raises:
            ConfigurationError: If both `filter` and conditions are given, or an unknown one.
            UnsupportedFilterError: If the store cannot translate the filter.
            EmbedderError: If the question cannot be embedded now.
            StoreError: If the store cannot be searched now.
            PipelineClosedError: If the pipeline is not running.
        """
        if not self._running:
            raise PipelineClosedError("the pipeline is not running: it cannot search")
        return await search_store(self._store, self._embedder, text, k, _filter(filter, conditions))

    def search_sync(
        self, text: str, k: int = 5, *, filter: Filter | None = None, **conditions: Any
    ) -> list[Hit]:
        """As `search`, from any thread; also inside a running loop, which it holds up meanwhile."""
        if self._searcher is None:
            self._searcher = LoopThread("autoplay-search")
        return self._searcher.run(self.search(text, k, filter=filter, **conditions))

    @property
    def ledger(self) -> Ledger:
        """The counts as of the last commit."""
        delivery, embedding = self._delivery, self._embedding
        return Ledger(
            **self._journal.counters,
            chunks=delivery.chunks,
            embed_requests=embedding.requests if embedding else 0,
            embed_texts=embedding.texts if embedding else 0,
            embed_tokens=embedding.tokens if embedding else 0,
            embed_reused=embedding.reused if embedding else 0,
            retries=delivery.retries,
        )

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop it runs on, for code in other threads.

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """
        if not self._running:
            raise PipelineClosedError("the pipeline is not running: it has no event loop")
        return self._task.get_loop()

    @property
    def trouble(self) -> str | None:
        """What keeps payloads from the store now, in one line; None while all is well."""
        return self._delivery.trouble

    @property
    def lag(self) -> float:
        """About how many seconds the payload that waits longest has waited."""
        oldest = self._batcher.oldest()
        return 0.0 if oldest is None else max(0.0, asyncio.get_running_loop().time() - oldest)

    # -- inside -------------------------------------------------------------------------------

    def _ended(self, seqs: list[int]) -> None:
        self._drains.ended(seqs)
        if self._on_progress:
            try:
                self._on_progress(self.ledger)
            except Exception:  # noqa: BLE001 - the user's own code
                _log.exception("on_progress failed")

    async def _save_tokens(self, day: str, tokens: int) -> None:
        try:
            await self._journal.do(lambda db: db.set_tokens(day, tokens))
        except JournalError as error:
            _log.error("the day's tokens could not be noted: %s", error)

    async def _carry_out(self, action: Action, ids: Sequence[int] | None) -> int:
        if action == "discard":
            return await self._journal.do(lambda db: db.discard(ids))
        back = await self._journal.do(lambda db: db.retry(ids, self._seqs), self._put_back)
        return len(back)

    def _put_back(self, back: list[tuple[int, int]]) -> None:
        now = asyncio.get_running_loop().time()
        for lane, seq in back:
            self._last_seq = max(self._last_seq, seq)
            self._batcher.add(lane, seq, now)
        self._delivery.wake()

    async def _serve_requests(self) -> None:
        said = ""
        while True:
            health = self.trouble or ("overflow" if self._overflowing else "ok")
            try:
                await self._journal.do(lambda db: db.carry_out_requests(self._seqs), self._put_back)
                if health != said:
                    await self._note_health(health)
                    said = health
            except JournalError as error:
                _log.error("requests of other processes have to wait: %s", error)
            await asyncio.sleep(_REQUESTS_SECONDS)

    async def _note_health(self, health: str) -> None:
        await self._journal.do(lambda db: db.set_health(health))


def _bundled_embedder() -> Embedder:
    from autoplay_rag.embedders.local import LocalEmbedder

    return LocalEmbedder()


def _filter(filter: Filter | None, conditions: dict[str, Any]) -> Filter:
    if filter is not None and conditions:
        raise ConfigurationError("give either filter=... or its fields, not both")
    try:
        return filter or Filter(**conditions)
    except TypeError:
        raise ConfigurationError(
            f"a search can be limited by {', '.join(Filter.__slots__)}, not by {', '.join(conditions)}"
        ) from None


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.critical("the pipeline failed and stores nothing more", exc_info=error)
