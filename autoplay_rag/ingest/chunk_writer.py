"""Embeds chunks and carries out the store's upserts, metadata updates and deletes."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias

from autoplay_rag._cancelled import is_cancelled
from autoplay_rag._checks import check_at_least
from autoplay_rag._describe import describe
from autoplay_rag._failures import is_forbidden, is_rejection, retry_after
from autoplay_rag._timings import Timings
from autoplay_rag._tracing import Attribute, Origin, Span
from autoplay_rag.content.probe import PROBE, PROBE_ID
from autoplay_rag.errors import (
    ConfigurationError,
    MissingCapabilityError,
    StoreRejectedError,
)
from autoplay_rag.ingest.embedding import Embedding
from autoplay_rag.ingest.retries import Request, RequestLimits, RetryQueue
from autoplay_rag.stores.base import (
    Capability,
    Changes,
    Chunk,
    Filter,
    TextStore,
    Vector,
    VectorStore,
)

__all__ = ["ChunkWriter", "Delete", "Operation", "UpdateMetadata", "Upsert"]

_log = logging.getLogger(__name__)

_SLOW_SECONDS = 60.0
"""A request without a response for this long is reported as a problem."""


@dataclass(slots=True, eq=False)
class Upsert:
    """Embed a chunk and store it, replacing the one with the same id.

    Attributes:
        chunk: The chunk to store.
        tokens: The tokens of its text, as the embedder counts them.
        divide: Called when a request with only this chunk is rejected. True means that the owner
            takes the chunk back: the operation ends without a call of `ended`, and the next
            operation on the id starts.
        origin: The span of the plan.
        is_wanted: Called before each request. False means that the chunk may not be stored here
            any more: the operation ends without a call of `ended`.
    """

    chunk: Chunk
    tokens: int
    divide: Callable[[], bool] | None = None
    origin: Origin = None
    is_wanted: Callable[[], bool] | None = None


@dataclass(slots=True, eq=False)
class UpdateMetadata:
    """Change the metadata of a stored chunk without embedding it again.

    Attributes:
        id: The chunk's id.
        changes: Keys to set; None removes a key.
    """

    id: str
    changes: Changes


@dataclass(slots=True, eq=False)
class Delete:
    """Delete a chunk.

    Attributes:
        id: The chunk's id. An unknown id is not an error.
    """

    id: str


Operation: TypeAlias = Upsert | UpdateMetadata | Delete
Ended: TypeAlias = Callable[[Operation, str | None], None]


class _Job:
    """An operation in progress."""

    __slots__ = ("ended", "id", "made_by", "operation", "vector")

    def __init__(self, id: str, operation: Any, ended: Ended) -> None:
        self.id = id
        self.operation = operation  # each kind of request holds one kind of operation
        self.ended = ended
        self.vector: Vector | None = None
        self.made_by: Embedding | None = None


@dataclass(slots=True, eq=False)
class _Kind:
    """One kind of request. Each has its own queue, so an outage of one kind does not stop others.

    Attributes:
        label: Prefix of the kind's problems.
        queue: Its jobs.
        call: Makes one request.
        done: Called with the jobs and the result of a successful request.
        probe: Makes a request that any healthy service accepts. Returns False if no such request
            is known yet.
        capability: The capability that the store needs for these requests.
    """

    label: str
    queue: RetryQueue[_Job]
    call: Callable[[list[_Job]], Awaitable[Any]]
    done: Callable[[list[_Job], Any], None]
    probe: Callable[[], Awaitable[bool]] | None = None
    capability: Capability | None = None


class _Service:
    """The embedder or the store, with its kinds of requests and its workers.

    Attributes:
        name: The name in messages.
        kinds: All kinds of requests.
        order: The same kinds, least recently served first.
        started: When each worker's request began; infinity if it has none.
        wake: Set after every change that may allow a request to start.
    """

    def __init__(self, name: str, kinds: Sequence[_Kind], workers: int) -> None:
        self.name = name
        self.kinds = kinds
        self.order = list(kinds)
        self.started = [math.inf] * workers
        self.wake = asyncio.Event()

    @property
    def problems(self) -> list[str]:
        # Other threads read this: it uses no event loop and no collection that changes its size.
        found = [
            f"{self.name}: {kind.label}{problem}"
            for kind in self.kinds
            if (problem := kind.queue.problem)
        ]
        waited = time.monotonic() - min(self.started)
        if not found and waited > _SLOW_SECONDS:
            found = [f"{self.name}: a request has had no answer for {waited:.0f} s"]
        return found


class ChunkWriter:
    """Carries out operations on chunks, with retries.

    Operations on one chunk id run one after the other, in the order of the `put` calls. Operations
    on different ids do not wait for each other. Requests grow with the load: a free worker takes
    as many operations as one request may hold. The store gets at most one request at a time.

    During an outage of a service, requests are retried until it ends. A rejected request is split
    until each request holds one operation. An upsert fails after `max_attempts` rejections alone,
    with a success of another item or a probe before each except the first. An update or a delete
    fails at its first rejection alone: its owner repeats it later.

    Call all methods on the event loop that runs `run`. The attributes are readable from any
    thread. The owner bounds the memory: it checks `operations` and `characters` before it puts
    more.

    Args:
        store: The store to write to.
        embedding: Makes the vectors; None for a `TextStore`.
        embed_concurrency: The most embedding requests in flight.
        limits: The limits of one embedding request; None for a `TextStore`.
        max_attempts: The rejections of a chunk alone until its upsert fails.
        store_batch: The most operations in one request to the store; as many as it takes if None.
        timings: Measures the writes.

    Attributes:
        characters: Characters of text in progress.
        chunks: Chunks stored so far.
        retries: Requests that failed so far, including probes.

    Raises:
        ConfigurationError: If a number is below 1, or `embedding` does not fit the kind of store.

    Example:
        >>> import asyncio
        >>> from autoplay_rag.stores.base import TextStore
        >>> class PrintingStore(TextStore):
        ...     async def add(self, chunks):
        ...         print("stored", [chunk.text for chunk in chunks])
        ...     async def search(self, text, k, filter):
        ...         return []
        >>> async def main():
        ...     writer = ChunkWriter(
        ...         PrintingStore(), None, embed_concurrency=1, limits=None, max_attempts=3
        ...     )
        ...     ended = asyncio.Event()
        ...     writer.put([Upsert(Chunk("c1", "Opened billing", {}), 4)], lambda *_: ended.set())
        ...     running = asyncio.create_task(writer.run())
        ...     await ended.wait()
        ...     running.cancel()
        ...     await asyncio.wait([running])
        >>> asyncio.run(main())
        stored ['Opened billing']
    """

    def __init__(
        self,
        store: VectorStore | TextStore,
        embedding: Embedding | None,
        *,
        embed_concurrency: int,
        limits: RequestLimits | None,
        max_attempts: int,
        store_batch: int | None = None,
        timings: Timings | None = None,
    ) -> None:
        check_at_least("embed_concurrency", embed_concurrency, 1, whole=True)
        check_at_least("max_attempts", max_attempts, 1, whole=True)
        takes_vectors = isinstance(store, VectorStore)
        if takes_vectors != (embedding is not None) or takes_vectors != (limits is not None):
            raise ConfigurationError(
                "a VectorStore needs embedding and limits, a TextStore takes neither"
            )
        self._store = store
        self._timings = timings or Timings()
        self._embedding = embedding
        self._dimension: int | None = None
        self._tidying = False
        self._store_free = asyncio.Lock()
        self._in_request: frozenset[str] = frozenset()
        # By chunk id: the operations that wait for the one in progress; None if none wait.
        self._in_progress: dict[str, deque[_Job] | None] = {}
        self._operations = 0
        self.characters = 0
        self.chunks = 0
        self.retries = 0
        batch = RequestLimits(min(store.max_batch, store_batch or store.max_batch), 0)
        self._upserts = _Kind(
            "",
            RetryQueue("store", batch, max_attempts, take_back=self._taken_back),
            self._upsert,
            self._stored,
            self._probe_store,
        )
        self._updates = _Kind(
            "updates of metadata: ",
            RetryQueue("store", batch, 1),
            self._update,
            self._ended,
            capability="update_metadata",
        )
        self._deletes = _Kind(
            "deletes: ",
            RetryQueue("store", batch, 1),
            self._delete,
            self._ended,
            capability="delete",
        )
        self._storing = _Service("store", (self._upserts, self._updates, self._deletes), 1)
        self._services = [self._storing]
        self._first = self._upserts
        self._first_service = self._storing
        if limits is not None:
            self._first = _Kind(
                "",
                RetryQueue(
                    "embedder",
                    limits,
                    max_attempts,
                    cost=attrgetter("operation.tokens"),
                    take_back=self._taken_back,
                ),
                self._embed,
                self._embedded,
                self._probe_embedder,
            )
            self._first_service = _Service("embedder", (self._first,), embed_concurrency)
            self._services = [self._first_service, self._storing]

    @property
    def operations(self) -> int:
        """The number of operations that were put and have not ended."""
        return self._operations - self._tidying

    def is_storing(self, chunk_id: str) -> bool:
        """Whether a request to the store is running that stores this chunk."""
        return chunk_id in self._in_request

    @property
    def problems(self) -> list[str]:
        """Current problems of embedder and store, one line each."""
        return [problem for service in self._services for problem in service.problems]

    def put(self, operations: Iterable[Operation], ended: Ended) -> None:
        """Start operations. This may be called before `run`.

        Args:
            operations: The operations. Those on the same id run in this order.
            ended: Called with each operation that ended and an error: None after a success,
                otherwise the reason in one line ("store: ValueError: ..."). After an error the
                store may still have carried out the operation, if an earlier request for it got
                no response. Called on the event loop, never from within `put`. It may put more
                operations. An exception that it raises ends `run`.
        """
        ready: list[_Job] = []
        in_progress = self._in_progress
        for operation in list(operations):
            if isinstance(operation, Upsert):
                chunk_id = operation.chunk.id
                self.characters += len(operation.chunk.text)
            else:
                chunk_id = operation.id
            self._operations += 1
            job = _Job(chunk_id, operation, ended)
            if chunk_id not in in_progress:
                in_progress[chunk_id] = None
                ready.append(job)
            elif (followers := in_progress[chunk_id]) is not None:
                followers.append(job)
            else:
                in_progress[chunk_id] = deque((job,))
        self._start(ready)

    def replace_embedding(self, embedding: Embedding, limits: RequestLimits) -> None:
        """Make vectors with another model from now on. Those not stored yet are made again.

        Call it inside `paused`, once the store takes vectors of that model.

        Args:
            embedding: Makes the vectors.
            limits: The limits of one of its requests.
        """
        self._embedding = embedding
        self._dimension = None
        self._first.queue.renew(limits)
        self._first_service.wake.set()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Make no request to the store inside the block. Embedding goes on."""
        async with self._store_free:
            yield

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """Run in a task of its own inside the block."""
        task = asyncio.create_task(self.run(), name="autoplay-chunk-writer")
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def run(self) -> None:
        """Run until cancelled.

        Operations that have not ended by then are dropped without a call of `ended`.
        """
        for service in self._services:
            service.wake = asyncio.Event()  # the last run may have used another loop
        try:
            async with asyncio.TaskGroup() as group:
                for service in self._services:
                    for worker in range(len(service.started)):
                        group.create_task(self._work(service, worker))
        finally:
            for service in self._services:
                for kind in service.kinds:
                    kind.queue.clear()
            self._in_progress.clear()
            self._operations = self.characters = 0
            self._tidying = False

    # -- the order of operations --------------------------------------------------------------

    def _start(self, jobs: Iterable[_Job]) -> None:
        upserts: list[_Job] = []
        for job in jobs:
            if isinstance(job.operation, Upsert):
                upserts.append(job)
            else:
                kind = self._deletes if isinstance(job.operation, Delete) else self._updates
                kind.queue.put((job,))
                self._storing.wake.set()
        if upserts:
            self._first.queue.put(upserts)
            self._first_service.wake.set()

    def _leave(self, job: _Job) -> None:
        """Let the next operation on the same id start."""
        self._operations -= 1
        if isinstance(job.operation, Upsert):
            self.characters -= len(job.operation.chunk.text)
        if followers := self._in_progress.pop(job.id):
            follower = followers.popleft()
            self._in_progress[job.id] = followers or None
            self._start((follower,))

    def _end(self, job: _Job, error: str | None) -> None:
        self._leave(job)
        job.ended(job.operation, error)

    def _return_early(self, service: _Service, kind: _Kind, request: Request[_Job]) -> bool:
        """Do without a request if not all of its operations can be carried out as they are."""
        if self._drop_unwanted(kind, request):
            service.wake.set()
            return True
        return kind is self._upserts and self._return_outdated(request)

    def _drop_unwanted(self, kind: _Kind, request: Request[_Job]) -> bool:
        """End the unwanted operations of a request; return whether there were any."""
        if kind is not self._first and kind is not self._upserts:
            return False
        kept: list[_Job] = []
        unwanted: list[_Job] = []
        for job in request.items:
            (kept if _is_wanted(job.operation) else unwanted).append(job)
        if not unwanted:
            return False
        kind.queue.reduced(request, kept)
        for job in unwanted:
            self._leave(job)
        return True

    def _taken_back(self, job: _Job) -> bool:
        divide = job.operation.divide
        if divide is None or not divide():
            return False
        self._leave(job)
        return True

    # -- requests -----------------------------------------------------------------------------

    async def _work(self, service: _Service, worker: int) -> None:
        while True:
            kind, request = await self._next(service)
            try:
                if service is self._storing:
                    async with self._store_free:
                        await self._carry_out(service, worker, kind, request)
                else:
                    await self._carry_out(service, worker, kind, request)
            finally:
                service.started[worker] = math.inf
            if is_cancelled():
                raise asyncio.CancelledError  # the request swallowed the cancellation

    async def _next(self, service: _Service) -> tuple[_Kind, Request[_Job]]:
        while True:
            service.wake.clear()
            now = time.monotonic()
            for kind in service.order:
                if request := kind.queue.take(now):
                    service.order.remove(kind)
                    service.order.append(kind)
                    return kind, request
            times = [at for kind in service.kinds if (at := kind.queue.next_at(now)) is not None]
            if not times:
                await service.wake.wait()
                continue
            try:
                async with asyncio.timeout(min(times) - now):
                    await service.wake.wait()
            except TimeoutError:
                pass

    async def _carry_out(
        self, service: _Service, worker: int, kind: _Kind, request: Request[_Job]
    ) -> None:
        queue = kind.queue
        probing = request.needs_probe
        result: Any = None
        try:
            lacking = kind.capability and kind.capability not in self._store.capabilities
            if probing:
                service.started[worker] = time.monotonic()
                await self._prove_healthy(service, kind)
                probing = False
            if not lacking and self._return_early(service, kind, request):
                return
            if not lacking:
                request.started = service.started[worker] = time.monotonic()
                result = await kind.call(request.items)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # Extensions written in Rust may raise errors that are not an Exception.
            if _was_cancelled(error):
                raise
            self.retries += 1
            self._failed(service, kind, request, error, probing)
        else:
            if lacking:
                self._refuse(service, kind, request)
                return
            if queue.is_out:
                service.wake.set()  # the other workers may go on
            queue.succeeded(request)
            kind.done(request.items, result)

    def _failed(
        self,
        service: _Service,
        kind: _Kind,
        request: Request[_Job],
        error: BaseException,
        probing: bool,
    ) -> None:
        if kind.capability and is_forbidden(error):
            # Not an outage: retrying here would block the queue forever. The owner repeats the
            # operation later.
            error = StoreRejectedError(describe(error))
        now = time.monotonic()
        service.wake.set()
        if probing:
            kind.queue.unhealthy(request, error, now)
        elif reason := kind.queue.failed(request, error, now):
            job = request.items[0]
            if isinstance(job.operation, Upsert):
                # Log only the type: the message may contain the text. The owner gets the message.
                _log.error("%s: a chunk failed permanently: %s", service.name, type(error).__name__)
            self._end(job, reason)
        asked = 0.0 if is_rejection(error) else retry_after(error)
        if asked:
            # A rate limit applies to all kinds of requests.
            for other in service.kinds:
                other.queue.rest(now + asked)

    async def _prove_healthy(self, service: _Service, kind: _Kind) -> None:
        """Probe the service before a lone operation is retried; raises if it is unhealthy."""
        assert kind.probe is not None
        if await kind.probe():
            kind.queue.probed()
            service.wake.set()

    def _refuse(self, service: _Service, kind: _Kind, request: Request[_Job]) -> None:
        kind.queue.withdrawn(request)
        service.wake.set()
        error = describe(MissingCapabilityError(type(self._store).__name__, str(kind.capability)))
        for job in request.items:
            self._end(job, f"store: {error}")

    # -- embed --------------------------------------------------------------------------------

    async def _embed(self, jobs: list[_Job]) -> list[Vector]:
        embedding = self._embedding
        assert embedding is not None
        for job in jobs:
            job.made_by = embedding
        return await embedding.request(
            [(job.operation.chunk.text, job.operation.tokens) for job in jobs],
            [job.operation.origin for job in jobs],
        )

    def _return_outdated(self, request: Request[_Job]) -> bool:
        """Embed the chunks of a request again if the model was replaced since."""
        if all(job.made_by is self._embedding for job in request.items):
            return False
        self._upserts.queue.withdrawn(request)
        self._first.queue.put(request.items)
        self._first_service.wake.set()
        self._storing.wake.set()
        return True

    def _embedded(self, jobs: list[_Job], vectors: list[Vector]) -> None:
        for job, vector in zip(jobs, vectors, strict=True):
            job.vector = vector
        self._upserts.queue.put(jobs)
        self._storing.wake.set()

    async def _probe_embedder(self) -> bool:
        assert self._embedding is not None
        await self._embedding.probe()
        return True

    # -- store --------------------------------------------------------------------------------

    def _measured(
        self, what: str, chunks: int, origins: Sequence[Origin] = ()
    ) -> AbstractContextManager[Span]:
        attributes: dict[str, Attribute] = {
            "gen_ai.data_source.id": self._store.data_source,
            "autoplay_rag.chunks": chunks,
        }
        return self._timings.measured(
            "store", what, attributes=attributes, root=True, origins=origins
        )

    async def _upsert(self, jobs: list[_Job]) -> None:
        chunks = [job.operation.chunk for job in jobs]
        self._in_request = frozenset(job.id for job in jobs)
        try:
            await self._send(jobs, chunks)
        finally:
            self._in_request = frozenset()

    async def _send(self, jobs: list[_Job], chunks: list[Chunk]) -> None:
        with self._measured("upsert", len(jobs), [job.operation.origin for job in jobs]):
            if isinstance(self._store, VectorStore):
                vectors = [job.vector for job in jobs if job.vector is not None]
                await self._store.upsert(chunks, vectors)
            else:
                await self._store.add(chunks)

    def _stored(self, jobs: list[_Job], _: None) -> None:
        self.chunks += len(jobs)
        if (vector := jobs[-1].vector) is not None:
            self._dimension = len(vector)
        self._ended(jobs, None)

    async def _update(self, jobs: list[_Job]) -> None:
        with self._measured("update", len(jobs)):
            await self._store.update_metadata({job.id: job.operation.changes for job in jobs})

    async def _delete(self, jobs: list[_Job]) -> None:
        with self._measured("delete", len(jobs)):
            await self._store.delete([job.id for job in jobs])

    def _ended(self, jobs: list[_Job], _: None) -> None:
        for job in jobs:
            self._end(job, None)

    async def _probe_store(self) -> bool:
        if not isinstance(self._store, VectorStore):
            # Such a store embeds texts itself. A search makes it embed one, without writing.
            await self._store.search(PROBE, 1, Filter())
            return True
        if self._dimension is None:
            return False
        # Do not upsert an existing chunk as the probe: it may have been deleted meanwhile.
        vector = array("f", [1.0] * self._dimension)
        await self._store.upsert([Chunk(PROBE_ID, PROBE, {})], [vector])
        await self._delete_probe()
        return True

    async def _delete_probe(self) -> None:
        """Delete the probe's chunk. A failure does not fail the probe: searches hide this chunk."""
        try:
            if "delete" in self._store.capabilities:
                await self._store.delete([PROBE_ID])
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if _was_cancelled(error):
                raise
            if not is_rejection(error) and not self._tidying:
                # An outage: delete it when the store is available again.
                self._tidying = True
                self.put([Delete(PROBE_ID)], self._tidied)

    def _tidied(self, operation: Operation, error: str | None) -> None:  # noqa: ARG002 - as `Ended`
        self._tidying = False


def _is_wanted(operation: Upsert) -> bool:
    return operation.is_wanted is None or operation.is_wanted()


def _was_cancelled(error: BaseException) -> bool:
    """Whether the writer itself was cancelled, and not something that its request awaited."""
    return isinstance(error, asyncio.CancelledError) and is_cancelled()
