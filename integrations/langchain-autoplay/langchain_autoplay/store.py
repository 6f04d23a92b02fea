"""LangChainStore: the pipeline's way into any LangChain vector store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from autoplay_rag import Filter
from autoplay_rag.errors import ConfigurationError, StoreRejectedError
from autoplay_rag.stores.base import Chunk, Match, TextStore
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from langchain_autoplay.kinds import FilterBuilder, kind_of

__all__ = ["LangChainStore"]

# What databases raise, through SQLAlchemy or plainly, for values they will never take.
_REJECTIONS = frozenset(("DataError", "IntegrityError"))


class LangChainStore(TextStore):
    """Lets `IngestPipeline` write into a LangChain `VectorStore`, and search it.

    The vector store embeds; the pipeline keeps batching, retries, journal and ledger. Documents
    have the chunk's id, text and metadata, and the id once more as `chunk_id`.

    Filters are translated for `InMemoryVectorStore`, `Chroma`, `FAISS`, `PGVector` and
    `PGVectorStore`. For others give `filter_builder`; without it a filtered search raises, it
    never searches everyone instead. A hit's score is the cosine similarity for those five,
    where their vectors have length 1; otherwise what the store gives.

    Args:
        vectorstore: Any LangChain vector store that replaces documents with the same id.
        filter_builder: Makes what the store takes as `filter=` out of an `autoplay_rag.Filter`;
            its `conditions()` are what has to hold.
        max_batch: The most documents in one call. Larger ones are faster, and hold up the loop for
            longer where the vector store does (`langchain-chroma`).

    Raises:
        ConfigurationError: If it is no vector store.

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
        if not max_batch > 0:
            raise ConfigurationError(f"max_batch must be above 0, not {max_batch!r}")
        self.max_batch = max_batch
        self._kind = kind_of(vectorstore, filter_builder)

    def __repr__(self) -> str:
        return f"<LangChainStore of {type(self._kind.store).__name__}>"

    async def add(self, chunks: Sequence[Chunk]) -> None:
        """Embed and store chunks, replacing those with the same id."""
        with _rejections():
            await self._kind.add([_document(chunk) for chunk in chunks])

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks; an unknown id is no error."""
        if ids:
            await self._kind.delete(list(ids))

    async def search(self, text: str, k: int, filter: Filter) -> list[Match]:
        """The `k` best chunks for `text` that pass the filter, best first.

        Raises:
            UnsupportedFilterError: If there is a filter, and no way known to translate it.
        """
        found = await self._kind.search(text, k, filter)
        return [_hit(document, score) for document, score in found]

    async def count(self) -> int:
        """The number of documents stored, those of others included.

        Raises:
            StoreError: If the vector store has no way to tell.
        """
        return await self._kind.count()


def _document(chunk: Chunk) -> Document:
    # PostgreSQL and others refuse text with a NUL in it.
    text = chunk.text.replace("\0", "\ufffd")
    return Document(text, id=chunk.id, metadata={**chunk.metadata, "chunk_id": chunk.id})


def _hit(document: Document, score: float) -> Match:
    metadata = {name: value for name, value in document.metadata.items() if value is not None}
    # A database may write an id in a form of its own.
    id_ = metadata.pop("chunk_id", document.id)
    return Match(str(id_), document.page_content, float(score), metadata)


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
