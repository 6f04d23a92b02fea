"""LangChainStore: the pipeline's way into any LangChain vector store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager

from autoplay_rag import Chunk, Filter
from autoplay_rag.errors import ConfigurationError, MissingCapabilityError, StoreRejectedError
from autoplay_rag.stores import (
    Capability,
    Changes,
    Match,
    StoreIdentity,
    TextStore,
    checked_changes,
)
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from langchain_autoplay.checks import check_above_0
from langchain_autoplay.kinds import FilterBuilder, kind_of

__all__ = ["LangChainStore"]

# What databases raise, through SQLAlchemy or plainly, for values they will never take.
_REJECTIONS = frozenset(("DataError", "IntegrityError"))
# Ids in one call: SQL has a limit of parameters.
_PAGE = 500


class LangChainStore(TextStore):
    """Lets `IngestPipeline` write into a LangChain `VectorStore`, and search it.

    The vector store embeds; the pipeline keeps batching, retries, journal and ledger. Documents
    have the chunk's id, text and metadata, and the id once more as `chunk_id`.

    Filters are translated for `InMemoryVectorStore`, `Chroma`, `FAISS`, `PGVector`,
    `PGVectorStore` and `QdrantVectorStore`. For others give `filter_builder`; without it a filtered
    search raises, it never searches everyone instead. A hit's score is the cosine similarity for
    those six, where their vectors have length 1; otherwise what the store gives.

    What else it can do depends on the vector store, and `capabilities` says it:

    - `InMemoryVectorStore`, `FAISS`, `PGVector`: delete, get, scan, update_metadata, drop. A FAISS
      whose index cannot remove vectors (HNSW) can neither delete nor drop.
    - `Chroma`: the same, and identity, which stands in the metadata of the collection.
    - `PGVectorStore`, `QdrantVectorStore` and all others: delete and get, where the class overrides those methods of
      LangChain's base class.

    Documents that others keep in the same vector store are neither scanned nor dropped.

    Attributes:
        persistent: False for `InMemoryVectorStore`, `FAISS`, a Chroma and a Qdrant in memory: a pipeline
            with a journal fills them again when they start empty. It may be set.

    Args:
        vectorstore: Any LangChain vector store that replaces documents with the same id.
        filter_builder: Makes what the store takes as `filter=` out of an `autoplay_rag.Filter`;
            its `conditions()` are what has to hold.
        max_batch: The most documents in one call. Larger ones are faster, and hold up the loop for
            longer where the vector store does (`langchain-chroma`).

    Raises:
        ConfigurationError: If it is not a vector store.

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
        check_above_0("max_batch", max_batch, whole=True)
        self.max_batch = max_batch
        self._kind = kind_of(vectorstore, filter_builder)
        self.persistent = self._kind.persistent

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the vector store can do beyond storing and searching."""
        return self._kind.capabilities

    def __repr__(self) -> str:
        return f"<LangChainStore of {type(self._kind.store).__name__}>"

    async def add(self, chunks: Sequence[Chunk]) -> None:
        """Embed and store chunks, replacing those with the same id."""
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
        """The chunks with these ids, in any order; unknown ids are left out.

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
        """All chunks, in pages; documents of others are left out.

        Args:
            page: The most chunks in one page.

        Raises:
            MissingCapabilityError: If the vector store cannot list its documents.
        """
        self._need("scan")
        return self._scan(min(page, _PAGE))

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """Change metadata without embedding anew; an unknown id is not an error.

        Args:
            changes: By chunk id, the keys to set, or to remove by None. Other keys stay.

        Raises:
            MissingCapabilityError: If the vector store cannot do that.
            StoreRejectedError: If a value is of a type that no store keeps.
        """
        self._need("update_metadata")
        if wanted := checked_changes(changes):
            with _rejections():
                await self._kind.update_metadata(wanted)

    async def drop(self) -> None:
        """Delete all chunks and the identity. Documents of others stay.

        A Chroma collection with nothing else in it is made anew, for vectors of any dimension:
        other `Chroma` objects of it have to be opened again.

        Raises:
            MissingCapabilityError: If the vector store cannot list or delete documents.
        """
        self._need("drop")
        ids = [chunk.id async for chunks in self._scan(_PAGE) for chunk in chunks]
        for start in range(0, len(ids), _PAGE):
            await self._kind.delete(ids[start : start + _PAGE])
        await self._kind.reset()

    async def identity(self) -> StoreIdentity | None:
        """The note that `save_identity` left; None if there is none.

        Raises:
            MissingCapabilityError: If the vector store has no metadata of its own.
        """
        self._need("identity")
        return await self._kind.identity()

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Keep a note beside the documents, where no search finds it.

        Raises:
            MissingCapabilityError: If the vector store has no metadata of its own.
        """
        self._need("identity")
        await self._kind.save_identity(identity)

    async def search(self, text: str, k: int, filter: Filter) -> list[Match]:
        """The `k` best chunks for `text` that pass the filter, best first.

        Raises:
            StoreRejectedError: If `k` is less than 1.
            UnsupportedFilterError: If there is a filter, and no way known to translate it.
        """
        if k < 1:
            raise StoreRejectedError(f"k is {k}; a search asks for at least 1 match")
        found = await self._kind.search(text, k, filter)
        return [_hit(document, score) for document, score in found]

    async def count(self) -> int:
        """The number of documents stored, those of others included.

        Raises:
            StoreError: If the vector store has no way to tell.
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


def _document(chunk: Chunk) -> Document:
    # PostgreSQL and others refuse text with a NUL in it.
    text = chunk.text.replace("\0", "\ufffd")
    return Document(text, id=chunk.id, metadata={**chunk.metadata, "chunk_id": chunk.id})


def _hit(document: Document, score: float) -> Match:
    chunk = _chunk(document)
    return Match(chunk.id, chunk.text, float(score), chunk.metadata)


def _chunk(document: Document) -> Chunk:
    metadata = {name: value for name, value in document.metadata.items() if value is not None}
    # A database may write an id in a form of its own.
    id_ = metadata.pop("chunk_id", document.id)
    return Chunk(str(id_), document.page_content, metadata)


@contextmanager
def _rejections() -> Iterator[None]:
    """Tell the pipeline what will never pass, where the store's own error does not."""
    try:
        yield
    except Exception as error:
        if _REJECTIONS & {cls.__name__ for cls in type(error).__mro__}:
            raise StoreRejectedError(
                f"the vector store refuses it: {type(error).__name__}"
            ) from error
        raise
