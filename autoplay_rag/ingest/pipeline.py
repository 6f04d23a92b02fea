"""The public pipeline: from a received payload to a chunk in the store."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from autoplay_rag._checks import check_at_least, check_function
from autoplay_rag._html import table_html
from autoplay_rag._timings import Timings
from autoplay_rag._tracing import captures_content
from autoplay_rag.content.filters import Moment
from autoplay_rag.content.keys import session_lane
from autoplay_rag.content.redaction import Redact, redaction_rule
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
from autoplay_rag.ingest.journals import named_journal
from autoplay_rag.ingest.questions import Questions
from autoplay_rag.ingest.reembedding import check_can_exchange
from autoplay_rag.ingest.run.running import RunningPipeline
from autoplay_rag.ingest.settings import Settings, Summaries
from autoplay_rag.ingest.store_copy import check_embeds
from autoplay_rag.ingest.turns import read_in_turn
from autoplay_rag.journal.base import Durability, Health, Outcome
from autoplay_rag.journal.inflow import TopicStatus
from autoplay_rag.journal.ledger import Ledger
from autoplay_rag.journal.ownership import Replicas
from autoplay_rag.journal.reader import JournalStatus
from autoplay_rag.live import Feed, LiveSessions
from autoplay_rag.maintenance.asked import asked_of
from autoplay_rag.maintenance.backup import BackupReport
from autoplay_rag.maintenance.progress import Progress
from autoplay_rag.maintenance.receipt import Receipt
from autoplay_rag.maintenance.report import CopyReport, ReembedReport, VerifyReport
from autoplay_rag.maintenance.space import Space
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SummaryPayload
from autoplay_rag.search.timeline import SessionChunk, SessionPart, read_chunks, read_part
from autoplay_rag.stores.base import TextStore, VectorStore

if TYPE_CHECKING:
    from autoplay_rag.sources.activity import LiveActivitySource

__all__ = ["BackgroundConnector", "Connector", "IngestPipeline"]

_log = logging.getLogger(__name__)
_LEAST_DRAIN_SECONDS = 1.0
"""The shortest time over which `ingest` checks for progress while it drains."""


C = TypeVar("C", bound=Connector)
T = TypeVar("T")


class IngestPipeline(Questions):
    """Batches payloads per session, embeds them and stores them in a vector store.

    No payload is lost silently. Once `on_actions` or `on_summary` has returned, a payload is
    stored, pending in the journal, a known duplicate, filtered by your own rule, or a dead letter
    with its error. `ledger` counts each. If the queue or the disk is full, payloads are lost: they
    are counted as `overflow` and logged.

    Args:
        store: The store for the chunks: a `VectorStore` or a `TextStore`. Closed with the pipeline.
        embedder: An `Embedder` or any LangChain `Embeddings`; the bundled model if None. Not used
            by a `TextStore`, which embeds texts itself. Closed with the pipeline.
        journal: A file that records received payloads across restarts and crashes, or the address of
            a PostgreSQL database: "postgresql://...", as for `PgVectorStore`, in whose schema the
            tables are; or a topic of Kafka and the group that reads it:
            "kafka://host:port/topic?group=name", with `catalog`. None keeps the journal in memory: pending payloads are lost when the process
            ends, and duplicates are recognised for at most a day.
        catalog: With a topic as the journal: the address of the PostgreSQL database that has
            everything else. Messages of the topic are taken in there, together with their offset.
        kafka_settings: Properties of Kafka's clients, by librdkafka's names, such as
            "security.protocol". Better in the environment, where AUTOPLAY_RAG_KAFKA_SASL_PASSWORD is
            the property "sasl.password".
        durability: What an accepted payload survives once `on_actions` has returned. "normal":
            any end of the process, including `kill -9`. "full": also a power loss or a crash of
            the operating system, at about half the speed for a caller that awaits each payload.
            After such a crash, payloads acknowledged in the last ten minutes are stored again,
            because the store may have lost them.
        journal_max_bytes: The most bytes of pending and dead payloads.
        keep_payloads: Whether the journal file keeps payloads after they are stored. They are
            compressed and, unless `include_email` is set, without email addresses. They serve to
            render texts again, to export, and for `follow_journal` in other processes. False
            deletes each payload once it is stored.
        batch_window: Seconds from a session's first payload until its batch is embedded and
            stored. A connector forwards an active session about every 10 s. 15 s therefore
            combines neighbouring batches, which improves search and costs less. 0 does not wait.
        max_batch_actions: The most actions in one chunk.
        embed_concurrency: The most embedding requests in flight.
        max_attempts: The rejections of a payload, alone and with another success in between,
            until it becomes a dead letter.
        select: Returns whether a payload is wanted. Others are counted as filtered. Runs on the
            event loop: keep it fast.
        redact: "pii" removes email addresses, phone numbers, payment cards, IBANs, IP addresses
            and secrets; `PiiRedactor` has options for it. Or a function that returns a payload
            as it may be kept. It must return a changed copy, because other callbacks may hold the
            same object. Or a sequence of both, applied in order. Runs on the event loop, before
            the payload is journalled.
        render: Makes a chunk's text from payloads of one session; the package's own if None.
            Runs on its own thread, and so does the embedder's `count_tokens`. The pipeline accepts
            payloads meanwhile.
        include_email: Whether email addresses go into journal and store.
        max_embed_tokens_per_day: The most tokens per day (UTC). Then embedding pauses until the
            next day; journalling continues.
        remembered_vectors: The number of vectors to cache, so that equal texts are not embedded
            again.
        drain_timeout: Seconds that closing the pipeline waits for pending payloads.
        summaries: What becomes of the actions that a summary replaces. "keep": they stay. "replace":
            once the summary is stored, the store deletes chunks whose actions are all replaced,
            and full text still finds them as part of their session. A search finds the right
            session equally often with both (see the README's figures).
        retention_days: Delete what is older, from the store and from the journal: a number of days,
            or a mapping of "actions", "summary" and "chat" to days, which keeps the kinds that it
            does not name. None keeps everything. An event is as old as what happened in it, or as
            its receipt if that time is unknown or in the future. A chunk goes once all its events
            are old. The first deletion is at start, then every ten minutes. Needs a journal file,
            and a store that can delete.
        remember_keys_days: Days after its receipt for which the journal keeps the key of a payload
            that `retention_days` has deleted, so that a late delivery is a duplicate. After that,
            such a delivery is stored again, and deleted again.
        erasure_register: A file that lists all requests to forget as keyed hashes. By default it
            is beside the journal, with `.erasures` at the end of its name. A start with an older
            copy of the journal forgets again what the file lists. Keep it out of backups.
        trace_content: Whether the OpenTelemetry spans of searches have the question and the
            documents found. None means that
            `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` decides, and no if it is not set.
        on_progress: Called with the ledger after payloads were stored.
        live: Keeps the latest payloads of each session that were selected, redacted and not
            duplicates; one with default limits if None. At start, an empty one is filled with the
            last hour of the journal.
        rebuild: Embed and store everything in the journal again, after the store was emptied or
            replaced, or for another model. Set it for one start only.
        adopt: Adopt a store that belongs to another journal: its chunks are read into this
            journal if the store can be scanned. Set it for one start only.
        takes_work: With a journal in PostgreSQL: whether this process embeds and stores payloads.
            False leaves this to the other processes of the journal. This one then accepts payloads
            and answers questions.

    Attributes:
        live: The latest payloads of each session.
        feed: The accepted payloads as they come in, for subscribers.

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
        catalog: str | None = None,
        kafka_settings: Mapping[str, Any] | None = None,
        durability: Durability = "normal",
        journal_max_bytes: int = 2**30,
        keep_payloads: bool = True,
        batch_window: float = 15.0,
        max_batch_actions: int = 20,
        embed_concurrency: int = 2,
        max_attempts: int = 3,
        select: Callable[[Payload], bool] | None = None,
        redact: Redact | Sequence[Redact] | None = None,
        render: Render | None = None,
        include_email: bool = False,
        max_embed_tokens_per_day: int | None = None,
        remembered_vectors: int = 2048,
        drain_timeout: float = 30.0,
        summaries: Summaries = "keep",
        retention_days: float | Mapping[str, float] | None = None,
        remember_keys_days: float = 30.0,
        erasure_register: str | Path | None = None,
        trace_content: bool | None = None,
        on_progress: Callable[[Ledger], None] | None = None,
        live: LiveSessions | None = None,
        rebuild: bool = False,
        adopt: bool = False,
        takes_work: bool = True,
    ) -> None:
        super().__init__()
        self._settings = Settings(
            journal=named_journal(journal, store, catalog=catalog, kafka_settings=kafka_settings),
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
            redact=redaction_rule(redact),
            render=render or default_render,
            include_email=include_email,
            max_embed_tokens_per_day=max_embed_tokens_per_day,
            remembered_vectors=remembered_vectors,
            drain_timeout=drain_timeout,
            summaries=summaries,
            retention_days=dict(retention_days)
            if isinstance(retention_days, Mapping)
            else retention_days,
            remember_keys_days=remember_keys_days,
            erasure_register=Path(erasure_register).resolve() if erasure_register else None,
            trace_content=captures_content(trace_content),
            on_progress=on_progress,
            takes_work=takes_work,
        )
        if isinstance(store, type):
            raise ConfigurationError(f"store is the class {store.__name__}: pass an instance of it")
        if not isinstance(store, VectorStore | TextStore):
            raise ConfigurationError(
                f"{type(store).__name__} is not a store: see autoplay_rag.stores.VectorStore for what it needs"
            )
        self.live = LiveSessions() if live is None else live
        self.feed = Feed()
        self._store = store
        self._given_embedder = embedder
        self._embedder: Embedder | None = None
        self._clients = Clients()
        self._run: RunningPipeline | None = None
        self._running = False
        self._reading: set[asyncio.Task[None]] = set()
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
        """Open store and journal, and resume the work of an earlier run.

        Raises:
            PipelineError: If the pipeline is already running.
            JournalError: Or a subclass, if the journal cannot be used.
            StoreMismatchError: If the store holds another model's vectors, or journal and store do
                not belong together. The message says what to do.
            StoreError: Or another subclass, if the store cannot be used.
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
                self._settings,
                self._store,
                self._embedder,
                live=self.live,
                feed=self.feed,
                clients=self._clients,
            )
            await run.start()
            if self._clients.pull_sources():
                run.pulled.begin()
                await run.pulled.load()
        except BaseException:
            self._running = False
            raise
        self._run = run

    async def aclose(self) -> None:
        """Stop the attached clients, drain for up to `drain_timeout`, and close everything.

        Payloads that are not stored in time stay in the journal for the next start. Without a
        journal file they are lost, and the loss is logged. If other processes share the journal, it
        does not drain: they go on.

        If cancelled, it stops draining and still closes. A second call waits until everything is
        closed.
        """
        if self._closing is None:
            if not self._running or self._run is None:
                return
            run, journal = self._run, self._settings.journal
            try:
                await self._stop_reading()
                await self._clients.leave(self._settings.drain_timeout)
                await run.leave_topic()
                # `ingest` just saw no progress: do not wait again.
                stuck = self._stuck and journal and self.health.state != "ok"
                started = run.loop.time()
                await run.draining.drain_before_close(
                    0.0 if stuck else self._settings.drain_timeout
                )
                left = self._settings.drain_timeout - (run.loop.time() - started)
                await run.forgetting.finish(0.0 if stuck else max(0.0, left))
            except PipelineError as error:
                if journal:
                    _log.warning(
                        "%s; unfinished work stays in %s until the next start", error, journal
                    )
                else:
                    _log.error("%s; unfinished work is lost without a journal file", error)
            except Exception:  # noqa: BLE001 - other people's code
                _log.exception("draining failed; closing the pipeline anyway")
            finally:
                self._running = False
                if self._closing is None:
                    self._closing = asyncio.create_task(self._close(run), name="autoplay-close")
        # Shielded, so that a cancelled caller leaves no lock and no connection open.
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
        """Register this pipeline's callbacks with a client or another source.

        Several may be attached. What two of them bring is stored once, as long as they are a stream,
        pushes and a `LiveActivitySource`: they name the same actions alike. A `LiveActivitySource`
        beside a stream of the same product fills its gaps: after each connect it is asked for
        everybody who was seen in the day before. Pulled actions younger than 30 seconds wait for the
        stream then, because it names their session.

        Args:
            client: An `AsyncConnectorClient`, a `ConnectorClient`, a `LiveActivitySource`, or any
                object with `on_actions` and `on_summary`. It is stopped when the pipeline closes.

        Returns:
            The client.
        """
        if getattr(client, "names_sessions", True):
            return self._clients.attach(client, self.on_actions, self.on_summary)
        source: Any = client
        source.hold_back = functools.partial(self._hold_back, source.product_id)
        self._clients.attach(client, self._on_pulled, self.on_summary)
        if self._run is not None:
            self._run.pulled.begin()
        return client

    def pull_source(self, product_id: str | None = None) -> LiveActivitySource | None:
        """Return the attached source that can be asked for one user of a product.

        Args:
            product_id: The product. None if there is only one that can be asked.

        Returns:
            The source; None if there is none, or without a product if there are several products.
        """
        found = self._clients.pull_sources(product_id)
        return found[0] if len({source.product_id for source in found}) == 1 else None

    async def ingest(
        self,
        client: BackgroundConnector,
        *others: BackgroundConnector,
        idle_seconds: float | None = None,
        max_seconds: float | None = None,
    ) -> Ledger:
        """Attach clients or other sources, run them until they end or a limit is reached, and drain.

        It does not wait forever during an outage. If nothing is stored for `drain_timeout`, it
        logs a warning and returns. The pipeline continues with the pending payloads as long as it
        runs.

        Args:
            client: The client or source to run.
            others: More of them, to run at the same time. If one fails, the others go on.
            idle_seconds: Stop after this many seconds without a payload, connected or not.
            max_seconds: Stop after this many seconds in total.

        Returns:
            The ledger after draining. `pending` counts payloads left by an outage.

        Raises:
            ConfigurationError: If a limit is not a number of seconds.
            ConnectorError: The error that ended the client, if it failed; of several, the first
                one's. What they had received is still stored.
        """
        check_at_least("idle_seconds", idle_seconds, 0, optional=True)
        check_at_least("max_seconds", max_seconds, 0, optional=True)
        run = self._open_run()
        self._clients.detach_ended()
        clients = (client, *others)
        for one in clients:
            self.attach(one)
        started = run.accepting.last_received = run.loop.time()
        tasks: list[asyncio.Task[None]] = []
        try:
            for one in clients:
                tasks.append(self.read_in_background(one))
                self._clients.track(one, tasks[-1])
            while running := [task for task in tasks if not task.done()]:
                ends = [started + max_seconds] if max_seconds is not None else []
                ends += (
                    [run.accepting.last_received + idle_seconds] if idle_seconds is not None else []
                )
                left = min(ends) - run.loop.time() if ends else None
                if left is not None and left <= 0:
                    break
                await asyncio.wait(running, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one, task in zip(clients, tasks, strict=False):
                one.stop()
                if self._clients.is_standing_by(one):
                    task.cancel()
            if tasks:
                await asyncio.wait(tasks)
        await self._drain_while_it_progresses()
        for task in tasks:
            if not task.cancelled():
                task.result()
        return self.ledger

    def read_in_background(self, client: BackgroundConnector) -> asyncio.Task[None]:
        """Attach a client or another source, and run it as a task.

        If several processes share the journal, one of them runs the client, and the others wait
        for their turn. When it stops, dies or stands still, another one goes on. Clients are told
        apart by their URL and product. One without a URL is run by each process.

        Args:
            client: The client or source to run.

        Returns:
            The task. Cancel it to stop reading: what was received is passed on first. If the
            client fails, its error is logged, and the task raises it.

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """
        run = self._open_run()
        self.attach(client)
        if run.membership is None:
            return client.run_in_background()
        task = asyncio.create_task(
            read_in_turn(
                client,
                run.membership,
                functools.partial(self._clients.stand_by, client),
                functools.partial(run.pulled.load, again=True),
            ),
            name="autoplay-read",
        )
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)
        task.add_done_callback(_consume)
        return task

    async def _stop_reading(self) -> None:
        for task in self._reading:
            task.cancel()
        if self._reading:
            await asyncio.wait(self._reading, timeout=self._settings.drain_timeout)

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
                    _log.warning("%s; no longer waiting for them", error)
        return None

    async def _on_pulled(self, payload: ActionsPayload) -> None:
        run = self._open_run()
        work = run.pulled.take(payload)
        await (work if asyncio.get_running_loop() is run.loop else _on_loop(run.loop, work))

    def _hold_back(self, product_id: str) -> float:
        """Seconds by which pulled actions wait for a source that names their session."""
        run = self._run
        if run is None:
            return 0.0
        named = self._clients.is_streaming(product_id) or run.pulled.names_sessions(product_id)
        return run.pulled.hold if named else 0.0

    def _note_asked(self, user_id: str | None, product_id: str | None) -> None:
        if not user_id:
            return
        if self._run is None:
            self._clients.note_asked(user_id, product_id)
        else:
            self._run.note_asked(user_id, product_id)

    async def on_actions(self, payload: ActionsPayload) -> None:
        """Accept a batch of actions; returns once it is in the journal.

        This works from any event loop: a call from another loop than the pipeline's is forwarded.

        Args:
            payload: An object of this package's class, or any with the same fields.

        Raises:
            PipelineClosedError: If the pipeline is not running.
            JournalError: If the journal cannot be written, except because of a full disk.
        """
        await self._take_in(own(payload, ActionsPayload))

    async def on_summary(self, payload: SummaryPayload) -> None:
        """Accept a summary; otherwise like `on_actions`."""
        await self._take_in(own(payload, SummaryPayload))

    async def on_chat(self, turn: ChatTurn) -> None:
        """Accept a chat turn with an assistant as part of its session; otherwise like `on_actions`."""
        turn = own(turn, ChatTurn)
        self._note_asked(turn.user_id, turn.product_id)
        await self._take_in(turn)

    def accept(self, payload: Payload) -> asyncio.Future[Outcome]:
        """Accept a payload of any kind. Call this on the pipeline's event loop.

        Payloads keep the order of the calls, however long each future takes. A payload whose
        actions name several people becomes one payload of each; the ledger counts them singly.

        Returns:
            A future that is done once the payload is in the journal. Its result is "accepted",
            "duplicate", "filtered", "dead", "refused" or "overflow".

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """
        return self._open_run().accepting.accept(payload)

    async def _take_in(self, payload: Payload) -> None:
        run = self._open_run()
        if asyncio.get_running_loop() is run.loop:
            await run.accepting.accept(payload)
        else:
            await _on_loop(run.loop, _accepted(run, payload))

    # -- out ----------------------------------------------------------------------------------

    async def drain(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - the error tells what is left
        *,
        session_id: str | None = None,
        product_id: str | None = None,
    ) -> None:
        """Close all open windows and wait until all payloads accepted so far are stored or dead.

        With a session, only its window is closed, and only its payloads are waited for. Nothing is
        waited for if the session is not known.

        Args:
            timeout: Seconds to wait; None waits until an outage ends.
            session_id: Only this session.
            product_id: Its product; None for the sessions of this id in all products.

        Raises:
            ConfigurationError: If there is a product without a session.
            DrainTimeoutError: If the time is over. The message says what is left and why.
            PipelineClosedError: If the pipeline is not running.
        """
        run = self._open_run()
        if session_id is not None:
            await run.draining.drain_session(session_id, product_id, timeout)
        elif product_id is not None:
            raise ConfigurationError("drain() takes a product_id beside a session_id only")
        else:
            await run.draining.drain(timeout)

    async def run_alone(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `work()` in one process at a time, of all that share a journal in PostgreSQL.

        For example, a nightly import. For a stream or a pull source there is `read_in_background`.
        The call waits until this process may run the work. If the process loses the right, because
        it or the database stood still, the work is cancelled, and `work()` is called again once it
        has the right again. If a process is killed, another one begins within seconds.

        With a journal in a file or in memory, it just runs the work.

        Args:
            name: What identifies the work in all processes.
            work: Makes the coroutine. It must end soon after it was cancelled.

        Returns:
            What the work returns. Then other processes that wait run theirs.

        Raises:
            ClientStateError: If this process runs or waits for work of this name already.
            PipelineClosedError: If the pipeline is not running.

        Example:
            >>> async def main(pipeline, import_events):
            ...     await pipeline.run_alone("import of acme", import_events)
        """
        return await self._open_run().run_alone(name, work)

    # -- maintenance --------------------------------------------------------------------------

    async def verify(
        self,
        *,
        repair: bool = False,
        delete_extra: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> VerifyReport:
        """Compare the journal's catalog with the store, while the pipeline runs.

        The comparison reads every chunk once, in pages, and checks each difference a second time.
        So chunks that are stored or deleted meanwhile are not reported. Only in a store that cannot
        return chunks by id, a chunk that is deleted meanwhile may be reported as extra.

        Args:
            repair: Whether to repair what differs. Missing chunks, and those with another text, are
                queued to be embedded and stored again. Other metadata are corrected without
                embedding. Rejected deletions are repeated. Extra chunks are deleted only in a
                collection that this package created and that names this journal, and only if they
                are at most 5 % of it. `drain` waits for all of this.
            delete_extra: Whether to delete extra chunks even if they are more than 5 %.
            on_progress: Called with the progress after each page, on the pipeline's loop.

        Returns:
            What differs, with a few ids as examples, and what was repaired.

        Raises:
            ConfigurationError: If `delete_extra` is given without `repair`.
            MissingCapabilityError: If the store can neither be scanned nor return chunks by id.
            StoreError: If the store cannot be read.
            PipelineClosedError: If the pipeline is not running.

        Example:
            >>> from autoplay_rag import ActionsPayload, SlimAction
            >>> from autoplay_rag.embedders import LocalEmbedder
            >>> from autoplay_rag.stores import MemoryStore
            >>> async def main():
            ...     store = MemoryStore()
            ...     async with IngestPipeline(store=store, embedder=LocalEmbedder()) as pipeline:
            ...         click = SlimAction("Export", "User clicked Export")
            ...         await pipeline.on_actions(ActionsPayload("acme", "s1", actions=[click]))
            ...         await pipeline.drain()
            ...         async for page in store.scan():
            ...             await store.delete([chunk.id for chunk in page])
            ...         found = await pipeline.verify(repair=True)
            ...         await pipeline.drain()
            ...         return found.missing, (await pipeline.verify()).clean
            >>> asyncio.run(main())
            (1, True)
        """
        if delete_extra and not repair:
            raise ConfigurationError("delete_extra=True needs repair=True")
        run = self._open_run()
        return await _on_loop(
            run.loop,
            run.maintaining.verify(repair=repair, delete_extra=delete_extra, tell=on_progress),
        )

    async def forget(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        product_id: str | None = None,
        conversation_id: str | None = None,
        until: Moment | None = None,
        dry_run: bool = False,
        block: bool = False,
    ) -> Receipt:
        """Forget a person, a session, a chat thread or a product, while the pipeline runs.

        All conditions that are given must hold. A session belongs to a person even if only some of
        its payloads name the person. Of a session that several people used, only the person's part
        is forgotten; a payload that names nobody belongs to the person named before it. A chunk
        that mixes forgotten payloads with others is deleted, and the others are stored again.

        This returns once no search and no listing finds it, or earlier if the store does not
        confirm its deletions; see `Receipt.remaining`. The files are written anew in the
        background; see `receipt`. After a crash, both continue at the next start.

        Later, events of these ids that happened before this call, or at an unknown or a future
        time, are refused, and so is every forgotten payload. The ledger counts them as `refused`.

        Args:
            user_id: The person.
            session_id: The session.
            product_id: The product. Needed if the other ids occur in several products.
            conversation_id: The chat thread.
            until: Only what happened up to then: Unix seconds, a datetime with a time zone, or a
                date. If the time of a payload is unknown or in the future, its arrival counts.
            dry_run: Only count.
            block: Also refuse events that happen later.

        Returns:
            The receipt. It holds no ids.

        Raises:
            ConfigurationError: If no id is given, or the ids occur in several products.
            JournalError: If the journal cannot be written.
            PipelineClosedError: If the pipeline is not running.

        Example:
            >>> from autoplay_rag import ActionsPayload, SlimAction
            >>> from autoplay_rag.embedders import LocalEmbedder
            >>> from autoplay_rag.stores import MemoryStore
            >>> async def main():
            ...     store = MemoryStore()
            ...     async with IngestPipeline(store=store, embedder=LocalEmbedder()) as pipeline:
            ...         click = SlimAction("Export", "User clicked Export")
            ...         await pipeline.on_actions(
            ...             ActionsPayload("acme", "s1", "ann", actions=[click])
            ...         )
            ...         await pipeline.drain()
            ...         receipt = await pipeline.forget(user_id="ann")
            ...         return receipt.payloads, receipt.deleted, await store.count()
            >>> asyncio.run(main())
            (1, True, 0)
        """
        asked = asked_of(
            "forget()",
            user_id=user_id,
            session_id=session_id,
            product_id=product_id,
            conversation_id=conversation_id,
            until=until,
        )
        run = self._open_run()
        return await _on_loop(run.loop, run.forgetting.forget(asked, dry_run=dry_run, block=block))

    async def receipt(self, number: int) -> Receipt:
        """Return the receipt of an earlier call of `forget`, as of now.

        Args:
            number: `Receipt.number`.

        Raises:
            ConfigurationError: If there is no such request.
            PipelineClosedError: If the pipeline is not running.
        """
        run = self._open_run()
        return await _on_loop(run.loop, run.forgetting.receipt(number))

    async def export(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        product_id: str | None = None,
        conversation_id: str | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield everything that is held about a person, a session or a chat thread.

        It selects the same payloads as `forget`. Each record can be written as one line of JSON.
        Records with `"record": "payload"` come first, in the order of arrival, then those with
        `"record": "chunk"`.

        Args:
            user_id: The person.
            session_id: The session.
            product_id: The product. Needed if the other ids occur in several products.
            conversation_id: The chat thread.

        Raises:
            ConfigurationError: If no id is given, or the ids occur in several products.
            JournalError: If the journal cannot be read.
            PipelineClosedError: If the pipeline is not running.
        """
        asked = asked_of(
            "export()",
            user_id=user_id,
            session_id=session_id,
            product_id=product_id,
            conversation_id=conversation_id,
        )
        async for record in self._open_run().forgetting.export(asked):
            yield record

    async def backup(
        self, folder: str | Path, *, on_progress: Callable[[Progress], None] | None = None
    ) -> BackupReport:
        """Write a consistent copy of journal and store, while the pipeline runs.

        A `ChromaStore` is copied with all collections of its folder. Of other stores, only the
        journal is copied: start with `rebuild=True` to fill a store from it. Writes to the store
        and, with Chroma, searches wait while the folder is copied. Payloads are accepted meanwhile.

        The backup holds personal data. Its files are readable by their owner only.

        Args:
            folder: A new or an empty folder. It has this name only once the backup is complete.
            on_progress: Called with the progress in bytes, twice a second, on the pipeline's loop.
                Each byte counts twice: when it is written, and when it is read for its hash.

        Returns:
            What was copied.

        Raises:
            BackupError: If the backup cannot be written.
            ConfigurationError: If the pipeline has no journal file.
            StoreError: If the store cannot be copied.
            PipelineClosedError: If the pipeline is not running.
        """
        check_function("on_progress", on_progress)
        run = self._open_run()
        return await _on_loop(run.loop, run.maintaining.backup(Path(folder), tell=on_progress))

    async def reembed(
        self,
        embedder: Embedder | Any,
        *,
        render: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> ReembedReport:
        """Move to another model, while the pipeline runs.

        Fills a second collection of the store with vectors of the new model, from the journal's
        texts. Meanwhile the old one answers searches and receives the stream. Then the new one
        takes its place in one step, and the old one is deleted. From the next start on, give the
        new embedder to the pipeline.

        If it is cancelled, fails, or the process ends, the old collection stays in use. A later
        call with the same model goes on where it stopped. A call with the embedder in use gives up
        an unfinished move. While the new embedder or the store is out of service, it waits.

        Args:
            embedder: The new `Embedder` or LangChain `Embeddings`. Closed with the pipeline, once
                it is in use.
            render: Whether to make the texts again from the kept payloads, with this pipeline's
                `render`. A chunk keeps its text if a payload was not kept. The model may be the
                old one.
            on_progress: Called with the progress, about once a second. See `reembedding` too.

        Returns:
            What was done.

        Raises:
            ConfigurationError: If the store embeds texts itself, or there is no journal file.
            MissingCapabilityError: If the store cannot exchange its collection.
            ReembedError: If the new model refuses more than 1 % of the chunks.
            PipelineClosedError: If the pipeline is not running.

        Example:
            >>> import tempfile
            >>> from autoplay_rag import ActionsPayload, SlimAction
            >>> from autoplay_rag.embedders import Embedder, LocalEmbedder
            >>> from autoplay_rag.stores import MemoryStore
            >>> class Lengths(Embedder):
            ...     model = "lengths"
            ...     async def embed(self, texts):
            ...         return [[float(len(text)), 1.0] for text in texts]
            >>> async def main(folder):
            ...     async with IngestPipeline(
            ...         MemoryStore(), LocalEmbedder(), journal=f"{folder}/journal.db"
            ...     ) as pipeline:
            ...         click = SlimAction("Export", "User clicked Export")
            ...         await pipeline.on_actions(ActionsPayload("acme", "s1", actions=[click]))
            ...         await pipeline.drain()
            ...         report = await pipeline.reembed(Lengths())
            ...         return report.chunks, (await pipeline.search("export"))[0].session_id
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     asyncio.run(main(folder))
            (1, 's1')
        """
        run = self._open_run()
        if not isinstance(self._store, VectorStore):
            raise ConfigurationError(
                f"{type(self._store).__name__} embeds texts itself: change its model there"
            )
        if self._settings.journal is None:
            raise ConfigurationError("reembed() needs a journal file: give journal=...")
        check_can_exchange(self._store)
        check_function("on_progress", on_progress)
        new = as_embedder(embedder)
        report = await _on_loop(
            run.loop, run.maintaining.reembed(new, render=render, tell=on_progress)
        )
        self._given_embedder = self._embedder = new
        return report

    async def copy_to(
        self,
        store: VectorStore | TextStore,
        embedder: Embedder | Any | None = None,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> CopyReport:
        """Copy the chunks into another store, which embeds them again, while the pipeline runs.

        The pipeline and its journal stay with their own store. What is stored, changed or forgotten
        while the copy is made may be missing, old or still there in the other store; a second call
        copies what is missing or old, and nothing is ever deleted there. To move to the other
        store, use `copy_store` with the journal while no pipeline runs.

        Args:
            store: The other store. Not started; closed afterwards.
            embedder: An `Embedder` or LangChain `Embeddings`, closed afterwards. None for a
                `TextStore`, which embeds texts itself.
            on_progress: Called with the progress after each page, on the pipeline's loop.

        Returns:
            What was copied.

        Raises:
            ConfigurationError: If an embedder is missing, is given for a `TextStore`, or the store
                is the pipeline's own.
            MissingCapabilityError: If the pipeline's store cannot be scanned.
            StoreError: If a store cannot be used.
            PipelineClosedError: If the pipeline is not running.

        Example:
            >>> from autoplay_rag import ActionsPayload, SlimAction
            >>> from autoplay_rag.embedders import LocalEmbedder
            >>> from autoplay_rag.stores import MemoryStore
            >>> async def main():
            ...     async with IngestPipeline(MemoryStore(), LocalEmbedder()) as pipeline:
            ...         click = SlimAction("Export", "User clicked Export")
            ...         await pipeline.on_actions(ActionsPayload("acme", "s1", actions=[click]))
            ...         await pipeline.drain()
            ...         return await pipeline.copy_to(MemoryStore(), LocalEmbedder())
            >>> asyncio.run(main()).copied
            1
        """
        run = self._open_run()
        if store == self._store:
            raise ConfigurationError(f"{store!r} is the pipeline's own store: give another one")
        check_embeds(store, embedder)
        new = None if embedder is None else as_embedder(embedder)
        return await _on_loop(run.loop, run.maintaining.copy_to(store, new, tell=on_progress))

    async def session_times(
        self, product_id: str, session_ids: Sequence[str]
    ) -> dict[str, tuple[float, float]]:
        """Return when sessions began and ended, of those that are known.

        A payload counts as soon as it is accepted.

        Args:
            product_id: Their product.
            session_ids: Their ids.

        Returns:
            By session id, the times of the first and the last action in Unix seconds. Sessions
            without a known time are left out.

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """
        lanes = [session_lane(product_id, session_id) for session_id in session_ids]
        visits = await self._open_run().visits(lanes)
        return {
            visit.session_id: (visit.first, visit.last)
            for visit in visits.values()
            if visit.session_id and visit.first is not None and visit.last is not None
        }

    async def session_part(
        self,
        session_id: str,
        product_id: str | None = None,
        *,
        user_id: str | None = None,
        after: int | None = None,
        limit: int = 500,
    ) -> SessionPart | None:
        """Return one part of a session, for sessions that are too long to read at once.

        Payloads are in the order of acceptance; the events within a part are ordered by time.

        Args:
            session_id: The session.
            product_id: As in `session`.
            user_id: As in `session`.
            after: `next` of the part before; None for the first part.
            limit: The number of events after which a part ends. A payload is not divided.

        Returns:
            The part, or None as in `session`.

        Raises:
            ConfigurationError: If several products have a session of this id, or the limit is
                invalid.
            PipelineClosedError: If the pipeline is not running.
        """
        timeline = self._open_run().timeline
        return await read_part(
            timeline, session_id, product_id, user_id=user_id, after=after, limit=limit
        )

    async def session_chunks(
        self, session_id: str, product_id: str | None = None
    ) -> list[SessionChunk]:
        """Return where the payloads of a session are; of a long session only the latest.

        Args:
            session_id: The session.
            product_id: As in `session`.

        Returns:
            One entry for each chunk, and one for all payloads that are in none; empty if the
            session is unknown.

        Raises:
            ConfigurationError: If several products have a session of this id.
            PipelineClosedError: If the pipeline is not running.
        """
        run = self._open_run()
        catalog = run.searcher.catalog
        assert catalog is not None
        return await read_chunks(run.timeline, catalog, session_id, product_id)

    async def status(self) -> JournalStatus:
        """Return what `JournalReader.status` returns, also for a journal in memory.

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """
        run = self._open_run()
        return await _on_loop(run.loop, run.condition.status())

    async def measure_space(self) -> Space:
        """Measure the disk space of journal and store.

        Raises:
            OSError: If the disk cannot be read.
            PipelineClosedError: If the pipeline is not running.
        """
        run = self._open_run()
        return await _on_loop(run.loop, run.space.measure())

    @property
    def settings(self) -> Settings:
        """The options it was made with, checked."""
        return self._settings

    @property
    def store(self) -> VectorStore | TextStore:
        """The store it was given."""
        return self._store

    @property
    def embedder(self) -> Embedder | None:
        """The embedder in use; None if the store embeds texts itself, or without a start."""
        return None if self._run is None else self._run.model.embedder

    @property
    def reembedding(self) -> Progress | None:
        """How far a call of `reembed` is; None if none runs. Readable from any thread."""
        found = self._run.maintaining.reembedding if self._run else None
        return None if found is None else found.progress

    @property
    def dead_letters(self) -> DeadLetters:
        """The payloads that could not be stored.

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """
        return self._open_run().dead_letters

    @property
    def ledger(self) -> Ledger:
        """The counts as of the last commit; available after the pipeline is closed, too.

        Raises:
            PipelineClosedError: If the pipeline was never started.
        """
        if self._run is None:
            raise PipelineClosedError("the pipeline was never started, so it has no ledger")
        return self._run.condition.ledger

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The pipeline's event loop, for code in other threads.

        Raises:
            PipelineClosedError: If the pipeline is not running.
        """
        return self._open_run().loop

    @property
    def is_running(self) -> bool:
        """Whether it accepts payloads and answers questions. Readable from any thread."""
        return self._running and self._run is not None

    @property
    def health(self) -> Health:
        """Whether payloads reach the store. Readable from any thread.

        The state is "degraded" while something fails that is retried or needs attention, such as
        a client that has failed. It is "failed" once the pipeline has stopped storing. Otherwise,
        and while the pipeline is not running, it is "ok".
        """
        return self._run.condition.health if self._running and self._run else Health()

    @property
    def timings(self) -> Timings:
        """How long searches, requests and payloads take, since the start; for metrics.

        Raises:
            PipelineClosedError: If the pipeline was never started.
        """
        if self._run is None:
            raise PipelineClosedError("the pipeline was never started, so it has no timings")
        return self._run.timings

    @property
    def client_states(self) -> list[tuple[str, str]]:
        """Product and state of each attached client. Readable from any thread."""
        return self._clients.states

    @property
    def replicas(self) -> Replicas | None:
        """All processes that share the journal in PostgreSQL; None if there can be only this one.

        Read every two seconds. Readable from any thread.
        """
        return self._run.condition.replicas if self._running and self._run else None

    @property
    def topic(self) -> TopicStatus | None:
        """How far a topic of Kafka is taken in, over all processes; None without a topic.

        Read every two seconds, also by a process that does not read the topic. Readable from any
        thread.
        """
        return self._run.condition.topic if self._running and self._run else None

    @property
    def is_available(self) -> bool:
        """Whether it runs, and its journal's database answers. Readable from any thread."""
        if not self._running or self._run is None:
            return False
        return self._run.membership is None or self._run.membership.is_connected

    @property
    def space(self) -> Space | None:
        """The disk space, measured each minute; None before. Readable from any thread."""
        return None if self._run is None else self._run.space.found

    @property
    def watermark(self) -> int:
        """The highest sequence number up to which every payload is settled.

        A payload is settled once it is stored, dead, discarded, filtered, refused, lost to
        overflow, or known to be a duplicate.

        Raises:
            PipelineClosedError: If the pipeline was never started.
        """
        if self._run is None:
            raise PipelineClosedError("the pipeline was never started, so it has no watermark")
        return self._run.watermark.value

    @property
    def lag(self) -> float:
        """About how many seconds the oldest pending payload has waited."""
        return self._run.condition.lag if self._running and self._run else 0.0

    def _open_run(self) -> RunningPipeline:
        if not self._running or self._run is None:
            raise PipelineClosedError(
                "the pipeline is not running: call start() or use `async with`"
            )
        return self._run


def _consume(task: asyncio.Task[None]) -> None:
    """Take the error of a task: the client has logged it."""
    if not task.cancelled():
        task.exception()


def _bundled_embedder() -> Embedder:
    from autoplay_rag.embedders.local import LocalEmbedder

    return LocalEmbedder()


async def _accepted(run: RunningPipeline, payload: Payload) -> Outcome:
    return await run.accepting.accept(payload)


async def _on_loop(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine on the pipeline's loop, from any loop."""
    if asyncio.get_running_loop() is loop:
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))
