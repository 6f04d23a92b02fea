"""One run of a pipeline, from its start to its end: everything that lives and dies together."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from contextlib import suppress

from autoplay_rag._describe import describe
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import AutoplayError, DrainTimeoutError, JournalError, PipelineError
from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.ingest.dead_letters import DeadLetters
from autoplay_rag.ingest.delivery import Delivery
from autoplay_rag.ingest.drain import Drains
from autoplay_rag.ingest.embedding import Embedding, TokenBudget, today
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.ingest.journal import Journal
from autoplay_rag.ingest.journal_rows import Action, Entry, Outcome
from autoplay_rag.ingest.ledger import Ledger
from autoplay_rag.ingest.plan import Planner
from autoplay_rag.ingest.settings import Settings
from autoplay_rag.ingest.stage import Limits
from autoplay_rag.live import LiveSessions
from autoplay_rag.payloads import Payload
from autoplay_rag.stores.base import TextStore, VectorStore

__all__ = ["Run"]

_log = logging.getLogger(__name__)
_REQUESTS_SECONDS = 1.0
"""How often the journal is looked at for what other processes ask."""
_TIDY_EVERY = 60
"""Looks between two tidyings, for a journal that has little to commit."""
_GRACE_SECONDS = 5.0
"""How long requests that were cancelled may take to end."""
_RESUME_PAGE = 50_000


class Run:
    """Journal, batcher and delivery of one run, and the task that works on them.

    Args:
        settings: How to work.
        store: Where chunks go.
        embedder: Makes vectors; None where the store embeds for itself.
        live: Is shown what was accepted.

    Attributes:
        dead_letters: Payloads that could not be stored.
        last_received: When the last payload came, in the loop's time.
    """

    def __init__(
        self,
        settings: Settings,
        store: VectorStore | TextStore,
        embedder: Embedder | None,
        live: LiveSessions,
    ) -> None:
        self._settings = settings
        self._store = store
        self._embedder = embedder
        self._live = live
        self._intake = Intake(settings.select, settings.redact)
        self._batcher = Batcher(settings.batch_window)
        self._journal = Journal(
            settings.journal,
            durability=settings.durability,
            max_bytes=settings.journal_max_bytes,
            recent_seconds=settings.journal_recent_seconds,
            on_accepted=self._accepted,
        )
        self._drains = Drains()
        self._overflowing = False
        self._failure: str | None = None
        self._last_seq = 0
        self.last_received = 0.0
        self.dead_letters = DeadLetters(self._journal, self._carry_out)
        self.loop = asyncio.get_running_loop()
        self._seqs: itertools.count[int]
        self._embedding: Embedding | None = None
        self._delivery: Delivery
        self._task: asyncio.Task[None]

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open journal and store, take up what an earlier run left, and begin to work."""
        model = self._embedder.model if self._embedder else ""
        await self._journal.open()
        try:
            await self._store.start(model)
            await self._build(model)
            await self._resume()
        except BaseException:
            await self._close_all()
            raise
        self._task = self.loop.create_task(self._work(), name="autoplay-ingest")
        self._task.add_done_callback(_report)

    async def _build(self, model: str) -> None:
        settings, embedder, day = self._settings, self._embedder, today()
        self._last_seq, last_batch = await self._journal.do(lambda db: db.last_numbers())
        self._seqs = itertools.count(self._last_seq + 1)
        if embedder:
            spent = await self._journal.do(lambda db: db.tokens(day))
            budget = TokenBudget(settings.max_embed_tokens_per_day, spent, self._save_tokens)
            self._embedding = Embedding(embedder, budget, settings.remembered_vectors)
        self._planner = Planner(
            render=settings.render,
            count_tokens=embedder.count_tokens if embedder else lambda _: 0,
            max_actions=settings.max_batch_actions,
            include_email=settings.include_email,
            model=model,
        )
        self._delivery = Delivery(
            self._journal,
            self._batcher,
            self._planner,
            self._embedding,
            self._store,
            embed_concurrency=settings.embed_concurrency,
            limits=_limits(embedder, settings.max_embed_tokens_per_day) if embedder else None,
            max_attempts=settings.max_attempts,
            batch_numbers=itertools.count(last_batch + 1),
            on_ended=self._ended,
        )

    async def _resume(self) -> None:
        batches = await self._journal.do(lambda db: db.unfinished(self._planner))
        # Those acknowledged before hold numbers that may have been given anew since.
        planned = {seq for batch in batches if not batch.replayed for seq in batch.seqs}
        self._delivery.resume(batches)
        now = self.loop.time()
        page = await self._waiting_after(0)
        while page:
            for seq, lane in page:
                if seq not in planned:
                    self._batcher.add(lane, seq, now)
            page = await self._waiting_after(page[-1][0])
        self._batcher.close_windows(now)

    async def _waiting_after(self, seq: int) -> list[tuple[int, int]]:
        return await self._journal.do(lambda db: db.waiting(seq, _RESUME_PAGE))

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._delivery.run())
                if self._settings.journal:
                    group.create_task(self._serve_requests())
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = f"the pipeline failed: {describe(_first_of(error))}"
            with suppress(AutoplayError):
                await self._note_health(self._failure)
            raise

    async def close(self) -> None:
        """Stop working and close everything; what is not stored stays in the journal."""
        self._task.cancel()
        _, busy = await asyncio.wait([self._task], timeout=_GRACE_SECONDS)
        if busy:
            _log.error("an embedder or a store does not let itself be cancelled: not waited for")
        await self._close_all()

    async def _close_all(self) -> None:
        try:
            await self._store.aclose()
        finally:
            try:
                if self._embedder:
                    await self._embedder.aclose()
            finally:
                await self._journal.close()

    # -- in -----------------------------------------------------------------------------------

    def accept(self, payload: Payload) -> asyncio.Future[Outcome]:
        """Hand a payload to the journal; its place in the order is taken at once."""
        self._last_seq = seq = next(self._seqs)
        self.last_received = self.loop.time()
        future = self._journal.accept(self._intake.entry(payload, seq))
        future.add_done_callback(self._watch_overflow)
        return future

    def _accepted(self, entry: Entry) -> None:
        self._batcher.add(entry.lane, entry.seq, self.loop.time())
        self._delivery.wake()
        if entry.payload is not None:
            try:
                self._live.add(entry.payload)
            except Exception as error:  # noqa: BLE001 - a redacted payload may hold anything
                _log.error("a payload is stored, but not shown live: %s", type(error).__name__)

    def _watch_overflow(self, future: asyncio.Future[Outcome]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None and future.result() in ("duplicate", "filtered"):
            return  # says nothing about room
        overflow = isinstance(error, JournalError) if error else future.result() == "overflow"
        if overflow and not self._overflowing:
            _log.error(
                "the journal takes no more (%s): payloads are being LOST and counted as overflow; "
                "raise journal_max_bytes, make room, or see why the store does not keep up",
                error or "it or its disk is full",
            )
        self._overflowing = overflow

    # -- out ----------------------------------------------------------------------------------

    async def drain(self, timeout: float | None) -> None:  # noqa: ASYNC109 - the error tells what is left
        """Close all windows and wait for what was accepted so far; see `IngestPipeline.drain`."""
        mark = self._last_seq
        try:
            async with asyncio.timeout(timeout):
                left = await self._journal.do(lambda db: db.count_waiting(mark))
                with self._drains.begin(mark, left) as drain:
                    self._batcher.close_windows(self.loop.time())
                    self._delivery.wake()
                    if await self._ends_before_work(drain.done):
                        return
        except TimeoutError:
            if not self.ledger.pending:
                return
        else:
            raise PipelineError(f"{self.trouble}; it stores nothing more, see the log")
        raise DrainTimeoutError(
            f"{self.ledger.pending:,} payloads are not stored after {timeout:g} s"
            + (f" ({self.trouble})" if self.trouble else "")
        )

    async def _ends_before_work(self, done: asyncio.Event) -> bool:
        drained = asyncio.create_task(done.wait())
        try:
            await asyncio.wait([drained, self._task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            drained.cancel()
        return done.is_set()

    def _ended(self, seqs: list[int]) -> None:
        self._drains.ended(seqs)
        if self._settings.on_progress:
            try:
                self._settings.on_progress(self.ledger)
            except Exception:  # noqa: BLE001 - the user's own code
                _log.exception("on_progress failed")

    @property
    def ledger(self) -> Ledger:
        """The counts as of the last commit."""
        embedding = self._embedding
        return Ledger(
            **self._journal.counters,
            chunks=self._delivery.chunks,
            embed_requests=embedding.requests if embedding else 0,
            embed_texts=embedding.texts if embedding else 0,
            embed_tokens=embedding.tokens if embedding else 0,
            embed_reused=embedding.reused if embedding else 0,
            retries=self._delivery.retries,
        )

    @property
    def trouble(self) -> str | None:
        """What keeps payloads from the store now, in one line."""
        return self._failure or self._journal.trouble or self._delivery.trouble

    @property
    def lag(self) -> float:
        """About how many seconds the payload that is kept longest has waited."""
        oldest = self._batcher.oldest()
        return 0.0 if oldest is None else max(0.0, self.loop.time() - oldest)

    # -- dead letters and other processes -----------------------------------------------------

    async def _carry_out(self, action: Action, ids: Sequence[int] | None) -> int:
        if action == "discard":
            return await self._journal.do(lambda db: db.discard(ids))
        back = await self._journal.do(lambda db: db.retry(ids, self._seqs), self._put_back)
        return len(back)

    def _put_back(self, back: list[tuple[int, int]]) -> None:
        now = self.loop.time()
        for lane, seq in back:
            self._last_seq = max(self._last_seq, seq)
            self._batcher.add(lane, seq, now)
        self._delivery.wake()

    async def _serve_requests(self) -> None:
        said = ""
        for second in itertools.count():
            health = self.trouble or ("overflow" if self._overflowing else "ok")
            try:
                await self._journal.do(lambda db: db.carry_out_requests(self._seqs), self._put_back)
                if health != said:
                    await self._note_health(health)
                    said = health
                if second % _TIDY_EVERY == 0:
                    await self._journal.do(lambda db: db.forget())
            except JournalError as error:
                _log.error("requests of other processes have to wait: %s", error)
            await asyncio.sleep(_REQUESTS_SECONDS)

    async def _note_health(self, health: str) -> None:
        await self._journal.do(lambda db: db.set_health(health))

    async def _save_tokens(self, day: str, tokens: int) -> None:
        try:
            await self._journal.do(lambda db: db.set_tokens(day, tokens))
        except JournalError as error:
            _log.error("the day's tokens could not be noted: %s", error)


def _limits(embedder: Embedder, tokens_per_day: int | None) -> Limits:
    # A request larger than the day's budget would use up that of several days.
    most = min(embedder.max_request_tokens, tokens_per_day or embedder.max_request_tokens)
    return Limits(embedder.max_inputs, most)


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.critical("the pipeline failed and stores nothing more", exc_info=error)
