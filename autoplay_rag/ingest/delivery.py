"""From the queue to the store: plan, embed, upsert, acknowledge, in that order and never back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest

from autoplay_rag._describe import describe
from autoplay_rag.errors import JournalError
from autoplay_rag.ingest.batching import Batcher, Gathered
from autoplay_rag.ingest.embedding import PROBE, PROBE_ID, Embedding
from autoplay_rag.ingest.failures import is_rejection
from autoplay_rag.ingest.journal import Journal
from autoplay_rag.ingest.journal_db import JournalDb
from autoplay_rag.ingest.plan import Batch, PlannedChunk, Planner
from autoplay_rag.ingest.stage import Limits, Stage
from autoplay_rag.stores.base import Chunk, Filter, TextStore, Vector, VectorStore

__all__ = ["Delivery"]

_log = logging.getLogger(__name__)

_PLAN_PAYLOADS = 500
"""The most payloads planned in one go: the journal takes nothing in meanwhile."""
_MOST_PIECES = 2_000
_MOST_CHARACTERS = 32 * 2**20
"""Chunks under way at most, and what they hold; the rest waits in the journal, not in memory."""
_JOURNAL_RETRY_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class _UnderWay:
    batch: Batch
    remaining: set[str]
    dead: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Piece:
    owner: _UnderWay
    chunk: PlannedChunk
    vector: Vector | None = None


class Delivery:
    """Carries what the batcher has gathered to the store.

    Args:
        journal: Where payloads wait and plans are kept.
        batcher: Says what is due.
        planner: How payloads become chunks.
        embedding: Makes vectors; None where the store embeds for itself.
        store: Where chunks go.
        embed_concurrency: Embedding requests in flight at most.
        limits: What one embedding request may hold; None where nothing is embedded here.
        max_attempts: Attempts alone until a payload is given up.
        batch_numbers: New batch numbers.
        on_ended: Called with the sequence numbers of payloads that are stored or dead.
    """

    def __init__(
        self,
        journal: Journal,
        batcher: Batcher,
        planner: Planner,
        embedding: Embedding | None,
        store: VectorStore | TextStore,
        *,
        embed_concurrency: int,
        limits: Limits | None,
        max_attempts: int,
        batch_numbers: Iterator[int],
        on_ended: Callable[[list[int]], None],
    ) -> None:
        self._journal = journal
        self._batcher = batcher
        self._planner = planner
        self._embedding = embedding
        self._store = store
        self._batch_numbers = batch_numbers
        self._on_ended = on_ended
        self._pieces = 0
        self._characters = 0
        self._last_vector: Vector | None = None
        self._unplanned: str | None = None
        self._unsettled: str | None = None
        self._wake = asyncio.Event()
        self._ended: list[_UnderWay] = []
        self._to_divide: list[_Piece] = []
        self._settle = asyncio.Event()
        self.chunks = 0
        self.store_stage: Stage[_Piece, None] = Stage(
            "store",
            self._upsert,
            cost=lambda _: 0,
            limits=Limits(store.max_batch, 1),
            concurrency=1,
            max_attempts=max_attempts,
            on_done=self._stored,
            on_dead=self._dead,
            divide=self._divide,
            probe=self._probe_store,
        )
        self.embed_stage: Stage[_Piece, Vector] | None = None
        if embedding is not None and limits is not None:
            self.embed_stage = Stage(
                "embedder",
                self._embed,
                cost=lambda piece: piece.chunk.tokens,
                limits=limits,
                concurrency=embed_concurrency,
                max_attempts=max_attempts,
                on_done=self._embedded,
                on_dead=self._dead,
                divide=self._divide,
                probe=self._probe_embedder,
            )

    def wake(self) -> None:
        """Look at the batcher again: something came, or is due earlier than was said."""
        self._wake.set()

    def resume(self, batches: Sequence[Batch]) -> None:
        """Carry out plans that were recorded earlier."""
        now = asyncio.get_running_loop().time()
        for batch in batches:
            if not batch.replayed:
                self._batcher.hold(batch.lane, now)
            self._begin(batch)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._plan_what_is_due())
            group.create_task(self._settle_what_ended())
            group.create_task(self.store_stage.run())
            if self.embed_stage:
                group.create_task(self.embed_stage.run())

    # -- plan ---------------------------------------------------------------------------------

    async def _plan_what_is_due(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            if self._pieces < _MOST_PIECES and self._characters < _MOST_CHARACTERS:
                if gathered := self._batcher.take(loop.time(), _PLAN_PAYLOADS):
                    await self._plan(gathered)
                    continue
                due = self._batcher.next_due()
            else:
                due = None
            try:
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _plan(self, gathered: list[Gathered]) -> None:
        numbers = [next(self._batch_numbers) for _ in gathered]
        seqs = [item.seqs for item in gathered]
        try:
            batches = await self._journal.do(lambda db: db.plan(numbers, seqs, self._planner))
        except JournalError as error:
            if len(gathered) > 1:
                # One of them may have spoiled it for all.
                for item in gathered:
                    await self._plan([item])
                return
            self._unplanned = _said(error)
            self._batcher.give_back(gathered[0], asyncio.get_running_loop().time())
            await asyncio.sleep(_JOURNAL_RETRY_SECONDS)
            return
        self._unplanned = None
        now = asyncio.get_running_loop().time()
        for item, batch in zip_longest(gathered, batches):
            planned = batch.seqs if batch else ()
            if rest := [seq for seq in item.seqs if seq not in planned]:
                self._batcher.give_back(Gathered(item.lane, rest), now, under_way=bool(batch))
            if batch:
                self._begin(batch)

    def _begin(self, batch: Batch) -> None:
        owner = _UnderWay(batch, {chunk.id for chunk in batch.chunks}, dict(batch.unplanned))
        self._send(owner, batch.chunks)

    def _send(self, owner: _UnderWay, chunks: Sequence[PlannedChunk]) -> None:
        self._pieces += len(chunks)
        self._characters += sum(len(chunk.text) for chunk in chunks)
        pieces = [_Piece(owner, chunk) for chunk in chunks]
        if self.embed_stage:
            self.embed_stage.put(pieces)
        else:
            self.store_stage.put(pieces)
        if not owner.remaining:
            self._end(owner)

    @property
    def retries(self) -> int:
        """Requests that failed and were made again."""
        return self.store_stage.retries + (self.embed_stage.retries if self.embed_stage else 0)

    @property
    def trouble(self) -> str | None:
        """What is wrong with journal or services now, in one line; None while all is well."""
        stages = [("embedder", self.embed_stage), ("store", self.store_stage)]
        found = [f"{name}: {stage.trouble}" for name, stage in stages if stage and stage.trouble]
        found += [trouble for trouble in (self._unplanned, self._unsettled) if trouble]
        return "; ".join(found) or None

    # -- embed and upsert ---------------------------------------------------------------------

    async def _embed(self, pieces: Sequence[_Piece]) -> list[Vector]:
        assert self._embedding is not None
        return await self._embedding.request([piece.chunk for piece in pieces])

    async def _probe_embedder(self) -> bool:
        assert self._embedding is not None
        await self._embedding.probe()
        return True

    def _embedded(self, piece: _Piece, vector: Vector) -> None:
        piece.vector = vector
        self.store_stage.put([piece])

    async def _upsert(self, pieces: Sequence[_Piece]) -> list[None]:
        chunks = [piece.chunk.as_chunk() for piece in pieces]
        if isinstance(self._store, VectorStore):
            vectors = [piece.vector for piece in pieces if piece.vector is not None]
            await self._store.upsert(chunks, vectors)
        else:
            await self._store.add(chunks)
        return [None] * len(pieces)

    async def _probe_store(self) -> bool:
        if not isinstance(self._store, VectorStore):
            # A store that embeds refuses texts as an embedder does.
            await self._store.search(PROBE, 1, Filter())
            return True
        if self._last_vector is None:
            return False
        await self._store.upsert([Chunk(PROBE_ID, PROBE, {})], [self._last_vector])
        with suppress(NotImplementedError):  # no search shows it
            await self._store.delete([PROBE_ID])
        return True

    def _stored(self, piece: _Piece, _: None) -> None:
        self.chunks += 1
        self._last_vector = piece.vector
        self._leave(piece)

    # -- failure ------------------------------------------------------------------------------

    def _divide(self, piece: _Piece) -> bool:
        """Take a chunk of several payloads back, so that only the guilty one may die."""
        if len(piece.chunk.sources) == 1 or piece.owner.batch.replayed:
            return False
        self._to_divide.append(piece)
        self._settle.set()
        return True

    def _dead(self, piece: _Piece, error: str) -> None:
        for seq, _ in piece.chunk.sources:
            piece.owner.dead[seq] = error
        self._leave(piece)

    def _forget(self, piece: _Piece) -> None:
        self._pieces -= 1
        self._characters -= len(piece.chunk.text)

    def _leave(self, piece: _Piece) -> None:
        self._forget(piece)
        piece.owner.remaining.discard(piece.chunk.id)
        if not piece.owner.remaining:
            self._end(piece.owner)
        self._wake.set()

    # -- acknowledge --------------------------------------------------------------------------

    def _end(self, owner: _UnderWay) -> None:
        self._ended.append(owner)
        self._settle.set()

    async def _settle_what_ended(self) -> None:
        while True:
            await self._settle.wait()
            self._settle.clear()
            try:
                while self._to_divide:
                    await self._replan(self._to_divide[0])
                    del self._to_divide[0]
                while ended := list(self._ended):
                    await self._delete_parts_of_dead(ended)
                    await self._acknowledge(ended)
            except Exception as error:  # noqa: BLE001 - journal or store: either may be back later
                # What is stored is stored; only the note of it has to wait.
                self._unsettled = _said(error)
                self._settle.set()
                await asyncio.sleep(_JOURNAL_RETRY_SECONDS)

    async def _delete_parts_of_dead(self, ended: list[_UnderWay]) -> None:
        """A payload that fills several chunks dies whole: none of them stays to be found."""
        parts: dict[int, list[str]] = {}
        for owner in ended:
            for chunk in owner.batch.chunks:
                if len(chunk.sources) == 1 and (seq := chunk.sources[0][0]) in owner.dead:
                    parts.setdefault(seq, []).append(chunk.id)
        ids = [chunk_id for found in parts.values() if len(found) > 1 for chunk_id in found]
        if not ids:
            return
        try:
            await self._store.delete(ids)
        except Exception as error:
            if not is_rejection(error) and not isinstance(error, NotImplementedError):
                raise
            _log.error(
                "parts of a dead payload stay in the store: it does not delete them (%s)", error
            )

    async def _acknowledge(self, ended: list[_UnderWay]) -> None:
        notes = [(owner.batch, list(owner.dead.items())) for owner in ended]

        def note(db: JournalDb) -> None:
            for batch, dead in notes:
                db.acknowledge(batch, dead)

        await self._journal.do(note)
        self._unsettled = None
        del self._ended[: len(ended)]
        for owner in ended:
            if not owner.batch.replayed:
                self._batcher.done(owner.batch.lane)
                self._on_ended(sorted(owner.batch.seqs))
        self._wake.set()

    async def _replan(self, piece: _Piece) -> None:
        owner = piece.owner
        seqs = [seq for seq, _ in piece.chunk.sources]
        before = {chunk.id for chunk in owner.batch.chunks if chunk is not piece.chunk}
        batch = owner.batch
        owner.batch = await self._journal.do(lambda db: db.replan(batch, seqs, self._planner))
        owner.dead.update(owner.batch.unplanned)
        apart = [chunk for chunk in owner.batch.chunks if chunk.id not in before]
        owner.remaining.discard(piece.chunk.id)
        owner.remaining.update(chunk.id for chunk in apart)
        self._forget(piece)
        self._send(owner, apart)


def _said(error: Exception) -> str:
    _log.error("what waits stays where it is, trying again: %s", error)
    return describe(error)
