"""LangChainStore: any LangChain vector store as the store of a pipeline."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from autoplay_rag import Chunk, Filter
from autoplay_rag.errors import ConfigurationError, MissingCapabilityError, StoreRejectedError
from autoplay_rag.loading import check_above
from autoplay_rag.stores import (
    Capability,
    Changes,
    Match,
    ProcessStore,
    StoreIdentity,
    TextStore,
    checked_changes,
)
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from langchain_autoplay.kinds import FilterBuilder, kind_of

__all__ = ["LangChainStore"]

# Errors of databases, with SQLAlchemy or without, for values that they never accept.
_REJECTIONS = frozenset(("DataError", "IntegrityError"))
# Ids in one call: SQL limits the number of parameters.
_PAGE = 500


class LangChainStore(TextStore):
    """Let `IngestPipeline` write to a LangChain `VectorStore`, and search it.

    The vector store embeds. The pipeline batches, retries and keeps journal and ledger. A document has
    the id, text and metadata of its chunk, and the id also in `metadata["chunk_id"]`.

    Filters are translated for `InMemoryVectorStore`, `Chroma`, `FAISS`, `PGVector`,
    `PGVectorStore` and `QdrantVectorStore`. For others pass `filter_builder`. Without it, a search with
    a filter raises an error; it never searches all users. For these six stores and vectors of length 1,
    a hit's score is the cosine similarity; for others it is the score of the store.

    `capabilities` lists what else a vector store can do:

    - `InMemoryVectorStore`, `FAISS`, `PGVector`: delete, get, scan, update_metadata, drop. A FAISS
      index that cannot remove vectors (HNSW) cannot delete or drop.
    - `Chroma`: the same, and identity, in the metadata of the collection.
    - `PGVectorStore`, `QdrantVectorStore` and all others: delete and get, if the class overrides these methods
      of LangChain's base class.

    Other documents in the same vector store are not scanned and not dropped.

    Attributes:
        persistent: False for `InMemoryVectorStore`, `FAISS`, a Chroma and a Qdrant in memory: if
            they are empty at the start, a pipeline fills them from its journal. You can set it.

    Args:
        vectorstore: Any LangChain vector store that replaces documents with the same id.
        filter_builder: Turns an `autoplay_rag.Filter` into the store's `filter=`. The filter's
            `conditions()` lists the conditions.
        max_batch: The maximum number of documents in one call. Large batches are faster. They block
            the loop for longer if the vector store does (`langchain-chroma`): see `in_process`.

    Raises:
        ConfigurationError: If `vectorstore` is not a vector store, or `max_batch` is not above 0.

    Example:
        >>> import asyncio
        >>> from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
        >>> from langchain_core.embeddings import DeterministicFakeEmbedding
        >>> from langchain_core.vectorstores import InMemoryVectorStore
        >>> async def main():
        ...     vectorstore = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
        ...     async with IngestPipeline(LangChainStore(vectorstore)) as pipeline:
        ...         click = SlimAction("Export", "User clicked Export")
        ...         await pipeline.on_actions(ActionsPayload("acme", "s1", actions=[click]))
        ...         await pipeline.drain()
        ...     return await vectorstore.asimilarity_search("exports")
        >>> asyncio.run(main())[0].metadata["session_id"]
        's1'
    """

    def __init__(
        self,
        vectorstore: VectorStore,
        filter_builder: FilterBuilder | None = None,
        *,
        max_batch: int = 100,
    ) -> None:
        if not isinstance(vectorstore, VectorStore):
            raise ConfigurationError(
                f"LangChainStore takes a LangChain VectorStore, not a {type(vectorstore).__name__}"
            )
        check_above("max_batch", max_batch, whole=True)
        self.max_batch = max_batch
        self._kind = kind_of(vectorstore, filter_builder)
        self.persistent = self._kind.persistent

    @staticmethod
    def in_process(
        make_vectorstore: Callable[..., VectorStore],
        *arguments: Any,
        filter_builder: FilterBuilder | None = None,
        max_batch: int = 100,
        timeout: float = 60.0,
        python: str | os.PathLike[str] | None = None,
    ) -> ProcessStore:
        """Run a vector store that blocks in a worker process, so that it never blocks the loop.

        Use it for a vector store that computes or writes in this process, such as `Chroma` with a
        folder, and for embeddings that run on this machine. A vector store that waits for a network
        with `await` is faster as `LangChainStore(vectorstore)`: a worker answers one call at a time.

        If the worker dies, a pipeline repeats the call, and the worker is started again. A vector
        store in memory would lose its documents then, so it is refused at the start.

        Args:
            make_vectorstore: A function at the top level of a module that makes the vector store.
                The worker imports the module and calls it. If the running program defines it, the
                worker loads the program again: the rest of it must be under
                `if __name__ == "__main__":`.
            *arguments: For `make_vectorstore`: plain data, and functions of modules.
            filter_builder: As for `LangChainStore`, also a function at the top level of a module.
            max_batch: The maximum number of documents in one call.
            timeout: Seconds that a call may take in the worker, its start included. After that,
                the worker is killed.
            python: The Python interpreter that runs the worker. Only programs need it that are
                packaged or embed Python.

        Returns:
            A store for `IngestPipeline`. Its `capabilities` are known after its start.

        Raises:
            ConfigurationError: If a function cannot be found by its name, or an argument or the
                interpreter cannot be used.

        Example:
            In `app.py`::

                def make_vectorstore(folder):
                    return Chroma("visits", LocalEmbeddings(), persist_directory=folder)

                async def main():
                    store = LangChainStore.in_process(make_vectorstore, "./chroma")
                    async with IngestPipeline(store, journal="./journal.db") as pipeline:
                        ...

                if __name__ == "__main__":
                    asyncio.run(main())
        """
        return ProcessStore(
            _over,
            make_vectorstore,
            list(arguments),
            filter_builder,
            max_batch=max_batch,
            timeout=timeout,
            python=python,
            name="LangChainStore.in_process",
        )

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The operations beyond storing and searching that the vector store supports."""
        return self._kind.capabilities

    def __repr__(self) -> str:
        return f"<LangChainStore of {type(self._kind.store).__name__}>"

    async def add(self, chunks: Sequence[Chunk]) -> None:
        """Embed and store chunks; replace those with the same id."""
        if not chunks:
            return
        with _rejections():
            await self._kind.add([_document(chunk) for chunk in chunks])

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks; an unknown id is not an error.

        Raises:
            MissingCapabilityError: If the vector store cannot delete.
        """
        self._need("delete")
        if ids:
            await self._kind.delete(list(ids))

    async def get(self, ids: Sequence[str]) -> list[Chunk]:
        """Return the chunks with these ids, in any order; skip unknown ids.

        Raises:
            MissingCapabilityError: If the vector store cannot find documents by id.
        """
        self._need("get")
        wanted = list(dict.fromkeys(ids))
        return [
            _chunk(document)
            for start in range(0, len(wanted), _PAGE)
            for document in await self._kind.get(wanted[start : start + _PAGE])
        ]

    def scan(self, page: int = _PAGE) -> AsyncIterator[list[Chunk]]:
        """Yield all chunks, in pages; skip other documents.

        Args:
            page: The maximum number of chunks in a page.

        Raises:
            MissingCapabilityError: If the vector store cannot list its documents.
        """
        self._need("scan")
        return self._scan(min(page, _PAGE))

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """Change metadata without embedding again; an unknown id is not an error.

        Args:
            changes: For each chunk id the keys to set; None removes a key. Other keys stay.

        Raises:
            MissingCapabilityError: If the vector store cannot change metadata.
            StoreRejectedError: If a value has a type that no store accepts.
        """
        self._need("update_metadata")
        if wanted := checked_changes(changes):
            with _rejections():
                await self._kind.update_metadata(wanted)

    async def drop(self) -> None:
        """Delete all chunks and the identity. Other documents stay.

        A Chroma collection without other documents is created again, so that it takes vectors of any
        dimension. Open other `Chroma` objects of this collection again.

        Raises:
            MissingCapabilityError: If the vector store cannot list or delete documents.
        """
        self._need("drop")
        ids = [chunk.id async for chunks in self._scan(_PAGE) for chunk in chunks]
        for start in range(0, len(ids), _PAGE):
            await self._kind.delete(ids[start : start + _PAGE])
        await self._kind.reset()

    async def identity(self) -> StoreIdentity | None:
        """Return what `save_identity` saved; None if nothing was.

        Raises:
            MissingCapabilityError: If the vector store has no metadata of its own.
        """
        self._need("identity")
        return await self._kind.identity()

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Save the identity where no search finds it.

        Raises:
            MissingCapabilityError: If the vector store has no metadata of its own.
        """
        self._need("identity")
        await self._kind.save_identity(identity)

    async def search(self, text: str, k: int, filter: Filter) -> list[Match]:
        """Return the `k` best chunks for `text` that pass the filter, best first.

        Raises:
            StoreRejectedError: If `k` is less than 1.
            UnsupportedFilterError: If the filter cannot be translated for this store.
        """
        if k < 1:
            raise StoreRejectedError(f"k is {k}; a search asks for at least 1 match")
        found = await self._kind.search(text, k, filter)
        return [_hit(document, score) for document, score in found]

    async def count(self) -> int:
        """Return the number of stored documents, including other documents.

        Raises:
            StoreError: If the vector store cannot count.
        """
        return await self._kind.count()

    async def _scan(self, page: int) -> AsyncIterator[list[Chunk]]:
        ids = await self._kind.ids()
        for start in range(0, len(ids), page):
            found = await self._kind.get(ids[start : start + page])
            if chunks := [_chunk(d) for d in found if "chunk_id" in d.metadata]:
                yield chunks

    def _need(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            name = f"LangChainStore over {type(self._kind.store).__name__}"
            raise MissingCapabilityError(name, capability)


def _over(
    make: Callable[..., VectorStore], arguments: list[Any], filter_builder: FilterBuilder | None
) -> LangChainStore:
    """Make the store of a worker process."""
    return LangChainStore(make(*arguments), filter_builder)


def _document(chunk: Chunk) -> Document:
    # PostgreSQL and others refuse text that contains NUL.
    text = chunk.text.replace("\0", "\ufffd")
    return Document(text, id=chunk.id, metadata={**chunk.metadata, "chunk_id": chunk.id})


def _hit(document: Document, score: float) -> Match:
    chunk = _chunk(document)
    return Match(chunk.id, chunk.text, float(score), chunk.metadata)


def _chunk(document: Document) -> Chunk:
    metadata = {name: value for name, value in document.metadata.items() if value is not None}
    # A database may return an id in another form.
    id_ = metadata.pop("chunk_id", document.id)
    return Chunk(str(id_), document.page_content, metadata)


@contextmanager
def _rejections() -> Iterator[None]:
    """Turn database errors for values that are never accepted into StoreRejectedError."""
    try:
        yield
    except Exception as error:
        if _REJECTIONS & {cls.__name__ for cls in type(error).__mro__}:
            raise StoreRejectedError(
                f"the vector store refused a batch: {type(error).__name__}"
            ) from error
        raise
