"""The store of `stream_into`: it splits and embeds as its target does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoplay_rag import Chunk, Filter
from autoplay_rag.errors import MissingCapabilityError
from autoplay_rag.stores import (
    Capability,
    Changes,
    Match,
    StoreIdentity,
    TextStore,
    checked_changes,
)

from llama_index.readers.autoplay.contents import contents_of
from llama_index.readers.autoplay.embedder import LlamaIndexEmbedder
from llama_index.readers.autoplay.nodes import change_metadata, make_document, settle
from llama_index.readers.autoplay.searching import find
from llama_index.readers.autoplay.targets import Target
from llama_index.readers.autoplay.transforming import check_embedded, embed, transform

__all__ = ["TargetStore"]


class TargetStore(TextStore):
    """Write chunks as documents to an `IngestionPipeline` or a `VectorStoreIndex`.

    It can delete. It changes metadata and keeps an identity if `Contents` supports that. It cannot get
    or scan, because the text of a chunk cannot be restored from a splitter's nodes.

    Args:
        target: The target.
    """

    max_batch = 64
    """Small, because a failed batch is transformed and embedded again."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._contents = contents_of(target.calls, target.docstore)
        self.persistent = self._contents.persistent

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The operations beyond storing and searching that the target supports."""
        found: set[Capability] = {"delete", *self._contents.capabilities}
        return frozenset(found - {"get", "scan"})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self._target.calls.vector_store).__name__})"

    async def add(self, chunks: Sequence[Chunk]) -> None:
        """Split, embed and store; old nodes are deleted after the new ones are embedded.

        Raises:
            StoreRejectedError: If the vectors are invalid.
        """
        target = self._target
        documents = await target.new([make_document(c.id, c.text, c.metadata) for c in chunks])
        if not documents:
            return
        nodes = settle(await transform(documents, target.transformations))
        nodes = list(await embed(nodes, target.embed_model))
        check_embedded(nodes)
        await target.replace(documents, nodes)

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete documents; an unknown id is not an error."""
        await self._target.delete(ids)

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """Change the metadata of documents and of all their nodes, without embedding again.

        Raises:
            MissingCapabilityError: If the vector store cannot change metadata.
            StoreRejectedError: If a value has a type that no store accepts.
        """
        self._need("update_metadata")
        if not (wanted := checked_changes(changes)):
            return
        nodes = await self._contents.nodes(await self._contents.node_ids_of(list(wanted)))
        for node in nodes:
            change_metadata(node, wanted[str(node.ref_doc_id)])
        await self._contents.update(nodes)
        await self._target.note_changes(wanted)

    async def identity(self) -> StoreIdentity | None:
        """Return what `save_identity` saved; None if nothing was.

        Raises:
            MissingCapabilityError: If the vector store has no metadata of its own.
        """
        self._need("identity")
        return await self._contents.identity()

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Save the identity where no search finds it.

        Raises:
            MissingCapabilityError: If the vector store has no metadata of its own.
        """
        self._need("identity")
        await self._contents.save_identity(identity)

    async def count(self) -> int:
        """Return the number of stored nodes.

        Raises:
            StoreError: If the vector store cannot count.
        """
        return await self._target.calls.count()

    async def search(self, text: str, k: int, filter: Filter) -> list[Match]:
        """Return the best node of each chunk among the `k` best that pass the filter."""
        vector = await LlamaIndexEmbedder(self._target.embed_model).embed_query(text)
        return await find(self._target.calls, self._target.docstore, vector, k, filter)

    def _need(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            raise MissingCapabilityError(repr(self), capability)
