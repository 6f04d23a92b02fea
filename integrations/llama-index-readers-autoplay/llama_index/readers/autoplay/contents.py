"""Reads and changes the contents of a LlamaIndex vector store without embedding.

LlamaIndex has no common method to list nodes or to change their metadata. Two of its stores are
supported here; for others `get_nodes` is used if it is implemented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoplay_rag.stores import Capability, StoreIdentity
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from llama_index.readers.autoplay.calls import CHROMA, StoreCalls

__all__ = ["Contents", "contents_of", "text_of"]

_STORE_ID, _JOURNAL_ID, _BATCH = "autoplay_store_id", "autoplay_journal_id", "autoplay_batch"
_MODEL = "autoplay_model"


class Contents:
    """Any vector store.

    Attributes:
        capabilities: What can be done with the nodes beyond storing, searching and deleting:
            "get", "scan" (then `node_ids`), "update_metadata" (then `update` and `node_ids_of`)
            and "identity". Nothing else may be called.
        persistent: Whether the nodes outlive the process. False only where they surely do not
            and the store can count.
        refuses_zeros: Whether a vector of zeros would break searches: `SimpleVectorStore` divides
            by its length.

    Args:
        calls: The store.
        docstore: Where the nodes are, for stores that keep vectors alone.
    """

    persistent: bool = True
    refuses_zeros: bool = False

    def __init__(self, calls: StoreCalls, docstore: BaseDocumentStore | None) -> None:
        self._calls = calls
        self._docstore = docstore
        self.capabilities = self._find_capabilities()

    async def nodes(self, node_ids: Sequence[str]) -> list[BaseNode]:
        """Return the nodes with these ids, in any order; skip unknown ids."""
        if self._docstore is None or self._calls.vector_store.stores_text:
            # A docstore beside a store with texts may be younger than what that holds.
            return await self._own_nodes(node_ids)
        stored = await self._calls.stored(node_ids)
        found = [
            await self._docstore.aget_document(node_id, raise_error=False)
            for node_id in dict.fromkeys(node_ids)
            if stored is None or node_id in stored
        ]
        return [node for node in found if node is not None]

    async def node_ids(self) -> list[str]:
        """Return the ids of all nodes, including other nodes."""
        raise NotImplementedError

    async def node_ids_of(self, document_ids: Sequence[str]) -> list[str]:
        """Return the ids of all nodes of these documents."""
        raise NotImplementedError

    async def update(self, nodes: Sequence[BaseNode]) -> None:
        """Store the metadata of these nodes; texts and vectors do not change."""
        if self._docstore:
            await self._docstore.async_add_documents(nodes)

    async def identity(self) -> StoreIdentity | None:
        """Return what `save_identity` saved; None if nothing was."""
        raise NotImplementedError

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Save the identity in the store, where no search finds it."""
        raise NotImplementedError

    async def model(self) -> str:
        """Return the model that `save_model` saved; "" if none is known."""
        return ""

    async def save_model(self, model: str) -> None:
        """Save the model of the stored vectors, if the store can."""

    async def dimension(self) -> int | None:
        """Return the dimension of the stored vectors; None if it is not known."""
        return None

    async def renew(self) -> None:
        """Forget the dimension if nothing is stored."""

    async def reset(self) -> None:
        """Forget identity and model, and the dimension if nothing is stored."""

    def _find_capabilities(self) -> frozenset[Capability]:
        cls = type(self._calls.vector_store)
        overrides = any(
            getattr(cls, name) is not getattr(BasePydanticVectorStore, name)
            for name in ("get_nodes", "aget_nodes")
        )
        return frozenset({"get"}) if overrides else frozenset()

    async def _own_nodes(self, node_ids: Sequence[str]) -> list[BaseNode]:
        return await self._calls.get_nodes(node_ids) or []


class _InMemory(Contents):
    """`SimpleVectorStore`: vectors and metadata; the nodes are in a docstore, if anywhere."""

    persistent = False
    refuses_zeros = True

    async def node_ids(self) -> list[str]:
        return list(self._store.data.embedding_dict)

    async def node_ids_of(self, document_ids: Sequence[str]) -> list[str]:
        wanted = set(document_ids)
        owners = self._store.data.text_id_to_ref_doc_id
        return [node_id for node_id, owner in owners.items() if owner in wanted]

    async def update(self, nodes: Sequence[BaseNode]) -> None:
        for node in nodes:
            metadata = node_to_metadata_dict(node, remove_text=True, flat_metadata=False)
            metadata.pop("_node_content", None)
            self._store.data.metadata_dict[node.node_id] = metadata
        await super().update(nodes)

    async def dimension(self) -> int | None:
        vectors = self._store.data.embedding_dict.values()
        return next((len(vector) for vector in vectors), None)

    def _find_capabilities(self) -> frozenset[Capability]:
        if self._docstore is None:
            return frozenset()
        return frozenset({"get", "scan", "update_metadata"})

    @property
    def _store(self) -> SimpleVectorStore:
        store = self._calls.vector_store
        assert isinstance(store, SimpleVectorStore)
        return store


