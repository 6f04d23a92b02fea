"""Embeds chunks, then does the store's operations: upserts, metadata updates, deletes."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias

from autoplay_rag._cancelled import is_cancelled
from autoplay_rag._checks import check_at_least
from autoplay_rag._describe import describe
from autoplay_rag.content.probe import PROBE, PROBE_ID
from autoplay_rag.errors import (
    ConfigurationError,
    MissingCapabilityError,
    StoreRejectedError,
)
from autoplay_rag.ingest.embedding import Embedding
from autoplay_rag.ingest.retries import (
    Request,
    RequestLimits,
    RetryQueue,
    is_forbidden,
    is_rejection,
    retry_after,
)
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
"""A request without an answer for this long is a problem."""


@dataclass(slots=True, eq=False)
class Upsert:
    """Embed a chunk and store it, replacing the one with the same id.

    Attributes:
        chunk: What is stored.
        tokens: What embedding it costs, as the embedder counts.
        divide: Called when the chunk is refused alone. True means that the owner takes it back:
            the operation ends without a call of `ended`, and the next operation on the id starts.
    """

    chunk: Chunk
    tokens: int
    divide: Callable[[], bool] | None = None


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
    """An operation under way."""

    __slots__ = ("ended", "id", "operation", "vector")

    def __init__(self, id: str, operation: Any, ended: Ended) -> None:
        self.id = id
        self.operation = operation  # each kind of request holds one kind of operation
        self.ended = ended
        self.vector: Vector | None = None


@dataclass(slots=True, eq=False)
class _Kind:
    """One kind of request, with a queue of its own: an outage of one kind stops no other.

    Attributes:
        label: Stands before the kind's problems.
        queue: Its jobs.
        call: Makes one request.
        done: Called with the jobs of a request that succeeded, and its result.
        probe: Makes a request that any healthy service takes; False if none is known yet.
        capability: What the store must be capable of.
    """

    label: str
    queue: RetryQueue[_Job]
    call: Callable[[list[_Job]], Awaitable[Any]]
    done: Callable[[list[_Job], Any], None]
    probe: Callable[[], Awaitable[bool]] | None = None
    capability: Capability | None = None


class _Service:
    """The embedder or the store: its kinds of requests and its workers.

    Attributes:
        name: For messages.
        kinds: All kinds of requests.
        order: The same kinds; the one that waits longest for a worker comes first.
        started: When each worker's request began; infinity while there is none.
        wake: Set after every change that may let a request start.
    """

    def __init__(self, name: str, kinds: Sequence[_Kind], workers: int) -> None:
        self.name = name
        self.kinds = kinds
        self.order = list(kinds)
        self.started = [math.inf] * workers
        self.wake = asyncio.Event()

    @property
    def problems(self) -> list[str]:
        # Read by other threads: no loop, and nothing that changes its size.
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
    """Carries out operations on chunks, whatever fails meanwhile.

    Operations on one chunk id keep the order in which they were put: each starts when the one
    before has ended. Operations on different ids never wait for each other. Requests grow with
    the load: a free worker takes as many operations as one request may hold. The store gets at
    most one request at a time.

    An outage of a service is retried for as long as it lasts. A request that is refused is
    split until one operation stands alone. An upsert is given up after `max_attempts` refusals
    alone, with another success or a probe before each but the first. An update or a delete is
    given up once it is refused alone: its owner repeats it later.

    All methods are called on the event loop that runs `run`; the attributes may be read from any
    thread. Memory is bounded by the owner, who looks at `operations` and `characters` before it
    puts more.

    Args:
        store: Where the chunks go.
        embedding: Makes the vectors; None for a `TextStore`.
        embed_concurrency: The most embedding requests in flight.
        limits: What one embedding request may hold; None for a `TextStore`.
        max_attempts: Refusals of a chunk alone until it is given up.

    Attributes:
        characters: Characters of text under way.
        chunks: Chunks stored so far.
        retries: Requests that failed so far, probes included.

    Raises:
        ConfigurationError: If a number is below 1, or the kind of store does not fit `embedding`.

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
    ) -> None:
        check_at_least("embed_concurrency", embed_concurrency, 1, whole=True)
        check_at_least("max_attempts", max_attempts, 1, whole=True)
        takes_vectors = isinstance(store, VectorStore)
        if takes_vectors != (embedding is not None) or takes_vectors != (limits is not None):
            raise ConfigurationError(
                "a VectorStore needs embedding and limits, a TextStore takes neither"
            )
        self._store = store
        self._embedding = embedding
        self._dimension: int | None = None
        self._tidying = False
        # By chunk id: the operations that wait for the one under way, None while there are none.
        self._under_way: dict[str, deque[_Job] | None] = {}
        self._operations = 0
        self.characters = 0
        self.chunks = 0
        self.retries = 0
        batch = RequestLimits(store.max_batch, 0)
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
        """Operations under way: put and not ended."""
        return self._operations - self._tidying

    @property
    def problems(self) -> list[str]:
        """What is wrong with embedder and store now, one line each; empty while all is well."""
        return [problem for service in self._services for problem in service.problems]

    def put(self, operations: Iterable[Operation], ended: Ended) -> None:
        """Start operations. They may be put before `run` is called.

        Args:
            operations: In the order in which those on the same id are to happen.
            ended: Called with each operation that ended: with None if it was carried out,
                otherwise with the reason in one line ("store: ValueError: ..."). The store may
                have carried out an operation that ended with a reason, if an earlier request for
                it got no answer. Called on the event loop, never from within `put`. It may put
                more operations. What it raises ends `run`.
        """
        ready: list[_Job] = []
        under_way = self._under_way
        for operation in list(operations):
            if isinstance(operation, Upsert):
                chunk_id = operation.chunk.id
                self.characters += len(operation.chunk.text)
            else:
                chunk_id = operation.id
            self._operations += 1
            job = _Job(chunk_id, operation, ended)
            if chunk_id not in under_way:
                under_way[chunk_id] = None
                ready.append(job)
            elif (followers := under_way[chunk_id]) is not None:
                followers.append(job)
            else:
                under_way[chunk_id] = deque((job,))
        self._start(ready)

    async def run(self) -> None:
        """Work until cancelled.

        Operations that have not ended by then are dropped without a call of `ended`.
        """
        for service in self._services:
            service.wake = asyncio.Event()  # the last run may have had another loop
        try:
            async with asyncio.TaskGroup() as group:
                for service in self._services:
                    for worker in range(len(service.started)):
                        group.create_task(self._work(service, worker))
        finally:
            for service in self._services:
                for kind in service.kinds:
                    kind.queue.clear()
            self._under_way.clear()
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
        if followers := self._under_way.pop(job.id):
            follower = followers.popleft()
            self._under_way[job.id] = followers or None
            self._start((follower,))

    def _end(self, job: _Job, error: str | None) -> None:
        self._leave(job)
        job.ended(job.operation, error)

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
                await self._carry_out(service, worker, kind, request)
            finally:
                service.started[worker] = math.inf
            if is_cancelled():
                raise asyncio.CancelledError  # the request swallowed it

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
            if not lacking:
                request.started = service.started[worker] = time.monotonic()
                result = await kind.call(request.items)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # Extensions written in Rust raise errors that are not an Exception.
            if _is_ours(error):
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
            # Not an outage: whoever waits for it would wait forever. Its owner repeats it later.
            error = StoreRejectedError(describe(error))
        now = time.monotonic()
        service.wake.set()
        if probing:
            kind.queue.unhealthy(request, error, now)
        elif reason := kind.queue.failed(request, error, now):
            job = request.items[0]
            if isinstance(job.operation, Upsert):
                # The message may hold the text; the owner has it.
                _log.error("%s: a chunk was given up: %s", service.name, type(error).__name__)
            self._end(job, reason)
        asked = 0.0 if is_rejection(error) else retry_after(error)
        if asked:
            # A rate limit holds for all kinds of requests.
            for other in service.kinds:
                other.queue.rest(now + asked)

    async def _prove_healthy(self, service: _Service, kind: _Kind) -> None:
        """Before a lone operation is retried: find out whether the service is to blame."""
        assert kind.probe is not None
        if await kind.probe():
            kind.queue.probed()
            service.wake.set()

    def _refuse(self, service: _Service, kind: _Kind, request: Request[_Job]) -> None:
        kind.queue.gave_up(request)
        service.wake.set()
        error = describe(MissingCapabilityError(type(self._store).__name__, str(kind.capability)))
        for job in request.items:
            self._end(job, f"store: {error}")

    # -- embed --------------------------------------------------------------------------------

    async def _embed(self, jobs: list[_Job]) -> list[Vector]:
        assert self._embedding is not None
        return await self._embedding.request(
            [(job.operation.chunk.text, job.operation.tokens) for job in jobs]
        )

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

    async def _upsert(self, jobs: list[_Job]) -> None:
        chunks = [job.operation.chunk for job in jobs]
        if isinstance(self._store, VectorStore):
            await self._store.upsert(chunks, [job.vector for job in jobs if job.vector is not None])
        else:
            await self._store.add(chunks)

    def _stored(self, jobs: list[_Job], _: None) -> None:
        self.chunks += len(jobs)
        if (vector := jobs[-1].vector) is not None:
            self._dimension = len(vector)
        self._ended(jobs, None)

    async def _update(self, jobs: list[_Job]) -> None:
        await self._store.update_metadata({job.id: job.operation.changes for job in jobs})

    async def _delete(self, jobs: list[_Job]) -> None:
        await self._store.delete([job.id for job in jobs])

    def _ended(self, jobs: list[_Job], _: None) -> None:
        for job in jobs:
            self._end(job, None)

    async def _probe_store(self) -> bool:
        if not isinstance(self._store, VectorStore):
            # A store that embeds for itself refuses texts as an embedder does.
            await self._store.search(PROBE, 1, Filter())
            return True
        if self._dimension is None:
            return False
        # A vector of its own: that of a chunk might bring back what was deleted.
        vector = array("f", [1.0] * self._dimension)
        await self._store.upsert([Chunk(PROBE_ID, PROBE, {})], [vector])
        await self._delete_probe()
        return True

    async def _delete_probe(self) -> None:
        """Delete the probe; a failure is not one of the probe, since no search returns it."""
        try:
            if "delete" in self._store.capabilities:
                await self._store.delete([PROBE_ID])
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if _is_ours(error):
                raise
            if not is_rejection(error) and not self._tidying:
                # An outage: it is deleted once the store is back.
                self._tidying = True
                self.put([Delete(PROBE_ID)], self._tidied)

    def _tidied(self, operation: Operation, error: str | None) -> None:  # noqa: ARG002 - as `Ended`
        self._tidying = False


def _is_ours(error: BaseException) -> bool:
    """Whether the writer itself was cancelled, not something that its request awaited."""
    return isinstance(error, asyncio.CancelledError) and is_cancelled()
