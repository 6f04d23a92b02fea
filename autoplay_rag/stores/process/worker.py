"""The worker process that runs a store for `ProcessStore`.

Its command is `python -m autoplay_rag.stores.process.worker`. It makes the store with the function that
the first frame names, and answers one request at a time. It ends when its standard input is closed,
at the latest when its parent ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from io import FileIO
from typing import Any

import msgspec

from autoplay_rag._serial import SerialThread
from autoplay_rag.errors import ConfigurationError, StoreUnavailableError
from autoplay_rag.stores.base import Chunk, Filter, TextStore
from autoplay_rag.stores.process.calls import unpack_call
from autoplay_rag.stores.process.failures import failure_of
from autoplay_rag.stores.process.frames import (
    Add,
    Chunks,
    Count,
    Delete,
    Done,
    Drop,
    EndScan,
    Failed,
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
    StoredChunk,
    UpdateMetadata,
)
from autoplay_rag.stores.workers.pipe import encode, read, write
from autoplay_rag.stores.workers.serving import alarm, claim_pipes, ignore_signals

__all__ = ["main"]

_MOST_SCANS = 100
"""The most scans under way. If there are more, the oldest is ended."""
_DONE = Done()


def main() -> None:
    """Make the store and serve requests until standard input ends."""
    ignore_signals()
    requests, replies = claim_pipes()
    with suppress(EOFError, BrokenPipeError):  # the parent has ended
        made = _make(read(requests, msgspec.msgpack.Decoder(Make)))
        write(replies, encode(made if isinstance(made, Failed) else _DONE))
        if not isinstance(made, Failed):
            # The loop runs between requests too: a store may have tasks of its own.
            asyncio.run(_serve(made, requests, replies))


async def _serve(store: TextStore, requests: FileIO, replies: FileIO) -> None:
    decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
    reader = SerialThread("autoplay-requests")
    served = _Served(store)
    try:
        while True:
            request = await reader.run(read, requests, decoder)
            with alarm(request.timeout):
                reply = await served.answer(request)
            write(replies, encode(reply))
    finally:
        await store.aclose()


def _make(order: Make) -> TextStore | Failed:
    try:
        function, arguments = unpack_call(order.call)
        return _checked(function(*arguments))
    except Exception as error:  # noqa: BLE001 - any reason is reported
        failure = failure_of(error)
        # No batch caused it, so none may be rejected for it.
        kind = "configuration" if failure.kind == "rejected" else failure.kind
        return msgspec.structs.replace(failure, kind=kind)


def _checked(store: Any) -> TextStore:
    if not isinstance(store, TextStore):
        raise ConfigurationError(
            f"the function for ProcessStore returns a {type(store).__name__}, not a TextStore"
        )
    if not store.persistent:
        raise ConfigurationError(
            f"{store!r} keeps its chunks in memory only, so they would be lost with the worker "
            "process: use it in this process, or use a store on disk or in a service"
        )
    return store


class _Served:
    """Answers requests with a store.

    Args:
        store: The store.
    """

    def __init__(self, store: TextStore) -> None:
        self._store = store
        self._model: str | None = None
        self._scans: dict[int, AsyncIterator[list[Chunk]]] = {}

    async def answer(self, request: Request) -> Reply:
        """Return the reply to a request. An error of the store is a reply too."""
        try:
            await self._start(request)
            return await self._answer(request)
        except Exception as error:  # noqa: BLE001 - a store may raise anything
            return failure_of(error)

    async def _start(self, request: Request) -> None:
        """Start the store if the parent has, and this run of the worker has not."""
        model = request.model
        if model is not None and (isinstance(request, Start) or model != self._model):
            await self._store.start(model)
            self._model = model

    async def _answer(self, request: Request) -> Reply:  # noqa: C901, PLR0911, PLR0912 - one case per request
        store = self._store
        match request:
            case Start():
                return Opened(store.capabilities, store.data_source)
            case Add(chunks=chunks):
                await store.add([Chunk(*chunk) for chunk in chunks])
            case Search(text=text, k=k, filter=filter_):
                found = await store.search(text, k, Filter(**filter_))
                return Found([(hit.id, hit.text, hit.score, dict(hit.metadata)) for hit in found])
            case Count():
                return Done(await store.count())
            case Delete(ids=ids):
                await store.delete(ids)
            case Get(ids=ids):
                return Chunks(_rows(await store.get(ids)))
            case NextPage():
                return await self._next_page(request)
            case EndScan(scan=scan):
                await self._end_scan(scan)
            case UpdateMetadata(changes=changes):
                await store.update_metadata(changes)
            case Drop():
                await store.drop()
            case Identity():
                return Kept(await store.identity())
            case SaveIdentity(identity=identity):
                await store.save_identity(identity)
            case IsOwn():
                return Done(int(await store.is_own()))
        return _DONE

    async def _next_page(self, request: NextPage) -> Chunks:
        if request.begin:
            self._scans[request.scan] = self._store.scan(request.page)
            if len(self._scans) > _MOST_SCANS:
                await self._end_scan(next(iter(self._scans)))
        pages = self._scans.get(request.scan)
        if pages is None:
            raise StoreUnavailableError(
                "the worker was restarted, or began many other scans, since this scan began: begin "
                "it again"
            )
        try:
            return Chunks(_rows(await anext(pages)))
        except StopAsyncIteration:
            del self._scans[request.scan]
            return Chunks([], ended=True)
        except Exception:
            await self._end_scan(request.scan)
            raise

    async def _end_scan(self, scan: int) -> None:
        pages: Any = self._scans.pop(scan, None)
        if hasattr(pages, "aclose"):  # an iterator need not be a generator
            await pages.aclose()


def _rows(chunks: list[Chunk]) -> list[StoredChunk]:
    return [(chunk.id, chunk.text, dict(chunk.metadata)) for chunk in chunks]


if __name__ == "__main__":
    main()