class _Chroma(Contents):
    """`ChromaVectorStore`: identity and model stand in the metadata of the collection."""

    def __init__(self, calls: StoreCalls, docstore: BaseDocumentStore | None) -> None:
        super().__init__(calls, docstore)
        # Chroma itself runs in this process, and keeps nothing on disk.
        settings = self._server.get_settings()
        remote = "fastapi" in settings.chroma_api_impl.lower()
        self.persistent = remote or bool(settings.is_persistent)
        self._dimension: tuple[Any, int] | None = None

    async def node_ids(self) -> list[str]:
        # All at once, 0.2 s for 100,000: pages by offset would skip nodes when others are
        # deleted during the scan.
        return list((await self._calls.run(self._get, None, []))["ids"])

    async def node_ids_of(self, document_ids: Sequence[str]) -> list[str]:
        owned = {"document_id": {"$in": list(document_ids)}}
        return list((await self._calls.run(self._get, None, [], owned))["ids"])

    async def update(self, nodes: Sequence[BaseNode]) -> None:
        if nodes:
            await self._calls.run(self._update, nodes)
        await super().update(nodes)

    async def identity(self) -> StoreIdentity | None:
        note = await self._calls.run(self._notes)
        if not note.get(_STORE_ID):
            return None
        return StoreIdentity(str(note[_STORE_ID]), str(note[_JOURNAL_ID]), int(note[_BATCH]))

    async def save_identity(self, identity: StoreIdentity) -> None:
        note = {
            _STORE_ID: identity.store_id,
            _JOURNAL_ID: identity.journal_id,
            _BATCH: identity.batch,
        }
        await self._calls.run(self._save_note, note)

    async def model(self) -> str:
        return str((await self._calls.run(self._notes)).get(_MODEL, ""))

    async def save_model(self, model: str) -> None:
        await self._calls.run(self._save_note, {_MODEL: model})

    async def dimension(self) -> int | None:
        # A collection's dimension never changes, once it is there.
        if self._dimension is None or self._dimension[0] != self._collection.id:
            found = (await self._calls.run(self._current)).dimension
            self._dimension = None if found is None else (self._collection.id, found)
        return self._dimension[1] if self._dimension else None

    async def renew(self) -> None:
        await self._calls.run(self._renew, False)

    async def reset(self) -> None:
        await self._calls.run(self._renew, True)

    def _find_capabilities(self) -> frozenset[Capability]:
        return frozenset({"get", "scan", "update_metadata", "identity"})

    async def _own_nodes(self, node_ids: Sequence[str]) -> list[BaseNode]:
        if not node_ids:
            return []
        ids = list(dict.fromkeys(node_ids))
        found = await self._calls.run(self._get, ids, ["documents", "metadatas"])
        rows = zip(found["documents"], found["metadatas"], strict=True)
        return [
            metadata_dict_to_node(metadata, text=text)
            for text, metadata in rows
            if metadata and "_node_content" in metadata  # others may keep rows of their own
        ]

    @property
    def _collection(self) -> Any:
        return self._calls.vector_store.client

    @property
    def _server(self) -> Any:
        return self._collection._client  # noqa: SLF001 - a collection has no public name for it

    def _get(
        self, ids: list[str] | None, include: list[str], where: dict[str, Any] | None = None
    ) -> Any:
        return self._collection.get(ids=ids, include=include, where=where)

    def _update(self, nodes: Sequence[BaseNode]) -> None:
        store: Any = self._calls.vector_store
        ids = [node.node_id for node in nodes]
        found = self._get(ids, ["metadatas"])
        before = dict(zip(found["ids"], found["metadatas"], strict=True))
        metadatas = {
            # Chroma merges: what is to go is set to None.
            node.node_id: dict.fromkeys(before[node.node_id] or {})
            | node_to_metadata_dict(node, remove_text=True, flat_metadata=store.flat_metadata)
            for node in nodes
            if node.node_id in before
        }
        if metadatas:
            self._collection.update(ids=list(metadatas), metadatas=list(metadatas.values()))

    def _current(self) -> Any:
        """The collection as of now: its object's own copy of the metadata may be old."""
        return self._server.get_collection(name=self._collection.name, **self._where)

    def _notes(self) -> dict[str, Any]:
        return dict(self._current().metadata or {})

    def _save_note(self, note: Mapping[str, str | int]) -> None:
        before = self._notes()
        if before != (metadata := before | dict(note)):
            self._set_notes(metadata)

    def _set_notes(self, metadata: dict[str, Any]) -> None:
        # `Collection.modify` refuses metadata with "hnsw:space" in it, even unchanged.
        self._server._modify(  # noqa: SLF001 - see above
            id=self._collection.id,
            # Chroma takes no empty metadata.
            new_metadata=metadata or {_STORE_ID: ""},
            **self._where,
        )

    def _renew(self, forget: bool) -> None:
        collection, current = self._collection, self._current()
        before = dict(current.metadata or {})
        ours = (_STORE_ID, _JOURNAL_ID, _BATCH, _MODEL)
        kept = {key: value for key, value in before.items() if not (forget and key in ours)}
        if collection.count() or current.dimension is None:
            if kept != before:
                self._set_notes(kept)
            return
        # An empty collection keeps its dimension, so it is created again, in the same object.
        configuration = {
            **collection.configuration_json,
            "embedding_function": collection._embedding_function,  # noqa: SLF001 - as it was given
        }
        configuration = {key: value for key, value in configuration.items() if value is not None}
        self._server.delete_collection(name=collection.name, **self._where)
        collection._model = self._server.create_collection(  # noqa: SLF001 - see above
            name=collection.name, configuration=configuration, metadata=kept or None, **self._where
        )

    @property
    def _where(self) -> dict[str, str]:
        return {"tenant": self._collection.tenant, "database": self._collection.database}


def contents_of(calls: StoreCalls, docstore: BaseDocumentStore | None) -> Contents:
    """Return the way to read and change a vector store."""
    if isinstance(calls.vector_store, SimpleVectorStore):
        return _InMemory(calls, docstore)
    if calls.vector_store.class_name() == CHROMA:
        return _Chroma(calls, docstore)
    return Contents(calls, docstore)


def text_of(node: BaseNode) -> str:
    """Return a node's text, without its metadata."""
    return node.get_content(metadata_mode=MetadataMode.NONE)
