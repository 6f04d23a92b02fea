"""What a stream can be fed into: how to transform for it, how to write to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.stores import Changes
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import BaseNode, Document, TransformComponent
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.docstore.types import BaseDocumentStore

from llama_index.readers.autoplay.calls import StoreCalls
from llama_index.readers.autoplay.nodes import change_metadata, node_id

__all__ = ["IndexTarget", "PipelineTarget", "Target", "target_of"]


class Target(Protocol):
    """A place for nodes.

    Attributes:
        calls: Its vector store.
        docstore: Where nodes are kept for vector stores without text; None where they are not.
        transformations: What makes nodes of documents.
        embed_model: Embeds what the transformations leave without an embedding, and questions.
    """

    calls: StoreCalls
    docstore: BaseDocumentStore | None
    transformations: Sequence[TransformComponent]
    embed_model: BaseEmbedding

    async def new(self, documents: Sequence[Document]) -> Sequence[Document]:
        """Those documents that are not stored already, just as they are."""

    async def replace(self, documents: Sequence[Document], nodes: Sequence[BaseNode]) -> None:
        """Store nodes in place of all that was stored of their documents."""

    async def delete(self, document_ids: Sequence[str]) -> None:
        """Delete all nodes of documents; an unknown id is not an error."""

    async def note_changes(self, changes: Mapping[str, Changes]) -> None:
        """Note changed metadata of documents, whose nodes have it already."""


def target_of(found: IngestionPipeline | VectorStoreIndex, *, use_async: bool | None) -> Target:
    """The target that an object of LlamaIndex's is.

    Raises:
        ConfigurationError: If it is no such object, has no vector store that can be fed, or has
            no embedding model.
    """
    if isinstance(found, VectorStoreIndex):
        return IndexTarget(found, use_async)
    if not isinstance(found, IngestionPipeline):
        raise ConfigurationError(
            f"stream_into() feeds an IngestionPipeline or a VectorStoreIndex, not {type(found).__name__}"
        )
    if found.vector_store is None:
        raise ConfigurationError("the IngestionPipeline has no vector_store: nothing could be kept")
    model = next((t for t in found.transformations if isinstance(t, BaseEmbedding)), None)
    if model is None:
        raise ConfigurationError(
            "the IngestionPipeline's transformations give no embeddings: put an embedding model at "
            "their end"
        )
    return PipelineTarget(found, StoreCalls(found.vector_store, use_async), model)


class PipelineTarget:
    """An `IngestionPipeline`: its transformations, its vector store and its docstore.

    A document whose hash the docstore knows is not embedded again, whatever the strategy. The
    hash is noted last: what failed before is tried again. No strategy deletes documents that a
    batch happens not to hold.
    """

    def __init__(
        self, pipeline: IngestionPipeline, calls: StoreCalls, embed_model: BaseEmbedding
    ) -> None:
        self._pipeline = pipeline
        self.calls = calls
        # A pipeline keeps nodes in its vector store alone; where that has no text, it is here.
        self.docstore: BaseDocumentStore | None = (
            None if calls.vector_store.stores_text else SimpleDocumentStore()
        )
        self.transformations: Sequence[TransformComponent] = pipeline.transformations
        self.embed_model = embed_model

    async def new(self, documents: Sequence[Document]) -> Sequence[Document]:
        """Those documents of which the docstore does not know the very hash.

        A document that it knows is new all the same if the vector store has lost its nodes.
        """
        known = self._pipeline.docstore
        if known is None:
            return documents
        same = {d.id_ for d in documents if await known.aget_document_hash(d.id_) == d.hash}
        stored = await self.calls.stored([node_id(document_id) for document_id in same])
        if stored is not None:
            same = {document_id for document_id in same if node_id(document_id) in stored}
        return [d for d in documents if d.id_ not in same]

    async def replace(self, documents: Sequence[Document], nodes: Sequence[BaseNode]) -> None:
        """Store nodes in place of all that was stored of their documents."""
        await _clear(self.calls, documents, nodes)
        await self.calls.add(nodes)
        if self.docstore:
            await self.docstore.async_add_documents(nodes)
        if known := self._pipeline.docstore:
            await known.async_add_documents(documents)
            for document in documents:
                await known.aset_document_hash(document.id_, document.hash)

    async def delete(self, document_ids: Sequence[str]) -> None:
        """Delete all nodes of documents; an unknown id is not an error."""
        await self.calls.delete_documents(document_ids)
        for document_id in document_ids:
            if self.docstore:
                await self.docstore.adelete_ref_doc(document_id, raise_error=False)
            if known := self._pipeline.docstore:
                await known.adelete_document(document_id, raise_error=False)

    async def note_changes(self, changes: Mapping[str, Changes]) -> None:
        """Note changed metadata of documents, whose nodes have it already."""
        if (known := self._pipeline.docstore) is None:
            return
        for document_id, new in changes.items():
            document = await known.aget_document(document_id, raise_error=False)
            if document is not None:
                change_metadata(document, new)
                await known.async_add_documents([document])
                await known.aset_document_hash(document_id, document.hash)


class IndexTarget:
    """A `VectorStoreIndex`: its transformations, its embedding model and its stores."""

    def __init__(self, index: VectorStoreIndex, use_async: bool | None) -> None:
        self._index = index
        self.calls = StoreCalls(index.vector_store, use_async)
        # An index has no public names for these, nor for whether it keeps nodes of its own.
        self.transformations: Sequence[TransformComponent] = index._transformations  # noqa: SLF001 - see above
        self.embed_model: BaseEmbedding = index._embed_model  # noqa: SLF001 - see above
        keeps_nodes = not index.vector_store.stores_text or index._store_nodes_override  # noqa: SLF001 - see above
        self.docstore = index.docstore if keeps_nodes else None

    async def new(self, documents: Sequence[Document]) -> Sequence[Document]:
        """All of them: an index does not note what it was given."""
        return documents

    async def replace(self, documents: Sequence[Document], nodes: Sequence[BaseNode]) -> None:
        """Store nodes in place of all that was stored of their documents."""
        if self.docstore is None:
            await _clear(self.calls, documents, nodes)
            await self.calls.add(nodes)
            return
        await self.delete([document.id_ for document in documents])
        if self.calls.vector_store.stores_text:
            # Its docstore may be younger than what the vector store holds.
            await _clear(self.calls, documents, nodes)
        # These have their embeddings: nothing is embedded here.
        await self.calls.run(self._index.insert_nodes, list(nodes))

    async def delete(self, document_ids: Sequence[str]) -> None:
        """Delete all nodes of documents; an unknown id is not an error."""
        if self.docstore is None:
            await self.calls.delete_documents(document_ids)
            return
        stored = [node for document in document_ids for node in await self._nodes_of(document)]
        if stored:
            await self.calls.run(self._delete_from_index, stored)

    async def note_changes(self, changes: Mapping[str, Changes]) -> None:
        """Do nothing: an index keeps nodes, not documents."""

    async def _nodes_of(self, document_id: str) -> Iterable[str]:
        assert self.docstore is not None
        info = await self.docstore.aget_ref_doc_info(document_id)
        indexed = self._index.index_struct.nodes_dict
        return [node for node in info.node_ids if node in indexed] if info else []

    def _delete_from_index(self, node_ids: list[str]) -> None:
        self._index.delete_nodes(node_ids, delete_from_docstore=True)


async def _clear(
    calls: StoreCalls, documents: Sequence[Document], nodes: Sequence[BaseNode]
) -> None:
    """Delete what is stored of documents, by the cheapest way the store has.

    Args:
        calls: The store.
        documents: The documents.
        nodes: Those that they will have; what they had before may be more.
    """
    stale = {document.id_ for document in documents}
    stored = await calls.stored([node.node_id for node in nodes])
    if stored is not None:
        await calls.delete_nodes(sorted(stored))
        # Few documents are stored already; only these may have had more nodes than now.
        stale -= {node.ref_doc_id for node in nodes if node.node_id not in stored}
    await calls.delete_documents(sorted(stale))
