"""The targets of `stream_into`: their transformations and their stores."""

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
        calls: The vector store.
        docstore: Contains the nodes of vector stores without text; None if there is none.
        transformations: Turn documents into nodes.
        embed_model: Embeds questions, and nodes that have no embedding after the transformations.
    """

    calls: StoreCalls
    docstore: BaseDocumentStore | None
    transformations: Sequence[TransformComponent]
    embed_model: BaseEmbedding

    async def new(self, documents: Sequence[Document]) -> Sequence[Document]:
        """Return the documents that are not stored unchanged."""

    async def replace(self, documents: Sequence[Document], nodes: Sequence[BaseNode]) -> None:
        """Replace all stored nodes of the documents by these nodes."""

    async def delete(self, document_ids: Sequence[str]) -> None:
        """Delete all nodes of the documents; an unknown id is not an error."""

    async def note_changes(self, changes: Mapping[str, Changes]) -> None:
        """Save changed metadata of documents, whose nodes already have it."""


def target_of(found: IngestionPipeline | VectorStoreIndex, *, use_async: bool | None) -> Target:
    """Return the target for a LlamaIndex object.

    Raises:
        ConfigurationError: If it is not such an object, or has no vector store or no embedding model.
    """
    if isinstance(found, VectorStoreIndex):
        return IndexTarget(found, use_async)
    if not isinstance(found, IngestionPipeline):
        raise ConfigurationError(
            f"stream_into() feeds an IngestionPipeline or a VectorStoreIndex, not {type(found).__name__}"
        )
    if found.vector_store is None:
        raise ConfigurationError("the IngestionPipeline has no vector_store: give it one")
    model = next((t for t in found.transformations if isinstance(t, BaseEmbedding)), None)
    if model is None:
        raise ConfigurationError(
            "the IngestionPipeline's transformations give no embeddings: put an embedding model at "
            "their end"
        )
    return PipelineTarget(found, StoreCalls(found.vector_store, use_async), model)


class PipelineTarget:
    """An `IngestionPipeline`: its transformations, its vector store and its docstore.

    A document whose hash is in the docstore is not embedded again, whatever the strategy. The hash is
    saved last, so failures are retried. No strategy deletes documents that are not in a batch.
    """

    def __init__(
        self, pipeline: IngestionPipeline, calls: StoreCalls, embed_model: BaseEmbedding
    ) -> None:
        self._pipeline = pipeline
        self.calls = calls
        # A pipeline keeps nodes only in its vector store; if that has no text, they are here.
        self.docstore: BaseDocumentStore | None = (
            None if calls.vector_store.stores_text else SimpleDocumentStore()
        )
        self.transformations: Sequence[TransformComponent] = pipeline.transformations
        self.embed_model = embed_model

    async def new(self, documents: Sequence[Document]) -> Sequence[Document]:
        """Return the documents whose hash is not in the docstore.

        A known document is new if its nodes are missing from the vector store.
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
        """Replace all stored nodes of the documents by these nodes."""
        await _clear(self.calls, documents, nodes)
        await self.calls.add(nodes)
        if self.docstore:
            await self.docstore.async_add_documents(nodes)
        if known := self._pipeline.docstore:
            await known.async_add_documents(documents)
            for document in documents:
                await known.aset_document_hash(document.id_, document.hash)

    async def delete(self, document_ids: Sequence[str]) -> None:
        """Delete all nodes of the documents; an unknown id is not an error."""
        await self.calls.delete_documents(document_ids)
        for document_id in document_ids:
            if self.docstore:
                await self.docstore.adelete_ref_doc(document_id, raise_error=False)
            if known := self._pipeline.docstore:
                await known.adelete_document(document_id, raise_error=False)

    async def note_changes(self, changes: Mapping[str, Changes]) -> None:
        """Save changed metadata of documents, whose nodes already have it."""
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
        # An index has no public names for these.
        self.transformations: Sequence[TransformComponent] = index._transformations  # noqa: SLF001 - see above
        self.embed_model: BaseEmbedding = index._embed_model  # noqa: SLF001 - see above
        keeps_nodes = not index.vector_store.stores_text or index._store_nodes_override  # noqa: SLF001 - see above
        self.docstore = index.docstore if keeps_nodes else None

    async def new(self, documents: Sequence[Document]) -> Sequence[Document]:
        """Return all documents: an index does not save their hashes."""
        return documents

    async def replace(self, documents: Sequence[Document], nodes: Sequence[BaseNode]) -> None:
        """Replace all stored nodes of the documents by these nodes."""
        if self.docstore is None:
            await _clear(self.calls, documents, nodes)
            await self.calls.add(nodes)
            return
        await self.delete([document.id_ for document in documents])
        if self.calls.vector_store.stores_text:
            # The docstore may be newer than the vector store.
            await _clear(self.calls, documents, nodes)
        # The nodes have embeddings: nothing is embedded here.
        await self.calls.run(self._index.insert_nodes, list(nodes))

    async def delete(self, document_ids: Sequence[str]) -> None:
        """Delete all nodes of the documents; an unknown id is not an error."""
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
    """Delete the stored nodes of documents, in the cheapest way.

    Args:
        calls: The store.
        documents: The documents.
        nodes: Their new nodes; they may have had more before.
    """
    stale = {document.id_ for document in documents}
    stored = await calls.stored([node.node_id for node in nodes])
    if stored is not None:
        await calls.delete_nodes(sorted(stored))
        # Few documents are stored; only these may have had more nodes.
        stale -= {node.ref_doc_id for node in nodes if node.node_id not in stored}
    await calls.delete_documents(sorted(stale))
