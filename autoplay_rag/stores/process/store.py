"""`ProcessStore`: a store that embeds for itself, in a worker process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import count
from typing import Any, TypeVar

import msgspec

from autoplay_rag._checks import check_above, check_at_least
from autoplay_rag.errors import MissingCapabilityError
from autoplay_rag.stores.base import (
    Capability,
    Changes,
    Chunk,
    Filter,
    Match,
    StoreIdentity,
    TextStore,
)
from autoplay_rag.stores.process.calls import name_of, pack_call
from autoplay_rag.stores.process.failures import error_of
from autoplay_rag.stores.process.frames import (
    Add,
    Chunks,
    Count,
    Delete,
    Done,
    Drop,
    EndScan,
    Found,
    Get,
    Identity,
    IsOwn,
    Kept,
    Make,
    NextPage,
    Opened,
    Reply,
    Request,
    SaveIdentity,
    Search,
    Start,
    UpdateMetadata,
)
from autoplay_rag.stores.rows import checked_changes
from autoplay_rag.stores.workers.child import Launch
from autoplay_rag.stores.workers.interpreter import Interpreter
from autoplay_rag.stores.workers.pipe import encode
from autoplay_rag.stores.workers.shared import SharedWorker

__all__ = ["ProcessStore"]

_PAGE = 500
_scan_numbers = count()
_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
A = TypeVar("A")


class ProcessStore(TextStore):
    """Runs a store that embeds for itself in a worker process.

    Use it for a store that blocks: one that computes in this process, or holds Python's lock while it
    writes. The event loop then only waits for a pipe. The worker answers one call at a time, so a
    store that waits for a network with `await` is faster without it.

    The worker starts with the first call, and imports what the function needs. It is restarted if it
    dies: the pending call raises `StoreUnavailableError`, and a pipeline repeats it. It ends with
    `aclose` or with this process. Stores with the same function and arguments share a worker.

    `capabilities` are those of the store, and known after `start`.

    Args:
        make_store: A function (or class) at the top level of a module that makes a `TextStore`.
            The worker imports the module and calls the function. If the running program defines
            it, the worker loads the program again: its start must then be under
            `if __name__ == "__main__":`.
        *arguments: For `make_store`: plain data, and functions of modules.
        max_batch: The most chunks that a pipeline passes in one call.
        timeout: Seconds that a call may take in the worker, its start included. After that, the
            worker is considered stuck and is killed, and the call raises `StoreUnavailableError`.
        python: The Python interpreter that runs the worker, as in `ChromaStore`.
        name: What the store is called in error messages about `python`.

    Raises:
        ConfigurationError: If the function cannot be found by its name, or an argument or the
            interpreter cannot be used.

    Example:
        >>> ProcessStore(TextStore, {"path": "data"})
        <ProcessStore of autoplay_rag.stores.base:TextStore>
    """

    def __init__(
        self,
        make_store: Callable[..., TextStore],
        *arguments: Any,
        max_batch: int = 100,
        timeout: float = 60.0,
        python: str | os.PathLike[str] | None = None,
        name: str = "ProcessStore",
    ) -> None:
        check_above("max_batch", max_batch, whole=True)
        check_above("timeout", timeout)
        self._interpreter = Interpreter.named(python, call=name, packages="these packages")
        self._call = pack_call(make_store, arguments)
        given = ", ".join(name_of(one) for one in arguments if callable(one))
        self._function = f"{name_of(make_store)}({given})" if given else name_of(make_store)
        self._timeout = timeout
        self._model: str | None = None
        self._opened = Opened(frozenset(), type(self).__name__)
        self._worker: SharedWorker[Reply] | None = None
        self.max_batch = max_batch

    def __repr__(self) -> str:
        # Without the data in the arguments, which may have a password.
        return f"<ProcessStore of {self._function}>"

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The optional capabilities of the store in the worker. None before `start`."""
        return self._opened.capabilities

    @property
    def data_source(self) -> str:
        """What the store in the worker is called in traces."""
        return self._opened.data_source

    async def start(self, model: str) -> None:
        """Start the worker and the store.

        Args:
            model: The name of the embedder and its settings, for the store in the worker.

        Raises:
            ConfigurationError: If the function is not found in the worker, does not make a
                `TextStore`, or makes one that keeps its chunks in memory only.
            StoreMismatchError: If the store holds vectors of another model.
            StoreUnavailableError: If it may pass later.
        """
        request = partial(Start, model=model, timeout=self._timeout)
        self._opened = await self._ask(request, Opened)
        self._model = model

    async def aclose(self) -> None:
        """Release the worker. It closes its store and ends when the last user is closed.

        May be called more than once. A later call of another method starts the worker again.
        """
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.release()

    async def add(self, chunks: Sequence[Chunk]) -> None:
        """Embed and store chunks; replace those with the same ids.

        Raises:
            StoreRejectedError: If the store will never accept them.
            StoreUnavailableError: If it may pass later.
        """
        await self._ask(lambda: Add(**self._given(), chunks=_rows(chunks)), Done)

    async def search(self, text: str, k: int, filter: Filter) -> list[Match]:
        """Return the `k` best chunks for `text` that pass the filter, best first.

        Raises:
            StoreRejectedError: If the store will never accept the question.
            StoreUnavailableError: If it may pass later.
            UnsupportedFilterError: If the store cannot translate the filter.
        """
        conditions = {key: value for key, value in asdict(filter).items() if value is not None}
        found = await self._ask(
            lambda: Search(**self._given(), text=text, k=k, filter=conditions), Found
        )
        return [Match(*hit) for hit in found.hits]

    async def count(self) -> int:
        """Return the number of stored chunks.

        Raises:
            StoreUnavailableError: If it may pass later.
        """
        return (await self._ask(lambda: Count(**self._given()), Done)).value

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks. An unknown id is not an error.

        Raises:
            MissingCapabilityError: If the store cannot delete.
            StoreUnavailableError: If it may pass later.
        """
        await self._ask(lambda: Delete(**self._given(), ids=list(ids)), Done)

    async def get(self, ids: Sequence[str]) -> list[Chunk]:
        """Return the chunks with these ids, in any order. Unknown ids are left out.

        Raises:
            MissingCapabilityError: If the store cannot find chunks by id.
            StoreUnavailableError: If it may pass later.
        """
        found = await self._ask(lambda: Get(**self._given(), ids=list(ids)), Chunks)
        return [Chunk(*chunk) for chunk in found.chunks]

    async def scan(self, page: int = _PAGE) -> AsyncIterator[list[Chunk]]:
        """Yield all chunks, in pages.

        Args:
            page: The most chunks in one page.

        Raises:
            ConfigurationError: If `page` is less than 1.
            MissingCapabilityError: If the store cannot list its chunks.
            StoreUnavailableError: If it may pass later, or the worker died during the scan.
        """
        check_at_least("page", page, 1, whole=True)
        scan, begin, ended = next(_scan_numbers), True, False
        worker = self._shared()
        try:
            while True:
                request = partial(NextPage, **self._given(), scan=scan, page=page, begin=begin)
                found = await self._ask(request, Chunks)
                if ended := found.ended:
                    return
                begin = False
                yield [Chunk(*chunk) for chunk in found.chunks]
        finally:
            if not (ended or begin) and self._worker is worker:
                await self._ask(partial(EndScan, **self._given(), scan=scan), Done)

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """Change metadata without embedding again. An unknown id is not an error.

        Args:
            changes: For each chunk id the keys to set; None removes a key. Other keys stay.

        Raises:
            MissingCapabilityError: If the store cannot change metadata.
            StoreRejectedError: If a key or a value cannot be stored.
            StoreUnavailableError: If it may pass later.
        """
        wanted = checked_changes(changes)
        await self._ask(lambda: UpdateMetadata(**self._given(), changes=wanted), Done)

    async def drop(self) -> None:
        """Delete the whole collection, its identity and its model.

        Raises:
            MissingCapabilityError: If the store cannot do this.
            StoreUnavailableError: If it may pass later.
        """
        # Without a model: the collection may hold vectors of another one.
        await self._ask(lambda: Drop(model=None, timeout=self._timeout), Done)
        self._model = None

    async def identity(self) -> StoreIdentity | None:
        """Return the identity saved by `save_identity`; None if there is none.

        Raises:
            MissingCapabilityError: If the store cannot save one.
            StoreUnavailableError: If it may pass later.
        """
        return (await self._ask(lambda: Identity(**self._given()), Kept)).identity

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Save an identity in the store.

        Raises:
            MissingCapabilityError: If the store cannot save one.
            StoreUnavailableError: If it may pass later.
        """
        await self._ask(lambda: SaveIdentity(**self._given(), identity=identity), Done)

    async def is_own(self) -> bool:
        """Whether this package created the collection, so that all of its chunks are a pipeline's.

        Raises:
            StoreUnavailableError: If it may pass later.
        """
        return bool((await self._ask(lambda: IsOwn(**self._given()), Done)).value)

    async def _ask(self, make_request: Callable[[], Request], answer: type[A]) -> A:
        try:
            reply = await self._shared().ask(make_request)
        except MissingCapabilityError as error:
            raise MissingCapabilityError(repr(self), error.capability) from None
        assert isinstance(reply, answer)
        return reply

    def _shared(self) -> SharedWorker[Reply]:
        if self._worker is None:
            key = (self._call, self._interpreter.path)
            self._worker = SharedWorker.shared(key, self._launch)
        return self._worker

    def _launch(self) -> Launch[Reply]:
        return Launch(
            name=f"the worker of {self._function}",
            module="autoplay_rag.stores.process.worker",
            arguments=(),
            interpreter=self._interpreter,
            decoder=_decoder,
            error_of=error_of,
            first=encode(Make(self._call)),
        )

    def _given(self) -> dict[str, Any]:
        return {"model": self._model, "timeout": self._timeout}


def _rows(chunks: Sequence[Chunk]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(chunk.id, chunk.text, dict(chunk.metadata)) for chunk in chunks]
